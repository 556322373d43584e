"""A client's tasks of one queue come into the stream in the order of their acceptance, as long as nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..ledger import TaskRecord
from ..network import Wire
from .base import Oracle

if TYPE_CHECKING:
    from ..world import World


class Order(Oracle):
    """Whatever goes out again goes out in its place."""

    name: ClassVar[str] = "order"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.last: dict[tuple[str, str], TaskRecord] = {}
        """By client and queue: the newest task that came into the stream."""

    def stored(self, wire: Wire, record: TaskRecord) -> None:
        """A client's command has put a task into Redis."""
        plan = record.plan
        if plan.options.get("delay_ms") or plan.due_at_ms or self.world.ledger.lost_since(0):
            return
        key = (wire.process.identity, plan.queue)
        last = self.last.get(key)
        self.last[key] = record
        if last is not None:
            self.checks += 1
            if (record.asked_at, record.call) < (last.asked_at, last.call):
                self.broken(
                    f"{plan.name}, enqueued at {record.asked_at} ms, comes into the stream behind {last.plan.name}, "
                    f"enqueued at {last.asked_at} ms"
                )
