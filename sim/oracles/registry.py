"""All oracles of a run: each event goes to those that look at it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from .base import Oracle
from .bounds import Bounds
from .busy import BusyLoop
from .calm import Calm
from .clocks import Clocks
from .delivery import Delivery
from .duplicates import Duplicates
from .order import Order
from .ownership import Ownership
from .progress import Progress
from .rest import Rest
from .truth import Truth

if TYPE_CHECKING:
    from ..world import World

_KINDS: tuple[type[Oracle], ...] = (
    Delivery,
    Truth,
    Duplicates,
    Order,
    Ownership,
    Rest,
    Clocks,
    Calm,
    Progress,
    BusyLoop,
    Bounds,
)
ORACLES: dict[str, type[Oracle]] = {kind.name: kind for kind in _KINDS}
"""By name."""
_EVENTS = [name for name, value in vars(Oracle).items() if callable(value) and name not in ("__init__", "broken")]


class Oracles:
    """The oracles of one run; has every method of `Oracle`, which goes to all that override it."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, world: World, without: frozenset[str]) -> None:
        self.world = world
        self.without = without
        self.all = [kind(world) for kind in _KINDS]
        self.progress = next(oracle for oracle in self.all if isinstance(oracle, Progress))
        self.rest = next(oracle for oracle in self.all if isinstance(oracle, Rest))
        self.delivery = next(oracle for oracle in self.all if isinstance(oracle, Delivery))
        for event in _EVENTS:
            setattr(self, event, self._to_all(event))

    def _to_all(self, event: str) -> Any:
        base = getattr(Oracle, event)
        listeners = [
            getattr(oracle, event)
            for oracle in self.all
            if getattr(type(oracle), event) is not base and oracle.name not in self.without
        ]
        if len(listeners) == 1:
            return listeners[0]

        def tell(*args: Any) -> None:
            for listener in listeners:
                listener(*args)

        return tell

    def checks(self) -> Counter[str]:
        """How often each really compared something."""
        return Counter({oracle.name: oracle.checks for oracle in self.all})

    # What is still to come.

    def unfinished(self) -> str | None:
        """A task that has not come to its end, as text; None where all have."""
        return self.delivery.unfinished()

    def not_at_rest(self) -> str | None:
        """What is left to be done, as text; None where all is at rest."""
        return self.rest.left_over()

    def out_of_time(self, what: str | None) -> None:
        """The bound is over, and something is not."""
        if what is not None:
            self.delivery.judge_unfinished()
            self.progress.broken(what)
