"""The sorted set."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class ZSet:
    """Members with scores, ordered by score, then by member."""

    scores: dict[bytes, float] = field(default_factory=dict)
    order: list[tuple[float, bytes]] = field(default_factory=list)

    def copy(self) -> ZSet:
        """A copy."""
        return ZSet(dict(self.scores), list(self.order))

    def frozen(self) -> tuple[Hashable, ...]:
        """The same as tuples."""
        return ("zset", *self.order)

    def put(self, member: bytes, score: float) -> bool:
        """Adds or moves the member; returns whether it is new."""
        old = self.scores.get(member)
        if old is not None:
            if old == score:
                return False
            del self.order[bisect_left(self.order, (old, member))]
        self.scores[member] = score
        insort(self.order, (score, member))
        return old is None

    def remove(self, member: bytes) -> bool:
        """Returns whether it was there."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        del self.order[bisect_left(self.order, (score, member))]
        return True
