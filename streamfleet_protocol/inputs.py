"""Everything that can be fed to a machine. Frozen, so that a trace of inputs can be kept and replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .effects import Lane
from .replies import ErrorReply, RawReply


@dataclass(frozen=True, slots=True)
class Timeout:
    """Time has passed. May come too often: the machine then does nothing."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The lane's connection stands and is authenticated."""

    lane: Lane
    generation: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection was lost or could not be opened. `error` is the server's or the system's own text."""

    lane: Lane
    generation: int
    error: ErrorReply


@dataclass(frozen=True, slots=True)
class Reply:
    """All replies of the batch with this token."""

    token: int
    replies: tuple[RawReply, ...] | list[RawReply]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How a task is to be treated; one object may serve many tasks. Times in ms."""

    max_retries: int | None = None
    """None = until success, 0 = never."""
    retry_delay_ms: int = 1000
    retry_backoff: float = 2.0
    retry_delay_max_ms: int = 300_000
    delay_ms: int = 0
    due_ts: int = 0
    """Unix ms before which the task is not run; 0 = none."""
    expires_in_ms: int = 0
    """Counted from the acceptance; 0 = never."""
    expires_ts: int = 0
    """Unix ms; 0 = never."""


@dataclass(frozen=True, slots=True)
class Enqueue:
    """An enqueue call. `task_ids` are fresh UUIDs (version 7), one for each of `data`."""

    call: int
    queue: str
    task_ids: tuple[str, ...]
    data: tuple[bytes, ...]
    options: TaskOptions
    tracked: bool
    wait: bool
    """False: all or none, at once."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The caller of an enqueue call waits no longer: what is not yet accepted never will be."""

    call: int


@dataclass(frozen=True, slots=True)
class Flush:
    """Tell when all that is accepted so far is confirmed."""

    call: int


@dataclass(frozen=True, slots=True)
class CloseClient:
    """Confirm what is accepted within the time, then end."""

    timeout_ms: int


@dataclass(frozen=True, slots=True)
class StartServer:
    """Begin to consume."""


@dataclass(frozen=True, slots=True)
class CloseServer:
    """Read no more, let handlers finish within the grace, hand back the rest, then end."""

    grace_ms: int


class HandlerSucceeded(NamedTuple):
    """A handler returned."""

    run: int
    result: bytes | None = None


@dataclass(frozen=True, slots=True)
class HandlerFailed:
    """A handler raised. `text` is the type and the message of what it raised."""

    run: int
    text: str


@dataclass(frozen=True, slots=True)
class HandlerCanceled:
    """A handler stopped because it was asked to."""

    run: int


@dataclass(frozen=True, slots=True)
class HandlerAsksRetry:
    """A handler raised Retry. `delay_ms` None: the task's own delay."""

    run: int
    delay_ms: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class HandlerRejects:
    """A handler raised Reject."""

    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class Several:
    """Calls of the application, or answers of handlers, of one moment; taken in order, as one step.

    Many handlers that end together then cost one step, not many.
    """

    inputs: tuple[Any, ...]


HandlerDone = HandlerSucceeded | HandlerFailed | HandlerCanceled | HandlerAsksRetry | HandlerRejects
CommonInput = Timeout | Connected | Disconnected | Reply | Several
ClientInput = CommonInput | Enqueue | Withdraw | Flush | CloseClient
ServerInput = CommonInput | StartServer | CloseServer | HandlerDone
