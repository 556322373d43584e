"""Arming: first of all, each new connection sets and watches the client's own keys, and asks what is there."""

from __future__ import annotations

import pytest

from streamfleet_protocol.commands import ONE_DAY_MS
from streamfleet_protocol.effects import Confirmed, Connect, FaultCleared, Faulted, Flushed, Lane, Rejected, Rejection
from streamfleet_protocol.link import LinkState
from streamfleet_protocol.notes import OperationRefused
from streamfleet_protocol.replies import Refused

from ..support import PRODUCERS, STREAM, WATCHED, But, ClientScript, error, events, notes, of

ARMED = "outbox.on_armed"
# The arming's commands with one queue.
SET, HGET, XLEN, ZCARD, TIME = 1, 5, 6, 7, 4


def connected() -> ClientScript:
    """A client with one task, and its arming in flight."""
    script = ClientScript()
    script.enqueue(b"a")
    script.connect()
    assert script.waits_for(ARMED)
    return script


def test_the_first_enqueue_connects() -> None:
    script = ClientScript()
    assert of(script.enqueue(b"a"), Connect) == [Connect(Lane.COMMAND, 1)]
    assert of(script.enqueue(b"b"), Connect) == []


def test_its_commands() -> None:
    script = connected()
    assert script.flight()[ARMED] == (
        # A WATCH that stands from an earlier write would be touched by our own SET.
        (b"UNWATCH",),
        (b"SET", WATCHED, b"1", b"PX", ONE_DAY_MS),
        (b"WATCH", WATCHED),
        # A WATCH on a key that is not there guards nothing.
        (b"EXISTS", WATCHED),
        (b"TIME",),
        (b"HGET", PRODUCERS, b"me"),
        (b"XLEN", STREAM),
        (b"ZCARD", b"{streamfleet:jobs}:delayed"),
    )


def test_its_commands_for_several_queues() -> None:
    """One write for all: each key is set, one WATCH guards them all, and each queue is asked."""
    script = ClientScript(queues=("a", "b"))
    script.enqueue(b"x", queue="b")
    script.connect()
    names = [command[:2] for command in script.flight()[ARMED]]
    assert names == [
        (b"UNWATCH",),
        (b"SET", b"{streamfleet:a}:conn:me"),
        (b"SET", b"{streamfleet:b}:conn:me"),
        (b"WATCH", b"{streamfleet:a}:conn:me"),
        (b"EXISTS", b"{streamfleet:a}:conn:me"),
        (b"TIME",),
        *((b"HGET", b"{streamfleet:a}:producers"), (b"XLEN", b"streamfleet:a"), (b"ZCARD", b"{streamfleet:a}:delayed")),
        *((b"HGET", b"{streamfleet:b}:producers"), (b"XLEN", b"streamfleet:b"), (b"ZCARD", b"{streamfleet:b}:delayed")),
    ]
    assert script.flight()[ARMED][3] == (b"WATCH", b"{streamfleet:a}:conn:me", b"{streamfleet:b}:conn:me")
    script.answer_all()
    assert script.in_stream(b"streamfleet:b") == ["t1"]


def test_nothing_is_sent_before_it() -> None:
    script = connected()
    script.pass_time(1_000)
    assert script.waits_for(ARMED)
    script.answer()
    assert ARMED not in script.flight()
    script.answer_all()
    assert script.in_stream() == ["t1"]


def test_each_connection_sets_another_epoch() -> None:
    script = connected()
    epochs = [script.flight()[ARMED][SET][2]]
    for _ in range(2):
        script.reconnect()
        epochs.append(script.flight()[ARMED][SET][2])
    assert epochs == [b"1", b"2", b"3"]


def test_unknown_leads_to_the_next_connection() -> None:
    script = connected()
    script.reconnect(applied=True)
    assert script.waits_for(ARMED)
    script.answer_all()
    assert script.in_stream() == ["t1"]


@pytest.mark.parametrize("code", ["LOADING", "OOM", "BUSY", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "ERR strange"])
def test_a_passing_refusal_is_waited_out_with_back_off(code: str) -> None:
    script = connected()
    waits = []
    for _ in range(9):
        effects = script.answer({ARMED: Refused(error(code))})
        assert [note.operation for note in notes(effects, OperationRefused)] == ["arming"]
        assert script.flight() == {}
        assert events(effects) == []
        began = script.now
        while not script.flight():
            script.pass_time(1)
        waits.append(script.now - began)
    assert waits[0] <= 50
    assert max(waits) <= 5_000
    assert waits[-1] >= 2_500
    script.answer_all()
    assert script.in_stream() == ["t1"]


@pytest.mark.parametrize("code", ["READONLY", "MASTERDOWN", "UNBLOCKED", "MOVED 1 h:1"])
def test_a_refusal_that_points_elsewhere_leads_to_another_connection(code: str) -> None:
    script = connected()
    script.answer({ARMED: Refused(error(code))})
    assert script.machine.command.state is LinkState.DOWN
    script.pass_time(100)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1"]


@pytest.mark.parametrize("element", [HGET, XLEN, ZCARD])
def test_a_key_of_a_wrong_type_is_a_fault(element: int) -> None:
    """Finding 2.1b: a sequence beside such a key proves nothing, and no client sends on top of it."""
    script = connected()
    wrong = error("WRONGTYPE Operation against a key holding the wrong kind of value")
    effects = script.answer({ARMED: But({element: wrong})})
    assert events(effects) == [Faulted(wrong)]
    assert [effect.rejection for effect in of(script.enqueue(b"b"), Rejected)] == [Rejection.FAULT]
    script.pass_time(50)
    assert events(script.answer({ARMED: But({element: wrong})})) == [], "told once"
    script.pass_time(100)
    assert events(script.answer()) == [FaultCleared()]
    script.answer_all()
    assert script.in_stream() == ["t1"]


@pytest.mark.parametrize("element", [XLEN, ZCARD])
def test_beside_a_key_of_a_wrong_type_nothing_held_is_called_confirmed(element: int) -> None:
    """Finding 2.1b: one bad ZADD and its HSET, the reply lost: the sequence says 1, the task is not there."""
    script = ClientScript()
    script.start()
    script.track(b"a", delay_ms=60_000)
    script.advance_to("outbox.on_batch")
    script.lose()
    script.peer.hashes[PRODUCERS][b"me"] = b"1"
    script.pass_time(100)
    script.connect()
    effects = script.answer({ARMED: But({element: error("WRONGTYPE")})})
    assert of(effects, Confirmed) == []
    script.flush()
    script.pass_time(50)
    effects = script.answer({ARMED: But({element: error("WRONGTYPE")})})
    assert of(effects, Confirmed) + of(effects, Flushed) == []


@pytest.mark.parametrize(("element", "delayed", "again"), [(ZCARD, True, 1), (XLEN, False, 1), (ZCARD, False, 0)])
def test_what_went_to_a_key_of_a_wrong_type_goes_again(element: int, delayed: bool, again: int) -> None:
    """Also when the key is mended: in that transaction the number was applied, and the task was not."""
    script = ClientScript()
    script.start()
    script.track(b"a", delay_ms=60_000 if delayed else 0)
    script.advance_to("outbox.on_batch")
    script.lose()
    script.peer.hashes[PRODUCERS] = {b"me": b"1"}
    script.pass_time(100)
    script.connect()
    script.answer({ARMED: But({element: error("WRONGTYPE")})})
    script.pass_time(100)
    script.answer_all()
    stored = len(script.in_stream()) + len(script.peer.sorted_sets.get(b"{streamfleet:jobs}:delayed", {}))
    assert stored == again
    assert script.peer.hashes[PRODUCERS][b"me"] == (b"2" if again else b"1")


@pytest.mark.parametrize("code", ["NOPERM", "NOAUTH", "ERR unknown command 'WATCH'"])
def test_a_missing_permission_is_a_fault(code: str) -> None:
    script = connected()
    refused = error(code)
    assert events(script.answer({ARMED: Refused(refused)})) == [Faulted(refused)]
    script.pass_time(50)
    assert FaultCleared() in script.answer()


@pytest.mark.parametrize("reply", [None, b"12", [b"x", b"1"]], ids=repr)
def test_without_a_time_nothing_is_sent(reply: bytes | None) -> None:
    """Redis's time decides about delays and expiry; an answer that is none is no answer."""
    script = connected()
    effects = script.answer({ARMED: But({TIME: reply})})
    assert "TIME" in notes(effects, OperationRefused)[0].reason
    script.pass_time(50)
    assert script.waits_for(ARMED)
    script.answer_all()
    assert script.in_stream() == ["t1"]
