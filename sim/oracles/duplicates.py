"""G3: a task runs again only where its worker died, was cut off or frozen for a lease, closed, or Redis lost data."""

from __future__ import annotations

from typing import ClassVar

from streamfleet_protocol.wire import TaskEntry

from ..handlers import Run
from ..ledger import TaskRecord
from ..network import Wire
from ..processes import Process
from .base import Oracle

_ROUND_TRIPS_MS = 200
"""So long a successor that turns out to be one too many may stand."""


class Duplicates(Oracle):
    """No attempt is started twice without a reason that G3 lists; no client stores a task twice."""

    name: ClassVar[str] = "G3 duplicates"

    def handler_started(self, process: Process, record: TaskRecord | None, run: Run, entry: TaskEntry) -> None:
        """Was this attempt, or a success, seen before?"""
        if record is None:
            return
        self.checks += 1
        known = self.world.ledger.known_late.get((record.plan.name, run.retries))
        if known is not None and self.world.now > known + _ROUND_TRIPS_MS and not self.world.ledger.losses:
            self.broken(
                f"{record.plan.name} runs again (attempt {run.retries + 1}): its success was settled at "
                f"{record.finished_at} ms, a worker has learned at {known} ms that its retry came later, and left it"
            )
        again = False
        for earlier in record.runs:
            if earlier.retries == run.retries or earlier.outcome == "succeeded":
                again = True
                reason = self._reason(record, earlier)
                if reason is not None:
                    self.broken(
                        f"{record.plan.name} runs again on {run.identity} (attempt {run.retries + 1}, entry "
                        f"{run.entry_id.decode()}, delivery {run.deliveries}) after a run on {earlier.identity} that "
                        f"{earlier.outcome or 'is at work'}: {reason}"
                    )
        if again:
            self.world.ledger.duplicates_explained += 1

    def _reason(self, record: TaskRecord, earlier: Run) -> str | None:
        """Why the duplicate is not explained; None: it is."""
        ledger = self.world.ledger
        if ledger.lost_since(min(earlier.started_at, record.stored[0][0] if record.stored else 0)):
            return None
        presence = ledger.presences[earlier.identity]
        if presence.closing_at <= self.world.now or presence.ended_at <= self.world.now:
            return None
        # It may have been away just before it started, with the lease running out since.
        lapse = presence.longest_gap(min(earlier.started_at, earlier.renewed_at), self.world.now)
        needed = lapse_needed_ms(self.world.plan.worker_settings)
        if lapse >= needed:
            return None
        return f"it was out of touch for {lapse} ms at most, where {needed} ms would explain it"

    def stored(self, wire: Wire, record: TaskRecord) -> None:
        """A client stores a task once, and again only after a loss."""
        self.checks += 1
        if len(record.stored) > 1 and not self.world.ledger.lost_since(record.stored[0][0]):
            self.broken(f"{record.plan.name} was stored twice, at {[at for at, _ in record.stored]} ms, with no loss")


def lapse_needed_ms(worker_settings: dict[str, int]) -> int:
    """How long an owner must have been out of touch for a takeover to be explained.

    Its leases were touched at the last contact but one look, so the gap between two contacts is shorter than the lease
    by up to two intervals.
    """
    lease = worker_settings.get("lease_ms", 60_000)
    renew = worker_settings.get("renew_interval_ms", 10_000)
    return lease - 2 * renew
