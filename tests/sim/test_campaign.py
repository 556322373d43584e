"""Soaks: sums, repeats, red seeds and their files; processes that hang or die."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim import campaign, pool, report
from sim.campaign import Soak, Totals, keep, run_seed, soak, worst
from sim.plan import Plan
from sim.trace import Trace
from sim.verdict import Failure, Verdict, Violation
from tests.sim import toy
from tests.sim.test_determinism import Drifting

TASKS = 60
FAULTS = 39


@pytest.mark.parametrize("jobs", [0, 2], ids=["here", "processes"])
def test_the_figures_are_sums(jobs: int) -> None:
    result = soak(range(0, 30), jobs, run=toy.run, make_plan=toy.make_plan)
    totals = result.totals
    assert (totals.seeds, totals.virtual_ms, totals.steps, totals.commands) == (30, 3_000_000, 1_500, 2_100)
    assert (totals.tasks, totals.runs, totals.duplicates_explained) == (30 * TASKS, 30 * (TASKS + 1), 30)
    assert totals.checks == {"toy": 150}
    assert totals.faults == {"freeze": 30 * FAULTS + 3}
    assert totals.notes == {"Reconnected": 60}
    assert totals.fault_free == 0
    # The runs 0 and 20 were repeated.
    assert (totals.repeats, totals.repeats_equal) == (2, 2)
    assert [red.seed for red in result.red] == [3, 13, 23]
    assert result.red_by_oracle == {"toy": 3}
    assert result.failure is Failure.SAFETY
    assert result.stopped == ""
    assert result.wall_s > 0
    assert totals.cpu_s > 0


def test_runs_without_faults_are_counted() -> None:
    totals = Totals()
    totals.add(Verdict(1), 0.5)
    totals.add(Verdict(2, faults=Counter({"kill": 1})), 0.25)
    assert (totals.seeds, totals.fault_free, totals.cpu_s) == (2, 1, 0.75)


def test_progress_is_told_after_each_seed() -> None:
    seen: list[int] = []
    soak(range(5), 0, run=toy.run, make_plan=toy.make_plan, progress=lambda now: seen.append(now.totals.seeds))
    assert seen == [1, 2, 3, 4, 5]


def test_it_can_end_early() -> None:
    result = soak(range(100), 0, run=toy.run, make_plan=toy.make_plan, stop_after=2)
    assert [red.seed for red in result.red] == [3, 13]
    assert result.totals.seeds == 14
    assert result.stopped == "stopped after 2 red"


def test_it_can_be_interrupted() -> None:
    def progress(now: Soak) -> None:
        if now.totals.seeds == 4:
            raise KeyboardInterrupt

    result = soak(range(100), 0, run=toy.run, make_plan=toy.make_plan, progress=progress)
    assert result.totals.seeds == 4
    assert result.stopped == campaign.INTERRUPTED


def test_only_the_first_red_seeds_are_told_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "RED_KEPT", 2)
    result = soak(range(50), 0, run=toy.run, make_plan=toy.make_plan)
    assert [red.seed for red in result.red] == [3, 13]
    assert result.red_count == 5


def test_memory_between_runs_is_found() -> None:
    result = soak(range(40), 0, run=Drifting(), make_plan=toy.make_plan, repeat_every=10)
    assert (result.totals.repeats, result.totals.repeats_equal) == (4, 0)
    assert [red.seed for red in result.red if red.violation.oracle == "determinism"] == [0, 10, 20, 30]
    assert result.failures == {Failure.NONDETERMINISM: 4, Failure.SAFETY: 4}


def test_order_that_hangs_on_hash_seeds_is_found() -> None:
    """In one process all is equal: only a second one with another hash seed shows it."""
    here = soak(range(3), 0, run=toy.run_with_hashes, make_plan=toy.make_plan)
    assert here.failure is Failure.NONE
    result = soak(range(3), 2, run=toy.run_with_hashes, make_plan=toy.make_plan)
    assert [red.violation.failure for red in result.red] == [Failure.NONDETERMINISM]


def test_a_red_run_is_not_repeated() -> None:
    result = soak([3], 0, run=toy.run, make_plan=toy.make_plan)
    assert result.totals.repeats == 0
    assert result.red_count == 1


def test_a_run_that_hangs() -> None:
    result = soak(range(6), 2, run=toy.run_or_hang, make_plan=toy.make_plan, run_timeout_s=1.5)
    [red] = result.red
    assert (red.seed, red.violation.oracle, red.violation.failure) == (3, "hang", Failure.LIVENESS)
    assert "1.5 s" in red.violation.text
    assert result.totals.seeds == 6


def test_a_run_that_ends_its_process() -> None:
    result = soak(range(6), 2, run=toy.run_or_die, make_plan=toy.make_plan)
    [red] = result.red
    assert (red.seed, red.violation.failure) == (3, Failure.CRASH)
    assert "exit code 9" in red.violation.text
    assert result.totals.seeds == 6


def test_a_seed_without_a_plan(tmp_path: Path) -> None:
    result = soak(range(6), 0, run=toy.run, make_plan=toy.no_plan_for_3)
    [red] = result.red
    assert red.violation.failure is Failure.CRASH
    assert red.violation.text.startswith("ZeroDivisionError: no plan for 3 (toy.py, line ")
    keep(result, tmp_path, make_plan=toy.no_plan_for_3)
    assert result.red[0].files == ()
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_spelled_is_a_crash_of_that_seed() -> None:
    def run(plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
        if trace is not None:
            trace.add(0, "a", "b", object())
        return Verdict(plan.seed)

    violation = run_seed(1, True, run, toy.make_plan).verdict.violation
    assert violation is not None
    assert violation.failure is Failure.CRASH
    assert "TypeError: a trace cannot hold a object" in violation.text


@pytest.mark.parametrize(
    ("failures", "most_severe"),
    [
        ([], Failure.NONE),
        ([Failure.LIVENESS], Failure.LIVENESS),
        ([Failure.LIVENESS, Failure.NONDETERMINISM], Failure.NONDETERMINISM),
        ([Failure.NONDETERMINISM, Failure.SAFETY], Failure.SAFETY),
        ([Failure.SAFETY, Failure.LIVENESS, Failure.CRASH], Failure.CRASH),
    ],
)
def test_the_most_severe_failure(failures: list[Failure], most_severe: Failure) -> None:
    assert worst(Counter(failures)) is most_severe


# Files.


def test_the_plans_of_red_seeds_are_kept(tmp_path: Path) -> None:
    result = soak(range(20), 0, run=toy.run, make_plan=toy.make_plan)
    keep(result, tmp_path / "new", run=toy.run, make_plan=toy.make_plan)
    assert [red.files for red in result.red] == [
        (tmp_path / "new/seed-3.json",),
        (tmp_path / "new/seed-13.json",),
    ]
    assert Plan.read(tmp_path / "new/seed-3.json") == replace(toy.make_plan(3), oracle="toy")


@pytest.mark.parametrize("jobs", [0, 2], ids=["here", "processes"])
def test_the_first_red_seeds_of_an_oracle_are_shrunk(tmp_path: Path, jobs: int) -> None:
    told: list[tuple[int, int]] = []
    result = soak(range(30), jobs, run=toy.run, make_plan=toy.make_plan)
    keep(
        result,
        tmp_path,
        shrinking=True,
        run=toy.run,
        make_plan=toy.make_plan,
        progress=lambda done, wanted: told.append((done, wanted)),
    )
    assert [len(red.files) for red in result.red] == [2, 2, 1]
    assert told == [(1, 2), (2, 2)]
    small = Plan.read(tmp_path / "seed-13-shrunk.json")
    assert (small.seed, small.oracle, len(small.tasks), len(small.faults)) == (13, "toy", 1, 1)
    assert result.red[0].shrunk is not None
    assert result.red[0].shrunk.after[:2] == (1, 1)


def test_nothing_is_shrunk_that_does_not_fail_again(tmp_path: Path) -> None:
    result = Soak(1, 0, red=[campaign.Red(4, Violation("hang", Failure.LIVENESS, 0, "hung"))])
    keep(result, tmp_path, shrinking=True, run=toy.run, make_plan=toy.make_plan)
    assert [path.name for path in result.red[0].files] == ["seed-4.json"]
    assert result.red[0].shrunk is None


def test_nondeterminism_is_shrunk_by_running_twice(tmp_path: Path) -> None:
    run = Drifting()
    violation = Violation("determinism", Failure.NONDETERMINISM, 0, "two traces")
    result = Soak(1, 0, red=[campaign.Red(4, violation)])
    keep(result, tmp_path, shrinking=True, run=run, make_plan=toy.make_plan)
    assert result.red[0].shrunk is not None
    assert result.red[0].shrunk.after == (0, 0, 1, 1, 1)


# The report.


def lines_of(result: Soak, **changes: Any) -> list[str]:
    wanted: dict[str, Any] = {"oracles": ["toy", "idle"], "kinds": ["freeze", "flood"]}
    return report.soak_lines(result, **(wanted | changes))


def test_a_green_soak_on_one_screen() -> None:
    result = soak([seed for seed in range(120) if seed % 10 != 3], 0, run=toy.run, make_plan=toy.make_plan)
    lines = lines_of(result, oracles=["toy"], kinds=["freeze"])
    text = "\n".join(lines)
    assert len(lines) < 30
    assert max(map(len, lines)) <= report.WIDTH
    assert lines[0] == "108 seeds: all green"
    for part in (
        "3.0 h of virtual time",
        "5,400: ",
        "7,560 executed by Redis",
        "6,480 tasks, 6,588 handlers started",
        "108 explained, 0 unexplained",
        "6 of 6 repeated runs gave the same trace",
        "4,212 struck; none in 0 % of the runs",
        "540 checks",
    ):
        assert part in text
    assert not report.missing(result, oracles=["toy"], kinds=["freeze"])


def test_an_idle_oracle_and_a_fault_that_never_strikes_are_failures_of_the_simulator() -> None:
    result = soak(range(100), 0, run=toy.run, make_plan=toy.make_plan)
    lines = lines_of(result)
    assert any("gave these oracles nothing to check: idle" in line for line in lines)
    assert any("these faults never struck: flood" in line for line in lines)
    few = soak(range(99), 0, run=toy.run, make_plan=toy.make_plan)
    assert not report.missing(few, oracles=["idle"], kinds=["flood"])


def test_red_seeds_are_told_with_their_command(tmp_path: Path) -> None:
    result = soak(range(30), 0, run=toy.run, make_plan=toy.make_plan)
    keep(result, tmp_path, shrinking=True, run=toy.run, make_plan=toy.make_plan)
    lines = lines_of(result, keep=tmp_path)
    assert "30 seeds: 3 RED (toy 3)" in lines
    at = lines.index("RED  seed 3: toy (safety) at 1 min 1.234 s")
    assert lines[at + 1 : at + 4] == ["     t7 was lost", "     in f3", "     again: python -m sim run --seed 3"]
    assert any(line.startswith("     shrunk in ") for line in lines)
    assert f"     again: python -m sim replay {tmp_path}/seed-3-shrunk.json" in lines
    assert any(str(tmp_path) in line and "python -m sim shrink FILE" in line for line in lines)


def test_red_seeds_that_are_not_told_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "RED_KEPT", 1)
    lines = lines_of(soak(range(50), 0, run=toy.run, make_plan=toy.make_plan))
    assert "and 4 more red seeds: toy 5 in all" in lines


def test_a_nondeterministic_seed_is_told_with_the_command_that_compares() -> None:
    lines = lines_of(soak(range(2), 0, run=Drifting(), make_plan=toy.make_plan))
    assert "     again: python -m sim repeat --seed 0" in lines


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0.000 s"),
        (59_999, "59.999 s"),
        (60_000, "1 min 0.000 s"),
        (3_723_456, "1 h 02 min 3.456 s"),
    ],
)
def test_moments(ms: int, text: str) -> None:
    assert report.moment(ms) == text


def test_the_oracle_of_duplicates_has_the_name_that_the_report_knows() -> None:
    from sim.oracles import ORACLES

    assert report.DUPLICATES in ORACLES


# Processes.


def test_a_worker_that_died_while_idle_is_replaced() -> None:
    with pool.Processes(1, 60.0) as processes:
        processes._workers[0].process.kill()
        processes._workers[0].process.join()
        processes.give(0, "first", len, "abc")
        [lost] = wait_for(processes)
        assert isinstance(lost.result, pool.Broken)
        processes.give(0, "second", len, "abc")
        [done] = wait_for(processes)
        assert (done.key, done.result) == ("second", 3)


def wait_for(processes: pool.Pool) -> list[pool.Done]:
    """What ends within half a minute."""
    for _ in range(60):
        done = processes.wait(0.5)
        if done:
            return done
    raise AssertionError("no job ended")
