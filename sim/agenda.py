"""What will happen when: one heap with a total order, time first, then the order in which it was put there.

An event is data (an object, the name of its method, arguments), no closure: a world can be copied and compared.
"""

from __future__ import annotations

import heapq
from typing import Any

Event = tuple[int, int, Any, str, tuple[Any, ...]]


class Agenda:
    """The events to come."""

    __slots__ = ("count", "heap")

    def __init__(self) -> None:
        self.heap: list[Event] = []
        self.count = 0

    def at(self, time: int, target: Any, method: str, *args: Any) -> None:
        """`target.method(*args)` at that virtual time."""
        self.count += 1
        heapq.heappush(self.heap, (time, self.count, target, method, args))
