"""Traces: one text for an event, whichever process and whichever Python writes it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sim.determinism import other_pythons
from sim.trace import BYTES_SHOWN, Trace, first_difference, line, spell

ROOT = Path(__file__).parent.parent.parent


class Colour(Enum):
    RED = "red"


class Word(StrEnum):
    YES = "yes"


class Number(IntEnum):
    ONE = 1


@dataclass(frozen=True, slots=True)
class Record:
    name: str
    colour: Colour
    parts: tuple[int, ...] = ()


class Pair(NamedTuple):
    left: object
    right: bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (-12, "-12"),
        (0.1, "0.1"),
        (b"a\x00\xff", r"b'a\x00\xff'"),
        ("it's", '"it\'s"'),
        ("grün", r"'gr\xfcn'"),
        ("a\nb", r"'a\nb'"),
        ((), "()"),
        ((1,), "(1)"),
        ([1, (2, b"x")], "[1, (2, b'x')]"),
        ({"a": 1, "b": [2]}, "{'a': 1, 'b': [2]}"),
        (Colour.RED, "Colour.RED"),
        (Word.YES, "Word.YES"),
        (Number.ONE, "Number.ONE"),
        (Record("x", Colour.RED, (1, 2)), "Record(name='x', colour=Colour.RED, parts=(1, 2))"),
        (Pair(Word.YES, b""), "Pair(left=Word.YES, right=b'')"),
        (ValueError("no", 3), "ValueError('no', 3)"),
    ],
)
def test_spelling(value: object, text: str) -> None:
    assert spell(value) == text


@pytest.mark.parametrize("value", [{1}, frozenset(), object(), [len], Record("x", Colour.RED, {1})])  # type: ignore[arg-type]
def test_what_has_no_stable_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="a trace cannot hold a "):
        spell(value)


@pytest.mark.parametrize("make", [lambda text: text, lambda text: text.encode()], ids=["text", "bytes"])
def test_long_values_are_cut_and_still_differ(make: Any) -> None:
    one, other = spell(make("x" * 5_000)), spell(make("x" * 4_999 + "y"))
    assert len(one) < BYTES_SHOWN + 50
    assert "5000" in one
    assert one != other
    whole = make("x" * BYTES_SHOWN)
    assert spell(whole) == repr(whole)


def test_a_line() -> None:
    trace = Trace()
    trace.add(12, "w1", "effect", Record("x", Colour.RED))
    assert [*trace.lines()] == ["12 w1 effect Record(name='x', colour=Colour.RED, parts=())"]
    assert line(trace.entries[0]) == next(trace.lines())
    assert len(trace) == 1


def test_payloads_are_spelled_when_text_is_asked_for() -> None:
    trace = Trace()
    trace.add(0, "a", "b", object())
    with pytest.raises(TypeError):
        trace.digest()


def test_the_digest_is_that_of_the_lines() -> None:
    trace = Trace()
    assert trace.digest() == hashlib.sha256().hexdigest()
    trace.add(0, "a", "b", 1)
    assert trace.digest() == trace.digest() == hashlib.sha256(b"0 a b 1\n").hexdigest()
    trace.add(1, "a", "b", 2)
    assert trace.digest() == hashlib.sha256(b"0 a b 1\n1 a b 2\n").hexdigest()


def test_a_trace_that_goes_to_a_file_is_the_same_and_keeps_nothing() -> None:
    file = io.StringIO()
    kept, written = Trace(), Trace(file)
    for trace in (kept, written):
        trace.add(0, "a", "b", "ü")
        trace.add(1, "c", "d", None)
    assert file.getvalue().splitlines() == [*kept.lines()]
    assert kept.digest() == written.digest()
    assert (len(written), written.entries) == (2, [])


def test_the_first_difference() -> None:
    assert first_difference([], []) is None
    assert first_difference(["a", "b"], ["a", "b"]) is None
    assert first_difference(["a", "b", "c"], ["a", "x", "y"]) == (1, "b", "x")
    assert first_difference(["a"], ["a", "b"]) == (1, "", "b")
    assert "(ended)" in str(first_difference(["a", "b"], ["a"]))


SCRIPT = """
from sim.trace import Trace
from streamfleet_protocol import effects, inputs, replies, wire
trace = Trace()
trace.add(1, "w", "input", inputs.Connected(effects.Lane.READ, 2))
trace.add(2, "w", "input", inputs.Reply(3, [b"1-1", None, replies.ErrorReply("ERR no"), [4, []]]))
trace.add(3, "c", "effect", effects.Settled("t", effects.End.FAILED, "gr\\u00fcn \\U0001fae8", b"\\x00"))
trace.add(4, "c", "effect", inputs.TaskOptions())
trace.add(5, "c", "kinds", tuple(wire.NotificationType))
trace.add(6, "c", "range", {"a": 1.5, "b": replies.Remedy.WAIT, "c": effects.Rejection.CLOSED})
print(trace.digest())
"""


def test_the_same_text_in_other_processes_and_on_other_pythons() -> None:
    digests = {}
    for python, hash_seed in [
        (sys.executable, "0"),
        (sys.executable, "1"),
        *((other, "2") for other in other_pythons()),
    ]:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [python, "-B", "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment, timeout=50
        )
        digests[python, hash_seed] = ended.stdout
    assert len(set(digests.values())) == 1, digests
