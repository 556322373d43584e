"""Closing: confirm within the time, one last look for words, remove the own keys, and say what became of the tasks."""

from __future__ import annotations

import pytest

from streamfleet_protocol.effects import (
    Accepted,
    Batch,
    ClientClosed,
    Confirmed,
    Disconnect,
    Effect,
    End,
    Flushed,
    Lane,
    Rejected,
    Rejection,
    Settled,
)
from streamfleet_protocol.inputs import Connected, Timeout
from streamfleet_protocol.link import LinkState
from streamfleet_protocol.replies import Aborted, Refused

from ..support import PRODUCERS, RECEIVER, RECEIVERS, WATCHED, ClientScript, error, events, of

BATCH, ARMED, TIDIED, PEEKED, BEAT = (
    *("outbox.on_batch", "outbox.on_armed", "closing.on_tidied"),
    *("receiver.on_peeked", "heartbeat.on_beat"),
)


def started(*, tracked: bool = False) -> ClientScript:
    """A client with one confirmed task."""
    script = ClientScript(collect_interval_ms=10**9)
    script.enqueue(b"first", tracked=tracked)
    script.start()
    return script


def closed(effects: list[Effect]) -> ClientClosed:
    """What the closed client reports, and that nothing follows it."""
    assert isinstance(effects[-1], ClientClosed)
    return effects[-1]


def settled(effects: list[Effect]) -> list[tuple[str, End]]:
    """Which tasks ended, and how."""
    return [(effect.task_id, effect.end) for effect in of(effects, Settled)]


# With a healthy server.


def test_a_client_that_was_never_used() -> None:
    script = ClientScript()
    effects = script.close()
    assert effects == [ClientClosed(0, (), ())]
    assert script.machine.next_timeout() is None


def test_a_client_at_rest_tidies_up_and_is_closed() -> None:
    script = started()
    effects = script.close()
    (batch,) = of(effects, Batch)
    assert batch.purposes == (TIDIED,)
    assert batch.commands == (
        (b"DEL", WATCHED),
        (b"HDEL", PRODUCERS, b"me", b"me:t"),
        (b"ZREM", RECEIVERS, b"me"),
    )
    effects = script.answer()
    assert effects == [Disconnect(Lane.COMMAND, 1), ClientClosed(1, (), ())]
    assert script.machine.next_timeout() is None
    assert script.peer.hashes[PRODUCERS] == {}
    assert script.peer.sorted_sets[RECEIVERS] == {}
    assert script.peer.strings == {}


def test_a_client_that_tracked_looks_once_more_and_removes_its_stream() -> None:
    """The stream goes before the client's place in the set, so that a crash leaves nothing that nobody lists."""
    script = started(tracked=True)
    effects = script.close()
    assert effects[0] == Disconnect(Lane.READ, 1)
    (batch,) = of(effects, Batch)
    assert batch.commands == (
        (b"XREAD", b"COUNT", 501, b"STREAMS", RECEIVER, b"0"),
        (b"DEL", WATCHED),
        (b"HDEL", PRODUCERS, b"me", b"me:t"),
        (b"DEL", RECEIVER),
        (b"ZREM", RECEIVERS, b"me"),
    )
    effects = script.answer()
    assert settled(effects) == [("t1", End.UNKNOWN)]
    assert closed(effects) == ClientClosed(1, (), ())
    assert RECEIVER not in script.peer.streams


def test_a_word_that_lies_unread_is_heard() -> None:
    script = started(tracked=True)
    script.say("t1", result=b"42")
    script.close()
    effects = script.answer()
    assert of(effects, Settled) == [Settled("t1", End.COMPLETED, "", b"42")]


def test_many_words_that_lie_unread_are_heard() -> None:
    """More than a page of them: none may become an OutcomeUnknown."""
    script = ClientScript()
    script.track(*[b"x"] * 900)
    script.start()
    for at in range(900):
        script.say(f"t{at + 1}")
    script.close()
    effects = script.answer()
    assert {end for _, end in settled(effects)} == {End.COMPLETED}
    assert len(settled(effects)) == 900


def test_what_is_accepted_is_confirmed_first() -> None:
    script = started()
    script.enqueue(b"b")
    script.track(b"c")
    script.close()
    effects = script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3"]
    assert Confirmed(("t3",)) in effects
    assert settled(effects) == [("t3", End.UNKNOWN)]
    assert closed(effects) == ClientClosed(3, (), ())


def test_the_stream_of_a_first_tracked_task_is_made_while_closing() -> None:
    script = started()
    script.track(b"b")
    script.close()
    script.advance_to(BATCH)
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]
    assert RECEIVER not in script.peer.streams
    assert script.peer.sorted_sets[RECEIVERS] == {}


def test_a_client_that_is_just_connecting_confirms_first() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    script.close()
    script.connect()
    assert closed(script.answer_all()) == ClientClosed(1, (), ())
    assert script.in_stream() == ["t1"]


def test_words_are_heard_while_the_rest_is_confirmed() -> None:
    script = started(tracked=True)
    script.enqueue(b"b")
    script.close(60_000)
    script.answer(lane=Lane.READ)
    script.say("t1")
    assert settled(script.answer(lane=Lane.READ)) == [("t1", End.COMPLETED)]


def test_a_long_flush_shows_life() -> None:
    """Else others would take the client for dead and delete its stream."""
    script = started(tracked=True)
    script.enqueue(b"b")
    script.close(300_000)
    script.answer({BATCH: Refused(error("OOM"))})
    beats = 0
    for _ in range(300):
        script.pass_time(1_000)
        while script.flight() and script.machine.closing.stage.value == "flushing":
            beats += BEAT in script.flight()
            script.answer({BATCH: Refused(error("OOM"))} if BATCH in script.flight() else {})
    assert beats >= 20


# Calls meanwhile and after.


def test_nothing_more_is_accepted() -> None:
    script = ClientScript(max_local_queue=1)
    script.enqueue(b"a")
    script.enqueue(b"waits")
    effects = script.close()
    (rejected,) = of(effects, Rejected)
    assert (rejected.call, rejected.rejection, rejected.accepted) == (2, Rejection.CLOSED, 0)
    assert of(script.enqueue(b"b"), Rejected)[0].rejection is Rejection.CLOSED
    script.connect()
    script.answer_all()
    assert of(script.enqueue(b"c"), Rejected)[0].rejection is Rejection.CLOSED
    assert script.in_stream() == ["t1"]


def test_a_partly_accepted_call_is_told_how_far_it_came() -> None:
    script = ClientScript(max_local_queue=2)
    script.enqueue(b"a", b"b", b"c")
    (rejected,) = of(script.close(), Rejected)
    assert (rejected.call, rejected.accepted) == (1, 2)


def test_a_flush_is_still_answered() -> None:
    script = started()
    script.enqueue(b"b")
    call = script.calls + 1
    script.flush()
    script.close()
    assert Flushed(call) in script.answer()


def test_flushes_that_never_come_true_are_rejected() -> None:
    """Nobody may wait for ever on a closed client; before, during and after."""
    script = ClientScript()
    script.enqueue(b"a")
    script.flush()
    script.close(1_000)
    script.flush()
    effects = script.pass_time(1_000)
    assert [(effect.call, effect.rejection) for effect in of(effects, Rejected)] == [
        (2, Rejection.CLOSED),
        (3, Rejection.CLOSED),
    ]
    (rejected,) = of(script.flush(), Rejected)
    assert rejected.rejection is Rejection.CLOSED


def test_closing_twice_is_closing_once() -> None:
    script = started()
    script.enqueue(b"b")
    script.close(60_000)
    assert script.close(0) == []
    effects = script.answer_all()
    closed(effects)
    assert script.close() == []
    assert len(of(script.effects, ClientClosed)) == 1


def test_a_closed_client_takes_no_notice_of_anything() -> None:
    script = started()
    script.close()
    script.answer()
    before = script.machine.snapshot()
    assert script.feed(Connected(Lane.COMMAND, 1)) == []
    assert script.feed(Connected(Lane.READ, 1)) == []
    assert script.lose() == []
    assert script.feed(Timeout()) == []
    assert script.withdraw(1) == []
    assert script.machine.snapshot() == before


# Without Redis.


def test_without_redis_the_time_is_used_and_no_more() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    script.track(b"b")
    script.close(10_000)
    assert of(script.pass_time(9_999), ClientClosed) == []
    effects = script.pass_time(1)
    assert settled(effects) == [("t2", End.CANCELED)], "never written to a connection"
    assert closed(effects) == ClientClosed(0, ("t1", "t2"), ())
    assert script.machine.next_timeout() is None


def test_without_any_time() -> None:
    script = ClientScript()
    script.track(b"a")
    effects = script.close(0)
    assert settled(effects) == [("t1", End.CANCELED)]
    assert closed(effects).unsent == ("t1",)


def test_redis_may_come_back_in_time() -> None:
    script = started()
    script.lose()
    script.enqueue(b"b")
    script.close(10_000)
    script.pass_time(1_000)
    assert script.machine.command.state is LinkState.CONNECTING
    script.connect()
    assert closed(script.answer_all()) == ClientClosed(2, (), ())
    assert script.in_stream() == ["t1", "t2"]


def test_nothing_to_confirm_and_no_connection_is_no_reason_to_wait() -> None:
    """What cannot be removed is collected by others."""
    script = started()
    script.lose()
    effects = script.close(60_000)
    assert closed(effects) == ClientClosed(1, (), ())


def test_when_the_last_task_expires_the_closing_goes_on() -> None:
    script = started()
    script.lose()
    script.enqueue(b"b", expires_in_ms=1_000)
    script.close(60_000)
    script.pass_time(1_500)
    while script.machine.command.state is not LinkState.CONNECTING:
        script.pass_time(1)
    script.connect()
    assert closed(script.answer_all()) == ClientClosed(1, (), ())


# The batch in flight.


def test_the_batch_in_flight_is_waited_for() -> None:
    script = started()
    script.track(b"b")
    script.advance_to(BATCH)
    script.enqueue(b"never sent")
    script.close(100)
    assert of(script.pass_time(100), ClientClosed) == []
    script.answer()
    assert script.waits_for(PEEKED, TIDIED), "nothing more is sent"
    effects = script.answer()
    assert settled(effects) == [("t2", End.UNKNOWN)]
    assert closed(effects) == ClientClosed(2, ("t3",), ())


def test_the_batch_in_flight_is_waited_for_only_so_long() -> None:
    script = started()
    script.track(b"b")
    script.advance_to(BATCH)
    script.enqueue(b"never sent")
    script.close(100)
    effects = script.pass_time(3_100)
    assert settled(effects) == [("t2", End.UNKNOWN)]
    assert closed(effects) == ClientClosed(1, ("t3",), ("t2",))


@pytest.mark.parametrize("applied", [True, False])
def test_a_batch_whose_reply_is_lost_is_unknown(applied: bool) -> None:
    """Finding 2.5: canceled is only what was never written to a socket."""
    script = started()
    script.track(b"b")
    script.advance_to(BATCH)
    script.enqueue(b"c")
    script.close(100)
    script.pass_time(100)
    effects = script.lose(applied=applied)
    assert settled(effects) == [("t2", End.UNKNOWN)]
    assert closed(effects) == ClientClosed(1, ("t3",), ("t2",))


@pytest.mark.parametrize("applied", [True, False])
def test_within_the_time_a_lost_reply_is_resolved(applied: bool) -> None:
    script = started()
    script.enqueue(b"b")
    script.close(10_000)
    script.reconnect(applied=applied)
    assert closed(script.answer_all()) == ClientClosed(2, (), ())
    assert script.in_stream() == ["t1", "t2"]


def test_after_the_time_an_aborted_batch_is_resolved_and_not_sent_again() -> None:
    script = started()
    script.track(b"b")
    script.advance_to(BATCH)
    script.close(100)
    script.pass_time(100)
    script.answer({BATCH: Aborted()})
    effects = script.answer_all()
    assert script.in_stream() == ["t1"]
    assert settled(effects) == [("t2", End.UNKNOWN)], "it was written once"
    assert closed(effects) == ClientClosed(1, (), ("t2",))
    assert script.peer.sorted_sets[RECEIVERS] == {}, "and the keys are removed"


def test_after_the_time_a_refused_batch_is_not_sent_again() -> None:
    script = started()
    script.enqueue(b"b")
    script.close(100)
    script.pass_time(100)
    script.answer({BATCH: Refused(error("OOM"))})
    effects = script.answer_all()
    assert script.in_stream() == ["t1"]
    assert closed(effects) == ClientClosed(1, (), ("t2",))


def test_what_went_back_into_the_local_queue_is_unknown_and_not_canceled() -> None:
    """Finding 2.5: sent, rolled back, in the local queue again: it may have run all the same."""
    script = started(tracked=True)
    script.peer.flush()
    script.lose()
    script.pass_time(100)
    script.connect()
    script.answer()
    assert BEAT in script.flight()
    assert script.held() == ["t1"]
    script.lose()
    effects = script.close(0)
    assert settled(effects) == [("t1", End.UNKNOWN)]
    assert closed(effects).unsent == ()


def test_a_task_that_settled_is_not_reported() -> None:
    """Its batch's reply is lost; the word about it is not."""
    script = started(tracked=True)
    script.track(b"b")
    script.lose(applied=True)
    script.say("t2")
    assert settled(script.answer(lane=Lane.READ)) == [("t2", End.COMPLETED)]
    effects = script.close(0)
    assert settled(effects) == [("t1", End.UNKNOWN)]
    assert closed(effects) == ClientClosed(1, (), ())


# Tidying.


def test_the_last_look_and_the_removal_take_a_bounded_time() -> None:
    script = started(tracked=True)
    script.close()
    assert script.waits_for(PEEKED, TIDIED)
    effects = script.pass_time(3_000)
    assert settled(effects) == [("t1", End.UNKNOWN)]
    assert closed(effects) == ClientClosed(1, (), ())


@pytest.mark.parametrize("purpose", [PEEKED, TIDIED])
def test_a_refused_removal_is_left_to_others(purpose: str) -> None:
    script = started(tracked=True)
    script.close()
    effects = script.answer({purpose: Refused(error("OOM"))})
    assert closed(effects) == ClientClosed(1, (), ())


def test_an_unknown_removal_is_left_to_others() -> None:
    script = started(tracked=True)
    script.close()
    assert closed(script.lose()) == ClientClosed(1, (), ())


def test_a_place_in_the_set_stays_where_the_creation_of_the_stream_is_unknown() -> None:
    """Finding 2.5: the creation may still run, and would make a stream that nobody lists."""
    script = ClientScript(collect_interval_ms=10**9)
    script.enqueue(b"a")
    script.start()
    script.track(b"b", expires_in_ms=50)
    script.advance_to("receiver.on_made")
    script.lose()
    script.pass_time(49)
    while script.machine.command.state is not LinkState.CONNECTING:
        script.pass_time(1)
    script.connect()
    script.close(0)
    assert ARMED in script.flight()
    script.answer()
    assert (b"ZREM", RECEIVERS, b"me") not in script.flight()[TIDIED]
    assert (b"DEL", RECEIVER) in script.flight()[TIDIED]


def test_a_connection_that_is_up_and_not_armed_is_used_to_tidy() -> None:
    """Else a client that is closed in that moment would leave all its keys to the collection."""
    script = started(tracked=True)
    script.live_to(BEAT)
    script.answer({BEAT: Aborted()})
    assert script.waits_for(ARMED)
    script.close(0)
    script.answer_all()
    assert script.peer.strings == {}
    assert script.peer.sorted_sets[RECEIVERS] == {}
    assert RECEIVER not in script.peer.streams


def test_the_order_of_the_end() -> None:
    """Handles settle, then connections close, then the report: a driver may let go at once."""
    script = started(tracked=True)
    script.close()
    effects = script.answer()
    kinds = [type(effect) for effect in events(effects)]
    assert kinds == [Settled, ClientClosed]
    assert isinstance(effects[-2], Disconnect)


def test_a_call_that_waits_for_room_is_rejected_before_the_end() -> None:
    script = ClientScript(max_local_queue=1)
    script.enqueue(b"a")
    script.enqueue(b"b")
    effects = script.close(0)
    assert [type(effect) for effect in events(effects)] == [Rejected, ClientClosed]
    assert of(script.effects, Accepted) == [Accepted(1, 1)]
