"""What the tools around a run know of it: two functions, which a test replaces by its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .plan import Plan
from .trace import Trace
from .verdict import Verdict


class RunPlan(Protocol):
    """Carries out a plan. It never raises: what goes wrong is in the verdict."""

    def __call__(self, plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict: ...


MakePlan = Callable[[int], Plan]
"""The plan of a seed."""


def real_run() -> RunPlan:
    """`run.run`. Imported late: reading a plan or a report does not need the world."""
    from .run import run

    return run


def real_make_plan() -> MakePlan:
    """`swarm.make_plan`, imported late."""
    from .swarm import make_plan

    return make_plan
