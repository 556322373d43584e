"""Starting handlers, and what becomes of their answers."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..effects import CancelHandler, StartHandler
from ..inputs import (
    HandlerAsksRetry,
    HandlerCanceled,
    HandlerDone,
    HandlerFailed,
    HandlerRejects,
    HandlerSucceeded,
)
from ..machine import Shared
from ..notes import LeaseLost, TaskReleased
from ..settings import ServerSettings
from ..timing import NEVER
from ..wire import RESULT_BYTES_MAX, TaskEntry
from .lifecycle import Happening, TaskState
from .tasks import Conclusion, EndKind, HeldTask, ServedQueue, Tasks

if TYPE_CHECKING:
    from .conclusions import Conclusions
    from .leases import Leases
    from .settlement import Settlement


# On the path of every task, where looking a member up in its Enum shows.
_RUNNING, _START, _SUCCESS = TaskState.RUNNING, Happening.START, Happening.SUCCESS


class Handlers:
    """Runs of handlers."""

    leases: Leases
    settlement: Settlement
    conclusions: Conclusions

    def __init__(self, shared: Shared, settings: ServerSettings, queues: Sequence[ServedQueue], tasks: Tasks) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.tasks = tasks
        self.timeouts: list[tuple[int, int]] = []
        """Heap of (time, run)."""
        self.closing = False

    # Starting.

    def start(self, now: int) -> None:
        """Start what is held, as far as the concurrency allows and the leases are surely ours."""
        not_ours: list[int] = []
        while True:
            task = self.tasks.next_held(not_ours, doubtful=self.closing)
            if task is None:
                return
            if self.closing:
                self.conclude(task, Happening.CONCLUDE, Conclusion(EndKind.HAND_BACK))
                continue
            if len(self.tasks.running) >= self.settings.concurrency:
                return
            if not self.leases.may_start(now, task.queue):
                not_ours.append(task.queue)
                continue
            unfit = self._unfit(now, task)
            if unfit is not None:
                self.conclude(task, Happening.CONCLUDE, unfit)
            else:
                self._start(now, task)

    def _unfit(self, now: int, task: HeldTask) -> Conclusion | None:
        entry = task.entry
        if entry is None:
            return Conclusion(EndKind.DEAD, f"not a task: {task.problem}")
        if entry.expires_ts and self.shared.clock.read(now) >= entry.expires_ts:
            return Conclusion(EndKind.EXPIRED)
        if task.deliveries > self.settings.max_deliveries:
            reason = (
                f"delivered {task.deliveries} times, more than max_deliveries ({self.settings.max_deliveries}): "
                "its workers died or were cut off while they had it"
            )
            return Conclusion(EndKind.DEAD, reason)
        return None

    def _start(self, now: int, task: HeldTask) -> None:
        entry = task.entry
        assert entry is not None
        queue = self.queues[task.queue]
        self.tasks.move(task, _START)
        task.started_at = now
        if queue.timeout_ms:
            task.timeout_at = now + queue.timeout_ms
            heapq.heappush(self.timeouts, (task.timeout_at, task.run))
        self.shared.effects.append(StartHandler(task.run, queue.name, task.entry_id, entry, task.deliveries))

    # Time.

    def due_at(self) -> int:
        """When a handler has run for too long."""
        return self.timeouts[0][0] if self.timeouts else NEVER

    def on_time(self, now: int) -> None:
        """Ask the handlers to stop whose time is over."""
        while self.timeouts and self.timeouts[0][0] <= now:
            _, run = heapq.heappop(self.timeouts)
            task = self.tasks.running.get(run)
            if task is not None and task.state is TaskState.RUNNING:
                self.tasks.move(task, Happening.TIMEOUT)
                self.shared.effects.append(CancelHandler(run, self._timeout_reason(task)))

    def _timeout_reason(self, task: HeldTask) -> str:
        return f"the handler ran for longer than its timeout of {self.queues[task.queue].timeout_ms} ms"

    # Answers.

    def done(self, now: int, answer: HandlerDone) -> None:
        """A handler has answered; answers to runs that nobody waits for any more are dropped."""
        task = self.tasks.running.get(answer.run)
        if task is None:
            return
        self.tasks.measured(now - task.started_at)
        before = task.state
        if type(answer) is HandlerSucceeded:
            if before is _RUNNING and answer.result is None:
                self.tasks.move(task, _SUCCESS)
                self.settlement.add(task)
                return
            if answer.result is not None and len(answer.result) > RESULT_BYTES_MAX:
                answer = HandlerFailed(
                    answer.run, f"the result has {len(answer.result)} bytes; at most {RESULT_BYTES_MAX} can be sent"
                )
            elif before is not TaskState.TIMED_OUT:
                task.result = answer.result
                self.tasks.move(task, Happening.SUCCESS)
                self.settlement.add(task)
                return
        happening = Happening.STOPPED if isinstance(answer, HandlerCanceled) else Happening.FAILURE
        if isinstance(answer, HandlerSucceeded):
            happening = Happening.SUCCESS
        self.conclude(task, happening, self._ending(task, before, answer))

    def _ending(self, task: HeldTask, before: TaskState, answer: HandlerDone) -> Conclusion:
        entry = task.entry
        assert entry is not None
        if before is TaskState.RELEASING:
            return Conclusion(EndKind.HAND_BACK)
        if before is TaskState.TIMED_OUT:
            return self._failure(entry, self._timeout_reason(task), None)
        if isinstance(answer, HandlerRejects):
            return Conclusion(EndKind.DEAD, f"rejected by the handler: {answer.reason}")
        if isinstance(answer, HandlerAsksRetry):
            return self._failure(entry, answer.reason, answer.delay_ms)
        text = answer.text if isinstance(answer, HandlerFailed) else "the handler was canceled"
        return self._failure(entry, text, None)

    def _failure(self, entry: TaskEntry, reason: str, delay_ms: int | None) -> Conclusion:
        if not entry.retries_left:
            return Conclusion(EndKind.DEAD, reason)
        if delay_ms is None:
            delay_ms = self.shared.entropy.upper_half(retry_delay(entry))
        return Conclusion(EndKind.RETRY, reason, delay_ms)

    def conclude(self, task: HeldTask, happening: Happening, conclusion: Conclusion) -> None:
        """A task ends here other than in success, if it is still ours to end."""
        after = self.tasks.move(task, happening)
        if after is TaskState.CONCLUDING:
            task.conclusion = conclusion
            self.conclusions.add(task)
        else:
            name = self.queues[task.queue].name
            self.shared.note(TaskReleased(name, task.task_id, "its lease was lost; a failure here counts no more"))

    # Orders from elsewhere.

    def lease_lost(self, task: HeldTask, reason: str) -> None:
        """Another has the entry, or it is gone."""
        had_handler = task.state in (TaskState.RUNNING, TaskState.TIMED_OUT, TaskState.RELEASING)
        asked_to_stop = task.state is not TaskState.RUNNING
        self.tasks.move(task, Happening.LEASE_LOST)
        self.shared.note(LeaseLost(self.queues[task.queue].name, task.task_id, reason))
        if had_handler and not asked_to_stop:
            self.shared.effects.append(CancelHandler(task.run, f"the lease was lost: {reason}"))

    def release_all(self) -> None:
        """The grace is over: ask every handler to stop."""
        for task in list(self.tasks.running.values()):
            asked = task.state is not TaskState.RUNNING
            self.tasks.move(task, Happening.RELEASE)
            if not asked:
                self.shared.effects.append(CancelHandler(task.run, "the server is closing"))

    def abandon_all(self) -> None:
        """Handlers that do not stop: hand their tasks back all the same."""
        for task in list(self.tasks.running.values()):
            self.conclude(task, Happening.ABANDON, Conclusion(EndKind.HAND_BACK))


def retry_delay(entry: TaskEntry) -> int:
    """The delay in ms, before jitter, of the retry that follows this attempt."""
    most = entry.retry_delay_max_ms or NEVER
    try:
        delay = int(entry.retry_delay_ms * max(1.0, entry.retry_backoff) ** entry.retries)
    except OverflowError:
        delay = most if entry.retry_delay_ms else 0
    return min(delay, most)
