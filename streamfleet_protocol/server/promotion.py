"""Moving delayed tasks whose time has come from the delayed set to the stream; any worker does it.

A cheap look at the earliest is made when it is due, and every 2 s since nobody is told of an earlier one. The move is
guarded by a WATCH on the counter of promotions, which every move increments; removal and XADD go together, so a lost
reply needs no question of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import commands
from ..commands import Command
from ..errors import DecodeError
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..members import unpack_member
from ..notes import OperationRefused, TaskDeadLettered
from ..replies import Aborted, ErrorReply, Ok, Outcome, RawReply, Refused, first_error
from ..settings import ServerSettings
from ..timing import NEVER, Backoff, milliseconds
from ..wire import dead_letter
from .setup import Setup
from .tasks import ServedQueue

if TYPE_CHECKING:
    from .conclusions import Conclusions


@dataclass(slots=True)
class Delayed:
    """One queue's delayed tasks."""

    backoff: Backoff
    look_at: int = 0
    due: bool = False
    """The earliest is due: ask the guarded question."""


class Promotion:
    """Looks, asks, moves."""

    conclusions: Conclusions

    def __init__(self, shared: Shared, settings: ServerSettings, queues: Sequence[ServedQueue], setup: Setup) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.setup = setup
        self.consumer = settings.consumer.encode()
        most = settings.command_backoff_most_ms
        self.delayed = [Delayed(Backoff(settings.backoff_least_ms, most)) for _ in queues]

    def due_at(self) -> int:
        """When to look, or to move."""
        due = NEVER
        states = self.setup.states
        for index, delayed in enumerate(self.delayed):
            if states[index].grouped:
                at = 0 if delayed.due else delayed.look_at
                if delayed.backoff.until > at:
                    at = delayed.backoff.until
                if at < due:
                    due = at
        return due

    def compose(self, now: int, write: Write) -> None:
        """Add looks, and one question."""
        if now < self.due_at():
            return
        for queue, delayed in zip(self.queues, self.delayed, strict=True):
            if now < delayed.backoff.until or not self.setup.is_grouped(queue.index):
                continue
            keys = queue.keys
            if delayed.due and not write.question:
                question = (
                    commands.watch(keys.promotions),
                    commands.TIME,
                    commands.length(keys.stream),
                    commands.sorted_first(keys.delayed, self.settings.batch),
                )
                write.question.append(Section(("promotion", "on_answer"), question, queue.index))
            elif not delayed.due and now >= delayed.look_at:
                look = (commands.sorted_first(keys.delayed, 1),)
                write.middle.append(Section(("promotion", "on_look"), look, queue.index))

    def expect(self, index: int, due_at: int) -> None:
        """This worker has delayed a task until then (own time)."""
        delayed = self.delayed[index]
        delayed.look_at = min(delayed.look_at, due_at)

    def on_look(self, now: int, outcome: Outcome, index: int) -> None:
        """When is the earliest due?"""
        delayed = self.delayed[index]
        delayed.look_at = now + self.settings.promote_interval_ms
        if isinstance(outcome, Refused):
            self._put_off(now, index, outcome.error)
        elif isinstance(outcome, Ok):
            earliest = scored(outcome.values[0])
            if earliest:
                due_at = self.shared.clock.own(earliest[0][1])
                delayed.due = due_at <= now
                delayed.look_at = min(delayed.look_at, max(now, due_at))

    def on_answer(self, now: int, outcome: Outcome, index: int) -> None:
        """Move what is due by the time that Redis itself has told."""
        delayed = self.delayed[index]
        delayed.due = False
        delayed.look_at = now + self.settings.promote_interval_ms
        if isinstance(outcome, Refused):
            self._put_off(now, index, outcome.error)
        if not isinstance(outcome, Ok):
            return
        _, time, _, listing = outcome.values
        redis_ms = milliseconds(time)
        if redis_ms is None:
            return
        self.shared.clock.learn(redis_ms, now)
        members = scored(listing)
        due = [member for member, score in members if score <= redis_ms]
        if due:
            self.shared.guarded = self._move(index, due, redis_ms)
        elif members:
            delayed.look_at = min(delayed.look_at, max(now, self.shared.clock.own(members[0][1])))

    def _move(self, index: int, due: list[bytes], redis_ms: int) -> Section:
        keys = self.queues[index].keys
        additions: list[Command] = []
        moved: list[bytes] = []
        problems: list[str] = []
        size = 0
        for member in due:
            size += len(member)
            if moved and size > self.settings.batch_bytes:
                break
            moved.append(member)
            try:
                additions.append(commands.append(keys.stream, unpack_member(member)))
            except DecodeError as error:
                problems.append(str(error))
                letter = dead_letter(
                    (b"member", member),
                    reason=str(error),
                    entry_id=b"",
                    consumer=self.consumer,
                    deliveries=0,
                    time_ms=redis_ms,
                )
                additions.append(commands.append(keys.dead, letter))
        move = [commands.increment(keys.promotions), commands.sorted_remove(keys.delayed, moved), *additions]
        return transaction_section(("promotion", "on_moved"), move, (index, tuple(problems), tuple(moved)))

    def on_moved(self, now: int, outcome: Outcome, context: tuple[int, tuple[str, ...], tuple[bytes, ...]]) -> None:
        """Moved; or another worker did it. Either way look again at once: there may be more."""
        index, problems, moved = context
        delayed = self.delayed[index]
        delayed.look_at = now
        if isinstance(outcome, Aborted):
            # All workers wake at the same time; one moves, and the others step aside.
            delayed.backoff.until = now + 1 + self.shared.entropy.below(self.settings.backoff_least_ms)
            return
        error = outcome.error if isinstance(outcome, Refused) else None
        if isinstance(outcome, Ok):
            error = first_error(outcome.values)
            for problem in problems:
                name = self.queues[index].name
                self.shared.note(TaskDeadLettered(name, "(a delayed task)", f"not a task: {problem}"))
            for member, added in zip(moved, outcome.values[2:], strict=True):
                if isinstance(added, ErrorReply):
                    # The key changed its type within one round trip. The delayed set was there just now.
                    back = commands.sorted_add(self.queues[index].keys.delayed, 0, member)
                    self.conclusions.repair("putting a delayed task back", back)
        if error is not None:
            self._put_off(now, index, error)
        elif isinstance(outcome, Ok):
            delayed.backoff.succeeded()

    def _put_off(self, now: int, index: int, error: ErrorReply) -> None:
        delayed = self.delayed[index]
        delayed.backoff.failed(now, self.shared.entropy)
        if error.code == "WRONGTYPE":
            self.shared.note(OperationRefused(f"promoting delayed tasks of {self.queues[index].name!r}", error.text))
        else:
            self.shared.refused("promoting delayed tasks", error)


def scored(reply: RawReply) -> list[tuple[bytes, int]]:
    """(member, score in whole ms) of a ZRANGE WITHSCORES reply."""
    flat = reply if isinstance(reply, list | tuple) else ()
    found = []
    for member, score in zip(flat[::2], flat[1::2], strict=False):
        if isinstance(member, bytes) and isinstance(score, bytes):
            try:
                found.append((member, int(float(score))))
            except (ValueError, OverflowError):
                found.append((member, 0))
    return found
