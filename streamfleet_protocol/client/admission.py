"""What goes into the local queue, when, and when it has all gone out: bounds, waiting calls, flushes.

A call's tasks are accepted in order. A call that waits gets room in the order of the calls, so that none starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..effects import Accepted, Flushed, Rejected, Rejection
from ..errors import one_of
from ..inputs import Enqueue
from ..machine import Shared
from ..settings import ClientSettings
from ..timing import NEVER
from .records import Outgoing, QueueOutbox

if TYPE_CHECKING:
    from .tracker import Tracker


@dataclass(slots=True)
class Waiting:
    """An enqueue call that waits for room; its first `accepted` tasks are in."""

    request: Enqueue
    accepted: int = 0


class Admission:
    """The way into the local queue."""

    def __init__(
        self, shared: Shared, settings: ClientSettings, queues: dict[str, QueueOutbox], tracker: Tracker
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = queues
        self.tracker = tracker
        self.closed = False
        self.ended = False
        self.calls: deque[Waiting] = deque()
        self.flushes: deque[tuple[int, int]] = deque()
        """(call, ordinal of the last task it waits for)."""
        self.ordinal = 0
        self.tasks = 0
        """Accepted and not yet confirmed."""
        self.bytes = 0

    def enqueue(self, now: int, request: Enqueue) -> None:
        """Accept the call's tasks, or make it wait, or reject it."""
        rejection = self._rejection(request)
        if rejection is not None:
            self.shared.effects.append(rejection)
            return
        accepted = 0 if self.calls else self._accept(now, request, 0)
        if accepted < len(request.data) or self.calls:
            self.calls.append(Waiting(request, accepted))

    def admit(self, now: int) -> None:
        """Accept what there is room for."""
        while self.calls:
            call = self.calls[0]
            call.accepted = self._accept(now, call.request, call.accepted)
            if call.accepted < len(call.request.data):
                return
            self.calls.popleft()

    def withdraw(self, call: int) -> None:
        """The caller waits no longer; it is told how many of its tasks were accepted."""
        for waiting in self.calls:
            if waiting.request.call == call:
                detail = "the caller waits no longer"
                self.shared.effects.append(Rejected(call, Rejection.WITHDRAWN, detail, waiting.accepted))
        self.calls = deque(waiting for waiting in self.calls if waiting.request.call != call)
        self.flushes = deque(flush for flush in self.flushes if flush[0] != call)

    def flush(self, call: int) -> None:
        """Answer `call` when all that is accepted by now is confirmed."""
        self.flushes.append((call, self.ordinal))
        if self.ended:
            self.end()
        self.answer_flushes()

    def end(self) -> None:
        """Nothing is confirmed any more."""
        self.ended = True
        while self.flushes:
            call, _ = self.flushes.popleft()
            self.shared.effects.append(Rejected(call, Rejection.CLOSED, "the client is closed", 0))

    def answer_flushes(self) -> None:
        """Answer the flushes that have come true."""
        if not self.flushes:
            return
        oldest = min((queue.oldest_unconfirmed() for queue in self.queues.values()), default=NEVER)
        while self.flushes and self.flushes[0][1] < oldest:
            self.shared.effects.append(Flushed(self.flushes.popleft()[0]))

    def left(self, tasks: Sequence[Outgoing]) -> None:
        """These tasks are no longer unconfirmed."""
        self.tasks -= len(tasks)
        self.bytes -= sum(len(task.data) for task in tasks)

    def came_back(self, tasks: Sequence[Outgoing]) -> None:
        """These tasks, once confirmed, are to be sent again; they were accepted before, so no bound holds them up."""
        self.tasks += len(tasks)
        self.bytes += sum(len(task.data) for task in tasks)

    def reject_waiting(self, rejection: Rejection, detail: str) -> None:
        """Nothing more can be accepted: end the calls that wait."""
        while self.calls:
            call = self.calls.popleft()
            error = self.shared.fault if rejection is Rejection.FAULT else None
            self.shared.effects.append(Rejected(call.request.call, rejection, detail, call.accepted, error))

    def _rejection(self, request: Enqueue) -> Rejected | None:
        limits = self.settings
        largest = max(map(len, request.data), default=0)
        if self.closed:
            return Rejected(request.call, Rejection.CLOSED, "the client is closed", 0)
        if request.queue not in self.queues:
            known = one_of(tuple(self.queues))
            detail = f"{request.queue!r} is not a queue of this client, which has {known}"
            return Rejected(request.call, Rejection.UNKNOWN_QUEUE, detail, 0)
        if self.shared.fault is not None:
            return Rejected(request.call, Rejection.FAULT, self.shared.fault.text, 0, self.shared.fault)
        if largest > limits.max_local_bytes:
            detail = f"a payload of {largest} bytes is larger than max_local_bytes, {limits.max_local_bytes}"
            return Rejected(request.call, Rejection.TOO_LARGE, detail, 0)
        if not request.wait and (self.calls or not self._has_room(sum(map(len, request.data)), len(request.data))):
            detail = (
                f"the local queue holds {self.tasks} of {limits.max_local_queue} tasks and {self.bytes} of "
                f"{limits.max_local_bytes} bytes, and {len(request.data)} more do not fit"
            )
            return Rejected(request.call, Rejection.QUEUE_FULL, detail, 0)
        return None

    def _has_room(self, size: int, count: int = 1) -> bool:
        settings = self.settings
        return self.tasks + count <= settings.max_local_queue and self.bytes + size <= settings.max_local_bytes

    def _accept(self, now: int, request: Enqueue, done: int) -> int:
        """Accept a call's tasks from the one at `done` on; how many of them are in."""
        queue = self.queues[request.queue]
        count = len(request.data)
        while done < count and self._has_room(len(request.data[done])):
            self.ordinal += 1
            data = request.data[done]
            task = Outgoing(self.ordinal, request.task_ids[done], data, request.options, request.tracked, now)
            self.tasks += 1
            self.bytes += len(data)
            queue.waiting.append(task)
            if request.tracked:
                self.tracker.open(queue, task)
            done += 1
        if done == count:
            self.shared.effects.append(Accepted(request.call, count))
        return done
