"""One run of a plan."""

from __future__ import annotations

import traceback

from .plan import Plan
from .trace import Trace
from .verdict import Failure, Verdict, Violation
from .world import Violated, World


def run(plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
    """Run a plan to its end, or to the first violation; never raises for what a machine does.

    `without` names oracles that are switched off.
    """
    violation: Violation | None = None
    world: World | None = None
    try:
        world = World(plan, trace, without)
        world.run()
    except Violated as violated:
        violation = violated.violation
    except Exception as error:
        now = world.now if world is not None else 0
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        violation = Violation("crash", Failure.CRASH, now, text)
    verdict = Verdict(plan.seed, violation)
    if world is None:
        return verdict
    if trace is not None:
        trace.add(world.now, "world", "end", violation)
        verdict.digest = trace.digest()
    ledger = world.ledger
    verdict.virtual_ms = world.now
    verdict.steps = world.steps
    verdict.commands = world.commands
    verdict.tasks = len(ledger.tasks)
    verdict.runs = ledger.run_count
    verdict.duplicates_explained = ledger.duplicates_explained
    verdict.checks = world.oracles.checks()
    verdict.faults = world.faults.struck
    verdict.notes = ledger.notes
    return verdict
