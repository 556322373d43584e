"""Taking over from the dead: an entry that its owner has not touched for a whole lease of *my own* time.

Idle times as Redis tells them move with its clock, so they are never trusted as an age. What counts is the stamp,
TIME minus idle: an owner that renews changes it. An entry of another whose owner, count and stamp have stayed the same
from the answer of one look to the sending of another a lease later is dead, if nothing in between could have hidden a
renewal: a gap between the looks, a new connection, a refused write, a step of Redis's clock. Each of these begins anew.

After Redis's clock was set back idle is 0, and stays so until the clock catches up. "Future" is idle 0 in two listings
some ms apart; such an entry is unchanged as long as it stays future.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import commands
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..notes import TaskClaimed
from ..replies import Aborted, ErrorReply, Ok, Outcome, Refused, first_error
from ..settings import ServerSettings
from ..timing import NEVER, Backoff, milliseconds
from .intake import bodies
from .leases import Leases, LookSent, Pending, pending_rows
from .setup import Setup
from .tasks import ServedQueue, Tasks

_RECHECK_AFTER_MS = 6
_RECHECK_MOST = 200


@dataclass(slots=True)
class Sight:
    """What one look saw of another's entry."""

    owner: bytes
    deliveries: int
    stamp: int
    future: bool = False
    since: int = NEVER
    """Answer of the first look that saw it like this."""
    until: int = 0
    """Sending of the last look that saw it like this."""


@dataclass(slots=True)
class Sights:
    """The sights of one queue."""

    backoff: Backoff
    known: dict[bytes, Sight] = field(default_factory=dict)
    dead: list[bytes] = field(default_factory=list)
    """Of the known: unchanged for a whole lease, and not yet claimed."""
    fresh: dict[bytes, Sight] = field(default_factory=dict)
    """Of the look under way."""
    usable: bool = True
    """The look under way can be trusted so far."""
    rechecks: list[bytes] = field(default_factory=list)
    """Of these idle was 0."""
    recheck_at: int = NEVER
    look: LookSent | None = None
    """The look that waits for its recheck."""
    answered_at: int = 0
    last_answered_at: int = -NEVER
    offset: int | None = None
    """Redis's clock against the own one, at the last look."""
    round_trip: int = 0


class Reclaim:
    """Sights and claims."""

    leases: Leases

    def __init__(
        self,
        shared: Shared,
        settings: ServerSettings,
        queues: Sequence[ServedQueue],
        tasks: Tasks,
        setup: Setup,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.tasks = tasks
        self.setup = setup
        self.consumer = settings.consumer.encode()
        most = settings.command_backoff_most_ms
        self.sights = [Sights(Backoff(settings.backoff_least_ms, most)) for _ in queues]
        self.closing = False

    # Looking.

    def restart(self, queue: int) -> None:
        """Something may have hidden a renewal: every age begins anew."""
        sights = self.sights[queue]
        sights.known.clear()
        sights.dead.clear()
        sights.usable = False
        sights.look = None
        sights.recheck_at = NEVER

    def begin(self, queue: int) -> None:
        """A look begins."""
        sights = self.sights[queue]
        sights.fresh = {}
        sights.rechecks = []
        sights.usable = True
        sights.look = None
        sights.recheck_at = NEVER

    def page(self, queue: int, rows: list[Pending], before: int | None, after: int | None) -> None:
        """One page of a look, between two readings of Redis's clock."""
        sights = self.sights[queue]
        if before is None or after is None or not 0 <= after - before <= self.settings.stamp_tolerance_ms:
            sights.usable = False
            return
        for row in rows:
            if row.owner != self.consumer:
                sights.fresh[row.entry_id] = Sight(row.owner, row.deliveries, after - row.idle_ms)
                if row.idle_ms == 0:
                    sights.rechecks.append(row.entry_id)

    def complete(self, now: int, sent: LookSent, redis_ms: int | None, *, probed: bool) -> None:
        """The look's last page is in; where idle was 0, ask once more before it counts."""
        sights = self.sights[sent.queue]
        if redis_ms is None or not probed or not sights.usable or self.closing:
            self.restart(sent.queue)
            return
        offset, round_trip = redis_ms - now, now - sent.sent_at
        stepped = sights.offset is not None and abs(offset - sights.offset) > 50 + round_trip + sights.round_trip
        sights.offset, sights.round_trip = offset, round_trip
        gap = sent.sent_at - sights.last_answered_at > 2 * self.settings.renew_interval_ms
        sights.last_answered_at = now
        if stepped or gap:
            sights.known.clear()
            sights.dead.clear()
        sights.answered_at = now
        if not sights.rechecks:
            self._commit(sent)
            return
        for entry_id in sights.rechecks[_RECHECK_MOST:]:
            del sights.fresh[entry_id]
        del sights.rechecks[_RECHECK_MOST:]
        sights.look = sent
        sights.recheck_at = now + _RECHECK_AFTER_MS

    def on_recheck(self, now: int, outcome: Outcome, queue: int) -> None:
        """Idle 0 again: in the future of Redis's clock. Otherwise it was only just touched."""
        sights = self.sights[queue]
        sent, sights.look = sights.look, None
        if sent is None or not isinstance(outcome, Ok):
            self.restart(queue)
            return
        before, *listings, after = outcome.values
        redis_before, redis_after = milliseconds(before), milliseconds(after)
        if redis_before is None or redis_after is None:
            self.restart(queue)
            return
        if not 0 <= redis_after - redis_before <= self.settings.stamp_tolerance_ms:
            self.restart(queue)
            return
        for entry_id, listing in zip(sights.rechecks, listings, strict=True):
            rows = pending_rows(listing)
            sight = sights.fresh.get(entry_id)
            if not rows or sight is None or (rows[0].owner, rows[0].deliveries) != (sight.owner, sight.deliveries):
                sights.fresh.pop(entry_id, None)
                continue
            sight.future = rows[0].idle_ms == 0
            sight.stamp = redis_after - rows[0].idle_ms
        # Their owners may have touched them until just now.
        sights.answered_at = now
        self._commit(sent)

    def _commit(self, sent: LookSent) -> None:
        sights = self.sights[sent.queue]
        for entry_id, sight in sights.fresh.items():
            known = sights.known.get(entry_id)
            if known is not None and self._unchanged(known, sight):
                sight.since, sight.stamp = known.since, known.stamp
            else:
                sight.since = sights.answered_at
            sight.until = sent.sent_at
        sights.known, sights.fresh = sights.fresh, {}
        lease = self.settings.lease_ms
        sights.dead = [entry_id for entry_id, sight in sights.known.items() if sight.until - sight.since >= lease]

    def _unchanged(self, known: Sight, seen: Sight) -> bool:
        if (known.owner, known.deliveries, known.future) != (seen.owner, seen.deliveries, seen.future):
            return False
        return seen.future or abs(seen.stamp - known.stamp) <= self.settings.stamp_tolerance_ms

    # Claiming.

    def due_at(self) -> int:
        """When there is a recheck, or something dead and room for it."""
        due = NEVER
        for queue, sights in zip(self.queues, self.sights, strict=True):
            if sights.recheck_at < due:
                due = sights.recheck_at
            if sights.dead and self.setup.is_fenced(queue.index) and self._claimable(queue.index):
                due = min(due, sights.backoff.until)
        return due

    def _claimable(self, queue: int) -> list[bytes]:
        """Ids to claim, as many as there is room for."""
        room = min(self.tasks.room, self.settings.batch)
        return self.sights[queue].dead[:room] if room > 0 and not self.closing else []

    def compose(self, now: int, write: Write) -> None:
        """Add rechecks, and the question before a claim."""
        for queue, sights in zip(self.queues, self.sights, strict=True):
            if not sights.dead and now < sights.recheck_at:
                continue
            stream = queue.keys.stream
            if now >= sights.recheck_at:
                sights.recheck_at = NEVER
                listings = [commands.pending_entry(stream, entry_id) for entry_id in sights.rechecks]
                recheck = (commands.TIME, *listings, commands.TIME)
                write.middle.append(Section(("reclaim", "on_recheck"), recheck, queue.index))
            if write.question or not self.setup.is_fenced(queue.index) or now < sights.backoff.until:
                continue
            dead = self._claimable(queue.index)
            if dead:
                del sights.dead[: len(dead)]
                self.tasks.reserved += len(dead)
                listings = [commands.pending_entry(stream, entry_id) for entry_id in dead]
                question = (commands.watch(queue.keys.fence), commands.TIME, *listings, commands.TIME)
                write.question.append(Section(("reclaim", "on_question"), question, (queue.index, tuple(dead))))

    def on_question(self, now: int, outcome: Outcome, context: tuple[int, tuple[bytes, ...]]) -> None:
        """Claim those that are still unchanged."""
        index, dead = context
        sights = self.sights[index]
        self.tasks.reserved -= len(dead)
        if not isinstance(outcome, Ok):
            if isinstance(outcome, Refused):
                self._refused(now, index, outcome.error)
            return
        _, before, *listings, after = outcome.values
        redis_before, redis_after = milliseconds(before), milliseconds(after)
        if redis_before is None or redis_after is None:
            return
        if not 0 <= redis_after - redis_before <= self.settings.stamp_tolerance_ms:
            self.restart(index)
            return
        claimed: list[Pending] = []
        for entry_id, listing in zip(dead, listings, strict=True):
            known = sights.known.pop(entry_id, None)
            rows = pending_rows(listing)
            if known is None or not rows:
                continue
            row = rows[0]
            future = known.future and row.idle_ms == 0
            if self._unchanged(known, Sight(row.owner, row.deliveries, redis_after - row.idle_ms, future)):
                claimed.append(row)
                sights.known[entry_id] = known
        if claimed and not self.closing:
            queue = self.queues[index]
            ids = [row.entry_id for row in claimed]
            claim = (commands.claim(queue.keys.stream, self.consumer, ids), commands.increment(queue.keys.fence))
            self.tasks.reserved += len(claimed)
            self.shared.guarded = transaction_section(("reclaim", "on_claimed"), claim, (index, tuple(claimed)))

    def on_claimed(self, now: int, outcome: Outcome, context: tuple[int, tuple[Pending, ...]]) -> None:
        """They are ours; or something was taken in between: look again, their ages go on."""
        index, rows = context
        self.tasks.reserved -= len(rows)
        if isinstance(outcome, Aborted):
            self.leases.look_now(now, index)
        elif isinstance(outcome, Refused):
            self._refused(now, index, outcome.error)
        elif isinstance(outcome, Ok):
            error = first_error(outcome.values)
            if error is not None:
                self._refused(now, index, error)
                return
            sights = self.sights[index]
            sights.backoff.succeeded()
            # An entry without a body has dropped out of the pending entries list by this very XCLAIM (Redis 7.0).
            bodies_by_id = dict(bodies(outcome.values[0]))
            for row in rows:
                sights.known.pop(row.entry_id, None)
                if row.entry_id in bodies_by_id:
                    self._take(index, row, bodies_by_id[row.entry_id])

    def _take(self, index: int, row: Pending, fields: tuple[bytes, ...]) -> None:
        if self.tasks.take(index, row.entry_id, fields, row.deliveries + 1) is not None:
            owner = row.owner.decode("utf-8", "replace")
            text = row.entry_id.decode("ascii", "replace")
            self.shared.note(TaskClaimed(self.queues[index].name, text, owner, row.deliveries + 1))

    def _refused(self, now: int, index: int, error: ErrorReply) -> None:
        self.shared.refused("claiming", error)
        self.restart(index)
        self.sights[index].backoff.failed(now, self.shared.entropy)
