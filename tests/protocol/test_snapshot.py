"""Snapshots: any graph of plain objects, frozen to a value and thawed to an independent equal."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import pytest

from streamfleet_protocol.snapshot import freeze, thaw


class Colour(Enum):
    """Some leaf."""

    RED = 1


@dataclass
class Node:
    """A mutable object with a dict."""

    name: str
    others: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Slotted:
    """A mutable object without one."""

    left: Any = None
    right: Any = None


@dataclass(slots=True)
class Derived(Slotted):
    """With slots of two classes."""

    extra: int = 0


@dataclass(frozen=True, slots=True)
class Fixed:
    """Immutable, where what it holds is."""

    value: Any
    more: Any = ()


class Pair(NamedTuple):
    """A named tuple."""

    first: Any
    second: Any = None


class Sparse:
    """A plain class with a slot that may be empty."""

    __slots__ = ("maybe", "surely")

    def __init__(self) -> None:
        self.surely = 1


VALUES: list[Any] = [
    *(None, 0, -1, 1.5, True, "text", b"bytes", Colour.RED),
    *((), (1, (2, 3)), [], [1, [2]], deque([1, 2]), {}, {"b": 1, "a": [2]}, {1, 2}, frozenset({1}), set()),
    *(
        Fixed(1, (2, "x")),
        Fixed([1]),
        Fixed(Fixed([1])),
        Fixed((1, [2])),
        Pair(1, b"x"),
        Pair([1], (2, [3])),
        {Colour.RED: (1, [2])},
    ),
    [Pair(1), Fixed(Pair(1, "x"))],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back(value: Any) -> None:
    frozen = freeze(value)
    hash(frozen)
    back = thaw(frozen)
    assert back == value
    assert type(back) is type(value)
    assert freeze(back) == frozen
    assert hash(freeze(back)) == hash(frozen)


def test_objects_come_back() -> None:
    node = Node("a", [Slotted(1, Derived(2, 3, 4)), Sparse()])
    back = thaw(freeze(node))
    assert back.name == "a"
    slotted, sparse = back.others
    assert slotted == node.others[0]
    assert type(slotted.right) is Derived
    assert sparse.surely == 1
    assert not hasattr(sparse, "maybe")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], (1,)),
        ([1], deque([1])),
        ([1], [2]),
        ([], {}),
        ({"a": 1}, {"a": 2}),
        (Slotted(1), Derived(1)),
        (Fixed([1]), Fixed([2])),
        ("1", b"1"),
        # The order of effects may follow that of a dict, so it belongs to the state.
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ],
    ids=repr,
)
def test_different_states_differ(one: Any, other: Any) -> None:
    assert freeze(one) != freeze(other)


def test_the_order_of_a_dict_is_kept() -> None:
    assert list(thaw(freeze({"b": 1, "a": 2}))) == ["b", "a"]


def test_the_order_in_which_a_set_was_filled_is_no_state() -> None:
    assert freeze({3, 1, 2}) == freeze({2, 3, 1})


def test_a_shared_object_stays_shared() -> None:
    shared = [1]
    back = thaw(freeze(Slotted(shared, {"again": shared})))
    assert back.left is back.right["again"]
    back.left.append(2)
    assert back.right["again"] == [1, 2]


def test_sharing_is_state() -> None:
    """Two equal lists are not one list: what happens to one does not happen to the other."""
    shared = [1]
    assert freeze([shared, shared]) != freeze([[1], [1]])
    apart = thaw(freeze([[1], [1]]))
    assert apart[0] is not apart[1]


def test_cycles_keep_their_shape() -> None:
    node = Node("a")
    node.others.append(node)
    mapping: dict[str, Any] = {}
    mapping["self"] = (mapping,)
    row: deque[Any] = deque()
    row.append([row])
    pair = Slotted()
    pair.left = Slotted(right=pair)
    fixed = Fixed([])
    fixed.value.append(fixed)
    back = thaw(freeze([node, mapping, row, pair, fixed]))
    assert back[0].others[0] is back[0]
    assert back[1]["self"][0] is back[1]
    assert back[2][0][0] is back[2]
    assert back[3].left.right is back[3]
    assert back[4].value[0] is back[4]


def test_a_copy_is_independent() -> None:
    node = Node("a", [[1], {"b": deque([2])}, Fixed([3]), {4}])
    frozen = freeze(node)
    one, other = thaw(frozen), thaw(frozen)
    one.name = "changed"
    one.others[0].append(9)
    one.others[1]["b"].append(9)
    one.others[1]["c"] = 9
    one.others[2].value.append(9)
    one.others[3].add(9)
    for untouched in (node, other):
        assert untouched == Node("a", [[1], {"b": deque([2])}, Fixed([3]), {4}])
    assert freeze(node) == frozen
    assert freeze(one) != frozen


def test_what_cannot_change_is_shared_with_the_snapshot() -> None:
    """Settings and commands are many, and need not be copied."""
    fixed = Fixed((1, Fixed("x"), Pair(b"y")))
    assert thaw(freeze([fixed]))[0] is fixed
    changing = Fixed((1, Fixed([])))
    assert thaw(freeze([changing]))[0] is not changing


def test_data_is_never_taken_for_structure() -> None:
    tricky = [("list", 1), [0], (0,), (0, [0]), {0: ("left", [1])}]
    assert thaw(freeze(tricky)) == tricky
