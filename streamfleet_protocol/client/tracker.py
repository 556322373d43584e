"""Handles: each settles once, with the first word about it, or where no word can be had any more, with what is known.

A worker's word settles a handle. Without one it settles where its deadline is over on Redis's clock (TaskExpired, not
confirmed), after one more look at the receiver stream; where an audit finds the task nowhere (OutcomeUnknown); and
where the client closes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..effects import End, Settled
from ..machine import Shared
from ..settings import ClientSettings
from ..timing import NEVER
from ..wire import Notification, NotificationType
from .records import Outgoing, QueueOutbox

if TYPE_CHECKING:
    from .receiver import Receiver

_ENDS = {
    NotificationType.COMPLETED: End.COMPLETED,
    NotificationType.ERROR: End.FAILED,
    NotificationType.EXPIRED: End.EXPIRED,
    NotificationType.CANCELED: End.CANCELED,
}


@dataclass(slots=True)
class Handle:
    """One tracked task that has not settled. It keeps the task, to send it again if Redis loses it."""

    task: Outgoing
    queue: str
    number: int = 0
    """Of the batch that is confirmed to hold it; 0 = none."""
    entry_id: bytes = b""
    """Of its first entry; empty where it is not known, or where the task was delayed."""
    confirmed_at: int = NEVER


@dataclass(slots=True)
class Overdue:
    """A handle whose deadline is over: it settles when the receiver stream was read once more."""

    task_id: str
    peek: int
    give_up_at: int


class Tracker:
    """All handles of a client."""

    receiver: Receiver

    def __init__(self, shared: Shared, settings: ClientSettings) -> None:
        self.shared = shared
        self.settings = settings
        self.queue_names = ", ".join(settings.queues)
        self.handles: dict[str, Handle] = {}
        self.deadlines: list[tuple[int, str]] = []
        """Heap of (own time, task id). Of Redis's time the own time is only an estimate, and checked."""
        self.undated: list[str] = []
        """Handles with a deadline on Redis's clock, which is not known yet."""
        self.overdue: list[Overdue] = []
        self.audit_at = NEVER

    def open(self, queue: QueueOutbox, task: Outgoing) -> None:
        """A tracked task was accepted."""
        self.handles[task.task_id] = Handle(task, queue.keys.name)
        self.receiver.want()
        options = task.options
        if options.expires_in_ms:
            heapq.heappush(self.deadlines, (task.accepted_at + options.expires_in_ms, task.task_id))
        elif options.expires_ts:
            due = self.shared.clock.own(options.expires_ts)
            if due == NEVER:
                self.undated.append(task.task_id)
            else:
                heapq.heappush(self.deadlines, (max(0, due), task.task_id))

    def confirmed(self, now: int, task: Outgoing, number: int, entry_id: bytes) -> None:
        """The task is in Redis, in the batch with this number."""
        handle = self.handles.get(task.task_id)
        if handle is not None:
            handle.number = number
            handle.entry_id = entry_id if b"-" in entry_id else b""
            handle.confirmed_at = now

    def lost_above(self, queue: QueueOutbox, sequence: int) -> list[Outgoing]:
        """The tracked tasks of batches above `sequence`, which Redis has lost."""
        lost = []
        for handle in self.handles.values():
            if handle.queue == queue.keys.name and handle.number > sequence and handle.number:
                handle.number = 0
                handle.confirmed_at = NEVER
                lost.append(handle.task)
        return lost

    def word(self, now: int, notification: Notification) -> None:
        """A word about a task: the first settles the handle, later ones are dropped."""
        end = _ENDS[notification.type]
        result = notification.result if end is End.COMPLETED else None
        text = notification.error or ("a worker gave it up" if end is End.CANCELED else "")
        self.settle(notification.task_id, end, text, result)

    def settle(
        self, task_id: str, end: End, text: str = "", result: bytes | None = None, *, confirmed: bool = True
    ) -> None:
        """End a handle; does nothing where it has ended already."""
        handle = self.handles.pop(task_id, None)
        if handle is not None:
            handle.task.settled = True
            self.shared.effects.append(Settled(task_id, end, text, result, confirmed))

    def expired_unsent(self, task: Outgoing) -> None:
        """The task's time was over when its turn came. If it was sent before, a word may be there: look once more."""
        if not task.written:
            self.settle(task.task_id, End.EXPIRED)

    def audit_soon(self, now: int) -> None:
        """Words or tasks may be lost: audit, after a grace for words that are under way."""
        self.audit_at = min(self.audit_at, now + self.settings.audit_grace_ms)

    # Deadlines.

    def due_at(self) -> int:
        """When a deadline is over, or one that is over is to be given up waiting for."""
        due = self.deadlines[0][0] if self.deadlines else NEVER
        for overdue in self.overdue:
            due = min(due, overdue.give_up_at)
        return due

    def on_time(self, now: int) -> None:
        """Settle what is over and was looked for once more."""
        if self.undated and self.shared.clock.offset_ms is not None:
            for task_id in self.undated:
                due = self.shared.clock.own(self.handles[task_id].task.options.expires_ts)
                heapq.heappush(self.deadlines, (max(0, due), task_id))
            self.undated.clear()
        while self.deadlines and self.deadlines[0][0] <= now:
            self._over(now, heapq.heappop(self.deadlines)[1])
        if self.overdue:
            self._settle_overdue(now)

    def _over(self, now: int, task_id: str) -> None:
        handle = self.handles.get(task_id)
        if handle is None:
            return
        task = handle.task
        redis_due = task.expires_ts or task.options.expires_ts
        due = self.shared.clock.own(redis_due) if redis_due else now
        if due > now:
            # Redis's clock was set back since the estimate, or is not known any more: estimate again.
            heapq.heappush(self.deadlines, (min(due, now + self.settings.heartbeat_ms), task_id))
            return
        if not task.written:
            self.settle(task_id, End.EXPIRED, confirmed=True)
            return
        self.overdue.append(Overdue(task_id, self.receiver.peek(), now + self.settings.deadline_wait_ms))

    def _settle_overdue(self, now: int) -> None:
        waiting = []
        for overdue in self.overdue:
            if overdue.peek <= self.receiver.peeks_done or now >= overdue.give_up_at:
                self.settle(overdue.task_id, End.EXPIRED, confirmed=False)
            elif overdue.task_id in self.handles:
                waiting.append(overdue)
        self.overdue = waiting
