"""The audit of handles about whose task there may never be a word: is it still anywhere?

Looked for in this order: its own entry; the whole stream, ascending (a retry's copy only moves ahead of the scan); the
delayed set; the own receiver stream once more, with a check that nothing else was lost. No order of stream and delayed
set is right if tasks are promoted in between, so the counter of promotions is read before and after, and if it moved
the scan is made again. What is found nowhere settles as OutcomeUnknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .. import commands
from ..commands import Command
from ..effects import End
from ..link import Section, Write
from ..machine import Shared
from ..members import member_task_id
from ..replies import Ok, Outcome, RawReply, Refused
from ..settings import ClientSettings
from ..timing import NEVER
from ..wire import task_id_of
from .heartbeat import Heartbeat
from .outbox import Outbox
from .receiver import Receiver
from .records import QueueOutbox
from .tracker import Tracker

_ASK_AT_ONCE = 100
_PAGE = 50
_TRIES = 3
_NOWHERE = "it is in the queue no more, and no word about its end came: Redis has lost one or the other"


class Phase(Enum):
    """What an audit asks next."""

    ENTRIES = "entries"
    COUNTER = "counter"
    STREAM = "stream"
    DELAYED = "delayed"
    COUNTER_AGAIN = "counter again"
    WORDS = "words"


@dataclass(slots=True)
class Run:
    """The audit of some handles of one queue."""

    queue: str
    sequence: int
    """Number of the last batch when it began; what was sent again meanwhile has a higher one."""
    to_ask: list[tuple[str, bytes]]
    """(task id, entry id) of those whose own entry is asked for."""
    doubtful: dict[bytes, str] = field(default_factory=dict)
    phase: Phase = Phase.ENTRIES
    cursor: bytes = b""
    counter: RawReply = None
    tries: int = 0
    peek: int = 0
    checks: int = 0


class Audit:
    """One run at a time; a run that meets an error is made again later."""

    def __init__(
        self,
        shared: Shared,
        settings: ClientSettings,
        queues: dict[str, QueueOutbox],
        tracker: Tracker,
        receiver: Receiver,
        outbox: Outbox,
        heartbeat: Heartbeat,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = queues
        self.tracker = tracker
        self.receiver = receiver
        self.outbox = outbox
        self.heartbeat = heartbeat
        self.regular_at = settings.audit_interval_ms
        """An operator's deletion is visible to nobody: handles older than the interval are audited regularly."""
        self.todo: deque[Run] = deque()
        self.run: Run | None = None
        self.lost = False
        """A connection was lost and none has come up since."""

    def due_at(self) -> int:
        """When there is something to ask."""
        if self.run is not None:
            return NEVER if self.run.phase is Phase.WORDS else 0
        if self.todo:
            return 0
        return min(self.tracker.audit_at, self.regular_at) if self.tracker.handles else NEVER

    def connection_lost(self) -> None:
        """Words may be lost with the connection; and a run that was under way saw too little."""
        self.run = None
        self.todo.clear()
        self.lost = True

    def reconnected(self, now: int) -> None:
        """After an outage words are given time to arrive."""
        if self.lost and self.tracker.handles:
            soon = now + self.settings.reconnect_audit_ms
            self.tracker.audit_at = min(self.tracker.audit_at, soon) if self.tracker.audit_at > now else soon
        self.lost = False

    def on_time(self, _now: int) -> None:
        """End a run whose last look at the receiver stream is over.

        A flush or a rollback during the search would be found by the next check of the sequence, and what it took is
        sent again; until then a task that is found nowhere may be one of these.
        """
        run = self.run
        if run is None or run.phase is not Phase.WORDS:
            return
        if run.peek <= self.receiver.peeks_done and run.checks < self.outbox.checks:
            self.run = None
            for task_id in run.doubtful.values():
                handle = self.tracker.handles.get(task_id)
                if handle is not None and 0 < handle.number <= run.sequence:
                    self.tracker.settle(task_id, End.UNKNOWN, _NOWHERE)

    def compose(self, now: int, write: Write) -> None:
        """Add the next question."""
        if now < self.due_at():
            return
        if self.run is None:
            self._begin(now)
        run = self.run
        if run is None:
            return
        write.middle.append(Section(("audit", f"on_{run.phase.name.lower()}"), self._question(run)))

    def _begin(self, now: int) -> None:
        if not self.todo:
            after_loss = now >= self.tracker.audit_at
            oldest = now if after_loss else now - self.settings.audit_interval_ms
            self.tracker.audit_at = NEVER if after_loss else self.tracker.audit_at
            self.regular_at = now + self.settings.audit_interval_ms
            for name in self.queues:
                self._plan(name, oldest)
        self.run = self.todo.popleft() if self.todo else None

    def _plan(self, queue: str, oldest: int) -> None:
        run = Run(queue, self.queues[queue].sequence, [])
        for task_id, handle in self.tracker.handles.items():
            if handle.queue == queue and handle.number and handle.confirmed_at <= oldest:
                if handle.entry_id:
                    run.to_ask.append((task_id, handle.entry_id))
                else:
                    run.doubtful[task_id.encode()] = task_id
        if run.to_ask or run.doubtful:
            if not run.to_ask:
                run.phase = Phase.COUNTER
            self.todo.append(run)

    def _question(self, run: Run) -> tuple[Command, ...]:
        keys = self.queues[run.queue].keys
        if run.phase is Phase.ENTRIES:
            return tuple(commands.entry(keys.stream, entry_id) for _, entry_id in run.to_ask[:_ASK_AT_ONCE])
        if run.phase is Phase.STREAM:
            return (commands.entries_after(keys.stream, run.cursor, _PAGE),)
        if run.phase is Phase.DELAYED:
            return (commands.sorted_scan(keys.delayed, run.cursor),)
        return (commands.get(keys.promotions),)

    def on_entries(self, now: int, outcome: Outcome, _context: None) -> None:
        """Those whose own entry still holds them are alive."""
        values = self._values(now, outcome)
        run = self.run
        if run is None:
            return
        asked, run.to_ask = run.to_ask[:_ASK_AT_ONCE], run.to_ask[_ASK_AT_ONCE:]
        for (task_id, _), reply in zip(asked, values, strict=True):
            if task_id.encode() not in _task_ids(reply):
                run.doubtful[task_id.encode()] = task_id
        if not run.to_ask:
            self._go_on(run, Phase.COUNTER)

    def on_counter(self, now: int, outcome: Outcome, _context: None) -> None:
        """The promotions before the scan."""
        values = self._values(now, outcome)
        if self.run is not None:
            self.run.counter = values[0]
            self.run.cursor = b""
            self._go_on(self.run, Phase.STREAM)

    def on_stream(self, now: int, outcome: Outcome, _context: None) -> None:
        """One page of the stream."""
        values = self._values(now, outcome)
        run = self.run
        if run is None:
            return
        entries = values[0] if isinstance(values[0], list | tuple) else ()
        for task_id in _task_ids(entries):
            run.doubtful.pop(task_id, None)
        last = entries[-1] if entries else None
        if len(entries) == _PAGE and isinstance(last, list | tuple) and last and isinstance(last[0], bytes):
            run.cursor = last[0]
            self._go_on(run, Phase.STREAM)
        else:
            run.cursor = b"0"
            self._go_on(run, Phase.DELAYED)

    def on_delayed(self, now: int, outcome: Outcome, _context: None) -> None:
        """One page of the delayed set."""
        values = self._values(now, outcome)
        run = self.run
        if run is None:
            return
        reply = values[0]
        cursor, members = reply if isinstance(reply, list | tuple) and len(reply) == 2 else (None, None)
        if not isinstance(cursor, bytes) or not isinstance(members, list | tuple):
            self._later(now)
            return
        for member in members[::2]:
            if isinstance(member, bytes):
                run.doubtful.pop(member_task_id(member), None)
        run.cursor = cursor
        self._go_on(run, Phase.COUNTER_AGAIN if run.cursor == b"0" else Phase.DELAYED)

    def on_counter_again(self, now: int, outcome: Outcome, _context: None) -> None:
        """If tasks were promoted during the scan, one may have slipped past it."""
        values = self._values(now, outcome)
        run = self.run
        if run is None:
            return
        if values[0] == run.counter:
            run.peek = self.receiver.peek()
            run.checks = self.outbox.checks
            run.phase = Phase.WORDS
            self.heartbeat.beat_soon(now)
            return
        run.tries += 1
        if run.tries == _TRIES:
            self._later(now)
        else:
            self._go_on(run, Phase.COUNTER)

    def _go_on(self, run: Run, phase: Phase) -> None:
        run.phase = phase
        run.doubtful = {key: task_id for key, task_id in run.doubtful.items() if task_id in self.tracker.handles}
        if not run.doubtful:
            self.run = None

    def _values(self, now: int, outcome: Outcome) -> Sequence[RawReply]:
        if isinstance(outcome, Ok):
            self.shared.works("audit")
            return outcome.values
        if isinstance(outcome, Refused):
            self.shared.refused("audit", outcome.error)
        self._later(now)
        return ()

    def _later(self, now: int) -> None:
        self.run = None
        self.tracker.audit_soon(now)


def _task_ids(entries: RawReply) -> list[bytes]:
    """The task ids in an XRANGE reply."""
    found = []
    if isinstance(entries, list | tuple):
        for entry in entries:
            if isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], list | tuple):
                found.append(task_id_of(entry[1]))
    return found
