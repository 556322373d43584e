"""Batches: their form, their bounds, and what each of the four outcomes leads to."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.commands import EXEC
from streamfleet_protocol.effects import (
    Accepted,
    Batch,
    Confirmed,
    Effect,
    FaultCleared,
    Faulted,
    Flushed,
    Rejected,
    Rejection,
)
from streamfleet_protocol.keys import slot_of
from streamfleet_protocol.link import LinkState
from streamfleet_protocol.notes import DataLossSeen, OperationRefused
from streamfleet_protocol.replies import Aborted, ErrorReply, RawReply, Refused

from ..support import PRODUCERS, STREAM, WATCHED, But, ClientScript, error, events, notes, of, sent

BATCH, ARMED, WATCHED_AGAIN = "outbox.on_batch", "outbox.on_armed", "outbox.on_watched"


def started(**changes: Any) -> ClientScript:
    """A client whose connection is armed, at rest."""
    script = ClientScript(**changes)
    script.start()
    return script


def numbers(script: ClientScript) -> list[int]:
    """The sequence numbers in the batch in flight."""
    return [command[3] for command in script.flight()[BATCH] if command[0] == b"HSET"]  # type: ignore[misc]


def test_the_form_of_a_batch() -> None:
    script = started()
    effects = script.enqueue(b"a")
    (batch,) = of(effects, Batch)
    assert batch.purposes == (BATCH, WATCHED_AGAIN)
    assert batch.slot == slot_of(STREAM)
    names = [command[0] for command in batch.commands]
    assert names == [b"MULTI", b"XADD", b"HSET", b"EXEC", b"WATCH", b"EXISTS", b"HGET"]
    assert batch.commands[1][1:3] == (STREAM, b"*")
    assert batch.commands[2] == (b"HSET", PRODUCERS, b"me", 1)
    assert batch.commands[4] == (b"WATCH", WATCHED)


def test_one_transaction_for_all_queues() -> None:
    script = started(queues=("a", "b"))
    script.flush()
    script.enqueue(b"x", queue="a")
    script.enqueue(b"y", queue="b")
    script.enqueue(b"z", queue="a")
    script.answer()
    names = [(command[0], command[1]) for command in script.flight()[BATCH]]
    assert sorted(names) == [
        (b"HSET", b"{streamfleet:a}:producers"),
        (b"HSET", b"{streamfleet:b}:producers"),
        (b"XADD", b"streamfleet:a"),
        (b"XADD", b"streamfleet:b"),
    ]
    keys = (b"{streamfleet:a}:conn:me", b"{streamfleet:b}:conn:me")
    assert script.flight()[WATCHED_AGAIN][:2] == ((b"WATCH", *keys), (b"EXISTS", *keys))
    assert len(script.flight()[WATCHED_AGAIN]) == 3, "one sequence stands for all: what is lost is lost on one server"
    assert sorted(numbers(script)) == [1, 2], "each queue has its own numbers"
    script.answer_all()
    assert script.in_stream(b"streamfleet:a") == ["t1", "t3"]
    assert script.in_stream(b"streamfleet:b") == ["t2"]


def test_while_a_batch_is_in_flight_the_next_one_gathers() -> None:
    script = started()
    script.enqueue(b"a")
    for data in (b"b", b"c"):
        assert of(script.enqueue(data), Batch) == []
    assert sent(script.flight()[BATCH]) == ["t1"]
    script.answer()
    assert sent(script.flight()[BATCH]) == ["t2", "t3"]
    assert numbers(script) == [2]


def test_each_exec_is_followed_by_a_watch() -> None:
    """What guards the next batch was executed one write earlier; any EXEC ends it."""
    script = ClientScript(queues=("a", "b"), collect_interval_ms=1_000)
    script.enqueue(b"x", queue="a", tracked=True)
    script.start()
    for at in range(50):
        script.enqueue(b"y", queue="ab"[at % 2], tracked=bool(at % 3))
        script.live(777)
    batches = of(script.effects, Batch)
    assert len(batches) > 60
    for batch in batches:
        assert batch.commands.count(EXEC) <= 1
        if EXEC in batch.commands:
            after = batch.commands[batch.commands.index(EXEC) :]
            assert any(command[0] == b"WATCH" for command in after)


# Bounds.


def test_a_batch_is_bounded_in_commands() -> None:
    script = started(batch_commands=3)
    script.enqueue(b"first")
    script.enqueue(*[b"x"] * 7)
    sizes = []
    while script.flight():
        sizes.append(len(sent(script.flight()[BATCH])))
        script.answer()
    assert sizes == [1, 3, 3, 1]
    assert script.in_stream() == [f"t{at}" for at in range(1, 9)]


def test_a_batch_is_bounded_in_bytes() -> None:
    script = started(batch_bytes=100)
    script.enqueue(b"first")
    script.enqueue(b"x" * 60, b"x" * 40, b"x", b"x" * 500, b"x" * 99)
    batches = []
    while script.flight():
        batches.append(sent(script.flight()[BATCH]))
        script.answer()
    assert batches == [["t1"], ["t2", "t3"], ["t4"], ["t5"], ["t6"]], "what is larger than a batch goes alone"


def test_the_bounds_are_shared_by_all_queues_and_each_has_its_turn() -> None:
    script = started(queues=("a", "b"), batch_commands=2)
    script.enqueue(b"first", queue="a")
    script.enqueue(*[b"x"] * 4, queue="a")
    script.enqueue(*[b"x"] * 4, queue="b")
    script.answer()
    batches = []
    while script.flight():
        batches.append(sent(script.flight()[BATCH]))
        script.answer()
    assert all(len(batch) == 2 for batch in batches)
    assert batches[0] != batches[1]
    assert {batches[0][0], batches[1][0]} == {"t2", "t6"}, "the first turn of each comes within two batches"


def test_a_large_task_of_the_second_queue_waits_for_a_batch_of_its_own() -> None:
    script = started(queues=("a", "b"), batch_bytes=100)
    script.enqueue(b"first", queue="a")
    script.enqueue(b"x" * 60, queue="a")
    script.enqueue(b"x" * 60, queue="b")
    script.answer()
    assert len(sent(script.flight()[BATCH])) == 1
    script.answer()
    assert len(sent(script.flight()[BATCH])) == 1


# Outcomes.


def test_ok_confirms() -> None:
    script = started()
    script.enqueue(b"a")
    script.track(b"b")
    call = script.calls
    flushing = script.flush()
    assert of(flushing, Flushed) == []
    script.answer_all()
    assert [effect for effect in events(script.effects) if not isinstance(effect, Accepted)][-2:] == [
        Confirmed(("t2",)),
        Flushed(call + 1),
    ]
    assert script.machine.admission.tasks == 0
    assert script.machine.admission.bytes == 0
    assert script.in_stream() == ["t1", "t2"]


def resent(script: ClientScript, first: list[Effect]) -> None:
    """A batch that was not applied goes out again, once, under another number, and before what came later."""
    assert of(first, Confirmed) == []
    script.enqueue(b"later")
    script.advance_to(BATCH)
    assert sent(script.flight()[BATCH])[:1] == ["t1"]
    assert numbers(script) == [2]
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]
    assert script.machine.admission.tasks == 0


def test_aborted_asks_for_the_sequence_and_sends_again() -> None:
    """A key of ours was touched: the data may have been rolled back. On the same connection, without a pause."""
    script = started()
    script.enqueue(b"a")
    effects = script.answer({BATCH: Aborted()})
    assert script.waits_for(ARMED)
    resent(script, effects)
    assert notes(script.effects) == []


def test_a_touched_key_aborts_just_one_batch() -> None:
    """The WATCH of the aborted write is ended before the key is set, else each batch would abort the next."""
    script = started()
    script.enqueue(b"a")
    script.peer.touch(WATCHED)
    script.answer()
    assert script.waits_for(ARMED)
    resent(script, [])


@pytest.mark.parametrize("code", ["OOM", "LOADING", "MISCONF", "NOREPLICAS", "TRYAGAIN", "EXECABORT"])
def test_refused_applies_nothing_and_is_tried_again_after_a_pause(code: str) -> None:
    script = started()
    script.enqueue(b"a")
    effects = script.answer({BATCH: Refused(error(code))})
    assert [note.operation for note in notes(effects, OperationRefused)] == ["enqueue"]
    assert script.flight() == {}
    script.pass_time(50)
    resent(script, effects)


def test_a_refused_transaction_arms_anew() -> None:
    """EXECABORT ends the WATCH without telling whether a key was touched (seen on three servers): what it guarded
    against may have happened. So the sequence is read before anything else is sent.
    """
    script = started()
    script.enqueue(b"a")
    script.answer_all()
    script.enqueue(b"b")
    script.peer.flush()
    script.answer({BATCH: Refused(error("OOM"))})
    script.pass_time(50)
    assert script.waits_for(ARMED)
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]
    assert [note.repaired for note in notes(script.effects, DataLossSeen)] == [1]


def test_the_pause_grows_while_batches_are_refused_and_armings_are_not() -> None:
    script = started()
    script.enqueue(b"a")
    waits = []
    for _ in range(9):
        script.answer({BATCH: Refused(error("OOM"))})
        began = script.now
        script.live_to(BATCH)
        waits.append(script.now - began)
    assert waits[0] <= 50
    assert waits[-1] >= 2_500
    script.answer_all()
    script.enqueue(b"b")
    script.answer({BATCH: Refused(error("OOM"))})
    assert script.pass_time(51), "a success begins anew"


@pytest.mark.parametrize("code", ["NOPERM", "WRONGTYPE", "CROSSSLOT"])
def test_refused_for_good_is_a_fault_until_it_works(code: str) -> None:
    script = started(max_local_queue=2)
    script.enqueue(b"a", b"b")
    script.enqueue(b"waits")
    refused = error(code)
    effects = script.answer({BATCH: Refused(refused)})
    assert of(effects, Faulted) == [Faulted(refused)]
    (rejected,) = of(effects, Rejected)
    assert (rejected.rejection, rejected.accepted, rejected.error) == (Rejection.FAULT, 0, refused)
    for _ in range(3):
        assert of(script.enqueue(b"c"), Rejected)
        script.live_to(BATCH)
        effects = script.answer({BATCH: Refused(refused)})
        assert of(effects, Faulted) + of(effects, FaultCleared) == [], "it stands, and is told once"
    script.live(5_000)
    assert FaultCleared() in script.effects
    assert of(script.enqueue(b"d"), Accepted)
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t7"]


def test_a_refusal_that_points_elsewhere_leads_to_another_connection() -> None:
    script = started()
    script.enqueue(b"a")
    effects = script.answer({BATCH: Refused(error("READONLY"))})
    assert script.machine.command.state is LinkState.DOWN
    script.pass_time(50)
    script.connect()
    resent(script, effects)


@pytest.mark.parametrize("applied", [True, False])
def test_unknown_is_resolved_by_the_next_connection(applied: bool) -> None:
    """Applied or not: the task is there once."""
    script = started()
    script.track(b"a")
    script.advance_to(BATCH)
    script.flush()
    effects = script.reconnect(applied=applied)
    assert of(effects, Confirmed) == []
    script.answer_all()
    assert script.in_stream() == ["t1"]
    assert of(script.effects, Confirmed) == [Confirmed(("t1",))]
    assert of(script.effects, Flushed)
    assert script.machine.queues["jobs"].sequence == (1 if applied else 2)


def test_unknown_after_unknown() -> None:
    """Lost again while it is resolved, and again when it is sent anew: still once, still in order."""
    script = started()
    script.enqueue(b"a", b"b")
    for applied in (False, False, True, False):
        script.reconnect(applied=applied)
        script.reconnect(applied=applied)
        if script.held():
            script.advance_to(BATCH)
        else:
            script.answer()
    script.enqueue(b"c")
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3"]


def test_the_watch_after_a_batch_may_be_refused() -> None:
    """Without it nothing is sent; the batch itself is there."""
    script = started()
    script.enqueue(b"a")
    script.answer({WATCHED_AGAIN: Refused(error("LOADING"))})
    assert script.waits_for(ARMED)
    script.answer_all()
    assert script.in_stream() == ["t1"]


# Elements. EXEC is not all-or-nothing (finding 7).


def test_a_task_whose_own_command_failed_goes_again_alone() -> None:
    script = started()
    script.track(b"a", b"b", b"c")
    script.advance_to(BATCH)
    wrong = error("WRONGTYPE")
    effects = script.answer({BATCH: But({1: wrong})})
    assert events(effects) == [Confirmed(("t1", "t3")), Faulted(wrong)]
    assert script.machine.admission.tasks == 1
    script.live(5_000)
    assert events(script.effects)[-2:] == [Confirmed(("t2",)), FaultCleared()]
    assert script.in_stream() == ["t1", "t3", "t2"]
    assert script.machine.admission.tasks == 0


def test_a_sequence_that_was_not_written_is_told() -> None:
    script = started()
    script.enqueue(b"a")
    effects = script.answer({BATCH: But({1: error("OOM")})})
    assert [note.operation for note in notes(effects, OperationRefused)] == ["enqueue"]


def test_element_errors_of_one_queue_leave_the_other_alone() -> None:
    script = started(queues=("a", "b"))
    script.flush()
    script.enqueue(b"first", queue="a")
    script.enqueue(b"x", queue="a")
    script.enqueue(b"y", queue="b")
    script.answer()
    position = [command[1] for command in script.flight()[BATCH]].index(b"streamfleet:a")
    script.answer({BATCH: But({position: error("WRONGTYPE")})})
    assert script.held() == ["t2"]
    script.live(1_000)
    assert script.in_stream(b"streamfleet:a") == ["t1", "t2"]
    assert script.in_stream(b"streamfleet:b") == ["t3"]


def test_a_fault_of_tasks_that_are_gone_is_outlived() -> None:
    """Nobody tries the refused thing again once the task has expired; two heartbeats later the fault is over."""
    script = started()
    script.enqueue(b"a", expires_in_ms=20)
    script.answer({BATCH: Refused(error("NOPERM"))})
    script.live(9_000)
    assert script.held() == []
    assert of(script.enqueue(b"b"), Rejected), "it still stands"
    script.live(21_000)
    assert FaultCleared() in script.effects
    assert of(script.enqueue(b"c"), Accepted)


@pytest.mark.parametrize("value", [None, 7, b"text", [], [[]], ErrorReply("OOM x")], ids=repr)
def test_strange_ids_of_entries_are_taken_for_none(value: RawReply) -> None:
    """The audit then looks for the task by its id in the whole stream."""
    script = started()
    script.track(b"a")
    script.advance_to(BATCH)
    script.answer({BATCH: But({0: value})})
    handle = script.machine.tracker.handles["t1"]
    assert handle.entry_id == b""
