"""Facts for people: what happened that is not an answer to a call. They go to the user's callback and to the log.

`level` is a level of the standard `logging` module by its number; `template` becomes the log line.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

_INFO = 20
_WARNING = 30
_ERROR = 40


@dataclass(frozen=True, slots=True)
class Note:
    """Base of all notes."""

    level: ClassVar[int] = _INFO
    template: ClassVar[str] = ""

    def __str__(self) -> str:
        return self.template.format(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class ConnectionDown(Note):
    """A connection was lost or could not be opened."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "{lane} connection down: {reason}; next attempt in {retry_in_ms} ms"
    lane: str
    reason: str
    retry_in_ms: int


@dataclass(frozen=True, slots=True)
class Reconnected(Note):
    """A lost connection stands again."""

    template: ClassVar[str] = "{lane} connection stands again after {down_ms} ms"
    lane: str
    down_ms: int


@dataclass(frozen=True, slots=True)
class OperationRefused(Note):
    """Redis refuses an operation for now; it is repeated with back-off."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "{operation} refused: {reason}; trying again"
    operation: str
    reason: str


@dataclass(frozen=True, slots=True)
class DataLossSeen(Note):
    """Redis has lost data that it had confirmed. `what` names it, `repaired` tasks are sent again."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "Redis has lost data of queue {queue!r} ({what}); {repaired} tasks are sent again"
    queue: str
    what: str
    repaired: int


@dataclass(frozen=True, slots=True)
class RetentionCut(Note):
    """Confirmed tasks are kept for less than the retention time, since their bytes would pass its bound."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = (
        "confirmed tasks of {queue!r} are kept for only {kept_ms} ms: the bound in bytes is reached"
    )
    queue: str
    kept_ms: int


@dataclass(frozen=True, slots=True)
class ExpiredUnsent(Note):
    """A task nobody tracks expired before it could be sent."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "task {task_id} of {queue!r} expired before it could be sent"
    queue: str
    task_id: str


@dataclass(frozen=True, slots=True)
class BadNotification(Note):
    """A notification that cannot be decoded was dropped."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "a notification was dropped: {reason}"
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseLost(Note):
    """Another worker has the task now, or it is gone: its handler is canceled, and a failure of it is dropped."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "lease of task {task_id} of {queue!r} lost: {reason}"
    queue: str
    task_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskClaimed(Note):
    """An entry was taken over from a worker that has been silent for a whole lease."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "entry {entry_id} of {queue!r} claimed from {owner}, delivery {deliveries}"
    queue: str
    entry_id: str
    owner: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class TaskAdopted(Note):
    """An entry that was this worker's, or nobody's, without its knowing is now known."""

    template: ClassVar[str] = "entry {entry_id} of {queue!r} adopted: {reason}"
    queue: str
    entry_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskRetried(Note):
    """A failed task will be tried again."""

    template: ClassVar[str] = "task {task_id} of {queue!r} failed in attempt {attempt}, next in {delay_ms} ms: {reason}"
    queue: str
    task_id: str
    attempt: int
    delay_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDeadLettered(Note):
    """A task went to the dead letters; this ends it."""

    level: ClassVar[int] = _ERROR
    template: ClassVar[str] = "task {task_id} of {queue!r} dead-lettered: {reason}"
    queue: str
    task_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskHasExpired(Note):
    """A task's time ran out before it was started; this ends it."""

    template: ClassVar[str] = "task {task_id} of {queue!r} expired before it was started"
    queue: str
    task_id: str


@dataclass(frozen=True, slots=True)
class TaskHandedBack(Note):
    """An unfinished task was put back for any worker, at close."""

    template: ClassVar[str] = "task {task_id} of {queue!r} handed back"
    queue: str
    task_id: str


@dataclass(frozen=True, slots=True)
class TaskReleased(Note):
    """A task's ending found the entry settled or taken by another: nothing was done about it here."""

    template: ClassVar[str] = "task {task_id} of {queue!r} was no longer ours to end: {reason}"
    queue: str
    task_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stalled(Note):
    """The program did not run its event loop for longer than a renewal; leases are looked at before more is started."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "the program stood still for {stalled_ms} ms, longer than a lease renewal; looking first"
    stalled_ms: int


@dataclass(frozen=True, slots=True)
class RiskySetting(Note):
    """The server's configuration endangers tasks."""

    level: ClassVar[int] = _WARNING
    template: ClassVar[str] = "the server's {name} is {value}: {danger}"
    name: str
    value: str
    danger: str


@dataclass(frozen=True, slots=True)
class GarbageCollected(Note):
    """What a dead client or consumer left was removed."""

    template: ClassVar[str] = "{kind} {name!r} of {queue!r} collected"
    queue: str
    kind: str
    name: str
