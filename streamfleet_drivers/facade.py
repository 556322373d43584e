"""What the drivers' public classes share: the task as a handler sees it, outcomes as results, notes to the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from streamfleet_protocol.effects import ClientClosed, End, Rejected, Rejection, Settled, StartHandler
from streamfleet_protocol.errors import (
    Closed,
    InvalidOption,
    OutcomeUnknown,
    QueueFull,
    Reject,
    Retry,
    StreamfleetError,
    TaskCanceled,
    TaskError,
    TaskExpired,
    TaskFailed,
    UnknownQueue,
)
from streamfleet_protocol.inputs import (
    HandlerAsksRetry,
    HandlerDone,
    HandlerFailed,
    HandlerRejects,
    HandlerSucceeded,
)
from streamfleet_protocol.notes import Note
from streamfleet_protocol.replies import refusal
from streamfleet_protocol.wire import TaskEntry

from .options import duration_ms

logger = logging.getLogger("streamfleet")

OnEvent = Callable[[Note], None]


class Task:
    """A task as its handler sees it."""

    __slots__ = ("_canceled", "_entry", "cancel_reason", "deliveries", "entry_id", "queue")

    def __init__(self, start: StartHandler) -> None:
        self._entry: TaskEntry = start.entry
        self._canceled = False
        self.queue = start.queue
        self.entry_id = start.entry_id.decode("ascii", "replace")
        """Id of its entry in the stream; a retry has another."""
        self.deliveries = start.deliveries
        """How often this entry was delivered: a fencing number for systems outside; it rises with each takeover."""
        self.cancel_reason = ""

    @property
    def id(self) -> str:
        """The task's id, the same in every attempt."""
        return self._entry.task_id

    @property
    def data(self) -> bytes:
        """What was enqueued."""
        return self._entry.data

    @property
    def text(self) -> str:
        """`data` as UTF-8 text. Raises UnicodeDecodeError."""
        return self._entry.data.decode()

    @property
    def attempt(self) -> int:
        """1 for the first attempt, one more with each retry."""
        return self._entry.retries + 1

    @property
    def max_retries(self) -> int | None:
        """How often it may be retried; None = until success."""
        return 0 if self._entry.no_retry else self._entry.max_retries or None

    @property
    def deadline(self) -> datetime | None:
        """After this moment of Redis's clock it is not started any more."""
        ts = self._entry.expires_ts
        return datetime.fromtimestamp(ts / 1000, UTC) if ts else None

    @property
    def client_id(self) -> str:
        """Who enqueued it."""
        return self._entry.client_id

    @property
    def canceled(self) -> bool:
        """The handler should stop: its time is over, the lease was lost, or the server closes (`cancel_reason`).

        A handler in a thread cannot be stopped from outside; a long one looks at this now and then.
        """
        return self._canceled

    def _cancel(self, reason: str) -> None:
        self._canceled = True
        self.cancel_reason = reason

    def __repr__(self) -> str:
        return f"<Task {self.id} of {self.queue!r}, attempt {self.attempt}>"


@dataclass(frozen=True, slots=True)
class CloseReport:
    """What became of the accepted tasks when a client was closed."""

    confirmed: int
    """Tasks that Redis has confirmed, over the client's whole life."""
    unsent: tuple[str, ...]
    """Ids of tasks that were never sent."""
    unknown: tuple[str, ...]
    """Ids of tasks that were sent, and not confirmed."""


def close_report(closed: ClientClosed) -> CloseReport:
    """The report, which is also told to the log where something is left."""
    if closed.unsent or closed.unknown:
        logger.warning("client closed with %d tasks unsent and %d unconfirmed", len(closed.unsent), len(closed.unknown))
    return CloseReport(closed.confirmed, closed.unsent, closed.unknown)


def rejection_error(rejected: Rejected) -> StreamfleetError:
    """The exception for an enqueue call that ended early; `accepted` says how many tasks are in."""
    kind = _REJECTIONS.get(rejected.rejection, StreamfleetError)
    error = kind(rejected.detail) if rejected.error is None else refusal(rejected.error)
    error.accepted = rejected.accepted
    return error


def settled_result(settled: Settled) -> bytes | None:
    """The handler's result; or the exception that says how else the task ended."""
    error: TaskError
    if settled.end is End.COMPLETED:
        return settled.result
    if settled.end is End.FAILED:
        error = TaskFailed(settled.task_id, settled.text)
    elif settled.end is End.EXPIRED:
        error = TaskExpired(settled.task_id, settled.confirmed)
    elif settled.end is End.CANCELED:
        error = TaskCanceled(settled.task_id, settled.text)
    else:
        error = OutcomeUnknown(settled.task_id, settled.text)
    raise error


def returned(run: int, task: Task, result: object) -> HandlerDone:
    """What a handler's return value means."""
    if result is None or isinstance(result, bytes):
        return HandlerSucceeded(run, result)
    if isinstance(result, str):
        return HandlerSucceeded(run, result.encode())
    if isinstance(result, bytearray | memoryview):
        return HandlerSucceeded(run, bytes(result))
    if not task._entry.send_notif:
        return HandlerSucceeded(run)
    # It has done its work, so it is not run again; but nobody can be told what it returned.
    kind = type(result).__name__
    return HandlerRejects(run, f"the handler of {task.queue!r} returned {kind}; a result is bytes, str or None")


def raised(run: int, task: Task, error: BaseException) -> HandlerDone:
    """What a handler's exception means. The log has its traceback, which never goes over the wire."""
    if isinstance(error, Retry):
        try:
            delay = None if error.delay is None else duration_ms("the delay of Retry", error.delay)
        except InvalidOption as wrong:
            return HandlerFailed(run, str(wrong))
        return HandlerAsksRetry(run, delay, error.reason)
    if isinstance(error, Reject):
        return HandlerRejects(run, error.reason)
    logger.warning("the handler of %r failed on task %s", task.queue, task.id, exc_info=error)
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    name = type(error).__name__
    return HandlerFailed(run, f"{name}: {message}" if message else name)


def tell(note: Note, on_event: OnEvent | None) -> None:
    """A note goes to the log `streamfleet`, and to the user's callback, whose own errors change nothing."""
    logger.log(note.level, "%s", note)
    if on_event is not None:
        try:
            on_event(note)
        except Exception:
            logger.exception("the on_event callback failed on %r", note)


_REJECTIONS: dict[Rejection, type[StreamfleetError]] = {
    Rejection.UNKNOWN_QUEUE: UnknownQueue,
    Rejection.QUEUE_FULL: QueueFull,
    Rejection.TOO_LARGE: InvalidOption,
    Rejection.CLOSED: Closed,
}
