"""A small world for tests of the tools around a run: what it finds wrong with a plan can be read off the plan."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from dataclasses import replace

from sim.plan import Act, FaultPlan, Plan, ProcessPlan, TaskPlan
from sim.trace import Trace
from sim.verdict import Failure, Verdict, Violation

GUILTY = "t7"
"""The task that goes wrong where it fails while the guilty fault lasts."""
CAUSE = "f3"
RED_EVERY = 10
FAILS_AT_MS = 61_234


def make_plan(seed: int) -> Plan:
    """Many tasks and faults; those that matter are in the seeds with a remainder of 3."""
    tasks = tuple(
        TaskPlan(
            f"t{at}",
            1_000 + 997 * at,
            f"c{at % 3}",
            ("a", "b")[at % 2],
            True,
            (Act("fail", 1_234), Act("succeed", 77 + at)),
            size=333,
            wait=False,
            options={"max_retries": 5, "retry_delay_ms": 1_234},
            expires_at_ms=90_000,
        )
        for at in range(60)
    )
    faults = tuple(FaultPlan(f"f{at}", "freeze", 1_500 * at, on=f"w{at % 3}", for_ms=8_765) for at in range(40))
    if seed % RED_EVERY != 3:
        faults = tuple(fault for fault in faults if fault.name != CAUSE)
    return Plan(
        seed=seed,
        version="valkey9",
        queues=("a", "b", "idle"),
        latency_ms=3,
        jitter_ms=7,
        split_percent=20,
        workers=tuple(ProcessPlan(f"w{at}", 13, 12_345, 50, -4_321, {"page": 2}) for at in range(3)),
        clients=tuple(ProcessPlan(f"c{at}", 17, 54_321, -50) for at in range(3)),
        tasks=tasks,
        faults=faults,
        calm_at_ms=87_654,
        gone=("w1", "w2"),
        client_settings={"block_ms": 100, "silence_ms": 40_000},
        worker_settings={"page": 3, "batch": 7},
    )


def run(plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
    """Red with the oracle "toy" where the guilty task fails at first, and the guilty fault lasts for 700 ms."""
    guilty = [task for task in plan.tasks if task.name == GUILTY and task.acts[0].does == "fail"]
    cause = [fault for fault in plan.faults if fault.name == CAUSE and fault.for_ms >= 700]
    violation = None
    if guilty and cause and "toy" not in without:
        violation = Violation("toy", Failure.SAFETY, FAILS_AT_MS, f"{GUILTY} was lost\nin {cause[0].name}")
    if trace is not None:
        for task in plan.tasks:
            trace.add(task.at_ms, task.client, "enqueue", task)
        trace.add(FAILS_AT_MS, "world", "end", violation)
    return Verdict(
        plan.seed,
        violation,
        virtual_ms=100_000,
        steps=50,
        commands=70,
        tasks=len(plan.tasks),
        runs=len(plan.tasks) + 1,
        duplicates_explained=1,
        checks=Counter({"toy": 5}),
        faults=Counter(fault.kind for fault in plan.faults),
        notes=Counter({"Reconnected": 2}),
        digest=trace.digest() if trace is not None else "",
    )


def run_with_hashes(plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
    """Not deterministic: hashes of text differ between processes."""
    if trace is not None:
        trace.add(4_321, "world", "order", hash("text"))
    return run(plan, trace=trace, without=without)


def run_or_hang(plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
    """Seed 3 never ends."""
    if plan.seed == 3:
        time.sleep(3_600)
    return run(plan, trace=trace, without=without)


def run_or_die(plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
    """Seed 3 ends its process."""
    if plan.seed == 3:
        os._exit(9)
    return run(plan, trace=trace, without=without)


def no_plan_for_3(seed: int) -> Plan:
    """A generator of plans that has a defect."""
    if seed == 3:
        raise ZeroDivisionError("no plan for 3")
    return make_plan(seed)


def run_by_class(plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
    """Seed 1 crashes, 2 breaks a guarantee, 3 is late; all others are green."""
    found = {1: Failure.CRASH, 2: Failure.SAFETY, 3: Failure.LIVENESS}.get(plan.seed)
    violation = None if found is None else Violation(found.name.lower(), found, 1_000, f"seed {plan.seed} is bad")
    return replace(run(plan, trace=trace), violation=violation)


def digest_of(plan: Plan) -> str:
    """Of the toy's trace, reckoned without a Trace."""
    trace = Trace()
    run(plan, trace=trace)
    return hashlib.sha256("".join(text + "\n" for text in trace.lines()).encode()).hexdigest()
