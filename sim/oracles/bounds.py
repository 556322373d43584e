"""Every bound of the configuration holds at every step."""

from __future__ import annotations

from typing import Any, ClassVar

from streamfleet_protocol.wire import TaskEntry

from ..handlers import Run
from ..ledger import TaskRecord
from ..processes import Process
from .base import Oracle


class Bounds(Oracle):
    """Handlers at once, tasks held, the local queue, the size of batches."""

    name: ClassVar[str] = "bounds"

    def handler_started(self, process: Process, record: TaskRecord | None, run: Run, entry: TaskEntry) -> None:
        """Not more handlers than `concurrency`, and no more deliveries than `max_deliveries`."""
        machine: Any = process.machine
        settings = machine.settings
        self.checks += 1
        if len(process.runs) > settings.concurrency:
            self.broken(f"{process.identity} runs {len(process.runs)} handlers; concurrency is {settings.concurrency}")
        if run.deliveries > settings.max_deliveries:
            self.broken(f"{run.task} is started at delivery {run.deliveries}; {settings.max_deliveries} are allowed")
        most = record.plan.options.get("max_retries", -1) if record is not None else -1
        if 0 <= most < run.retries:
            self.broken(f"{run.task} is retried for the {run.retries}th time; {most} retries are allowed")

    def rejected(self, process: Process, record: TaskRecord) -> None:
        """Where the local queue is full only a call that does not wait is refused."""
        self.checks += 1
        if record.rejected == "queue full" and record.plan.wait:
            self.broken(f"{record.plan.name} was refused for want of room, and its call waits")

    def after_step(self, process: Process) -> None:
        """What the machine holds."""
        machine: Any = process.machine
        self.checks += 1
        if process.is_worker:
            self._worker(process, machine)
        elif machine.admission.tasks > machine.settings.max_local_queue and not self.world.ledger.losses:
            self.broken(
                f"{process.identity} has {machine.admission.tasks} tasks in its local queue of at most "
                f"{machine.settings.max_local_queue}"
            )

    def _worker(self, process: Process, machine: Any) -> None:
        settings = machine.settings
        prefetch = settings.prefetch if settings.prefetch is not None else settings.prefetch_most
        # A read under way reserves no room, or claims would starve behind the reads of a busy queue; and the blocking
        # read over all queues asks for one entry, and may bring one of each: COUNT is per stream.
        most = 2 * (settings.concurrency + prefetch) + len(settings.queues) - 1
        if machine.tasks.held > most and not self.world.ledger.notes["TaskAdopted"]:
            self.broken(
                f"{process.identity} holds {machine.tasks.held} tasks that have not started; concurrency is "
                f"{settings.concurrency}, prefetch {prefetch}"
            )

    def before_batch(self, process: Process, batch: Any) -> None:
        """Batches are bounded: about 256 entries each of what a task needs, with its questions."""
        self.checks += 1
        if len(batch.commands) > 4 * 256 + 64:
            self.broken(f"{process.identity} writes {len(batch.commands)} commands in one batch: {batch.purposes}")
