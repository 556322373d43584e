"""Many seeds over several processes: what they did in sum, and which of them are red.

About every twentieth run is made twice, where there are several processes in another one with another hash seed, and
the traces must be equal.
"""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, process_time
from typing import NamedTuple

from .determinism import ORACLE as DETERMINISM
from .determinism import judge
from .engine import MakePlan, RunPlan, real_make_plan, real_run
from .plan import Plan
from .pool import Broken, Done, Pool, make_pool
from .shrink import BUDGET, NothingToShrink, Shrunk, shrink
from .trace import Trace
from .verdict import Failure, Verdict, Violation

REPEAT_EVERY = 20
RED_KEPT = 20
"""So many red seeds are told one by one; all are counted."""
SHRUNK_PER_ORACLE = 2
"""Further seeds with the same oracle are mostly the same defect."""
RUN_TIMEOUT_S = 300.0
"""Wall time after which a run counts as hung."""
INTERRUPTED = "interrupted"
_TICK_S = 0.5

SEVERITY = (Failure.CRASH, Failure.SAFETY, Failure.NONDETERMINISM, Failure.LIVENESS)
"""The most severe first: the exit code of a soak is its most severe failure."""


@dataclass(frozen=True, slots=True)
class Red:
    """A seed that failed."""

    seed: int
    violation: Violation
    files: tuple[Path, ...] = ()
    """Its plan, and the shrunk one."""
    shrunk: Shrunk | None = None


@dataclass(slots=True)
class Totals:
    """What many runs did in sum."""

    seeds: int = 0
    virtual_ms: int = 0
    steps: int = 0
    commands: int = 0
    tasks: int = 0
    runs: int = 0
    duplicates_explained: int = 0
    fault_free: int = 0
    """Runs in which no fault struck."""
    checks: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    """Of the runs that are counted here, without repeats."""
    repeats: int = 0
    repeats_equal: int = 0

    def add(self, verdict: Verdict, cpu_s: float) -> None:
        """One more run."""
        self.seeds += 1
        self.cpu_s += cpu_s
        self.virtual_ms += verdict.virtual_ms
        self.steps += verdict.steps
        self.commands += verdict.commands
        self.tasks += verdict.tasks
        self.runs += verdict.runs
        self.duplicates_explained += verdict.duplicates_explained
        self.fault_free += not verdict.faults
        self.checks.update(verdict.checks)
        self.faults.update(verdict.faults)
        self.notes.update(verdict.notes)


@dataclass(slots=True)
class Soak:
    """A soak, under way or over."""

    wanted: int
    """Seeds."""
    jobs: int
    totals: Totals = field(default_factory=Totals)
    red_by_oracle: Counter[str] = field(default_factory=Counter)
    failures: Counter[Failure] = field(default_factory=Counter)
    red: list[Red] = field(default_factory=list)
    """The first ones, by seed."""
    wall_s: float = 0.0
    stopped: str = ""
    """Why it ended early."""

    @property
    def red_count(self) -> int:
        """Red seeds, those that are not told one by one among them."""
        return self.red_by_oracle.total()

    @property
    def failure(self) -> Failure:
        """The most severe failure."""
        return worst(self.failures)


def worst(failures: Counter[Failure]) -> Failure:
    """The most severe one; NONE where there is none."""
    return next((failure for failure in SEVERITY if failures[failure]), Failure.NONE)


def soak(
    seeds: Sequence[int],
    jobs: int = 2,
    *,
    run: RunPlan | None = None,
    make_plan: MakePlan | None = None,
    stop_after: int = 0,
    repeat_every: int = REPEAT_EVERY,
    run_timeout_s: float = RUN_TIMEOUT_S,
    progress: Callable[[Soak], None] = lambda soak: None,
) -> Soak:
    """Run these seeds in `jobs` processes; with 0 in this one. Ends early once `stop_after` seeds are red (0: never).

    `run` and `make_plan` must be picklable where there are processes. KeyboardInterrupt ends the soak early, too: what
    was found by then is returned.
    """
    result = Soak(len(seeds), jobs)
    start = monotonic()
    with make_pool(jobs, run_timeout_s) as pool:
        work = _Work(seeds, pool, run, make_plan, repeat_every)
        try:
            for seed, found in work.results(lambda: _enough(result, stop_after)):
                _count(result, seed, found)
                result.totals.repeats, result.totals.repeats_equal = work.repeats, work.repeats_equal
                result.wall_s = monotonic() - start
                progress(result)
        except KeyboardInterrupt:
            result.stopped = INTERRUPTED
    result.wall_s = monotonic() - start
    result.red.sort(key=lambda red: red.seed)
    return result


def _enough(result: Soak, stop_after: int) -> bool:
    if stop_after and result.red_count >= stop_after:
        result.stopped = f"stopped after {result.red_count} red"
    return bool(result.stopped)


def _count(result: Soak, seed: int, found: Measured | Violation) -> None:
    if isinstance(found, Measured):
        result.totals.add(found.verdict, found.cpu_s)
        violation = found.verdict.violation
    else:
        result.totals.seeds += 1
        violation = found
    if violation is not None:
        result.red_by_oracle[violation.oracle] += 1
        result.failures[violation.failure] += 1
        if len(result.red) < RED_KEPT:
            result.red.append(Red(seed, violation))


class Measured(NamedTuple):
    """A run of a seed."""

    verdict: Verdict
    cpu_s: float


@dataclass(frozen=True, slots=True)
class _Job:
    """A run of a seed."""

    seed: int
    traced: bool
    first: Measured | None = None
    """Of the run that this one repeats."""
    worker: int = -1
    """Where that was."""


class _Work:
    """Hands out the seeds, and those to be repeated."""

    def __init__(
        self, seeds: Sequence[int], pool: Pool, run: RunPlan | None, make_plan: MakePlan | None, repeat_every: int
    ) -> None:
        self.repeats = 0
        self.repeats_equal = 0
        self._pool = pool
        self._functions = (run, make_plan)
        self._new = (_Job(seed, bool(repeat_every) and at % repeat_every == 0) for at, seed in enumerate(seeds))
        self._again: deque[_Job] = deque()

    def results(self, enough: Callable[[], bool]) -> Iterator[tuple[int, Measured | Violation]]:
        """One verdict for each seed; a violation instead, where there is no more than that."""
        while True:
            for worker in self._pool.idle():
                job = None if enough() else self._next(worker)
                if job is not None:
                    self._pool.give(worker, job, run_seed, job.seed, job.traced, *self._functions)
            if len(self._pool.idle()) == self._pool.workers:
                return
            for done in self._pool.wait(_TICK_S):
                result = self._judge(done)
                if result is not None:
                    yield done.key.seed, result

    def _next(self, worker: int) -> _Job | None:
        """A repeat that was first run elsewhere, or else a new seed."""
        alone = self._pool.workers == 1
        job = next((job for job in self._again if alone or job.worker != worker), None)
        if job is None:
            return next(self._new, None)
        self._again.remove(job)
        return job

    def _judge(self, done: Done) -> Measured | Violation | None:
        job: _Job = done.key
        if isinstance(done.result, Broken):
            return _broken(done.result)
        found: Measured = done.result
        if job.first is None:
            if not job.traced or found.verdict.violation is not None:
                return found
            self._again.append(replace(job, first=found, worker=done.worker))
            return None
        self.repeats += 1
        if found.verdict.digest == job.first.verdict.digest:
            self.repeats_equal += 1
            return job.first
        violation = Violation(DETERMINISM, Failure.NONDETERMINISM, 0, "two runs of this seed gave different traces")
        return job.first._replace(verdict=replace(job.first.verdict, violation=violation))


def _broken(broken: Broken) -> Violation:
    if broken.hung:
        return Violation("hang", Failure.LIVENESS, 0, broken.text)
    return Violation("crash", Failure.CRASH, 0, broken.text)


def run_seed(seed: int, traced: bool, run: RunPlan | None = None, make_plan: MakePlan | None = None) -> Measured:
    """The verdict on a seed, with the digest of its trace where that is wanted. Never raises."""
    start = process_time()
    try:
        plan = (make_plan or real_make_plan())(seed)
        trace = Trace() if traced else None
        verdict = (run or real_run())(plan, trace=trace)
        if trace is not None:
            verdict = replace(verdict, digest=trace.digest())
    except Exception as error:
        verdict = Verdict(seed, Violation("crash", Failure.CRASH, 0, told(error)))
    return Measured(verdict, process_time() - start)


def told(error: Exception) -> str:
    """An exception, and where it was raised, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


# What is kept of the red ones.


def keep(
    result: Soak,
    directory: Path,
    *,
    shrinking: bool = False,
    budget: int = BUDGET,
    run: RunPlan | None = None,
    make_plan: MakePlan | None = None,
    timeout_s: float = 3600.0,
    progress: Callable[[int, int], None] = lambda done, wanted: None,
) -> None:
    """Write the plans of the red seeds into a folder, as replay files; of each oracle, shrink the first ones, too."""
    for at, red in enumerate(result.red):
        result.red[at] = replace(red, files=_write(directory, f"seed-{red.seed}", red, make_plan))
    chosen = [red for red in _first_of_each(result.red) if red.files] if shrinking else []
    shrunk: dict[int, Shrunk] = {}
    with make_pool(min(result.jobs, len(chosen)), timeout_s) as pool:
        waiting = deque(chosen)
        over = 0
        while over < len(chosen):
            for worker in pool.idle():
                if waiting:
                    red = waiting.popleft()
                    pool.give(worker, red.seed, shrink_seed, red.seed, red.violation, budget, run, make_plan)
            for done in pool.wait(_TICK_S):
                over += 1
                if isinstance(done.result, Shrunk):
                    shrunk[done.key] = done.result
                progress(over, len(chosen))
    for at, red in enumerate(result.red):
        if red.seed in shrunk:
            result.red[at] = _with_shrunk(directory, red, shrunk[red.seed])


def _first_of_each(red: Sequence[Red]) -> list[Red]:
    seen: Counter[str] = Counter()
    chosen = []
    for one in red:
        seen[one.violation.oracle] += 1
        if seen[one.violation.oracle] <= SHRUNK_PER_ORACLE:
            chosen.append(one)
    return chosen


def _write(directory: Path, name: str, red: Red, make_plan: MakePlan | None) -> tuple[Path, ...]:
    try:
        plan = (make_plan or real_make_plan())(red.seed)
    except Exception:
        # That is what is wrong with this seed, and was said.
        return ()
    return (write_plan(directory / f"{name}.json", marked(plan, red.violation)),)


def _with_shrunk(directory: Path, red: Red, shrunk: Shrunk) -> Red:
    plan = marked(shrunk.plan, shrunk.violation)
    path = write_plan(directory / f"seed-{red.seed}-shrunk.json", plan)
    return replace(red, files=(*red.files, path), shrunk=shrunk)


def marked(plan: Plan, violation: Violation) -> Plan:
    """The plan with the oracle that is red on it, as replay files have it."""
    return replace(plan, oracle=violation.oracle)


def write_plan(path: Path, plan: Plan) -> Path:
    """Write a replay file; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plan.dump(), encoding="utf-8")
    return path


def shrink_seed(
    seed: int, violation: Violation, budget: int, run: RunPlan | None = None, make_plan: MakePlan | None = None
) -> Shrunk | None:
    """Shrink the plan of a red seed. None where it does not fail again in the way it did."""
    plan = (make_plan or real_make_plan())(seed)
    try:
        return shrink(plan, run=judge_for(violation.oracle, run), budget=budget)
    except NothingToShrink:
        return None


def judge_for(oracle: str, run: RunPlan | None = None) -> Callable[[Plan], Verdict]:
    """The function from plans to verdicts in which this oracle shows: that on determinism takes two runs."""
    real = run or real_run()
    return (lambda plan: judge(plan, real)) if oracle == DETERMINISM else real
