"""G1: every accepted task is run to success, or to the end of its retries, or expires, or is a dead letter."""

from __future__ import annotations

from typing import ClassVar

from ..ledger import Loss, TaskRecord
from .base import Oracle


class Delivery(Oracle):
    """No accepted task is lost."""

    name: ClassVar[str] = "G1 delivery"

    def is_over(self, record: TaskRecord) -> bool:
        """Whether the task has come to an end that is allowed, or is excused from one."""
        if record.accepted_at < 0 or record.succeeded or record.dead:
            return True
        if self._is_expired(record) and not self._is_held(record):
            return True
        return self._excuse(record) is not None

    def _is_expired(self, record: TaskRecord) -> bool:
        """Whether its deadline is over by the clock of Redis, or, unsent, by that of its client."""
        if record.expires_ts:
            return record.expires_ts <= self.world.site.latest_ms()
        plan = record.plan
        if plan.expires_at_ms:
            return True
        expires_in = plan.options.get("expires_in_ms", 0)
        return bool(expires_in) and record.accepted_at + expires_in * 101 // 100 + 10 < self.world.now

    def _is_held(self, record: TaskRecord) -> bool:
        """Whether Redis or its client still has it."""
        data = self.world.site.primary.server.keys.data
        return record.plan.name in self.world.ledger.present(data) or self._is_with_client(record)

    def _is_with_client(self, record: TaskRecord) -> bool:
        process = self.world.processes[record.plan.client]
        machine = process.machine
        if machine is None or process.incarnation != record.incarnation:
            return False
        queue = machine.queues[record.plan.queue]  # type: ignore[call-overload]
        in_flight = queue.in_flight.tasks if queue.in_flight else ()
        return any(task.task_id == record.plan.name for task in (*queue.waiting, *in_flight))

    def _client_died(self, record: TaskRecord) -> int:
        """When the client that enqueued it ended."""
        identity = f"{record.plan.client}:{record.incarnation}"
        return self.world.ledger.presences[identity].ended_at

    def _excuse(self, record: TaskRecord) -> str | None:
        """Why nobody can be blamed for its absence; None: somebody must have it."""
        died = self._client_died(record)
        if record.plan.client in self.world.plan.gone:
            died = min(died, self.world.plan.calm_at_ms)
        if died <= self.world.now and not record.stored:
            return "its client died before it could be sent"
        for loss in self.world.ledger.losses:
            if record.plan.name in loss.tasks and not self._must_be_repaired(record, loss, died):
                return f"{loss.kind} at {loss.at} ms took it away"
        return None

    def _must_be_repaired(self, record: TaskRecord, loss: Loss, died: int) -> bool:
        """Whether its client still had it when the loss came, and could see the loss."""
        if not loss.repairable or died <= self.world.now:
            return False
        if record.plan.tracked:
            return not any(at <= loss.at for at, _ in record.settled)
        retention = self.world.plan.client_settings.get("retention_ms", 30_000)
        confirmed = [at for at in record.confirmed if at <= loss.at]
        return not confirmed or loss.at - confirmed[-1] < retention * 999 // 1000 - 2

    def unfinished(self) -> str | None:
        """A task that has not come to its end; a handle that is open."""
        for record in self.world.ledger.tasks.values():
            if not self.is_over(record):
                return f"{record.plan.name} has not come to its end: {self._story(record)}"
            if self._owes_word(record):
                return f"the handle of {record.plan.name} is open: {self._story(record)}"
        for (identity, _), asked_at in self.world.ledger.flushes.items():
            process = self.world.processes[identity.partition(":")[0]]
            if process.machine is not None and process.identity == identity and not process.frozen:
                return f"a flush that {identity} asked for at {asked_at} ms is not answered"
        return None

    def _owes_word(self, record: TaskRecord) -> bool:
        if not record.plan.tracked or record.accepted_at < 0 or record.settled:
            return False
        process = self.world.processes[record.plan.client]
        return process.machine is not None and process.incarnation == record.incarnation and not process.frozen

    def judge_unfinished(self) -> None:
        """The time is over: what nobody has any more is lost; the rest is a matter of progress."""
        for record in self.world.ledger.tasks.values():
            if not self.is_over(record) and not self._is_held(record):
                self.broken(f"{record.plan.name} is lost: {self._story(record)}")

    def all_ended(self) -> None:
        """Count what was compared."""
        self.checks += sum(record.accepted_at >= 0 for record in self.world.ledger.tasks.values())
        letters = sum(len(record.dead) for record in self.world.ledger.tasks.values())
        self.checks += letters

    def _story(self, record: TaskRecord) -> str:
        runs = ", ".join(f"{run.identity} {run.outcome or 'at work'} at {run.ended_at}" for run in record.runs[-4:])
        losses = [f"{loss.kind} at {loss.at}" for loss in self.world.ledger.losses if record.plan.name in loss.tasks]
        return (
            f"accepted at {record.accepted_at} by {record.plan.client}:{record.incarnation}, "
            f"stored {record.stored[:3]}, confirmed {record.confirmed[:2]}, runs [{runs}], "
            f"settled {[effect.end.value for _, effect in record.settled]}, lost {losses}"
        )
