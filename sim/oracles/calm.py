"""With no fault: no duplicate, no lease lost, no requeue, nothing odd, and a bounded number of commands."""

from __future__ import annotations

from typing import ClassVar

from streamfleet_protocol.notes import (
    ExpiredUnsent,
    GarbageCollected,
    Note,
    TaskDeadLettered,
    TaskHasExpired,
    TaskRetried,
)

from ..processes import Process
from .base import Oracle

_EXPECTED = (TaskRetried, TaskDeadLettered, TaskHasExpired, ExpiredUnsent)
_COMMANDS_A_TASK = 60
_COMMANDS_A_SECOND = 20
_COMMANDS_A_LOOK = 20
"""Of an idle process and queue, at the most."""


class Calm(Oracle):
    """Judges runs without any fault in their plan."""

    name: ClassVar[str] = "calm"

    def _is_calm(self) -> bool:
        plan = self.world.plan
        return not plan.faults and not any(act.does == "poison" for task in plan.tasks for act in task.acts)

    def noted(self, process: Process, note: Note) -> None:
        """Machines have nothing to say but what the tasks themselves bring."""
        if self._is_calm() and not process.closing:
            self.checks += 1
            if isinstance(note, GarbageCollected) and note.kind == "consumer" and self.world.plan.version == "redis7":
                # Redis 7.0 tells of no sign of life but a served read; an idle worker's consumer is made again by one.
                return
            if not isinstance(note, _EXPECTED):
                self.broken(f"{process.identity} says, without any fault: {note}")

    def all_ended(self) -> None:
        """Each attempt ran once, and cost what it may."""
        if not self._is_calm():
            return
        world = self.world
        attempts = 0
        for record in world.ledger.tasks.values():
            self.checks += 1
            attempts += len(record.runs)
            seen = [run.retries for run in record.runs]
            if len(set(seen)) != len(seen):
                self.broken(f"{record.plan.name} ran more than once in one attempt: {seen}")
        renew = world.plan.worker_settings.get("renew_interval_ms", 10_000)
        idle = world.now * _COMMANDS_A_SECOND // 1_000 + world.now * _COMMANDS_A_LOOK // renew
        idle *= len(world.processes) * len(world.plan.queues)
        allowed = idle + (attempts + len(world.ledger.tasks)) * _COMMANDS_A_TASK + 200
        self.checks += 1
        if world.commands > allowed:
            self.broken(f"{world.commands} commands for {attempts} attempts in {world.now} ms; {allowed} are allowed")
