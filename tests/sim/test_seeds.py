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
KNOWN_TO_DIE = frozenset(
    (
        "batch-without-a-watch",
        "connection-key-set-only-once",
        "connection-key-never-set",
        "loss-before-the-watch-not-seen",
        "rollback-before-the-watch-not-seen",
        "batch-without-multi",
        "refused-batch-is-dropped",
        "put-back-at-the-tail",
        "resent-without-asking",
        "unanswered-batch-taken-for-applied",
        "loss-not-repaired",
        "flush-not-noticed",
        "tracked-tasks-not-resent",
        "expired-task-is-sent",
        "refuses-instead-of-waiting",
        "refused-task-leaves-a-handle",
        "flush-ignores-the-batch-in-flight",
        "beats-only-once",
        "words-of-an-outage-not-read",
        "receiver-never-emptied",
        "expired-without-another-read",
        "guess-told-as-certain",
        "audit-by-entry-id-alone",
        "audit-forgets-the-delayed",
        "audit-without-the-counter",
        "audit-without-a-last-read",
        "handles-never-audited",
        "close-does-not-flush",
        "close-stops-half-way",
        "no-back-off",
        "readonly-is-waited-out",
        "lost-group-is-waited-out",
        "lost-group-ends-the-worker",
        "passing-error-is-fatal",
        "first-connection-must-stand",
        "commands-without-a-deadline",
        "guarded-exec-not-first",
        "exec-sent-again-on-a-new-connection",
        "streams-and-ids-interleaved",
        "word-makes-the-stream-again",
        "redis-clock-learned-once",
        "shared-consumer-name",
        "no-bump-on-a-new-connection",
        "read-without-a-deadline",
        "renews-only-once",
        "renews-once-a-lease",
        "never-adopts",
        "idle-worker-adopts-nothing",
        "looks-only-once",
        "waiting-tasks-not-renewed",
        "never-claims",
    )
)
"""Mutants that the first 100 seeds kill. `python -m sim mutants` tries all, over 200."""


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
    names = [name for name in MUTANTS if name in KNOWN_TO_DIE]
    assert set(names) == KNOWN_TO_DIE
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
