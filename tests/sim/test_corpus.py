"""Runs that were red once are green: `tests/corpus` has one replay file for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.determinism import ORACLE as DETERMINISM
from sim.oracles import ORACLES
from sim.plan import Plan
from sim.run import run

CORPUS = Path(__file__).parent.parent / "corpus"
FILES = sorted(CORPUS.glob("*.json"))
KNOWN = {*ORACLES, "crash", "hang", DETERMINISM}


def test_the_corpus_is_found() -> None:
    """Without files the test below would pass for ever."""
    assert FILES
    assert {path.name for path in CORPUS.iterdir()} == {"README.md", *(path.name for path in FILES)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_was_red_is_green(path: Path) -> None:
    plan = Plan.read(path)
    assert plan.oracle in KNOWN
    assert plan.note
    verdict = run(plan)
    assert verdict.violation is None, f"{verdict.violation}\nagain: python -m sim replay {path}"
    assert verdict.steps
