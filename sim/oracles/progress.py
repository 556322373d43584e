"""Liveness: once it is calm, everything that was accepted comes to its end within a bound that the settings give."""

from __future__ import annotations

from typing import ClassVar

from ..plan import TaskPlan
from ..verdict import Failure
from .base import Oracle

_UNSEEN = frozenset({"delete stream", "trim", "destroy group", "delete key", "wrong type", "delete consumers"})
"""What takes tasks away and no client can see; only the regular audit finds out."""


def _goes_by_a_clock(task: TaskPlan) -> bool:
    """Whether the task may be delayed, or expire."""
    options = task.options
    if task.due_at_ms or task.expires_at_ms or options.get("delay_ms") or options.get("expires_in_ms"):
        return True
    return len(task.acts) > 1 or task.acts[0].does not in ("succeed", "deaf", "poison")


class Progress(Oracle):
    """The bound, and that it holds."""

    name: ClassVar[str] = "progress"
    failure: ClassVar[Failure] = Failure.LIVENESS

    def recovery_ms(self) -> int:
        """From the last fault until every lease of the dead is taken over, and every connection is of use.

        Two leases and four intervals is the worst that the search of the sights found (protocol findings 2, section 4).
        """
        worker = self.world.plan.worker_settings
        lease, renew = worker.get("lease_ms", 60_000), worker.get("renew_interval_ms", 10_000)
        connecting = worker.get("connect_timeout_ms", 5_000) + worker.get("backoff_most_ms", 5_000)
        reading = worker.get("block_ms", 5_000) + worker.get("read_margin_ms", 2_000)
        return 2 * lease + 4 * renew + 2 * (connecting + reading) + 3 * worker.get("command_timeout_ms", 3_000)

    def bound_ms(self) -> int:
        """Recovery, then all the work there is, one task after the other, then the last handles."""
        return self.recovery_ms() + self._sweep_ms() + self._work_ms() + self._handles_ms() + self.clock_ms()

    def _sweep_ms(self) -> int:
        worker = self.world.plan.worker_settings
        return 3 * worker.get("sweep_interval_ms", 300_000) + worker.get("lease_ms", 60_000)

    def _work_ms(self) -> int:
        plan = self.world.plan
        worker = plan.worker_settings
        claim = worker.get("lease_ms", 60_000) + 3 * worker.get("renew_interval_ms", 10_000) + 2_000
        rest = worker.get("promote_interval_ms", 2_000) + 100
        work = 0
        for task in plan.tasks:
            delay = task.options.get("retry_delay_ms", 1_000)
            factor = task.options.get("retry_backoff", 200)
            work += task.options.get("delay_ms", 0) + rest
            for act in task.acts:
                work += act.after_ms + max(delay, act.delay_ms) + rest
                if act.does == "hang":
                    work += worker.get("timeout_ms", 0)
                if act.does == "poison":
                    work += claim * (worker.get("max_deliveries", 10) + 1)
                delay = min(delay * factor // 100, task.options.get("retry_delay_max_ms", 300_000))
            work = max(work, task.due_at_ms - self.world.now, task.expires_at_ms - self.world.now)
        return work

    def _handles_ms(self) -> int:
        client = self.world.plan.client_settings
        audits = client.get("reconnect_audit_ms", 30_000)
        if any(fault.kind in _UNSEEN for fault in self.world.plan.faults):
            # A handle is audited when it is older than the interval, at the next turn.
            audits += 2 * client.get("audit_interval_ms", 600_000)
        waits = client.get("audit_grace_ms", 30_000) + client.get("deadline_wait_ms", 60_000)
        slow = client.get("connect_timeout_ms", 5_000) + client.get("backoff_most_ms", 5_000)
        return audits + 2 * waits + 3 * slow + 3 * client.get("heartbeat_ms", 10_000) + 10_000

    def clock_ms(self) -> int:
        """Delays, and deadlines, move with Redis's clock; leases do not."""
        plan = self.world.plan
        if not any(_goes_by_a_clock(task) for task in plan.tasks):
            return 0
        return self.steps_ms()

    def steps_ms(self) -> int:
        """How far all clocks step, together."""
        plan = self.world.plan
        steps = [abs(int(fault.values.get("by_ms", 0))) for fault in plan.faults if fault.kind in ("clock", "wall")]
        steps += [abs(int(fault.values.get("clock_ms", 0))) for fault in plan.faults]
        steps += [abs(process.wall_ms) for process in plan.clients]
        return sum(steps)

    def all_ended(self) -> None:
        """It has held."""
        self.checks += 1
