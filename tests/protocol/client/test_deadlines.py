"""Deadlines of handles: over on Redis's clock, looked for once more, and within a bounded time."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.effects import End, Lane, Settled
from streamfleet_protocol.link import LinkState
from streamfleet_protocol.notes import ExpiredUnsent
from streamfleet_protocol.replies import Ok, Refused

from ..support import RECEIVER, REDIS_START, ClientScript, error, notes, of

PEEKED, BATCH, ARMED = "receiver.on_peeked", "outbox.on_batch", "outbox.on_armed"


def tracking(**options: Any) -> ClientScript:
    """A client with one tracked task in Redis."""
    script = ClientScript(collect_interval_ms=10**9)
    script.track(b"a", **options)
    script.start()
    return script


def settled(script: ClientScript) -> list[tuple[str, End, bool]]:
    """How the tasks have ended so far, and whether that is certain."""
    return [(effect.task_id, effect.end, effect.confirmed) for effect in of(script.effects, Settled)]


UNCONFIRMED = ("t1", End.EXPIRED, False)
CONFIRMED = ("t1", End.EXPIRED, True)


@pytest.mark.parametrize("options", [{"expires_in_ms": 5_000}, {"expires_ts": REDIS_START + 5_000}])
def test_without_a_word_it_is_over_after_one_more_look(options: dict[str, int]) -> None:
    script = tracking(**options)
    script.pass_time(4_999)
    assert script.flight() == {}
    script.pass_time(1)
    assert script.flight()[PEEKED] == ((b"XREAD", b"COUNT", 500, b"STREAMS", RECEIVER, b"0"),)
    assert settled(script) == []
    script.answer()
    assert settled(script) == [UNCONFIRMED]


def test_a_word_that_lies_unread_is_the_truth() -> None:
    """Finding 2, section 5: surely after an outage over the deadline."""
    script = tracking(expires_in_ms=5_000)
    script.pass_time(5_000)
    script.say("t1", "completed", result=b"42")
    script.answer()
    assert settled(script) == [("t1", End.COMPLETED, True)]


def test_a_workers_word_is_certain() -> None:
    script = tracking(expires_in_ms=5_000)
    script.say("t1", "expired")
    script.answer(lane=Lane.READ)
    assert settled(script) == [CONFIRMED]


def test_a_word_that_comes_first_settles() -> None:
    script = tracking(expires_in_ms=5_000)
    script.say("t1")
    script.answer(lane=Lane.READ)
    script.live(20_000)
    assert settled(script) == [("t1", End.COMPLETED, True)]


def test_the_look_must_begin_after_the_deadline() -> None:
    """A look that was under way proves nothing about what came in behind it."""
    script = ClientScript(collect_interval_ms=10**9)
    script.track(b"a", expires_in_ms=1_000)
    script.track(b"b", expires_in_ms=1_100)
    script.start()
    script.pass_time(1_000)
    assert PEEKED in script.flight()
    script.pass_time(100)
    script.answer()
    assert settled(script) == [UNCONFIRMED]
    script.say("t2")
    script.answer()
    assert settled(script) == [UNCONFIRMED, ("t2", End.COMPLETED, True)]


def test_a_full_page_is_not_the_whole_stream() -> None:
    script = tracking(expires_in_ms=5_000)
    script.pass_time(5_000)
    for _ in range(500):
        script.say("nobody")
    script.say("t1")
    script.answer()
    assert settled(script) == []
    script.answer()
    assert settled(script) == [("t1", End.COMPLETED, True)]


def test_a_refused_look_is_taken_again() -> None:
    script = tracking(expires_in_ms=5_000)
    script.pass_time(5_000)
    for _ in range(3):
        script.answer({PEEKED: Refused(error("LOADING"))})
        assert settled(script) == []
        script.live_to(PEEKED)
    script.answer()
    assert settled(script) == [UNCONFIRMED]


def test_a_look_that_is_never_answered_is_taken_again() -> None:
    script = tracking(expires_in_ms=5_000)
    script.pass_time(5_000)
    script.say("t1")
    script.reconnect()
    assert settled(script) == []
    script.answer_all()
    assert settled(script) == [("t1", End.COMPLETED, True)]


def test_the_wait_for_the_look_is_bounded() -> None:
    """Redis is away: the caller gets his answer all the same."""
    script = tracking(expires_in_ms=5_000)
    script.lose()
    script.pass_time(64_999)
    assert settled(script) == []
    script.pass_time(1)
    assert settled(script) == [UNCONFIRMED]


def test_a_task_that_was_never_sent_is_certainly_over() -> None:
    """No Redis, no clock of Redis: its time counts from the acceptance."""
    script = ClientScript()
    script.track(b"a", expires_in_ms=5_000)
    script.pass_time(4_999)
    assert settled(script) == []
    script.pass_time(1)
    assert settled(script) == [CONFIRMED]
    script.pass_time(100_000)
    assert settled(script) == [CONFIRMED]


def test_nor_is_it_sent_later() -> None:
    script = ClientScript()
    script.track(b"a", expires_in_ms=1_000)
    script.enqueue(b"b", expires_in_ms=1_000)
    script.enqueue(b"c")
    script.pass_time(2_000)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t3"]
    assert notes(script.effects, ExpiredUnsent) == [ExpiredUnsent("jobs", "t2")]
    assert script.machine.admission.tasks == 0


def test_a_moment_needs_the_clock_of_redis() -> None:
    """Before the first answer nobody knows Redis's time; then the task is over at once, and is not sent."""
    script = ClientScript()
    script.track(b"a", expires_ts=REDIS_START + 500)
    script.pass_time(1_000)
    assert settled(script) == []
    script.connect()
    script.answer()
    assert settled(script) == [CONFIRMED]
    script.answer_all()
    assert script.in_stream() == []


def test_a_moment_after_the_clock_is_known() -> None:
    """Accepted while a batch is in flight, on the light way."""
    script = ClientScript(collect_interval_ms=10**9)
    script.start()
    script.enqueue(b"first")
    script.track(b"a", expires_ts=REDIS_START + 500)
    script.pass_time(499)
    assert settled(script) == []
    script.pass_time(1)
    assert settled(script) == [("t2", End.EXPIRED, True)]


def test_the_clock_of_redis_may_go_back() -> None:
    """It decides; the own time of the deadline was only an estimate."""
    script = tracking(expires_in_ms=15_000)
    script.peer.redis_ms -= 100_000
    script.live(10_000)
    script.live(60_000)
    assert settled(script) == []
    script.live(60_000)
    assert settled(script) == [UNCONFIRMED]


def test_the_clock_of_redis_may_go_forward() -> None:
    """Seen with the next heartbeat."""
    script = tracking(expires_in_ms=15_000)
    script.peer.redis_ms += 100_000
    script.live(15_000)
    assert settled(script) == [UNCONFIRMED]


def test_no_deadline_no_end() -> None:
    script = tracking()
    script.live(3_600_000)
    assert settled(script) == []


def test_a_task_lost_and_over_is_looked_for_and_not_sent_again() -> None:
    """It was sent once, so a worker may have run it, and its word may be there."""
    script = tracking(expires_in_ms=5_000)
    script.lose()
    script.pass_time(6_000)
    script.peer.flush()
    while script.machine.command.state is not LinkState.CONNECTING:
        script.pass_time(1)
    script.connect()
    assert ARMED in script.flight()
    script.say("t1", result=b"42")
    script.answer_all()
    assert settled(script) == [("t1", End.COMPLETED, True)]
    assert script.in_stream() == []
    assert script.machine.admission.tasks == 0


def test_its_last_look_may_come_after_its_turn_to_be_sent_again() -> None:
    """It falls out of the local queue, and its handle waits for the look all the same."""
    script = tracking(expires_in_ms=5_000)
    script.lose()
    script.pass_time(6_000)
    script.peer.flush()
    while script.machine.command.state is not LinkState.CONNECTING:
        script.pass_time(1)
    script.connect()
    script.answer({PEEKED: Refused(error("LOADING"))})
    while PEEKED not in script.flight():
        assert settled(script) == []
        if script.flight():
            script.answer()
        else:
            script.pass_time(1)
    assert script.held() == []
    script.say("t1", result=b"42")
    script.answer()
    assert settled(script) == [("t1", End.COMPLETED, True)]
    assert script.in_stream() == []


def test_a_word_may_come_while_the_last_look_is_under_way() -> None:
    script = tracking(expires_in_ms=5_000)
    script.pass_time(5_000)
    script.say("t1")
    script.answer(lane=Lane.READ)
    assert settled(script) == [("t1", End.COMPLETED, True)]
    script.answer_all()
    script.live(100_000)
    assert settled(script) == [("t1", End.COMPLETED, True)]


def test_many_deadlines_at_once_need_one_look() -> None:
    script = ClientScript(collect_interval_ms=10**9)
    script.track(*[b"x"] * 50, expires_in_ms=5_000)
    script.start()
    script.pass_time(5_000)
    script.answer({PEEKED: Ok([None])})
    assert len(settled(script)) == 50
    assert script.flight() == {}
