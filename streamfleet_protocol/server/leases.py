"""Looks: what is pending in the group, mine and others'; renewal of mine; adoption; lease lost.

A look goes page by page. Each page is a guarded operation of its own: WATCH on the fence and the listing in one write,
the renewal of what it lists as mine as the first EXEC of the next. Whatever takes an entry from another touches the
fence, so a renewal can never take an entry back (Redis documentation: XCLAIM does not ask who owns an entry).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import commands
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..notes import Stalled, TaskAdopted
from ..replies import Aborted, ErrorReply, Ok, Outcome, RawReply, Refused, Remedy, first_error
from ..settings import ServerSettings
from ..timing import NEVER, Backoff, milliseconds
from .intake import Intake, bodies
from .lifecycle import LEASED
from .setup import Setup
from .tasks import ServedQueue, Tasks

if TYPE_CHECKING:
    from .missing import Missing
    from .reclaim import Reclaim


@dataclass(frozen=True, slots=True)
class Pending:
    """One row of XPENDING."""

    entry_id: bytes
    owner: bytes
    idle_ms: int
    deliveries: int


@dataclass(frozen=True, slots=True)
class LookSent:
    """What was known when a page's question was sent."""

    queue: int
    sent_at: int
    read_over: int
    """Number of the last read that was over."""


@dataclass(slots=True)
class Look:
    """One queue's looks."""

    backoff: Backoff
    look_at: int = 0
    after: bytes = b""
    """Last id of the page before; empty at a look's begin."""
    listed: dict[bytes, int] = field(default_factory=dict)
    """Mine, as this look has listed them so far, with their deliveries."""
    serial: int = 0
    """Tasks taken later than this may be missing in this look."""
    probed: bool = False
    under_way: bool = False
    number: int = 0
    """Rises with each look begun."""
    completed: int = 0
    """Number of the last complete look."""
    wanted: bool = False
    """Another look is to follow the one under way at once."""
    begun_at: int = 0
    looked: bool = False
    """A look was completed that began on this connection, and after the last stall."""
    looked_at: int = 0
    """When the last complete look began."""
    renewed_at: int = 0
    """When the last renewal that was Ok was sent."""
    suspects: dict[bytes, int] = field(default_factory=dict)
    """Listed as mine and unknown to me: number of the read that may be bringing it."""
    unadopted: set[bytes] = field(default_factory=set)
    """Listed by this look as mine, and not known yet."""


class Leases:
    """Looks and renewals of all queues."""

    reclaim: Reclaim
    missing: Missing

    def __init__(
        self,
        shared: Shared,
        settings: ServerSettings,
        queues: Sequence[ServedQueue],
        tasks: Tasks,
        setup: Setup,
        intake: Intake,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.tasks = tasks
        self.setup = setup
        self.intake = intake
        self.consumer = settings.consumer.encode()
        most = settings.command_backoff_most_ms
        self.looks = [Look(Backoff(settings.backoff_least_ms, most)) for _ in queues]
        self.stalled_at = 0

    # What others may rely on.

    def may_start(self, now: int, queue: int) -> bool:
        """Whether a held task of the queue is surely ours."""
        look = self.looks[queue]
        return look.looked and now - look.looked_at <= self.settings.lease_ms

    def is_ready(self, queue: int) -> bool:
        """Whether a queue may be read: its group stands, and it was looked at on this connection."""
        return self.looks[queue].looked and self.setup.is_grouped(queue)

    def any_ready(self) -> bool:
        """Whether a queue may be read. One whose group cannot be made does not hold up the others."""
        return any(self.is_ready(queue.index) for queue in self.queues)

    def read_is_over(self, now: int, *, lost: bool) -> None:
        """What this read has not brought, and is listed as mine, came by no reply: look at once."""
        for look, queue in zip(self.looks, self.queues, strict=True):
            look.suspects = {
                entry_id: number
                for entry_id, number in look.suspects.items()
                if (queue.index, entry_id) not in self.tasks.by_id
            }
            if lost or any(number <= self.intake.over for number in look.suspects.values()):
                self.look_now(now, queue.index)

    def look_now(self, now: int, queue: int) -> None:
        """Begin a look as soon as the lane is free, and after the one that is under way."""
        look = self.looks[queue]
        if look.under_way:
            look.wanted = True
        else:
            look.look_at = now

    def stalled(self, now: int, stalled_ms: int) -> None:
        """The program stood still: nothing is started before a look."""
        self.shared.note(Stalled(stalled_ms))
        self.stalled_at = now
        for queue in self.queues:
            self.looks[queue.index].looked = False
            self.look_now(now, queue.index)

    def connection_lost(self, now: int) -> None:
        """The next connection begins with a look."""
        for queue in self.queues:
            look = self.looks[queue.index]
            look.looked = False
            self._again(now, look)
            self.reclaim.restart(queue.index)

    # Looks.

    def due_at(self) -> int:
        """When a look can go."""
        due = NEVER
        for index, look in enumerate(self.looks):
            if self.setup.states[index].grouped:
                due = min(due, max(look.look_at, look.backoff.until))
        return due

    def compose(self, now: int, write: Write) -> None:
        """Add the look that is due the longest; a write has room for one question."""
        if write.question or now < self.due_at():
            return
        ready = [queue for queue in self.queues if self.setup.is_grouped(queue.index) and self._is_due(now, queue)]
        queue = min(ready, key=lambda ready_queue: self.looks[ready_queue.index].look_at)
        look = self.looks[queue.index]
        keys = queue.keys
        if not look.under_way:
            look.under_way = True
            look.wanted = False
            look.number += 1
            look.begun_at = now
            look.after = b""
            look.serial = self.tasks.serial
            look.listed.clear()
            look.unadopted.clear()
            look.probed = False
            self.reclaim.begin(queue.index)
            probe = Section(("leases", "on_probe"), commands.probe(keys.stream, self.consumer), queue.index)
            write.middle.append(probe)
        question = (
            commands.watch(keys.fence),
            commands.TIME,
            commands.pending_page(keys.stream, look.after, self.settings.page),
            commands.TIME,
        )
        sent = LookSent(queue.index, now, self.intake.over)
        write.question.append(Section(("leases", "on_look"), question, sent))

    def _is_due(self, now: int, queue: ServedQueue) -> bool:
        look = self.looks[queue.index]
        return now >= max(look.look_at, look.backoff.until)

    def on_probe(self, _now: int, outcome: Outcome, queue: int) -> None:
        """Could anybody renew now? Where not, nobody's silence means anything."""
        # Aborted, too: a WATCH left over from an unused question was touched, and no command was refused.
        if isinstance(outcome, Aborted) or (isinstance(outcome, Ok) and first_error(outcome.values) is None):
            self.looks[queue].probed = True
        elif isinstance(outcome, Refused):
            self.reclaim.restart(queue)
            self.shared.refused("renewing", outcome.error)

    def on_look(self, now: int, outcome: Outcome, sent: LookSent) -> None:
        """One page: renew what is mine on it, and go on to the next."""
        look = self.looks[sent.queue]
        if not isinstance(outcome, Ok):
            if isinstance(outcome, Refused):
                self._refused(now, sent.queue, "looking", outcome.error)
            return
        if not look.under_way:
            # Given up meanwhile, since the page before could not be renewed.
            return
        _, before, listing, after = outcome.values
        rows = pending_rows(listing)
        redis_before, redis_after = milliseconds(before), milliseconds(after)
        if redis_after is not None:
            self.shared.clock.learn(redis_after, now)
        self.reclaim.page(sent.queue, rows, redis_before, redis_after)
        mine = [row for row in rows if row.owner == self.consumer]
        look.listed.update((row.entry_id, row.deliveries) for row in mine)
        look.unadopted.update(row.entry_id for row in mine if (sent.queue, row.entry_id) not in self.tasks.by_id)
        if mine and self.setup.is_fenced(sent.queue):
            self._prepare_renewal(now, sent, mine)
        if len(rows) >= self.settings.page:
            look.after = rows[-1].entry_id
        else:
            self._complete(now, sent, redis_after)

    def _prepare_renewal(self, now: int, sent: LookSent, mine: list[Pending]) -> None:
        queue = self.queues[sent.queue]
        look = self.looks[sent.queue]
        adopted = [row for row in mine if self._is_adoptable(sent, row.entry_id)]
        renewal = [commands.renew(queue.keys.stream, self.consumer, [row.entry_id for row in mine])]
        renewal += [commands.entry(queue.keys.stream, row.entry_id) for row in adopted]
        if now - look.renewed_at > 2 * self.settings.renew_interval_ms:
            # Whoever is about to take these over must see that their owner is back.
            renewal.append(commands.touch(queue.keys.fence))
        context = (sent.queue, now, tuple(adopted))
        self.shared.guarded = transaction_section(("leases", "on_renewed"), renewal, context)

    def _is_adoptable(self, sent: LookSent, entry_id: bytes) -> bool:
        """Mine and unknown, and no read can be bringing it any more."""
        if (sent.queue, entry_id) in self.tasks.by_id:
            return False
        look = self.looks[sent.queue]
        if entry_id in look.suspects:
            return look.suspects[entry_id] <= sent.read_over
        if sent.read_over == self.intake.sent:
            return True
        look.suspects[entry_id] = self.intake.sent
        return False

    def on_renewed(self, now: int, outcome: Outcome, context: tuple[int, int, tuple[Pending, ...]]) -> None:
        """The leases are renewed and the adopted entries known; or something was taken in between."""
        index, sent_at, adopted = context
        look = self.looks[index]
        if isinstance(outcome, Aborted):
            self.look_now(now, index)
        elif isinstance(outcome, Refused):
            self._refused(now, index, "renewing", outcome.error)
        elif isinstance(outcome, Ok):
            error = first_error(outcome.values)
            if error is not None:
                self._refused(now, index, "renewing", error)
                return
            look.renewed_at = sent_at
            look.backoff.succeeded()
            for row, reply in zip(adopted, outcome.values[1:], strict=False):
                look.suspects.pop(row.entry_id, None)
                look.unadopted.discard(row.entry_id)
                self._adopt(index, row, reply)

    def _adopt(self, index: int, row: Pending, reply: RawReply) -> None:
        found = bodies(reply)
        if not found:
            self.missing.ghost(index, row.entry_id)
        elif self.tasks.take(index, row.entry_id, found[0][1], row.deliveries) is not None:
            text = row.entry_id.decode("ascii", "replace")
            self.shared.note(TaskAdopted(self.queues[index].name, text, "pending here, and no reply had brought it"))

    def _complete(self, now: int, sent: LookSent, redis_ms: int | None) -> None:
        look = self.looks[sent.queue]
        look.under_way = False
        look.completed = look.number
        look.looked = look.begun_at >= self.stalled_at
        look.looked_at = look.begun_at
        look.look_at = now if look.wanted else now + self.settings.renew_interval_ms
        look.suspects = {entry_id: number for entry_id, number in look.suspects.items() if entry_id in look.listed}
        missing: list[bytes] = []
        for task in self.tasks.of_queue(sent.queue):
            if task.serial <= look.serial and task.state in LEASED:
                task.doubtful = task.entry_id not in look.listed
                if task.doubtful:
                    missing.append(task.entry_id)
        self.missing.ask(sent.queue, missing)
        self.reclaim.complete(now, sent, redis_ms, probed=look.probed)

    def _refused(self, now: int, queue: int, operation: str, error: ErrorReply) -> None:
        if self.shared.refused(operation, error) is Remedy.NEW_GROUP:
            self.setup.group_lost(queue, error.text)
        self.reclaim.restart(queue)
        look = self.looks[queue]
        self._again(look.backoff.failed(now, self.shared.entropy), look)

    def _again(self, at: int, look: Look) -> None:
        """Give up the look that is under way, and begin another."""
        look.under_way = False
        look.look_at = at


def pending_rows(reply: RawReply) -> list[Pending]:
    """The rows of an XPENDING reply in its extended form."""
    rows = []
    for row in reply if isinstance(reply, list | tuple) else ():
        if isinstance(row, list | tuple) and len(row) == 4:
            entry_id, owner, idle_ms, deliveries = row
            ids = isinstance(entry_id, bytes) and isinstance(owner, bytes)
            if ids and isinstance(idle_ms, int) and isinstance(deliveries, int):
                rows.append(Pending(entry_id, owner, idle_ms, deliveries))
    return rows
