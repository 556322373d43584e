"""What came of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum


class Failure(IntEnum):
    """The class of a failure; its number is the exit code of `python -m sim`."""

    NONE = 0
    CRASH = 1
    """A machine raised, or the simulator did."""
    SAFETY = 2
    """A guarantee was broken."""
    LIVENESS = 3
    """Something that must happen did not happen in time, or something spins."""
    NONDETERMINISM = 4
    """The same plan gave two traces."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One oracle says no."""

    oracle: str
    """Its name in `oracles.ORACLES`, or `crash`, or `determinism`."""
    failure: Failure
    at_ms: int
    text: str

    def __str__(self) -> str:
        return f"{self.oracle} at {self.at_ms} ms: {self.text}"


@dataclass(slots=True)
class Verdict:
    """A run in figures, and what was wrong with it. Picklable: soaks run in several processes."""

    seed: int
    violation: Violation | None = None
    """The first one; it ends the run."""
    virtual_ms: int = 0
    steps: int = 0
    """Inputs taken by machines."""
    commands: int = 0
    """Redis commands executed."""
    tasks: int = 0
    runs: int = 0
    """Handlers started."""
    duplicates_explained: int = 0
    """Handlers started on an attempt that had been started before, with a reason that G3 lists."""
    checks: Counter[str] = field(default_factory=Counter)
    """By oracle: how often it really compared something."""
    faults: Counter[str] = field(default_factory=Counter)
    """By kind: how many struck."""
    notes: Counter[str] = field(default_factory=Counter)
    """By class of Note: how many the machines gave."""
    digest: str = ""
    """Of the trace, where one was kept."""
