"""The shrinker, on a world whose failure is known to need one task and one fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.plan import Act, FaultPlan, Plan, PlanError, ProcessPlan
from sim.shrink import NothingToShrink, Progress, Sizes, shrink
from sim.verdict import Failure, Verdict, Violation
from tests.sim import toy

RED = toy.make_plan(3)


class Counting:
    """The toy's world, with a count of its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, plan: Plan) -> Verdict:
        self.runs += 1
        return toy.run(plan)


def no_check(plan: Plan) -> None:
    """Every plan makes sense."""


def test_only_what_matters_is_left() -> None:
    run = Counting()
    found = shrink(RED, run=run)
    plan = found.plan
    assert found.after == (1, 1, 1, 1, 1)
    assert found.before == (40, 60, 3, 3, 3)
    assert [task.name for task in plan.tasks] == [toy.GUILTY]
    assert [fault.name for fault in plan.faults] == [toy.CAUSE]
    assert found.complete
    assert found.runs == run.runs < 150
    assert found.violation == toy.run(plan).violation


def test_values_become_simple_and_round() -> None:
    plan = shrink(RED, run=toy.run).plan
    [task], [fault], [worker], [client] = plan.tasks, plan.faults, plan.workers, plan.clients
    # Of the acts, one that fails is needed; of the fault, 700 ms.
    assert task.acts == (Act("fail"),)
    assert (fault.for_ms, fault.at_ms) == (1_000, 1)
    assert (task.tracked, task.wait, task.size, task.expires_at_ms, task.options) == (False, True, 10, 0, {})
    assert worker == ProcessPlan(worker.name)
    assert client == ProcessPlan(client.name)
    assert (plan.latency_ms, plan.jitter_ms, plan.split_percent, plan.version) == (1, 0, 0, "redis7")
    # A run must not become longer: the silence stays.
    assert (plan.gone, plan.client_settings, plan.worker_settings) == ((), {"silence_ms": 40_000}, {})
    plan.check()


def test_a_number_that_no_short_one_replaces_becomes_round() -> None:
    def run(plan: Plan) -> Verdict:
        late = [fault for fault in plan.faults if fault.at_ms >= 41_000 and fault.values.get("by_ms", 0) == -86_399]
        return Verdict(0, Violation("late", Failure.SAFETY, 99_999, "late") if late else None)

    clock = FaultPlan("f", "clock", 43_219, values={"by_ms": -86_399})
    small = shrink(replace(RED, faults=(clock,)), run=run).plan
    # Up, since it fails no earlier; and the value that must be what it is stays.
    assert small.faults == (FaultPlan("f", "clock", 50_000, values={"by_ms": -86_399}),)


def test_another_failure_does_not_count() -> None:
    """Without the fault, the task's absence is another defect."""

    def run(plan: Plan) -> Verdict:
        verdict = toy.run(plan)
        if verdict.violation is None:
            verdict.violation = Violation("another", Failure.CRASH, 0, "smaller, but another")
        return verdict

    found = shrink(RED, run=run)
    assert found.violation.oracle == "toy"
    assert found.after[:2] == (1, 1)


def test_the_result_depends_on_nothing_but_the_plan() -> None:
    assert shrink(RED, run=toy.run) == shrink(RED, run=toy.run)


def test_what_began_after_the_violation_goes_in_one_run() -> None:
    needed = {task.name for task in RED.tasks} | {fault.name for fault in RED.faults}
    late = toy.FAILS_AT_MS + 1
    faults = (*RED.faults, FaultPlan("late fault", "freeze", late, on="w1"))
    tasks = (*RED.tasks, replace(RED.tasks[0], name="late task", at_ms=late))
    steps: list[Progress] = []

    def run(plan: Plan) -> Verdict:
        """Red as long as all is there that begins before."""
        there = {task.name for task in plan.tasks} | {fault.name for fault in plan.faults}
        red = needed <= there
        return Verdict(0, Violation("toy", Failure.SAFETY, toy.FAILS_AT_MS, "all matters") if red else None)

    shrink(replace(RED, faults=faults, tasks=tasks), run=run, budget=2, progress=steps.append)
    assert [step.sizes[:2] for step in steps] == [(40, 60)]


def test_the_budget_is_kept() -> None:
    run = Counting()
    found = shrink(RED, run=run, budget=12)
    assert run.runs == found.runs == 12
    assert not found.complete
    assert found.after < found.before
    assert "budget" in str(found)
    assert toy.run(found.plan).violation is not None


def test_progress_is_told_after_each_run() -> None:
    steps: list[Progress] = []
    found = shrink(RED, run=toy.run, progress=steps.append)
    assert [step.runs for step in steps] == list(range(2, found.runs + 1))
    assert steps[-1].sizes == found.after
    assert "1 fault, 1 task, 1 worker, 1 client, 1 queue" in str(found)


def test_a_plan_that_does_not_fail() -> None:
    with pytest.raises(NothingToShrink):
        shrink(toy.make_plan(4), run=toy.run)


def test_a_plan_that_makes_no_sense_is_not_run() -> None:
    ran: list[Plan] = []

    def run(plan: Plan) -> Verdict:
        ran.append(plan)
        return toy.run(plan)

    def check(plan: Plan) -> None:
        if len(plan.workers) < 2:
            raise PlanError("two workers are needed")

    found = shrink(RED, run=run, check=check)
    assert found.after.workers == 2
    assert min(len(plan.workers) for plan in ran) == 2


def test_a_client_goes_with_its_tasks_and_the_faults_on_it() -> None:
    """The guilty task is c1's; without c1 there is nothing to fail."""
    ran: list[Plan] = []

    def run(plan: Plan) -> Verdict:
        ran.append(plan)
        return toy.run(plan)

    on_clients = tuple(FaultPlan(f"on {client.name}", "freeze", 1, on=client.name, for_ms=1) for client in RED.clients)
    found = shrink(replace(RED, faults=(*RED.faults, *on_clients)), run=run, check=no_check)
    assert [client.name for client in found.plan.clients] == ["c1"]
    for plan in ran:
        there = {process.name for process in (*plan.clients, *plan.workers)}
        assert {task.client for task in plan.tasks} <= there
        assert {fault.on for fault in plan.faults} <= there
        assert set(plan.gone) <= there


def test_a_worker_that_must_be_gone_stays_gone() -> None:
    def run(plan: Plan) -> Verdict:
        return toy.run(plan) if "w2" in plan.gone else Verdict(0)

    found = shrink(RED, run=run)
    # The fault is on w0, so two workers are needed.
    assert found.plan.gone == ("w2",)
    assert [worker.name for worker in found.plan.workers] == ["w0", "w2"]


def test_a_queue_is_kept_for_its_tasks() -> None:
    def run(plan: Plan) -> Verdict:
        return toy.run(plan) if {"a", "b"} <= {task.queue for task in plan.tasks} else Verdict(0)

    found = shrink(RED, run=run)
    assert found.plan.queues == ("a", "b")
    assert found.after.tasks == 2


def test_a_plan_needs_no_task() -> None:
    def run(plan: Plan) -> Verdict:
        return Verdict(0, Violation("always", Failure.CRASH, 0, "always"))

    assert shrink(RED, run=run).after == Sizes(0, 0, 1, 1, 1)
