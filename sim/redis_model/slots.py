"""The slots of a cluster as one node sees them, and how it sends clients elsewhere."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from streamfleet_protocol.keys import SLOTS, slot_of

from .errors import ErrorReply

_slot_of = lru_cache(maxsize=4096)(slot_of)

_CROSS_SLOT = ErrorReply("CROSSSLOT Keys in request don't hash to the same slot")
_TRY_AGAIN = ErrorReply("TRYAGAIN Multiple keys request during rehashing of slot")
_DOWN = ErrorReply("CLUSTERDOWN The cluster is down")
_NOT_SERVED = ErrorReply("CLUSTERDOWN Hash slot not served")


@dataclass(frozen=True, slots=True)
class Owned:
    """Served here."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Served by another node; `address` is its `host:port`."""

    address: str


@dataclass(frozen=True, slots=True)
class Migrating:
    """Served here, on its way to another node (CLUSTER SETSLOT MIGRATING): missing keys are asked for there."""

    address: str


@dataclass(frozen=True, slots=True)
class Importing:
    """Served by another node, on its way here (CLUSTER SETSLOT IMPORTING): served only after ASKING."""

    address: str


@dataclass(frozen=True, slots=True)
class Unassigned:
    """Served by nobody. Where full coverage is required, as by default, the whole cluster is down as well."""


SlotState = Owned | Elsewhere | Migrating | Importing | Unassigned

OWNED: Final = Owned()
UNASSIGNED: Final = Unassigned()


class Slots:
    """What one node of a cluster knows of each slot.

    `otherwise` is the state of all slots but those in `states`. `down`: the node takes the cluster for failed and
    refuses every command with a key.
    """

    __slots__ = ("_otherwise", "_states", "down")

    def __init__(self, otherwise: SlotState = OWNED, states: Mapping[int, SlotState] | None = None) -> None:
        self._otherwise = otherwise
        self._states: dict[int, SlotState] = dict(states or {})
        self.down = False

    def __getitem__(self, slot: int) -> SlotState:
        return self._states.get(slot, self._otherwise)

    def __setitem__(self, slot: int, state: SlotState) -> None:
        self.set((slot,), state)

    def set(self, slots: Iterable[int], state: SlotState) -> None:
        """Gives that state to those slots. Raises ValueError for a number that is no slot."""
        for slot in slots:
            if not 0 <= slot < SLOTS:
                raise ValueError(f"a slot is a number from 0 to {SLOTS - 1}, not {slot}")
            self._states[slot] = state

    def copy(self) -> Slots:
        """A copy."""
        other = Slots(self._otherwise, self._states)
        other.down = self.down
        return other

    def redirection(self, keys: Iterable[bytes], data: Container[bytes] | None, asking: bool) -> ErrorReply | None:
        """The error for a command, or an EXEC, with these keys; None where this node serves it.

        `data`: the keys that are here; None where that is not to be asked.
        """
        first: bytes | None = None
        slot = -1
        state: SlotState = OWNED
        several = False
        present = missing = 0
        for key in keys:
            if first is None:
                first = key
                slot = _slot_of(key)
                state = self._states.get(slot, self._otherwise)
                if isinstance(state, Unassigned):
                    return _NOT_SERVED
            elif key != first:
                if _slot_of(key) != slot:
                    return _CROSS_SLOT
                several = True
            if data is None or key in data:
                present += 1
            else:
                missing += 1
        if first is None:
            return None
        if self.down:
            return _DOWN
        if isinstance(state, Owned):
            return None
        if isinstance(state, Migrating):
            if not missing:
                return None
            return _TRY_AGAIN if present else ErrorReply(f"ASK {slot} {state.address}")
        if isinstance(state, Importing) and asking:
            return _TRY_AGAIN if several and missing else None
        assert not isinstance(state, Unassigned)
        return ErrorReply(f"MOVED {slot} {state.address}")

    def eviction(self, key: bytes) -> ErrorReply | None:
        """The error for a reader blocked on that key, when the node looks; None where it waits on."""
        if self.down:
            return _DOWN
        slot = _slot_of(key)
        state = self._states.get(slot, self._otherwise)
        if isinstance(state, Unassigned):
            return _NOT_SERVED
        if isinstance(state, Elsewhere):
            return ErrorReply(f"MOVED {slot} {state.address}")
        return None
