"""G5: no clock, set as it may be, lets a task expire early, start early, or start after its deadline."""

from __future__ import annotations

from typing import ClassVar

from streamfleet_protocol.effects import End, Settled
from streamfleet_protocol.notes import ExpiredUnsent, Note, TaskHasExpired
from streamfleet_protocol.wire import TaskEntry

from ..handlers import Run
from ..ledger import TaskRecord
from ..network import Wire
from ..processes import Process
from ..settings import EPOCH_MS
from .base import Oracle

_BLURS = frozenset({"clock", "failover", "slow", "delay", "stall", "pause", "freeze", "silence", "mute", "deaf"})
"""With these a worker's idea of Redis's clock may lag behind by more than the slack."""

_DRIFT_MS = 6


class Clocks(Oracle):
    """Deadlines and delays go by Redis's clock."""

    name: ClassVar[str] = "G5 clocks"

    def handler_started(self, process: Process, record: TaskRecord | None, run: Run, entry: TaskEntry) -> None:
        """Not after its deadline, as far as the worker can know; and a retry not before its delay is over."""
        if record is not None and run.retries:
            self._delayed(record, run)
        if not entry.expires_ts:
            return
        self.checks += 1
        plan = self.world.plan
        if any(fault.kind in _BLURS for fault in plan.faults):
            return
        slack = 100 + 4 * (plan.latency_ms + plan.jitter_ms) + self.world.now // 1_000
        if run.redis_ms > entry.expires_ts + slack:
            late = run.redis_ms - entry.expires_ts
            self.broken(f"{entry.task_id} is started on {run.identity} {late} ms after its deadline on Redis's clock")

    def _delayed(self, record: TaskRecord, run: Run) -> None:
        """The delay has its jitter in its upper half."""
        if any(fault.kind in ("clock", "failover") for fault in self.world.plan.faults) or self.world.ledger.losses:
            return
        options = record.plan.options
        delay = options.get("retry_delay_ms", 1_000) * (options.get("retry_backoff", 200) / 100) ** (run.retries - 1)
        least = min(delay, options.get("retry_delay_max_ms", 300_000)) / 2 * 0.99 - 5
        for earlier in record.runs:
            if earlier.retries == run.retries - 1 and earlier.outcome == "failed":
                self.checks += 1
                waited = self.world.now - earlier.ended_at
                if waited < least:
                    self.broken(f"{run.task} is retried {waited} ms after its failure; {least:.0f} ms is the least")

    def stored(self, wire: Wire, record: TaskRecord) -> None:
        """Nothing is sent after its deadline, as far as its client can know."""
        if not record.expires_ts or any(fault.kind in _BLURS for fault in self.world.plan.faults):
            return
        self.checks += 1
        plan = self.world.plan
        late = wire.host.server.clock_ms - record.expires_ts
        if late > 100 + 4 * (plan.latency_ms + plan.jitter_ms) + plan.client_settings.get("command_timeout_ms", 3_000):
            self.broken(f"{record.plan.name} is sent {late} ms after its deadline")

    def appended(self, key: bytes, entry_id: bytes, record: TaskRecord, retries: int) -> None:
        """A delayed task comes into the stream only when it is due."""
        ledger = self.world.ledger
        due = ledger.delayed.get((record.plan.name, retries))
        wire = ledger.acting
        if due is None or wire is None:
            return
        self.checks += 1
        clock = self.world.site.latest_ms()
        if clock < due and not ledger.losses:
            self.broken(f"{record.plan.name} is promoted {due - clock} ms before it is due on Redis's clock")

    def settled(self, process: Process, record: TaskRecord, effect: Settled) -> None:
        """A handle expires only when its deadline is over."""
        if effect.end is End.EXPIRED:
            self._must_be_over(process, record)
            if not effect.confirmed and record.word_at >= 0:
                self._after_a_look(record)

    def _after_a_look(self, record: TaskRecord) -> None:
        """Without a word it ends only when a read that began after its deadline has brought none."""
        plan = self.world.plan
        if any(fault.kind in _BLURS for fault in plan.faults) or self.world.ledger.losses:
            return
        deadline = record.expires_ts - EPOCH_MS
        waited = self.world.now - deadline < plan.client_settings.get("deadline_wait_ms", 60_000) - 50
        if record.word_at < deadline and waited:
            self.broken(f"{record.plan.name} expired, and the word about its success lies unread")

    def noted(self, process: Process, note: Note) -> None:
        """So does a task."""
        if isinstance(note, TaskHasExpired | ExpiredUnsent):
            record = self.world.ledger.tasks.get(note.task_id)
            if record is not None:
                self._must_be_over(process, record)

    def _latest_ms(self) -> int:
        """The latest that anybody can take Redis's clock to be: with clock faults alone it is asked at intervals."""
        plan = self.world.plan
        if any(fault.kind != "clock" for fault in plan.faults):
            return self.world.site.latest_ms()
        renew = plan.worker_settings.get("renew_interval_ms", 10_000)
        beat = plan.client_settings.get("heartbeat_ms", 10_000)
        return self.world.site.latest_ms(3 * max(renew, beat) + 3_000)

    def _must_be_over(self, process: Process, record: TaskRecord) -> None:
        self.checks += 1
        world = self.world
        name = record.plan.name
        if record.expires_ts:
            early = record.expires_ts - self._latest_ms()
            # Between two readings of TIME a process goes by its own clock, which drifts.
            if early > _DRIFT_MS:
                self.broken(f"{name} expired on {process.identity} {early} ms before its deadline on Redis's clock")
        elif record.plan.options.get("expires_in_ms"):
            ahead = world.site.latest_ms() - EPOCH_MS - world.now
            early = record.accepted_at + record.plan.options["expires_in_ms"] * 999 // 1000 - 2 - world.now - ahead
            if early > 0:
                self.broken(f"{name} expired unsent {early} ms before its time")
        elif not record.plan.expires_at_ms:
            self.broken(f"{name} expired, and has no deadline")
