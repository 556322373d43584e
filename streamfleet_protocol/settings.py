"""Settings with their default values; durations in ms. Each checks itself and its relations when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidOption, NoQueues
from .keys import check_queue_name

_MIB = 1024 * 1024
_DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of a client machine."""

    queues: tuple[str, ...]
    client_id: str
    """Fresh for each process (UUID, version 7)."""
    seed: int
    """64 random bits; all chance of this machine comes from it."""
    max_local_queue: int = 10_000
    """Tasks accepted and not yet confirmed."""
    max_local_bytes: int = 64 * _MIB
    """Payload bytes of these."""
    retention_ms: int = 30_000
    """How long a confirmed task that nobody tracks is kept, to be sent again if Redis loses it."""
    retention_bytes: int = 64 * _MIB
    heartbeat_ms: int = 10_000
    batch_commands: int = 256
    batch_bytes: int = _MIB
    command_timeout_ms: int = 3_000
    connect_timeout_ms: int = 5_000
    block_ms: int = 5_000
    read_margin_ms: int = 2_000
    """A blocked read that is not answered this long after its BLOCK is given up: BLOCK runs on the server's clock."""
    backoff_least_ms: int = 50
    backoff_most_ms: int = 5_000
    reconnect_audit_ms: int = 30_000
    """After a reconnect, the handles are audited this much later."""
    audit_interval_ms: int = 600_000
    """Handles older than this are audited this often."""
    audit_grace_ms: int = 30_000
    deadline_wait_ms: int = 60_000
    """How long an expired handle waits for one more look at its receiver stream."""
    silence_ms: int = 600_000
    """A client that shows no life for this long is collected."""
    producer_silence_ms: int = _DAY_MS
    """Its entry among the producers only after this: without it a client that lives on sends again what it holds."""
    collect_interval_ms: int = 60_000

    def __post_init__(self) -> None:
        _check_queues(self.queues, "a client needs at least one queue: Client(url, queues=['messages'])")
        _positive(self, "max_local_queue", "max_local_bytes", "heartbeat_ms", "batch_commands", "batch_bytes")
        _positive(self, "command_timeout_ms", "connect_timeout_ms", "block_ms", "backoff_least_ms", "backoff_most_ms")
        _positive(self, "collect_interval_ms", "silence_ms", "producer_silence_ms", "audit_interval_ms")
        _not_negative(self, "retention_ms", "retention_bytes")
        if self.retention_ms and self.heartbeat_ms * 3 > self.retention_ms:
            raise InvalidOption(
                f"retention is {self.retention_ms} ms; it must be 0 or at least three heartbeats "
                f"({3 * self.heartbeat_ms} ms), or a loss would be seen after the tasks are dropped"
            )


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """One queue that a server serves."""

    name: str
    timeout_ms: int = 0
    """A handler that runs for longer is canceled, which counts as a failure; 0 = no limit."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a server machine."""

    queues: tuple[QueueSettings, ...]
    consumer: str
    """`<server_id>:<random per start>`: two processes with one id don't share a lease."""
    seed: int
    concurrency: int = 1
    prefetch: int | None = None
    """Tasks held beyond those that run; None = about 50 ms of work by the handlers' measured duration."""
    prefetch_most: int = 500
    prefetch_work_ms: int = 50
    lease_ms: int = 60_000
    renew_interval_ms: int = 10_000
    max_deliveries: int = 10
    """An entry delivered more often than this is dead-lettered instead of being run: it kills its workers."""
    dead_letters_max: int = 0
    """About how many dead letters are kept in a queue; 0 = all."""
    command_timeout_ms: int = 3_000
    connect_timeout_ms: int = 5_000
    block_ms: int = 5_000
    read_margin_ms: int = 2_000
    backoff_least_ms: int = 50
    backoff_most_ms: int = 5_000
    page: int = 500
    """Entries of one page of a look."""
    batch: int = 256
    """Entries settled, concluded, claimed or promoted in one go."""
    batch_bytes: int = _MIB
    promote_interval_ms: int = 2_000
    sweep_interval_ms: int = 300_000
    silence_ms: int = 600_000
    producer_silence_ms: int = _DAY_MS
    collect_interval_ms: int = 60_000
    consumer_silence_ms: int = _DAY_MS
    cancel_wait_ms: int = 5_000
    """At close, after the grace: how long a canceled handler may take to stop before its task is handed back anyway."""
    finish_timeout_ms: int = 5_000
    """At close, after the handlers: how long Redis is given to take back what is unfinished."""

    def __post_init__(self) -> None:
        names = tuple(queue.name for queue in self.queues)
        _check_queues(names, "a server needs at least one handler before it starts: @server.handler('messages')")
        _positive(self, "concurrency", "lease_ms", "renew_interval_ms", "max_deliveries", "command_timeout_ms")
        _positive(self, "connect_timeout_ms", "block_ms", "backoff_least_ms", "backoff_most_ms", "page", "batch")
        _positive(self, "prefetch_most", "prefetch_work_ms", "promote_interval_ms", "sweep_interval_ms")
        _positive(self, "silence_ms", "producer_silence_ms", "collect_interval_ms", "consumer_silence_ms")
        _positive(self, "finish_timeout_ms")
        _not_negative(self, "dead_letters_max", "cancel_wait_ms")
        if self.prefetch is not None:
            _not_negative(self, "prefetch")
        if not self.consumer:
            raise InvalidOption("server_id is empty: give each worker machine a name, its host name for example")
        self._check_relations()

    def _check_relations(self) -> None:
        """The relations under which no healthy owner can be robbed (searched: protocol findings 2, 4d)."""
        renew = self.renew_interval_ms
        if renew * 4 > self.lease_ms:
            raise InvalidOption(
                f"renew_interval is {renew} ms and lease {self.lease_ms} ms: the interval must be at most a quarter "
                "of the lease, so that one lost renewal is no lost lease"
            )
        if self.command_timeout_ms * 3 > renew:
            raise InvalidOption(
                f"the command timeout is {self.command_timeout_ms} ms: it must be at most a third of renew_interval, "
                f"{renew} ms"
            )

    @property
    def command_backoff_most_ms(self) -> int:
        """Back-off on the command lane; more than half a renewal interval would endanger leases."""
        return max(1, min(self.backoff_most_ms, self.renew_interval_ms // 2))

    @property
    def stamp_tolerance_ms(self) -> int:
        """Two delivery times nearer than this are the same."""
        return max(1, min(50, self.renew_interval_ms // 4 - 1))


def _check_queues(names: tuple[str, ...], none: str) -> None:
    if not names:
        raise NoQueues(none)
    for name in names:
        check_queue_name(name)
    if len(set(names)) != len(names):
        raise InvalidOption(f"a queue is named twice: {', '.join(sorted(names))}")


def _positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidOption(f"{_shown(name)} is {value!r}: a whole number of at least 1 is needed")


def _not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidOption(f"{_shown(name)} is {value!r}: a whole number of at least 0 is needed")


def _shown(name: str) -> str:
    return f"{name.removesuffix('_ms')} (in ms)" if name.endswith("_ms") else name
