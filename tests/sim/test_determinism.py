"""Comparing runs of one plan: in one process, and with other processes and other Pythons."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sim import determinism
from sim.determinism import compare_everywhere, judge, other_pythons, run_twice
from sim.engine import real_make_plan
from sim.plan import Plan
from sim.trace import Trace
from sim.verdict import Failure, Verdict
from tests.sim import toy

PLAN = toy.make_plan(3)


class Drifting:
    """A world that remembers earlier runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
        self.runs += 1
        verdict = toy.run(plan, trace=trace)
        if trace is not None:
            trace.add(99_999, "world", "run", self.runs)
        return verdict


def test_two_equal_runs() -> None:
    verdict, trace, difference = run_twice(PLAN, toy.run)
    assert difference is None
    assert trace.digest() == verdict.digest
    assert verdict.violation is not None


def test_two_runs_that_differ() -> None:
    _, trace, difference = run_twice(PLAN, Drifting())
    assert difference is not None
    assert difference.position == len(trace) - 1
    assert (difference.first, difference.second) == ("99999 world run 1", "99999 world run 2")


def test_the_only_oracle_is_determinism() -> None:
    assert judge(PLAN, toy.run).violation is None
    violation = judge(PLAN, Drifting()).violation
    assert violation is not None
    assert (violation.oracle, violation.failure, violation.at_ms) == (
        determinism.ORACLE,
        Failure.NONDETERMINISM,
        99_999,
    )
    assert "world run 2" in violation.text


PROGRAM = """
import sys
from sim.engine import real_make_plan
from sim.plan import Plan
from sim.trace import Trace
from tests.sim import toy
trace = Trace()
toy.{run}(Plan.load(sys.stdin.read()), trace=trace)
if len(sys.argv) > 1:
    open(sys.argv[1], "w").writelines(text + "\\n" for text in trace.lines())
print(trace.digest())
"""


def test_other_processes_are_compared() -> None:
    told: list[determinism.Attempt] = []
    program = ("-c", PROGRAM.format(run="run"))
    report = compare_everywhere(
        PLAN, pythons=(), hash_seeds=("0", "1"), program=program, run=toy.run, progress=told.append
    )
    assert report.differences == ()
    assert [attempt.digest for attempt in report.attempts] == [report.here, report.here]
    assert [*report.attempts] == told
    assert [attempt.hash_seed for attempt in told] == ["0", "1"]


def test_a_difference_in_another_process_is_shown() -> None:
    program = ("-c", PROGRAM.format(run="run_with_hashes"))
    report = compare_everywhere(PLAN, pythons=(), hash_seeds=("1",), program=program, run=toy.run_with_hashes)
    [difference] = report.differences
    assert "PYTHONHASHSEED=1 parts from this process at event 0" in difference
    assert "4321 world order" in difference


def test_a_process_that_fails_is_a_difference() -> None:
    report = compare_everywhere(PLAN, pythons=(), hash_seeds=("1",), program=("-c", "raise OSError(7)"), run=toy.run)
    [difference] = report.differences
    assert "failed: OSError: 7" in difference


def test_a_process_that_tells_nothing_is_a_difference() -> None:
    report = compare_everywhere(PLAN, pythons=(), hash_seeds=("1",), program=("-c", "pass"), run=toy.run)
    [difference] = report.differences
    assert "failed: it told no digest" in difference


def test_a_missing_python_is_a_difference() -> None:
    report = compare_everywhere(
        PLAN,
        pythons=("/no/such/python",),
        hash_seeds=("0",),
        program=("-c", PROGRAM.format(run="run")),
        run=toy.run,
    )
    [difference] = report.differences
    assert difference.startswith("/no/such/python with PYTHONHASHSEED=0 failed: ")


@pytest.fixture
def forgotten() -> None:
    other_pythons.cache_clear()


def test_other_pythons_can_be_named(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    monkeypatch.setenv(determinism.PYTHONS_VARIABLE, "/a/python:/b/python")
    assert other_pythons() == ("/a/python", "/b/python")
    other_pythons.cache_clear()
    monkeypatch.setenv(determinism.PYTHONS_VARIABLE, "")
    assert other_pythons() == ()
    other_pythons.cache_clear()


def test_pythons_are_found_and_shims_that_do_not_work_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forgotten: None
) -> None:
    minor = 12 if sys.version_info.minor != 12 else 13
    for name, text in {
        f"path/python3.{minor}": "exit 127",
        f"pyenv/versions/3.{minor}.4/bin/python3": f"echo 3.{minor}",
        f"pyenv/versions/3.{minor + 1}.0/bin/python3": "echo 3.9",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    monkeypatch.delenv(determinism.PYTHONS_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert other_pythons() == (str(tmp_path / f"pyenv/versions/3.{minor}.4/bin/python3"),)
    other_pythons.cache_clear()


def test_the_world_is_the_same_in_every_process_and_on_every_python() -> None:
    """The real one: a short run with many kinds of faults and many handlers."""
    report = compare_everywhere(real_make_plan()(50), hash_seeds=("1",))
    assert report.differences == ()
    assert len(report.attempts) == 1 + len(other_pythons())
