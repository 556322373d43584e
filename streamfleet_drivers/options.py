"""From the arguments of people (seconds, timedelta, datetime, str) to the settings of the machines (ms, bytes)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypedDict

from streamfleet_protocol.errors import InvalidOption, NoQueues
from streamfleet_protocol.inputs import TaskOptions
from streamfleet_protocol.settings import ClientSettings, QueueSettings, ServerSettings

from . import identity

Duration = float | timedelta
"""Seconds, or a timedelta."""
Moment = float | datetime
"""A Unix time in seconds, or a datetime with a time zone."""

_LONGEST_MS = 100 * 365 * 24 * 3600 * 1000


class Options(TypedDict, total=False):
    """Options of a task, the same for each way to enqueue.

    max_retries: how often a failed task is tried again; None (the default) = until it succeeds, 0 = never.
    delay, at: it is not run before this time from now, or before this moment.
    retry_delay: before the first retry (default 1 s), with jitter on its upper half; 0 = at once.
    retry_backoff: factor from one delay to the next (default 2.0).
    retry_delay_max: no delay is longer (default 300 s).
    expires_in, expires_at: it is not started after this time from now, or after this moment.
    """

    max_retries: int | None
    delay: Duration
    at: Moment
    retry_delay: Duration
    retry_backoff: float
    retry_delay_max: Duration
    expires_in: Duration
    expires_at: Moment


class ClientOptions(TypedDict, total=False):
    """Settings of a client beyond url, queues and on_event.

    max_local_queue, max_local_bytes: bounds of what is accepted and not yet confirmed (10,000 tasks, 64 MiB).
    retention: how long a confirmed task that nobody tracks is kept, to be sent again if Redis loses it (30 s).
    retention_bytes: bound of what is kept so (64 MiB).
    heartbeat: time between signs of life (10 s).
    command_timeout, connect_timeout, block: see the guide (3 s, 5 s, 5 s).
    silence: a client without a sign of life for this long is collected (10 min).
    """

    client_id: str
    seed: int
    max_local_queue: int
    max_local_bytes: int
    retention: Duration
    retention_bytes: int
    heartbeat: Duration
    command_timeout: Duration
    connect_timeout: Duration
    block: Duration
    silence: Duration


class ServerOptions(TypedDict, total=False):
    """Settings of a server beyond url and on_event.

    server_id: the worker machine's name (its host name).
    concurrency: how many handlers run at once (1).
    prefetch: tasks held beyond those that run; None = about 50 ms of work, by the measured duration.
    lease: a worker that shows no life for this long loses its tasks (60 s).
    renew_interval: how often it shows life; at most a quarter of the lease (10 s).
    max_deliveries: an entry delivered more often is dead-lettered (10).
    dead_letters_max: about how many dead letters a queue keeps (all).
    grace: how long handlers may go on at close (30 s).
    command_timeout, connect_timeout, block: see the guide (3 s or a third of renew_interval, 5 s, 5 s).
    silence: a client without a sign of life for this long is collected (10 min).
    """

    server_id: str
    seed: int
    concurrency: int
    prefetch: int | None
    lease: Duration
    renew_interval: Duration
    max_deliveries: int
    dead_letters_max: int
    command_timeout: Duration
    connect_timeout: Duration
    block: Duration
    silence: Duration


def client_settings(queues: Iterable[str], options: ClientOptions) -> ClientSettings:
    """Raises InvalidOption, InvalidQueueName or NoQueues."""
    if isinstance(queues, str):
        raise InvalidOption(f"queues is the text {queues!r}; a list of names was expected: queues=[{queues!r}]")
    values = _in_ms(options, "retention", "heartbeat", "command_timeout", "connect_timeout", "block", "silence")
    values.setdefault("client_id", identity.uuid7())
    values.setdefault("seed", identity.seed())
    if "retention_ms" in values and "heartbeat_ms" not in values and values["retention_ms"]:
        values["heartbeat_ms"] = max(1, min(10_000, values["retention_ms"] // 3))
    return ClientSettings(queues=tuple(queues), **values)


def server_settings(queues: dict[str, Duration | None], options: ServerOptions) -> ServerSettings:
    """Raises InvalidOption, InvalidQueueName or NoQueues."""
    if not queues:
        raise NoQueues("a server needs at least one handler before it starts: @server.handler('messages')")
    values = _in_ms(options, "lease", "renew_interval", "command_timeout", "connect_timeout", "block", "silence")
    server_id = values.pop("server_id", None) or identity.host_name()
    values.setdefault("seed", identity.seed())
    if "lease_ms" in values and "renew_interval_ms" not in values:
        values["renew_interval_ms"] = max(1, min(10_000, values["lease_ms"] // 4))
    renew = values.get("renew_interval_ms", 10_000)
    values.setdefault("command_timeout_ms", max(1, min(3_000, renew // 3)))
    served = tuple(
        QueueSettings(name, 0 if timeout is None else duration_ms("timeout", timeout, least=1))
        for name, timeout in queues.items()
    )
    return ServerSettings(queues=served, consumer=identity.consumer_name(server_id), **values)


def task_options(options: Options) -> TaskOptions:
    """Raises InvalidOption, naming the option that is wrong."""
    unknown = set(options) - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown task option {sorted(unknown)[0]!r}; there are {', '.join(Options.__annotations__)}")
    if not options:
        return _DEFAULT_OPTIONS
    if "delay" in options and "at" in options:
        raise InvalidOption("give delay or at, not both")
    if "expires_in" in options and "expires_at" in options:
        raise InvalidOption("give expires_in or expires_at, not both")
    max_retries = options.get("max_retries")
    if max_retries is not None and (not isinstance(max_retries, int) or not 0 <= max_retries < 2**63):
        raise InvalidOption(f"max_retries is {max_retries!r}: None (until success) or a whole number from 0")
    backoff = options.get("retry_backoff", 2.0)
    if not isinstance(backoff, int | float) or not 1.0 <= backoff <= 1000.0:
        raise InvalidOption(f"retry_backoff is {backoff!r}: a factor from 1.0 to 1000.0 was expected")
    return TaskOptions(
        max_retries=max_retries,
        retry_delay_ms=duration_ms("retry_delay", options.get("retry_delay", 1.0)),
        retry_backoff=float(backoff),
        retry_delay_max_ms=duration_ms("retry_delay_max", options.get("retry_delay_max", 300.0), least=1),
        delay_ms=duration_ms("delay", options.get("delay", 0.0)),
        due_ts=moment_ms("at", options["at"]) if "at" in options else 0,
        expires_in_ms=duration_ms("expires_in", options["expires_in"], least=1) if "expires_in" in options else 0,
        expires_ts=moment_ms("expires_at", options["expires_at"]) if "expires_at" in options else 0,
    )


def payload(data: bytes | bytearray | memoryview | str) -> bytes:
    """The task's bytes; text becomes UTF-8."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise InvalidOption(f"a task's data is bytes or str, not {type(data).__name__}: encode it, as JSON for example")


def duration_ms(name: str, value: Duration, *, least: int = 0) -> int:
    """A duration in whole ms, rounded up. Raises InvalidOption."""
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        raise InvalidOption(f"{name} is {value!r}: a number of seconds or a timedelta was expected")
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not seconds * 1000 <= _LONGEST_MS:
        raise InvalidOption(f"{name} is {value!r}: at most 100 years were expected")
    milliseconds = -int(-seconds * 1000 // 1)
    if milliseconds < least:
        expected = "more than 0 seconds" if least else "0 seconds or more"
        raise InvalidOption(f"{name} is {value!r}: {expected} were expected")
    return milliseconds


def moment_ms(name: str, value: Moment) -> int:
    """A moment as Unix time in whole ms. Raises InvalidOption."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidOption(f"{name} is {value!r}, which has no time zone: use datetime.now(timezone.utc) + ...")
        value = value.timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**43:
        raise InvalidOption(f"{name} is {value!r}: a Unix time in seconds or a datetime with a time zone was expected")
    return int(value * 1000)


def _in_ms(options: Any, *durations: str) -> dict[str, Any]:
    values: dict[str, Any] = dict(options)
    for name in durations:
        if name in values:
            values[f"{name}_ms"] = duration_ms(name, values.pop(name))
    return values


_DEFAULT_OPTIONS = TaskOptions()
