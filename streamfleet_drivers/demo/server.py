"""What the demo asks of the Redis it runs on, apart from the queue: is it there, which is it, and is it clean again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamfleet_protocol.keys import queue_keys, receiver_key

_TIMEOUT = 5.0


@contextlib.contextmanager
def _connection(url: str) -> Iterator[redis.Redis]:
    """A connection that tries once."""
    client = redis.Redis.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
    )
    with contextlib.closing(client):
        yield client


def describe(url: str) -> str:
    """Name, version and address of the server. Raises redis.RedisError where it does not answer, or refuses."""
    parts = urlsplit(url)
    address = f"{parts.hostname or ''}:{parts.port or 6379}" if parts.scheme != "unix" else parts.path
    with _connection(url) as client:
        client.ping()
        try:
            info = client.info("server")
        except redis.exceptions.NoPermissionError:
            return f"a server at {address}"
        if "valkey_version" in info:
            return f"Valkey {info['valkey_version']} at {address}"
        return f"Redis {info['redis_version']} at {address}"


def tasks_in(url: str, queue: str) -> int:
    """How many tasks the queue holds. Raises redis.RedisError."""
    keys = queue_keys(queue)
    with _connection(url) as client:
        return int(client.xlen(keys.stream)) + int(client.zcard(keys.delayed))


def remove_keys(url: str, queue: str, client_id: str) -> None:
    """Delete every key that a queue and its one client may have. Raises redis.RedisError."""
    keys = queue_keys(queue)
    names = (
        keys.stream,
        keys.receivers,
        keys.producers,
        keys.fence,
        keys.dead,
        keys.delayed,
        keys.promotions,
        keys.verdicts,
        keys.connection(client_id),
        receiver_key(client_id),
    )
    with _connection(url) as client:
        for name in names:
            client.delete(name)
