"""Notes become log lines; effects are values."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError, fields

import pytest

from streamfleet_protocol import notes
from streamfleet_protocol.notes import Note

KINDS = sorted(Note.__subclasses__(), key=lambda kind: kind.__name__)


def example(kind: type[Note]) -> Note:
    """A note with a value of its own in each field."""
    values = {field.name: 7 if field.type == "int" else f"<{field.name}>" for field in fields(kind)}
    return kind(**values)


def test_all_notes_are_found() -> None:
    assert len(KINDS) >= 18
    assert {kind.__name__ for kind in KINDS} == {
        name for name, value in vars(notes).items() if isinstance(value, type) and issubclass(value, Note)
    } - {"Note"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_note_is_in_its_line(kind: type[Note]) -> None:
    note = example(kind)
    line = str(note)
    for field in fields(kind):
        assert str(getattr(note, field.name)) in line, field.name
    assert "{" not in line
    assert "\n" not in line
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_levels_are_those_of_logging(kind: type[Note]) -> None:
    assert kind.level in (logging.INFO, logging.WARNING, logging.ERROR)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_note_is_a_value(kind: type[Note]) -> None:
    assert example(kind) == example(kind)
    assert hash(example(kind)) == hash(example(kind))
    name = fields(kind)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(example(kind), name, "other")


def test_a_line_in_full() -> None:
    assert str(notes.DataLossSeen("mail", "batches above 3 of 5", 12)) == (
        "Redis has lost data of queue 'mail' (batches above 3 of 5); 12 tasks are sent again"
    )
