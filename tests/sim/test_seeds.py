"""What CI runs of the simulator itself: seeds, mutants and repeats that belong to the commit, so others each time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sim.cli import draw_seeds, main
from sim.determinism import compare_everywhere
from sim.mutants import MUTANTS
from sim.mutants.matrix import matrix, rotating
from sim.swarm import make_plan

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("STREAMFLEET_SEEDS", "500"))
MUTANTS_A_COMMIT = 6
JOBS = os.cpu_count() or 1
NOT_KNOWN_TO_DIE = frozenset(
    (
        "tracked-task-before-its-receiver",
        "lost-creation-taken-for-nothing",
        "unlisted-with-a-creation-under-way",
        "one-retry-too-many",
        "late-renewal-without-a-bump",
        "aborted-renewal-sent-again",
        "adopts-what-a-read-is-bringing",
        "force-steals",
        "age-by-idle-time",
        "age-confirmed-by-idle-time",
        "idle-zero-taken-for-the-future",
        "sights-kept-over-a-clock-step",
        "looks-without-a-probe",
        "sights-kept-over-a-new-connection",
        "sights-kept-over-a-refused-look",
        "sights-kept-over-an-outage",
        "claim-without-a-watch",
        "claim-without-a-bump",
        "claims-without-asking-again",
        "claims-without-room",
        "max-deliveries-ignored",
        "remembers-what-has-ended",
        "retry-without-delay",
        "expiry-not-checked",
        "expired-task-stays-pending",
        "bad-message-stays-pending",
        "bad-message-ends-the-worker",
        "handler-timeout-ignored",
        "settled-then-told",
        "success-in-a-transaction",
        "refused-settlement-taken-for-done",
        "unanswered-settlement-taken-for-done",
        "aborted-settlement-taken-for-done",
        "ending-without-a-watch",
        "expiry-without-a-fence",
        "hand-back-without-a-fence",
        "aborted-ending-taken-for-done",
        "unanswered-ending-taken-for-done",
        "ending-without-multi",
        "word-before-the-fence",
        "deleted-entry-is-retried",
        "successor-of-a-success-stays",
        "ending-asks-for-no-types",
        "elements-of-an-ending-not-looked-at",
        "retries-not-counted",
        "deletes-the-new-copy",
        "retry-only-in-memory",
        "retry-added-only-once",
        "promotion-without-a-watch",
        "promotion-without-multi",
        "promotion-asks-for-no-type",
        "only-the-earliest-known",
        "collects-at-once",
        "silence-runs-on-in-an-outage",
        "producer-collected-too-soon",
        "collector-stops-at-a-missing-stream",
        "never-sweeps",
        "sweeps-at-once",
        "dead-consumers-never-collected",
        "collects-a-consumer-with-pending",
        "close-leaves-its-consumer",
        "close-deletes-its-consumer-unasked",
        "close-leaves-waiting-tasks",
        "close-tells-canceled",
        "close-without-a-limit",
        "answers-during-close-dropped",
    )
)
"""Mutants of which no seed from 1 to 200 is known to kill them: `python -m sim mutants` tells of each."""


def commit() -> str:
    """The hash of HEAD; outside of a repository always the same text."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "no commit"


@pytest.mark.timeout(900)
def test_the_seeds_of_this_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All green, no oracle idle, no kind of fault that never struck; every 20th run twice."""
    options = ["--token", commit(), "--jobs", str(JOBS), "--keep", str(tmp_path), "--quiet"]
    code = main(["soak", "--seeds", f"commit:{SEEDS}", *options])
    assert code == 0, capsys.readouterr().out


@pytest.mark.timeout(900)
def test_some_mutants_are_killed() -> None:
    """By one of 200 seeds each; which mutants, the commit decides."""
    names = [name for name in MUTANTS if name not in NOT_KNOWN_TO_DIE]
    chosen = rotating(names, commit(), MUTANTS_A_COMMIT)
    found = matrix([MUTANTS[name] for name in chosen], range(1, 201), jobs=JOBS)
    assert not found.living, found.table()


@pytest.mark.timeout(300)
def test_a_run_is_the_same_in_every_process() -> None:
    """Under other hash seeds, and on every other Python that is installed."""
    for seed in draw_seeds(2, commit()):
        report = compare_everywhere(make_plan(seed))
        assert report.attempts
        assert not report.differences, report.differences
