"""The world of a run: what the network, the server and the processes do when a fault strikes, seen in the trace."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from sim.faults import CATALOGUE
from sim.oracles import ORACLES
from sim.plan import Act, FaultPlan, Plan, ProcessPlan, TaskPlan
from sim.run import run
from sim.swarm import make_plan
from sim.trace import Trace
from sim.verdict import Failure, Verdict
from sim.world import World
from streamfleet_protocol.effects import Batch, Settled
from streamfleet_protocol.inputs import Disconnected, Reply

WORKER = {
    "lease_ms": 4_000,
    "renew_interval_ms": 1_000,
    "command_timeout_ms": 300,
    "block_ms": 500,
    "sweep_interval_ms": 2_000,
    "silence_ms": 10_000,
    "producer_silence_ms": 15_000,
    "consumer_silence_ms": 10_000,
    "collect_interval_ms": 1_000,
}
CLIENT = {
    "heartbeat_ms": 500,
    "retention_ms": 5_000,
    "command_timeout_ms": 400,
    "block_ms": 500,
    "silence_ms": 10_000,
    "producer_silence_ms": 15_000,
    "collect_interval_ms": 1_000,
    "reconnect_audit_ms": 1_000,
    "audit_interval_ms": 5_000,
    "audit_grace_ms": 500,
    "deadline_wait_ms": 1_000,
}


def plan(
    *faults: FaultPlan,
    tasks: int = 3,
    act: Act | None = None,
    workers: int = 2,
    tracked: bool = True,
    **changes: Any,
) -> Plan:
    """A small run: tasks from 1,000 ms on, one each 500 ms."""
    done = Plan(
        seed=1,
        version="valkey9",
        queues=("q1",),
        latency_ms=2,
        jitter_ms=0,
        split_percent=0,
        workers=tuple(ProcessPlan(f"w{n}", origin_ms=n * 1_000) for n in range(1, workers + 1)),
        clients=(ProcessPlan("c1"),),
        tasks=tuple(
            TaskPlan(f"t{n}", 1_000 + 500 * n, "c1", "q1", tracked=tracked, acts=(act or Act("succeed", 5),))
            for n in range(tasks)
        ),
        faults=faults,
        calm_at_ms=10_000,
        client_settings=CLIENT,
        worker_settings=WORKER,
    )
    done = replace(done, **changes)
    done.check()
    return done


def run_traced(what: Plan, **options: Any) -> tuple[Verdict, Trace]:
    """A run that must be green, and its trace."""
    trace = Trace()
    verdict = run(what, trace=trace, **options)
    assert verdict.violation is None, verdict.violation
    return verdict, trace


def payloads(trace: Trace, who: str, kind: type) -> list[Any]:
    """What one process got, or did, of that kind."""
    return [entry.payload for entry in trace.entries if entry.who == who and isinstance(entry.payload, kind)]


def test_a_run_without_faults() -> None:
    verdict, trace = run_traced(plan())
    assert (verdict.tasks, verdict.runs, verdict.duplicates_explained) == (3, 3, 0)
    assert len(payloads(trace, "c1", Settled)) == 3
    assert not verdict.notes
    assert verdict.checks["calm"] > 0


@pytest.mark.parametrize("version", ["redis7", "redis8", "valkey9"])
@pytest.mark.parametrize("split", [0, 100])
def test_every_version_and_every_batch_in_two_parts(version: str, split: int) -> None:
    run_traced(plan(version=version, split_percent=split, jitter_ms=3))


def cut(form: str, purpose: str, on: str = "c1", lane: str = "command") -> FaultPlan:
    return FaultPlan("f1", "cut", 1_100, on, 0, purpose, {"form": form, "lane": lane})


@pytest.mark.parametrize("form", ["before", "lost", "prefix", "late"])
def test_the_forms_of_a_cut(form: str) -> None:
    """Whatever becomes of the batch, each task is stored once, and runs once."""
    verdict, trace = run_traced(plan(cut(form, "outbox.on_batch")))
    assert verdict.faults == Counter({"cut": 1})
    assert len(payloads(trace, "c1", Disconnected)) == 1
    assert verdict.runs == 3


def test_late_bytes_come_behind_the_next_connection() -> None:
    """They are executed after the new connection has armed itself, and apply nothing."""
    _, trace = run_traced(plan(cut("late", "outbox.on_batch")))
    whats = [(entry.who, entry.what) for entry in trace.entries]
    late = whats.index(("network", "late"))
    armed = [
        at
        for at, entry in enumerate(trace.entries)
        if isinstance(entry.payload, Batch) and entry.payload.purposes == ("outbox.on_armed",)
    ]
    assert armed[0] < armed[1] < late


def test_a_blocked_read_that_is_cut_late_takes_an_entry_with_it() -> None:
    """It is executed on a connection that nobody reads: the look finds the entry."""
    verdict, _ = run_traced(plan(cut("late", "intake.on_read", on="w1", lane="read"), workers=1))
    assert verdict.runs == 3


def test_a_killed_worker_leaves_its_task_to_another() -> None:
    kill = FaultPlan("f1", "kill", 1_100, "w1", 0, "", {"restart_ms": -1})
    verdict, trace = run_traced(plan(kill, act=Act("succeed", 2_000), tasks=6))
    assert verdict.notes["TaskClaimed"] >= 1
    assert verdict.duplicates_explained >= 1
    own = [(entry.what, entry.at_ms) for entry in trace.entries if entry.who == "w1"]
    assert own[own.index(("killed", 1_100)) + 1] == ("start", 10_000), "it is started again when the faults are over"


def test_a_frozen_process_does_nothing_and_gets_all_afterwards() -> None:
    freeze = FaultPlan("f1", "freeze", 1_600, "c1", 700)
    _, trace = run_traced(plan(freeze))
    own = [entry for entry in trace.entries if entry.who == "c1"]
    frozen = next(at for at, entry in enumerate(own) if entry.what == "frozen")
    assert own[frozen + 1].what == "thawed"
    assert own[frozen + 1].at_ms == 2_300
    assert [type(entry.payload) for entry in own[frozen + 2 :]].count(Reply) > 0


def test_a_process_may_freeze_between_its_decision_and_its_write() -> None:
    """The batch that it is about to write is written when it thaws."""
    freeze = FaultPlan("f1", "freeze", 1_000, "w1", 1_500, "settlement.on_tracked")
    _, trace = run_traced(plan(freeze, workers=1))
    frozen = next(entry for entry in trace.entries if entry.what == "frozen")
    settled = next(
        entry
        for entry in trace.entries
        if entry.who == "w1" and isinstance(entry.payload, Batch) and "settlement.on_tracked" in entry.payload.purposes
    )
    word = next(entry for entry in trace.entries if isinstance(entry.payload, Settled))
    assert settled.at_ms == frozen.at_ms
    assert word.at_ms >= frozen.at_ms + 1_500


def test_a_worker_that_stays_frozen_is_dead() -> None:
    freeze = FaultPlan("f1", "freeze", 1_100, "w2", -1)
    run_traced(plan(freeze, gone=("w2",), act=Act("succeed", 300), tasks=6))


@pytest.mark.parametrize("kind", ["refuse", "silence", "mute", "deaf", "stall"])
@pytest.mark.parametrize("on", ["w1", "c1"])
def test_networks_that_fail_for_a_while(kind: str, on: str) -> None:
    verdict, _ = run_traced(plan(FaultPlan("f1", kind, 1_400, on, 2_000), tasks=6))
    assert verdict.faults == Counter({kind: 1})


def test_a_restart_that_loses_everything_is_repaired() -> None:
    restart = FaultPlan("f1", "restart", 2_010, "", 200, "", {"lose_ms": -1})
    verdict, _ = run_traced(plan(restart, act=Act("succeed", 1_000), tasks=6))
    assert verdict.notes["DataLossSeen"] >= 1


def test_an_old_primary_answers_on() -> None:
    """What it is given is lost, and sent again."""
    failover = FaultPlan("f1", "failover", 1_800, "", 0, "", {"lag_ms": 100, "old_ms": 1_500, "clock_ms": 40})
    verdict, trace = run_traced(plan(failover, tasks=6))
    lost: list[Any] = [entry.payload for entry in trace.entries if entry.what == "lost"]
    assert [payload[0] for payload in lost] == ["failover", "old primary"]
    assert verdict.notes["DataLossSeen"] >= 1


@pytest.mark.parametrize("mode", ["loading", "oom", "busy", "misconf", "noreplicas", "masterdown", "demote"])
def test_a_server_that_refuses_for_a_while(mode: str) -> None:
    verdict, _ = run_traced(plan(FaultPlan("f1", mode, 1_400, "", 1_500), tasks=6))
    assert verdict.notes["OperationRefused"] + verdict.notes["ConnectionDown"] >= 1


def test_a_clock_that_is_set_back_ends_no_wait_early() -> None:
    run_traced(plan(FaultPlan("f1", "clock", 1_700, "", 0, "", {"by_ms": -60_000}), tasks=6))


def test_a_poison_task_becomes_a_dead_letter() -> None:
    poison = TaskPlan("bad", 1_200, "c1", "q1", tracked=True, acts=(Act("poison", 10),))
    small = plan(worker_settings={**WORKER, "max_deliveries": 2})
    verdict, _ = run_traced(replace(small, tasks=(*small.tasks, poison)))
    assert verdict.notes["TaskDeadLettered"] == 1


@pytest.mark.parametrize("what", ["no version", "version 2", "field missing", "bad number"])
def test_a_bad_entry_becomes_a_dead_letter(what: str) -> None:
    verdict, _ = run_traced(plan(FaultPlan("f1", "bad entry", 1_400, "q1", 0, "", {"what": what})))
    assert verdict.notes["TaskDeadLettered"] == 1


def test_wrong_credentials_stop_a_worker_and_not_its_tasks() -> None:
    error = "WRONGPASS invalid username-password pair"
    fault = FaultPlan("f1", "credentials", 1_200, "w1", 2_500, "", {"error": error})
    _, trace = run_traced(plan(fault, workers=1))
    starts = [entry.at_ms for entry in trace.entries if entry.who == "w1" and entry.what == "start"]
    assert len(starts) >= 2


# Runs as a whole.


def test_the_same_plan_is_the_same_trace() -> None:
    for seed in (3, 4):
        first, second = Trace(), Trace()
        run(make_plan(seed), trace=first)
        run(make_plan(seed), trace=second)
        assert first.digest() == second.digest()


def test_a_trace_changes_nothing() -> None:
    traced, plain = run(make_plan(6), trace=Trace()), run(make_plan(6))
    assert (traced.steps, traced.commands, traced.virtual_ms) == (plain.steps, plain.commands, plain.virtual_ms)


def test_a_fault_that_is_taken_out_moves_nothing_before_it() -> None:
    """Chance is drawn by names: without the last fault all is as it was until then."""
    whole = next(make_plan(seed) for seed in range(100) if len(make_plan(seed).faults) > 3)
    last = whole.faults[-1]
    less = replace(whole, faults=tuple(fault for fault in whole.faults if fault is not last))
    one, other = Trace(), Trace()
    run(whole, trace=one)
    run(less, trace=other)

    def until(trace: Trace) -> list[str]:
        lead = max([int(value) for value in last.values.values() if isinstance(value, int)], default=0)
        return [line for line in trace.lines() if int(line.split(" ", 1)[0]) < last.at_ms - max(lead, 0)]

    assert until(one) == until(other)
    assert until(one)


def test_every_oracle_compares_something() -> None:
    checks: Counter[str] = Counter()
    for seed in range(25):
        checks.update(run(make_plan(seed)).checks)
    assert set(checks) == set(ORACLES)
    assert all(checks.values()), checks


def test_an_oracle_that_is_switched_off_does_not_fail() -> None:
    world = World(plan(), None, frozenset({"G4 rest"}))
    world.fail("G4 rest", Failure.SAFETY, "nothing")
    assert world.oracles.checks()["G4 rest"] == 0


def test_a_crash_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamfleet_protocol.server.intake.Intake.pump", lambda *_: 1 // 0)
    violation = run(plan()).violation
    assert violation is not None
    assert (violation.oracle, violation.failure) == ("crash", Failure.CRASH)
    assert re.match(r"ZeroDivisionError", violation.text)


def test_every_kind_of_fault_is_in_a_test_or_in_the_swarm() -> None:
    struck: Counter[str] = Counter()
    for seed in range(400):
        struck.update(fault.kind for fault in make_plan(seed).faults)
    assert set(struck) == set(CATALOGUE)
