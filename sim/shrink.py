"""From a plan that fails to a small one that fails in the same way: the few tasks and faults that matter.

Everything is an edit of the plan: take an item out, set a value to a simpler one. The edits of a stage are tried all
together, then in halves, and so on down to single ones; what still fails with the same oracle stays. The stages are
repeated until a whole round of them changes nothing. This works because chance in a run goes by names and not by
position: what an edit does not touch behaves as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, TypeVar

from .edits import Edit, Group, Number, apply, numbers, simpler, without_items, without_later, without_unused_queues
from .engine import real_run
from .plan import Plan, PlanError
from .verdict import Failure, Verdict, Violation

BUDGET = 400
"""Runs. Not seconds: the result must not depend on the machine."""

_GROUPS: tuple[Group, ...] = ("faults", "tasks", "clients", "workers")
_ROUND = (1, 10, 100, 1_000, 10_000, 60_000)
_DIGITS = (1, 2)

T = TypeVar("T")


class NothingToShrink(ValueError):
    """The plan does not fail."""


class Sizes(NamedTuple):
    """How large a plan is."""

    faults: int
    tasks: int
    workers: int
    clients: int
    queues: int

    @classmethod
    def of(cls, plan: Plan) -> Sizes:
        """The sizes of a plan."""
        return cls(len(plan.faults), len(plan.tasks), len(plan.workers), len(plan.clients), len(plan.queues))

    def __str__(self) -> str:
        counts = zip(self._fields, self, strict=True)
        return ", ".join(f"{number} {name if number != 1 else name[:-1]}" for name, number in counts)


class Progress(NamedTuple):
    """How far the shrinker is."""

    runs: int
    budget: int
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What came of it."""

    plan: Plan
    """The smallest plan that was found; its `oracle` and `note` are those of the original."""
    violation: Violation
    """Of that plan."""
    runs: int
    before: Sizes
    after: Sizes
    complete: bool
    """False: the budget was spent before a round changed nothing."""

    def __str__(self) -> str:
        end = "" if self.complete else "; the budget was spent, a larger one may find a smaller plan"
        return f"in {self.runs} runs from {self.before} to {self.after}{end}"


def shrink(
    plan: Plan,
    *,
    run: Callable[[Plan], Verdict] | None = None,
    check: Callable[[Plan], None] = Plan.check,
    budget: int = BUDGET,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Shrunk:
    """The smallest plan that fails with the same oracle as this one. Raises NothingToShrink where it does not fail."""
    shrinker = _Shrinker(plan, run or real_run(), check, budget, progress)
    complete = False
    while not complete and shrinker.runs < budget:
        before = shrinker.plan
        shrinker.round()
        complete = shrinker.plan == before and shrinker.runs < budget
    small = shrinker.plan
    return Shrunk(small, shrinker.violation, shrinker.runs, Sizes.of(plan), Sizes.of(small), complete)


class _Shrinker:
    """The smallest plan so far, and what was tried."""

    def __init__(
        self,
        plan: Plan,
        run: Callable[[Plan], Verdict],
        check: Callable[[Plan], None],
        budget: int,
        progress: Callable[[Progress], None],
    ) -> None:
        violation = run(plan).violation
        if violation is None:
            raise NothingToShrink("the plan does not fail: there is nothing to shrink")
        self.plan = plan
        self.violation = violation
        self.runs = 1
        self._run = run
        self._check = check
        self._budget = budget
        self._progress = progress
        self._tried: set[bytes] = set()

    def round(self) -> None:
        """All stages once, those first that take out most."""
        self._take(without_later(self.plan, self.violation.at_ms))
        for group in _GROUPS:
            names = [item.name for item in getattr(self.plan, group)]
            self._try(names, lambda plan, names, group=group: without_items(plan, group, names))  # type: ignore[misc]
        self._try(self.plan.queues, without_unused_queues)
        self._try(self.plan.gone, _with_present)
        self._try(list(simpler(self.plan)), apply)
        for most in _ROUND:
            self._try([_sized(number, most) for number in numbers(self.plan) if abs(number.value) > most], apply)
        for rounded in (_down, _up):
            for digits in _DIGITS:
                self._try([_sized(number, rounded(abs(number.value), digits)) for number in numbers(self.plan)], apply)

    def _try(self, parts: Sequence[T], edited: Callable[[Plan, Sequence[T]], Plan]) -> None:
        """Carry out as many parts of an edit as possible."""
        if not parts or self.runs >= self._budget:
            return
        if not self._take(edited(self.plan, parts)) and len(parts) > 1:
            middle = len(parts) // 2
            self._try(parts[:middle], edited)
            self._try(parts[middle:], edited)

    def _take(self, candidate: Plan) -> bool:
        """Go on with this plan, if it fails in the same way. What was tried before, or makes no sense, is not run."""
        if candidate == self.plan:
            return True
        key = sha256(candidate.dump().encode()).digest()
        if self.runs >= self._budget or key in self._tried:
            return False
        self._tried.add(key)
        try:
            self._check(candidate)
        except PlanError:
            return False
        self.runs += 1
        violation = self._run(candidate).violation
        fails = violation is not None and _signature(violation) == _signature(self.violation)
        if violation is not None and fails:
            self.plan, self.violation = candidate, violation
        self._progress(Progress(self.runs, self._budget, Sizes.of(self.plan)))
        return fails


def _signature(violation: Violation) -> tuple[str, str]:
    """What two failures have in common that count as the same: the oracle, and of crashes what was raised.

    Otherwise settings that do not go together, which raise, too, would pass for any crash.
    """
    raised = violation.text.partition(":")[0] if violation.failure is Failure.CRASH else ""
    return violation.oracle, raised


def _with_present(plan: Plan, names: Sequence[str]) -> Plan:
    """These workers are not gone in the end."""
    return apply(plan, [Edit(("gone",), tuple(name for name in plan.gone if name not in names))])


def _sized(number: Number, size: int) -> Edit:
    """Give a number another size; its sign stays."""
    return Edit(number.path, size if number.value > 0 else -size)


def _down(number: int, digits: int) -> int:
    """With so many significant digits: 1,234 with one is 1,000."""
    unit = _unit(number, digits)
    return number // unit * unit


def _up(number: int, digits: int) -> int:
    unit = _unit(number, digits)
    return -(-number // unit) * unit


def _unit(number: int, digits: int) -> int:
    return int("1" + "0" * max(len(str(number)) - digits, 0))
