"""Handlers: what the application's code does with a task, as its plan says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamfleet_protocol.effects import StartHandler
from streamfleet_protocol.inputs import (
    HandlerAsksRetry,
    HandlerCanceled,
    HandlerDone,
    HandlerFailed,
    HandlerRejects,
    HandlerSucceeded,
)
from streamfleet_protocol.keys import queue_keys

from .plan import Act

if TYPE_CHECKING:
    from .processes import Process
    from .world import World

ACTS: dict[str, str] = {
    "succeed": "returns after `after_ms`; stops when it is asked to",
    "deaf": "returns after `after_ms`, also when it is asked to stop, as code in a thread does",
    "fail": "raises after `after_ms`",
    "retry": "raises Retry after `after_ms`, with `delay_ms` where that is not 0",
    "reject": "raises Reject after `after_ms`",
    "hang": "never returns, but stops when it is asked to",
    "poison": "kills its process after `after_ms`",
    "garbage": "returns after `after_ms` what cannot be sent as a result",
}
"""What a handler can do, and what that means."""

_ANSWERS: dict[str, Callable[[int, Act], HandlerDone]] = {
    "succeed": lambda run, act: HandlerSucceeded(run, b"done"),
    "deaf": lambda run, act: HandlerSucceeded(run, b"done"),
    "fail": lambda run, act: HandlerFailed(run, "ValueError: as planned"),
    "retry": lambda run, act: HandlerAsksRetry(run, act.delay_ms or None, "later, as planned"),
    "reject": lambda run, act: HandlerRejects(run, "rejected as planned"),
    "garbage": lambda run, act: HandlerRejects(run, "the handler returned an int"),
}
_OUTCOMES = {
    HandlerSucceeded: "succeeded",
    HandlerFailed: "failed",
    HandlerAsksRetry: "asked for a retry",
    HandlerRejects: "rejected",
    HandlerCanceled: "canceled",
}
_STOPS_AFTER_MS = 1
_RESTARTS_AFTER_MS = 500
"""A supervisor starts a worker again that was killed by its handler."""


@dataclass(slots=True)
class Run:
    """One handler at work, or done."""

    number: int
    identity: str
    """Process and incarnation."""
    task: str
    queue: str
    entry_id: bytes
    retries: int
    deliveries: int
    act: Act
    started_at: int
    redis_ms: int
    """The primary's wall clock when it started."""
    renewed_at: int = 0
    """When its lease had been touched last."""
    ended_at: int = -1
    outcome: str = ""
    canceled: bool = False
    """It was asked to stop."""
    timed_out: bool = False
    """For it ran too long: whatever it answers, the attempt has failed."""

    def end(self, now: int, outcome: str) -> None:
        """It is over."""
        self.ended_at = now
        self.outcome = outcome


class Handlers:
    """Starts and ends them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def start(self, process: Process, effect: StartHandler) -> None:
        """The machine wants a handler to run."""
        world = self.world
        entry = effect.entry
        record = world.ledger.tasks.get(entry.task_id)
        acts = record.plan.acts if record is not None else (Act("succeed"),)
        act = acts[min(len(record.runs) if record is not None else 0, len(acts) - 1)]
        run = Run(
            effect.run,
            process.identity,
            entry.task_id,
            effect.queue,
            effect.entry_id,
            entry.retries,
            effect.deliveries,
            act,
            world.now,
            world.site.clock_ms(),
            world.ledger.touched.get((queue_keys(effect.queue).stream, effect.entry_id), world.now),
        )
        process.runs[effect.run] = run
        world.ledger.run_count += 1
        world.oracles.handler_started(process, record, run, entry)
        if record is not None:
            record.runs.append(run)
        if act.does != "hang":
            world.agenda.at(world.now + act.after_ms, self, "over", process, process.incarnation, effect.run)

    def over(self, process: Process, incarnation: int, number: int) -> None:
        """A handler has done what it does."""
        run = process.runs.get(number)
        if run is None or process.incarnation != incarnation:
            return
        if process.frozen:
            self.world.agenda.at(process.thaws_at, self, "over", process, incarnation, number)
        elif run.act.does == "poison":
            process.kill()
            self.world.agenda.at(self.world.now + _RESTARTS_AFTER_MS, process, "start")
        else:
            self._answer(process, run, _ANSWERS[run.act.does](number, run.act))

    def late(self, process: Process, incarnation: int, number: int, answer: Any) -> None:
        """A slow loop comes to the answer of a handler."""
        run = process.runs.get(number)
        if run is not None and process.incarnation == incarnation:
            self._feed(process, run, answer)

    def cancel(self, process: Process, run: Run, reason: str) -> None:
        """The machine asks a handler to stop."""
        if not run.canceled:
            run.canceled = True
            run.timed_out = reason.startswith("the handler ran for longer")
            if run.act.does != "deaf":
                at = self.world.now + _STOPS_AFTER_MS
                self.world.agenda.at(at, self, "stopped", process, process.incarnation, run.number)

    def stopped(self, process: Process, incarnation: int, number: int) -> None:
        """It has stopped."""
        run = process.runs.get(number)
        if run is None or process.incarnation != incarnation:
            return
        if process.frozen:
            self.world.agenda.at(process.thaws_at, self, "stopped", process, incarnation, number)
        else:
            self._answer(process, run, HandlerCanceled(number))

    def _answer(self, process: Process, run: Run, answer: Any) -> None:
        if self.world.now < process.slow_until:
            at = self.world.now + process.slow_ms
            self.world.agenda.at(at, self, "late", process, process.incarnation, run.number, answer)
        else:
            self._feed(process, run, answer)

    def _feed(self, process: Process, run: Run, answer: Any) -> None:
        del process.runs[run.number]
        run.end(self.world.now, "timed out" if run.timed_out else _OUTCOMES[type(answer)])
        process.feed(answer)
