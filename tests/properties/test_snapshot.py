"""Snapshots of any graph of plain objects."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streamfleet_protocol.snapshot import freeze, thaw


@dataclass(slots=True, eq=False)
class Box:
    """A mutable object that may refer to anything, itself included."""

    content: Any = None
    refers: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Immutable, where what it holds is."""

    content: Any


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5)
values: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4),
        st.builds(Fixed, inner),
    ),
    max_leaves=15,
)


@st.composite
def graphs(draw: st.DrawFn) -> list[Box]:
    """Boxes that refer to each other at random, so that references are shared and circular."""
    boxes = [Box(draw(values)) for _ in range(draw(st.integers(1, 5)))]
    for box in boxes:
        box.refers = [boxes[at % len(boxes)] for at in draw(st.lists(st.integers(0, 4), max_size=4))]
    return boxes


def shape(boxes: list[Box]) -> list[tuple[Any, list[int]]]:
    """Contents, and who refers to whom."""
    return [(box.content, [boxes.index(other) for other in box.refers]) for box in boxes]


@given(values)
def test_values_come_back(value: Any) -> None:
    frozen = freeze(value)
    back = thaw(frozen)
    assert back == value
    assert type(back) is type(value)
    assert freeze(back) == frozen
    assert hash(freeze(back)) == hash(frozen)


@given(graphs())
def test_graphs_keep_their_shape(boxes: list[Box]) -> None:
    frozen = freeze(boxes)
    back = thaw(frozen)
    assert shape(back) == shape(boxes)
    assert not {id(box) for box in back} & {id(box) for box in boxes}
    assert freeze(back) == frozen
    assert hash(freeze(back)) == hash(frozen)


@given(graphs(), st.integers(0, 4))
def test_a_copy_is_independent(boxes: list[Box], at: int) -> None:
    before = shape(thaw(freeze(boxes)))
    back = thaw(freeze(boxes))
    changed = back[at % len(back)]
    changed.refers.append(changed)
    changed.content = object()
    assert shape(boxes) == before
    changed.content = None
    assert freeze(back) != freeze(boxes)


@given(values, values)
def test_equal_snapshots_are_of_equal_values(one: Any, other: Any) -> None:
    if freeze(one) == freeze(other):
        assert one == other
