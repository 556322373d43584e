"""The local queue: its bounds, who waits and who does not, and flushes."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.effects import Accepted, Batch, Confirmed, Flushed, Rejected, Rejection
from streamfleet_protocol.notes import ExpiredUnsent
from streamfleet_protocol.replies import Aborted

from ..support import ClientScript, events, notes, of


def full(**changes: Any) -> ClientScript:
    """A client without Redis whose local queue of three holds three tasks."""
    script = ClientScript(max_local_queue=3, **changes)
    assert events(script.enqueue(b"a", b"b", b"c")) == [Accepted(1, 3)]
    return script


def test_accepted_at_once_and_without_redis() -> None:
    script = ClientScript()
    assert events(script.enqueue(b"a")) == [Accepted(1, 1)]
    assert events(script.enqueue(b"b", b"c", wait=False)) == [Accepted(2, 2)]
    assert events(script.enqueue()) == [Accepted(3, 0)]
    assert script.held() == ["t1", "t2", "t3"]


def test_an_unknown_queue() -> None:
    script = ClientScript(queues=("jobs", "mail"))
    (rejected,) = of(script.enqueue(b"a", queue="other"), Rejected)
    assert rejected.rejection is Rejection.UNKNOWN_QUEUE
    assert rejected.detail == "'other' is not a queue of this client, which has 'jobs' or 'mail'"
    assert script.held() == []


def test_without_waiting_all_or_none_are_accepted() -> None:
    script = ClientScript(max_local_queue=3)
    script.enqueue(b"a", b"b")
    (rejected,) = of(script.enqueue(b"c", b"d", wait=False), Rejected)
    assert (rejected.rejection, rejected.accepted) == (Rejection.QUEUE_FULL, 0)
    assert "holds 2 of 3 tasks" in rejected.detail
    assert "2 more do not fit" in rejected.detail
    assert script.held() == ["t1", "t2"]
    assert of(script.enqueue(b"e", wait=False), Accepted)
    assert script.held() == ["t1", "t2", "t5"]


def test_the_bound_in_bytes() -> None:
    script = ClientScript(max_local_bytes=10)
    script.enqueue(b"x" * 6)
    (rejected,) = of(script.enqueue(b"x" * 5, wait=False), Rejected)
    assert "6 of 10 bytes" in rejected.detail
    assert of(script.enqueue(b"x" * 4, wait=False), Accepted)
    assert of(script.enqueue(b"", wait=False), Accepted), "bytes bound bytes"
    assert events(script.enqueue(b"x")) == [], "waits"


def test_what_can_never_fit_is_rejected_at_once() -> None:
    script = ClientScript(max_local_bytes=10, max_local_queue=2)
    for wait in (True, False):
        (rejected,) = of(script.enqueue(b"small", b"x" * 11, wait=wait), Rejected)
        assert rejected.rejection is Rejection.TOO_LARGE
        assert "11 bytes" in rejected.detail
    assert script.held() == []
    assert of(script.enqueue(b"a", b"b", b"c", wait=False), Rejected)[0].rejection is Rejection.QUEUE_FULL


def test_waiting_calls_go_in_as_room_comes() -> None:
    script = full()
    assert events(script.enqueue(b"d", b"e", b"f", b"g")) == []
    assert script.held() == ["t1", "t2", "t3"]
    script.connect()
    script.advance_to("outbox.on_batch")
    effects = script.answer()
    assert events(effects) == []
    assert len(of(effects, Batch)) == 1
    effects = script.answer()
    assert events(effects) == [Accepted(2, 4)]
    script.answer_all()
    assert script.in_stream() == [f"t{at}" for at in range(1, 8)]


def test_waiting_calls_are_served_in_their_order() -> None:
    """A small call that would fit does not pass a large one, else the large one might wait for ever."""
    script = full(max_local_bytes=9)
    script.enqueue(b"x" * 9)
    script.enqueue(b"y")
    script.enqueue()
    assert of(script.effects, Accepted) == [Accepted(1, 3)]
    (rejected,) = of(script.enqueue(wait=False), Rejected)
    assert rejected.rejection is Rejection.QUEUE_FULL, "not even nothing passes them"
    script.connect()
    script.answer_all()
    assert of(script.effects, Accepted) == [Accepted(1, 3), Accepted(2, 1), Accepted(3, 1), Accepted(4, 0)]
    assert script.in_stream() == ["t1", "t2", "t3", "t4", "t5"]


def test_calls_of_different_queues_wait_in_one_line() -> None:
    script = ClientScript(queues=("a", "b"), max_local_queue=1)
    script.enqueue(b"1", queue="a")
    script.enqueue(b"2", queue="b")
    script.enqueue(b"3", queue="a")
    script.connect()
    script.answer_all()
    assert [accepted.call for accepted in of(script.effects, Accepted)] == [1, 2, 3]


def test_who_waits_no_longer_is_told_how_many_were_accepted() -> None:
    script = full()
    script.enqueue(b"d", b"e", b"f", b"g")
    script.enqueue(b"h")
    script.connect()
    script.advance_to("outbox.on_batch")
    script.answer()
    (rejected,) = of(script.withdraw(2), Rejected)
    assert (rejected.call, rejected.rejection, rejected.accepted) == (2, Rejection.WITHDRAWN, 3)
    script.answer_all()
    assert Accepted(3, 1) in script.effects, "the next in line goes on"
    assert script.in_stream() == ["t1", "t2", "t3", "t4", "t5", "t6", "t8"]
    assert events(script.withdraw(2)) == []
    assert events(script.withdraw(99)) == []


def test_no_task_is_lost_or_doubled_by_a_withdrawal() -> None:
    script = full()
    script.enqueue(b"d")
    script.withdraw(2)
    assert script.held() == ["t1", "t2", "t3"]
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3"]


def test_room_counts_until_the_confirmation() -> None:
    """What is in flight is still held: it may have to be sent again."""
    script = full()
    script.connect()
    script.advance_to("outbox.on_batch")
    assert script.held() == []
    assert of(script.enqueue(b"d", wait=False), Rejected)
    script.answer()
    assert of(script.enqueue(b"e", wait=False), Accepted)


def test_a_task_that_expires_makes_room_for_one_that_waits() -> None:
    """Without Redis, and without another input: the machine asks to be called then."""
    script = ClientScript(max_local_queue=2)
    script.enqueue(b"a", expires_in_ms=700)
    script.enqueue(b"b")
    script.enqueue(b"c")
    begun = script.now
    while not of(script.effects, Accepted)[2:]:
        due = script.machine.next_timeout()
        assert due is not None
        script.pass_time(due - script.now)
    assert script.now == begun + 700
    assert notes(script.effects, ExpiredUnsent) == [ExpiredUnsent("jobs", "t1")]
    assert script.held() == ["t2", "t3"]


def test_an_expiry_while_a_batch_is_in_flight_makes_room_too() -> None:
    script = ClientScript(max_local_queue=2)
    script.start()
    script.enqueue(b"a")
    script.enqueue(b"b", expires_in_ms=700)
    script.enqueue(b"c")
    script.pass_time(699)
    assert [accepted.call for accepted in of(script.effects, Accepted)] == [2, 3]
    script.pass_time(1)
    assert [accepted.call for accepted in of(script.effects, Accepted)] == [2, 3, 4]


# Flushes.


def test_a_flush_of_nothing_is_true_at_once() -> None:
    script = ClientScript()
    assert events(script.flush()) == [Flushed(1)]


def test_a_flush_waits_for_what_was_accepted_before_it_only() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    assert events(script.flush()) == []
    script.connect()
    script.advance_to("outbox.on_batch")
    script.enqueue(b"b")
    script.flush()
    assert events(script.answer()) == [Flushed(2)]
    assert events(script.answer()) == [Flushed(4)]


def test_a_flush_waits_for_all_queues() -> None:
    script = ClientScript(queues=("a", "b"), batch_commands=1)
    script.enqueue(b"1", queue="a")
    script.enqueue(b"2", queue="b")
    script.flush()
    script.connect()
    script.advance_to("outbox.on_batch")
    assert events(script.answer()) == []
    assert events(script.answer()) == [Flushed(3)]


def test_a_flush_is_not_fooled_by_an_abort() -> None:
    script = ClientScript()
    script.start()
    script.enqueue(b"a")
    call = script.calls
    script.flush()
    assert events(script.answer({"outbox.on_batch": Aborted()})) == []
    assert Flushed(call + 1) in script.answer_all()


def test_a_flush_may_be_given_up() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    script.flush()
    script.withdraw(2)
    script.connect()
    script.answer_all()
    assert of(script.effects, Flushed) == []


def test_a_flush_comes_true_when_the_last_task_expires() -> None:
    script = ClientScript()
    script.start()
    script.lose()
    script.track(b"a", expires_in_ms=10)
    call = script.calls
    script.flush()
    script.pass_time(100)
    script.connect()
    script.answer_all()
    assert Flushed(call + 1) in script.effects
    assert of(script.effects, Confirmed) == []


@pytest.mark.parametrize("tracked", [True, False])
def test_enqueueing_while_a_batch_is_in_flight(tracked: bool) -> None:
    """The light way of the hot path differs in nothing but its cost."""
    script = ClientScript(max_local_queue=2)
    script.start()
    script.enqueue(b"a")
    assert events(script.enqueue(b"b", tracked=tracked, expires_in_ms=500)) == [Accepted(3, 1)]
    assert events(script.enqueue(b"c", tracked=tracked)) == []
    assert events(script.enqueue(b"d", tracked=tracked)) == []
    script.answer_all()
    assert [accepted.call for accepted in of(script.effects, Accepted)] == [2, 3, 4, 5]
    assert script.in_stream() == ["t1", "t2", "t3", "t4"]
