"""A task's options on the wire: times that count from the acceptance become times of Redis's clock, once."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.members import unpack_member
from streamfleet_protocol.wire import TaskEntry, decode_task

from ..support import DELAYED, REDIS_START, STREAM, ClientScript, sent

BATCH = "outbox.on_batch"


def started() -> ClientScript:
    script = ClientScript()
    script.start()
    return script


def entry(script: ClientScript) -> TaskEntry:
    """The one task in the stream."""
    ((_, fields),) = script.peer.streams[STREAM]
    return decode_task(fields)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"retry_delay_ms": 1000, "retry_backoff": 2.0, "retry_delay_max_ms": 300_000}),
        ({"max_retries": None}, {"max_retries": 0, "no_retry": False}),
        ({"max_retries": 0}, {"max_retries": 0, "no_retry": True}),
        ({"max_retries": 5}, {"max_retries": 5, "no_retry": False}),
        ({"retry_delay_ms": 7, "retry_backoff": 1.0, "retry_delay_max_ms": 0}, {"retry_delay_ms": 7}),
        ({"expires_ts": REDIS_START + 5}, {"expires_ts": REDIS_START + 5}),
        ({"expires_in_ms": 5_000}, {"expires_ts": REDIS_START + 5_000}),
    ],
    ids=repr,
)
def test_options_on_the_wire(options: dict[str, Any], expected: dict[str, Any]) -> None:
    script = started()
    script.enqueue(b"data", **options)
    script.answer_all()
    found = entry(script)
    assert (found.task_id, found.client_id, found.data, found.retries) == ("t1", "me", b"data", 0)
    for name, value in expected.items():
        assert getattr(found, name) == value


@pytest.mark.parametrize("tracked", [True, False])
def test_whether_a_word_is_wanted(tracked: bool) -> None:
    script = started()
    script.enqueue(b"a", tracked=tracked)
    script.answer_all()
    assert entry(script).send_notif is tracked


def test_a_delayed_task_goes_to_the_delayed_set() -> None:
    script = started()
    script.enqueue(b"a", delay_ms=60_000)
    assert script.flight()[BATCH][0][:3] == (b"ZADD", DELAYED, REDIS_START + 60_000)
    script.answer_all()
    assert script.in_delayed() == {"t1": REDIS_START + 60_000}
    (member,) = script.peer.sorted_sets[DELAYED]
    assert member.startswith(b"2:t1,1:0,")
    assert decode_task(unpack_member(member)).data == b"a"
    assert script.in_stream() == []


def test_a_task_for_a_moment() -> None:
    script = started()
    script.enqueue(b"a", due_ts=REDIS_START + 99)
    script.answer_all()
    assert script.in_delayed() == {"t1": REDIS_START + 99}


@pytest.mark.parametrize("options", [{"due_ts": REDIS_START}, {"due_ts": 5}, {"delay_ms": 0}])
def test_a_task_that_is_due_goes_to_the_stream(options: dict[str, Any]) -> None:
    script = started()
    script.enqueue(b"a", **options)
    script.answer_all()
    assert script.in_stream() == ["t1"]


def test_one_batch_holds_both_kinds() -> None:
    script = started()
    script.enqueue(b"first")
    script.enqueue(b"now")
    script.enqueue(b"later", delay_ms=1_000)
    script.track(b"now too")
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t4"]
    assert list(script.in_delayed()) == ["t3"]


def test_delay_and_expiry_count_from_the_acceptance() -> None:
    """Not from the moment at which Redis could be reached."""
    script = ClientScript()
    script.enqueue(b"a", delay_ms=60_000, expires_in_ms=90_000)
    script.pass_time(4_000)
    script.connect()
    script.answer_all()
    assert script.in_delayed() == {"t1": REDIS_START + 60_000}
    (member,) = script.peer.sorted_sets[DELAYED]
    assert decode_task(unpack_member(member)).expires_ts == REDIS_START + 90_000


def test_times_are_fixed_when_a_task_is_first_sent() -> None:
    """Sent again, after whatever time and under whatever clock, it is the same entry: the set merges the two."""
    script = started()
    script.enqueue(b"a", delay_ms=600_000, expires_in_ms=900_000)
    first = script.flight()[BATCH][0]
    script.lose()
    script.pass_time(1_000)
    script.peer.redis_ms += 123_456
    script.connect()
    script.advance_to(BATCH)
    assert script.flight()[BATCH][0] == first


def test_a_delayed_task_that_is_sent_again_after_it_is_due_goes_to_the_stream() -> None:
    script = started()
    script.enqueue(b"a", delay_ms=500)
    script.lose()
    script.pass_time(1_000)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1"]
    assert script.in_delayed() == {}


def test_a_delay_may_run_out_before_the_first_sending() -> None:
    script = ClientScript()
    script.enqueue(b"a", delay_ms=500)
    script.pass_time(2_000)
    script.connect()
    script.advance_to(BATCH)
    assert sent(script.flight()[BATCH]) == ["t1"]
    assert script.flight()[BATCH][0][0] == b"XADD"


def test_one_object_of_options_serves_many_tasks() -> None:
    script = started()
    script.enqueue(b"a", b"b", expires_in_ms=1_000)
    script.pass_time(10)
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]
    assert {decode_task(fields).expires_ts for _, fields in script.peer.streams[STREAM]} == {REDIS_START + 1_000}


def test_without_a_clock_nothing_is_encoded() -> None:
    """No wall clock of this machine is ever looked at: the first answer of Redis tells the time."""
    script = ClientScript()
    script.enqueue(b"a", expires_in_ms=60_000)
    script.connect()
    script.peer.redis_ms = 5_000_000
    script.answer_all()
    assert entry(script).expires_ts == 5_060_000
