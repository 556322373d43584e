"""The kill matrix: for each mutant the first seed whose run shows its defect, and the oracle that saw it.

A seed counts only where the protocol without the mutant passes it. Each run is made in a process of its own pool, so a
mutant that loops for ever, or ends its process, is counted as killed and does no harm.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..engine import MakePlan, RunPlan, real_make_plan, real_run
from ..pool import Broken, make_pool
from ..verdict import Failure, Verdict
from .patching import Mutant, apply

SEEDS = range(1, 201)
"""Every mutant must be killed by one of these."""
_AT_ONCE = 10
"""Seeds of one job; after each job a mutant makes room for another."""
_SECONDS_A_SEED = 30.0
"""Wall time after which a mutant is taken for one that never comes to an end."""
_TEXT = 160


@dataclass(frozen=True, slots=True)
class Kill:
    """The first run that has shown a mutant's defect."""

    seed: int
    oracle: str
    failure: Failure
    seeds_needed: int
    """How many were tried, this one included."""
    text: str


@dataclass(slots=True)
class Matrix:
    """Which mutants were killed, and by what."""

    mutants: tuple[Mutant, ...]
    seeds: Sequence[int]
    kills: dict[str, Kill] = field(default_factory=dict)
    """By name of the mutant."""

    @property
    def living(self) -> list[str]:
        """Names of the mutants that no seed has killed."""
        return [mutant.name for mutant in self.mutants if mutant.name not in self.kills]

    @property
    def exit_code(self) -> int:
        """0 where all are killed."""
        return 1 if self.living else 0

    def table(self) -> str:
        """For people: one line a mutant, then those that live."""
        rows = [("mutant", "source", "oracle", "seed", "seeds needed")]
        for mutant in self.mutants:
            kill = self.kills.get(mutant.name)
            end = ("-", "-", "-") if kill is None else (kill.oracle, str(kill.seed), str(kill.seeds_needed))
            rows.append((mutant.name, mutant.source, *end))
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        needed = [kill.seeds_needed for kill in self.kills.values()]
        lines.append("")
        lines.append(
            f"{len(self.kills)} of {len(self.mutants)} mutants killed, worst after {max(needed, default=0)} seeds, "
            f"half of them after {sorted(needed)[len(needed) // 2] if needed else 0}"
        )
        for mutant in self.mutants:
            if mutant.name not in self.kills:
                lines.append(f"LIVES after {len(self.seeds)} seeds: {mutant.name} ({mutant.source}): {mutant.rule}")
        return "\n".join(lines)


def hunt(
    mutant: Mutant,
    seeds: Sequence[int],
    make_plan: MakePlan,
    run: RunPlan,
    without: frozenset[str] = frozenset(),
) -> Kill | None:
    """The first of the seeds that kills the mutant; `without` names oracles that are switched off."""
    for tried, seed in enumerate(seeds, 1):
        plan = make_plan(seed)
        with apply(mutant):
            verdict = run(plan, without=without)
        if verdict.violation is not None and run(plan, without=without).violation is None:
            return _kill(verdict, tried)
    return None


def _kill(verdict: Verdict, tried: int) -> Kill:
    violation = verdict.violation
    assert violation is not None
    return Kill(verdict.seed, violation.oracle, violation.failure, tried, violation.text)


def matrix(
    mutants: Sequence[Mutant],
    seeds: Sequence[int] = SEEDS,
    *,
    jobs: int = 2,
    make_plan: MakePlan | None = None,
    run: RunPlan | None = None,
    without: frozenset[str] = frozenset(),
    tell: Callable[[int, str], None] = lambda done, words: None,
) -> Matrix:
    """Hunt all mutants, in so many processes (0: in this one). `tell` gets how many are through, and what was found."""
    found = Matrix(tuple(mutants), seeds)
    plan, play = make_plan or real_make_plan(), run or real_run()
    waiting = deque((mutant, 0) for mutant in mutants)
    through = 0
    with make_pool(jobs, _SECONDS_A_SEED * _AT_ONCE) as pool:
        under_way = 0
        while waiting or under_way:
            for worker in pool.idle():
                if waiting:
                    mutant, tried = waiting.popleft()
                    some = seeds[tried : tried + _AT_ONCE]
                    pool.give(worker, (mutant, tried), hunt, mutant, some, plan, play, without)
                    under_way += 1
            for done in pool.wait(1.0):
                under_way -= 1
                mutant, tried = done.key
                kill = _result(done.result, seeds[tried], tried)
                if kill is not None:
                    found.kills[mutant.name] = kill
                elif tried + _AT_ONCE < len(seeds):
                    waiting.appendleft((mutant, tried + _AT_ONCE))
                    continue
                through += 1
                tell(through, _words(mutant, kill))
    return found


def _result(result: Kill | Broken | None, seed: int, tried: int) -> Kill | None:
    if isinstance(result, Broken):
        failure = Failure.LIVENESS if result.hung else Failure.CRASH
        oracle = "hang" if result.hung else "crash"
        return Kill(seed, oracle, failure, tried + 1, f"{result.text}, with this seed or one of the next")
    if result is None:
        return None
    return Kill(result.seed, result.oracle, result.failure, tried + result.seeds_needed, result.text)


def _words(mutant: Mutant, kill: Kill | None) -> str:
    if kill is None:
        return f"{mutant.name} LIVES"
    return f"{mutant.name} killed by seed {kill.seed}, {kill.oracle}: {kill.text[:_TEXT]}"


def rotating(names: Sequence[str], token: str, count: int) -> list[str]:
    """So many of the names, in their order; which, depends on the token (a commit's hash, for example)."""

    def key(name: str) -> bytes:
        return hashlib.blake2b(f"{token}\x1f{name}".encode(), digest_size=8).digest()

    chosen = set(sorted(names, key=key)[:count])
    return [name for name in names if name in chosen]
