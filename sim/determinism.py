"""The same plan gives the same trace: twice in one process, under other hash seeds, under other versions of Python.

As a program (`python -m sim.determinism`) it is the other process: it reads a plan from stdin, runs it, writes the
trace's digest to stdout, and with a file name as argument the trace into that file.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .engine import RunPlan, real_run
from .plan import Plan
from .trace import Difference, Trace, first_difference
from .verdict import Failure, Verdict, Violation

ROOT = Path(__file__).parent.parent
ORACLE = "determinism"
HASH_SEEDS = ("0", "1", "4242")
PYTHONS_VARIABLE = "STREAMFLEET_PYTHONS"
"""Environment variable: other interpreters to compare with, separated as in PATH; set and empty: none."""
_MINORS = range(11, 16)
_ATTEMPT_S = 600.0


class Attempt(NamedTuple):
    """A run in another process."""

    python: str
    """The interpreter."""
    hash_seed: str
    digest: str
    """Empty where it failed."""
    error: str = ""

    def __str__(self) -> str:
        return f"{self.python} with PYTHONHASHSEED={self.hash_seed}"


class Report(NamedTuple):
    """What came of all comparisons."""

    here: str
    """The digest in this process."""
    attempts: tuple[Attempt, ...]
    differences: tuple[str, ...]
    """Empty where all were equal."""


def run_twice(plan: Plan, run: RunPlan | None = None) -> tuple[Verdict, Trace, Difference | None]:
    """Two runs in this process, compared event by event: the first one, and where they part."""
    run = run or real_run()
    one, other = Trace(), Trace()
    verdict = run(plan, trace=one)
    run(plan, trace=other)
    if one.digest() == other.digest():
        return verdict, one, None
    return verdict, one, first_difference(one.lines(), other.lines())


def judge(plan: Plan, run: RunPlan | None = None) -> Verdict:
    """A run whose only oracle is that a second one is the same. Fit for the shrinker."""
    verdict, _, difference = run_twice(plan, run)
    if difference is None:
        return replace(verdict, violation=None)
    return replace(verdict, violation=violation(difference))


def violation(difference: Difference) -> Violation:
    """What is wrong where two traces of one plan differ."""
    at_ms = (difference.first or difference.second).split(" ", 1)[0]
    return Violation(ORACLE, Failure.NONDETERMINISM, int(at_ms), f"two runs of one plan part at {difference}")


def compare_everywhere(
    plan: Plan,
    *,
    pythons: Sequence[str] | None = None,
    hash_seeds: Sequence[str] = HASH_SEEDS,
    program: Sequence[str] = ("-m", "sim.determinism"),
    run: RunPlan | None = None,
    progress: Callable[[Attempt], None] = lambda attempt: None,
) -> Report:
    """Run the plan twice here, under each hash seed in a process of its own, and once under each other Python."""
    _, trace, difference = run_twice(plan, run)
    differences = [] if difference is None else [violation(difference).text]
    others = other_pythons() if pythons is None else pythons
    wanted = [(sys.executable, seed) for seed in hash_seeds] + [(python, hash_seeds[0]) for python in others]
    attempts = []
    for python, hash_seed in wanted:
        attempt = elsewhere(plan, python, hash_seed, program)
        attempts.append(attempt)
        progress(attempt)
        if attempt.error:
            differences.append(f"{attempt} failed: {attempt.error}")
        elif attempt.digest != trace.digest():
            parting = _parting(plan, trace, attempt, program)
            differences.append(f"{attempt} parts from this process at {parting}")
    return Report(trace.digest(), tuple(attempts), tuple(differences))


def elsewhere(
    plan: Plan, python: str, hash_seed: str, program: Sequence[str] = ("-m", "sim.determinism"), trace: str = ""
) -> Attempt:
    """Run the plan in a process of its own."""
    command = [python, *program, *([trace] if trace else [])]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            command,
            input=plan.dump(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            timeout=_ATTEMPT_S,
            cwd=ROOT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Attempt(python, hash_seed, "", str(error))
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        return Attempt(python, hash_seed, "", lines[-1])
    digest = ended.stdout.strip()
    return Attempt(python, hash_seed, digest, "" if digest else "it told no digest")


def _parting(plan: Plan, here: Trace, attempt: Attempt, program: Sequence[str]) -> str:
    """Where a run elsewhere parts from this one; it is run again, and now writes its trace."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "trace")
        elsewhere(plan, attempt.python, attempt.hash_seed, program, str(path))
        if not path.exists():
            return "an event that is not known: it failed when it was run again"
        with path.open(encoding="utf-8") as lines:
            found = first_difference(here.lines(), (text.rstrip("\n") for text in lines))
    return str(found) if found else "no event when run again: it differs from run to run"


@functools.cache
def other_pythons() -> tuple[str, ...]:
    """One interpreter of each other version that the simulator supports and this machine has.

    They come from STREAMFLEET_PYTHONS, or else from the PATH and from pyenv.
    """
    named = os.environ.get(PYTHONS_VARIABLE)
    if named is not None:
        return tuple(path for path in named.split(os.pathsep) if path)
    found = []
    for minor in _MINORS:
        if minor == sys.version_info.minor:
            continue
        # One on the PATH may be a shim for a version that is not there.
        working = (path for path in _candidates(minor) if _version(path) == f"3.{minor}")
        found.extend([path for path in [next(working, None)] if path])
    return tuple(found)


def _candidates(minor: int) -> Iterator[str]:
    on_path = shutil.which(f"python3.{minor}")
    if on_path:
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python3")):
        yield str(path)


def _version(python: str) -> str:
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        ended = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def main(arguments: Sequence[str]) -> int:
    """The other process."""
    plan = Plan.load(sys.stdin.read())
    trace = Trace()
    real_run()(plan, trace=trace)
    if arguments:
        Path(arguments[0]).write_text("".join(text + "\n" for text in trace.lines()), encoding="utf-8")
    print(trace.digest())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
