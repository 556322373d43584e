"""The protocol with one known defect each: what the simulator must catch, and the machinery to put it in place.

The defects are those that searches of models and readings of other queues have found; each is a few lines taken out
of the protocol, or written as somebody would have written them who did not know.
"""

from __future__ import annotations

from .absent import NOT_HERE
from .endings import ENDINGS
from .handlers import HANDLERS
from .handles import HANDLES
from .lanes import LANES
from .leases import LEASES
from .outbox import OUTBOX
from .patching import Edit, Mutant, MutantError, apply
from .reclaim import RECLAIM
from .successors import SUCCESSORS
from .upkeep import UPKEEP

__all__ = ["MUTANTS", "NOT_HERE", "Edit", "Mutant", "MutantError", "apply"]

_ALL = (*OUTBOX, *HANDLES, *LANES, *LEASES, *RECLAIM, *HANDLERS, *ENDINGS, *SUCCESSORS, *UPKEEP)

MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in _ALL}
"""By name, grouped by the part of the protocol that is hit."""

if len(MUTANTS) != len(_ALL):
    raise MutantError("two mutants have the same name")
