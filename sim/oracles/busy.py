"""Nothing spins: what a process writes is bounded by what it has to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from streamfleet_protocol.effects import Settled
from streamfleet_protocol.wire import TaskEntry

from ..handlers import Run
from ..ledger import TaskRecord
from ..network import Wire
from ..processes import Process
from ..verdict import Failure
from .base import Oracle

if TYPE_CHECKING:
    from ..world import World

_BASE = 150
"""Batches a second that looks, promotions, heartbeats, back-off and collection may need, in all queues."""
_EACH = 16
"""Batches that one task may need in one place."""


class BusyLoop(Oracle):
    """Counts batches by process and second."""

    name: ClassVar[str] = "busy loop"
    failure: ClassVar[Failure] = Failure.LIVENESS

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.second: dict[str, int] = {}
        self.batches: dict[str, int] = {}
        self.work: dict[str, int] = {}
        """What there was to do, this second and half of the one before."""

    def _tick(self, name: str) -> None:
        second = self.world.now // 1_000
        if self.second.get(name) != second:
            elapsed = second - self.second.get(name, 0)
            self.second[name] = second
            self.batches[name] = 0
            self.work[name] = self.work.get(name, 0) // 2 if elapsed == 1 else 0

    def before_batch(self, process: Process, batch: Any) -> None:
        """One more."""
        name = process.name
        self._tick(name)
        self.batches[name] += 1
        self.checks += 1
        allowed = _BASE + _EACH * self.work[name]
        if self.batches[name] > allowed:
            self.broken(f"{process.identity} writes {self.batches[name]} batches in one second: {batch.purposes}")

    def _worked(self, name: str) -> None:
        self._tick(name)
        self.work[name] += 1

    def handler_started(self, process: Process, record: TaskRecord | None, run: Run, entry: TaskEntry) -> None:
        """Work."""
        self._worked(process.name)

    def stored(self, wire: Wire, record: TaskRecord) -> None:
        """Work."""
        self._worked(wire.process.name)

    def settled(self, process: Process, record: TaskRecord, effect: Settled) -> None:
        """Work."""
        self._worked(process.name)
