"""What must stand before a queue is served: its group, and a bump of its fence on each new command connection.

The bump aborts every guarded transaction that an old connection of this worker still has under way. It is a PEXPIRE,
which passes on a full server too; only where the fence does not exist yet does it take an INCR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import commands
from ..link import Section, Write
from ..machine import Shared
from ..notes import DataLossSeen, OperationRefused, RiskySetting
from ..replies import ErrorReply, Ok, Outcome, RawReply, Refused, Remedy, Unknown
from ..settings import ServerSettings
from ..timing import NEVER, Backoff, milliseconds
from .tasks import ServedQueue


@dataclass(slots=True)
class QueueSetup:
    """How far one queue is."""

    backoff: Backoff
    grouped: bool = False
    """The group stands, as far as is known, and looks may go."""
    fenced: bool = False
    """The fence was bumped on this connection, and guarded operations may go."""
    grouped_before: bool = False


class Setup:
    """Groups and fences."""

    def __init__(self, shared: Shared, settings: ServerSettings, queues: Sequence[ServedQueue]) -> None:
        self.shared = shared
        self.queues = tuple(queues)
        most = settings.command_backoff_most_ms
        self.states = [QueueSetup(Backoff(settings.backoff_least_ms, most)) for _ in queues]
        self.asked_server = False

    def connection_lost(self) -> None:
        """The next connection bumps anew."""
        self.asked_server = False
        for state in self.states:
            state.grouped = state.fenced = False

    def group_lost(self, queue: int, why: str) -> None:
        """A reply says that the group is gone: make it again, from the first entry on."""
        if self.states[queue].grouped:
            self.states[queue].grouped = False
            self.shared.note(OperationRefused(f"work on {self.queues[queue].name!r}", why))

    def is_grouped(self, queue: int) -> bool:
        """Whether looks and reads may go."""
        return self.states[queue].grouped

    def is_fenced(self, queue: int) -> bool:
        """Whether guarded operations may go."""
        return self.states[queue].fenced

    @property
    def any_grouped(self) -> bool:
        """Whether a queue can be read soon."""
        return any(state.grouped for state in self.states)

    @property
    def complete(self) -> bool:
        """Whether all queues can be read."""
        return all(state.grouped for state in self.states)

    def due_at(self) -> int:
        """When a queue is to be set up."""
        due = NEVER
        for state in self.states:
            if not (state.grouped and state.fenced) and state.backoff.until < due:
                due = state.backoff.until
        return due

    def compose(self, now: int, write: Write) -> None:
        """Add what is missing."""
        if now < self.due_at():
            return
        if not self.asked_server:
            self.asked_server = True
            write.middle.append(Section(("setup", "on_time"), (commands.TIME,)))
            write.middle.append(Section(("setup", "on_memory"), (commands.INFO_MEMORY,)))
        for queue, state in zip(self.queues, self.states, strict=True):
            if now < state.backoff.until:
                continue
            keys = queue.keys
            if not state.grouped:
                both = (commands.create_group(keys.stream), commands.touch(keys.fence))
                write.middle.append(Section(("setup", "on_group"), both, queue.index))
            elif not state.fenced:
                fence = (commands.increment(keys.fence), commands.touch(keys.fence))
                write.middle.append(Section(("setup", "on_fence"), fence, queue.index))

    def on_time(self, now: int, outcome: Outcome, _context: None) -> None:
        """Redis's clock is known."""
        redis_ms = milliseconds(outcome.values[0]) if isinstance(outcome, Ok) else None
        if redis_ms is None:
            self.asked_server = False
        else:
            self.shared.clock.learn(redis_ms, now)

    def on_memory(self, _now: int, outcome: Outcome, _context: None) -> None:
        """A server that evicts keys loses tasks."""
        if isinstance(outcome, Ok) and isinstance(outcome.values[0], bytes):
            for line in outcome.values[0].split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name == b"maxmemory_policy" and value != b"noeviction":
                    danger = "it may evict tasks; set it to noeviction"
                    self.shared.note(RiskySetting("maxmemory-policy", value.decode("utf-8", "replace"), danger))

    def on_group(self, now: int, outcome: Outcome, queue: int) -> None:
        """The group stands. On a full server it cannot be made, but where it stood before all else goes on."""
        if isinstance(outcome, Unknown):
            return
        assert isinstance(outcome, Ok | Refused)
        state = self.states[queue]
        made, touched = outcome.values
        if isinstance(made, ErrorReply) and made.code != "BUSYGROUP":
            remedy = self.shared.refused("making the group", made)
            state.backoff.failed(now, self.shared.entropy)
            if remedy is not Remedy.WAIT or isinstance(touched, ErrorReply):
                return
        elif isinstance(touched, ErrorReply):
            self.shared.refused("bumping the fence", touched)
            state.backoff.failed(now, self.shared.entropy)
            return
        if made == b"OK" and state.grouped_before:
            self.shared.note(DataLossSeen(self.queues[queue].name, "the consumer group", 0))
        state.grouped = state.grouped_before = True
        state.fenced = touched == 1
        if not isinstance(made, ErrorReply) or made.code == "BUSYGROUP":
            state.backoff.succeeded()

    def on_fence(self, now: int, outcome: Outcome, queue: int) -> None:
        """The fence exists."""
        state = self.states[queue]
        if isinstance(outcome, Ok):
            state.fenced = True
            state.backoff.succeeded()
        elif isinstance(outcome, Refused):
            self._fence_refused(now, state, outcome.values[0])

    def _fence_refused(self, now: int, state: QueueSetup, reply: RawReply) -> None:
        if isinstance(reply, ErrorReply):
            self.shared.refused("making the fence", reply)
        state.backoff.failed(now, self.shared.entropy)
