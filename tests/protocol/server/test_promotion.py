"""Delayed tasks: when they are looked for, and how they are moved."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from streamfleet_protocol.effects import Disconnect, Faulted, Lane
from streamfleet_protocol.members import pack_member
from streamfleet_protocol.notes import OperationRefused, TaskDeadLettered
from streamfleet_protocol.replies import RawReply
from streamfleet_protocol.server.promotion import Delayed, scored
from streamfleet_protocol.timing import NEVER
from streamfleet_protocol.wire import decode_task
from tests.protocol.server.support import (
    ABORTED,
    ME,
    RENEW,
    Answer,
    But,
    Rig,
    commands_named,
    error,
    refusal,
    task,
    values,
)

EVERY = 2000


def member(task_id: str = "d1", **fields: Any) -> bytes:
    """A member of the delayed set."""
    return pack_member(task(task_id, **fields))


def delayed(rig: Rig, queue: int = 0) -> Delayed:
    """What the machine knows of a queue's delayed tasks."""
    return rig.machine.promotion.delayed[queue]


def opened(*due_in: int, **changes: Any) -> Rig:
    """A server with nothing else to do, and tasks that are due in so many ms."""
    rig = Rig(**{"concurrency": 10, "prefetch": 0, "block_ms": 10**9, **changes})
    rig.open()
    for at, ms in enumerate(due_in):
        rig.q.delayed[member(f"d{at}")] = rig.facts.redis_ms + ms
    return rig


def asked(*due_in: int, **changes: Any) -> Rig:
    """The guarded question is in flight."""
    rig = opened(*(due_in or (100,)), **changes)
    rig.until("promotion.on_answer")
    return rig


def moved_ids(rig: Rig) -> list[str]:
    """Ids of the tasks in the stream."""
    return [decode_task(fields).task_id for fields in rig.q.bodies.values()]


# --- Looking ----------------------------------------------------------------------------------------------


def test_the_earliest_is_looked_at_every_two_seconds() -> None:
    rig = opened()
    times = []
    for _ in range(4):
        rig.until("promotion.on_look")
        assert rig.section("promotion.on_look") == ((b"ZRANGE", rig.q.keys.delayed, 0, 0, b"WITHSCORES"),)
        times.append(rig.now)
        rig.answer_all()
    assert [after - before for before, after in itertools.pairwise(times)] == [EVERY] * 3


def test_what_is_due_earlier_is_moved_when_it_is_due() -> None:
    rig = opened()
    rig.until("promotion.on_look")
    rig.q.delayed[member()] = rig.facts.redis_ms + 700
    rig.answer_all()
    began = rig.now
    rig.until("promotion.on_moved")
    assert rig.now - began == 700


def test_what_is_due_later_keeps_nobody_from_looking() -> None:
    """Nobody is told when somebody adds one that is due earlier."""
    rig = opened(100_000)
    began = rig.now
    rig.pass_time(EVERY)
    rig.q.delayed[member("early")] = rig.facts.redis_ms + 10
    rig.until("promotion.on_moved")
    assert rig.now - began <= 2 * EVERY


def test_what_is_due_is_moved_at_once() -> None:
    rig = opened(-50_000)
    rig.pass_time(EVERY)
    assert moved_ids(rig) == ["d0"]
    assert rig.q.delayed == {}


@pytest.mark.parametrize("reply", [None, b"?", [], [b"one"], [b"one", 5], [None, b"5"]], ids=repr)
def test_a_look_of_garbage_shows_nothing(reply: RawReply) -> None:
    rig = opened()
    rig.until("promotion.on_look")
    rig.answer({"promotion.on_look": values(reply)})
    assert not delayed(rig).due
    assert delayed(rig).look_at == rig.now + EVERY
    assert scored(reply) == []


@pytest.mark.parametrize(
    ("score", "number"), [(b"15", 15), (b"1.7e3", 1700), (b"-5", -5), (b"inf", 0), (b"-inf", 0), (b"nan", 0), (b"x", 0)]
)
def test_scores_are_whole_ms_and_nonsense_is_due(score: bytes, number: int) -> None:
    assert scored([b"m", score]) == [(b"m", number)]


def test_a_look_without_an_answer_is_made_again() -> None:
    rig = opened(100)
    rig.until("promotion.on_look")
    rig.lose()
    rig.pass_time(EVERY + 100)
    assert moved_ids(rig) == ["d0"]


@pytest.mark.parametrize("part", ["promotion.on_look", "promotion.on_answer", "promotion.on_moved"])
@pytest.mark.parametrize("text", ["LOADING no", "OOM no", "MISCONF no", "ERR strange"])
def test_a_refusal_is_repeated_with_backoff(part: str, text: str) -> None:
    rig = opened(100)
    rig.until(part)
    refused = rig.now
    rig.answer({part: refusal(text)})
    assert "promoting delayed tasks" in [note.operation for note in rig.notes(OperationRefused)]
    backoff = delayed(rig).backoff
    assert refused < backoff.until <= refused + 50
    rig.until("promotion.on_moved", most_ms=EVERY + 200)
    rig.answer_all()
    assert moved_ids(rig) == ["d0"]
    assert backoff.attempts == 0


@pytest.mark.parametrize("part", ["promotion.on_look", "promotion.on_answer"])
def test_a_key_of_a_wrong_type_is_told_and_nothing_is_moved(part: str) -> None:
    rig = opened(100)
    rig.until(part)
    at = {"promotion.on_look": 0, "promotion.on_answer": 2}[part]
    wrong = {part: refusal("WRONGTYPE no", at)}
    rig.answer(wrong)
    asked_before = len(rig.facts.executed)
    rig.pass_time(60_000, wrong)
    assert rig.of(Faulted) == []
    assert "promoting delayed tasks of 'q'" in {note.operation for note in rig.notes(OperationRefused)}
    assert len(rig.q.delayed) == 1
    asked = commands_named(rig.facts.executed[asked_before:], b"WATCH")
    assert len(asked) <= 60 if part == "promotion.on_answer" else True
    rig.pass_time(10_000)
    assert moved_ids(rig) == ["d0"]


def test_without_permission_the_server_stops() -> None:
    rig = opened(100)
    rig.until("promotion.on_answer")
    rig.answer({"promotion.on_answer": refusal("NOPERM no")})
    assert len(rig.of(Faulted)) == 1


# --- Asking and moving ------------------------------------------------------------------------------------


def test_the_question() -> None:
    rig = asked()
    keys = rig.q.keys
    assert rig.section("promotion.on_answer") == (
        (b"WATCH", keys.promotions),
        (b"TIME",),
        (b"XLEN", keys.stream),
        (b"ZRANGE", keys.delayed, 0, 255, b"WITHSCORES"),
    )


def test_the_move() -> None:
    rig = asked(10, 20, 30, 50_000)
    rig.until("promotion.on_answer")
    rig.wait(100)
    rig.answer()
    keys = rig.q.keys
    section = rig.section("promotion.on_moved")
    assert rig.purposes()[0] == "promotion.on_moved"
    assert section[1] == (b"INCR", keys.promotions)
    assert section[2] == (b"ZREM", keys.delayed, member("d0"), member("d1"), member("d2"))
    assert [command[:3] for command in section[3:-1]] == [(b"XADD", keys.stream, b"*")] * 3
    assert section[3][3:] == task("d0")
    rig.answer_all()
    assert moved_ids(rig) == ["d0", "d1", "d2"]
    assert list(rig.q.delayed) == [member("d3")]


def test_due_is_what_redis_itself_says() -> None:
    """Its clock was set back since the last look: nothing is due, whatever was thought before."""
    rig = opened(100)
    rig.facts.redis_ms -= 60_000
    rig.until("promotion.on_answer")
    rig.answer()
    assert "promotion.on_moved" not in rig.purposes()
    assert len(rig.q.delayed) == 1
    rig.until("promotion.on_moved")
    assert rig.facts.redis_ms == rig.q.delayed[member("d0")]


def test_exactly_now_is_due() -> None:
    rig = asked(100)
    rig.q.delayed = {member("d0"): rig.facts.redis_ms}
    rig.answer()
    assert "promotion.on_moved" in rig.purposes()


@pytest.mark.parametrize("answer", [But({3: []}), But({3: None}), But({1: None}), But({1: [b"x", b"y"]})])
def test_a_question_that_shows_nothing_moves_nothing(answer: Answer) -> None:
    rig = asked()
    rig.answer({"promotion.on_answer": answer})
    assert "promotion.on_moved" not in rig.purposes()
    assert delayed(rig).look_at == rig.now + EVERY
    rig.pass_time(EVERY)
    assert moved_ids(rig) == ["d0"]


def test_a_question_without_an_answer_is_asked_again() -> None:
    rig = asked()
    rig.lose()
    rig.pass_time(EVERY + 100)
    assert moved_ids(rig) == ["d0"]


def test_a_move_without_an_answer_is_asked_again_and_made_once() -> None:
    rig = asked()
    rig.answer()
    rig.replies()  # carried out
    rig.lose()
    rig.pass_time(EVERY + 100)
    assert moved_ids(rig) == ["d0"]


def test_an_aborted_move_steps_aside_and_looks_again() -> None:
    rig = asked()
    rig.answer()
    aborted = rig.now
    rig.answer({"promotion.on_moved": ABORTED})
    assert "promotion.on_answer" not in rig.purposes()
    assert rig.notes(OperationRefused) == []
    rig.until("promotion.on_look")
    assert 1 <= rig.now - aborted <= 51
    rig.answer_all()
    assert moved_ids(rig) == ["d0"]


def test_workers_that_wake_together_step_aside_for_different_times() -> None:
    waits = set()
    for seed in range(8):
        rig = asked(seed=seed)
        rig.answer()
        rig.answer({"promotion.on_moved": ABORTED})
        waits.add(delayed(rig).backoff.until - rig.now)
    assert len(waits) > 3


def test_after_a_move_the_rest_is_looked_at_at_once() -> None:
    rig = opened(*[100] * 7, batch=3)
    rig.until("promotion.on_moved")
    began = rig.now
    rig.answer_all()
    assert len(rig.q.delayed) == 0
    assert rig.now == began


def test_a_move_is_bounded_in_bytes() -> None:
    rig = opened(batch_bytes=1000)
    for at in range(5):
        rig.q.delayed[member(f"d{at}", data=b"x" * 400)] = rig.facts.redis_ms
    moves = []
    while rig.q.delayed:
        rig.until("promotion.on_moved")
        moves.append(len(commands_named(rig.section("promotion.on_moved"), b"XADD")))
        rig.answer()
    assert moves == [1, 1, 1, 1, 1]
    assert len(rig.q.bodies) == 5


def test_a_member_that_is_no_task_is_put_away_and_the_others_are_moved() -> None:
    rig = opened()
    rig.q.delayed = {member("d1"): rig.facts.redis_ms, b"7:damage": rig.facts.redis_ms, member("d2"): 0}
    rig.pass_time(EVERY)
    assert sorted(moved_ids(rig)) == ["d1", "d2"]
    (letter,) = rig.q.dead.values()
    assert letter[:2] == (b"member", b"7:damage")
    assert letter[letter.index(b"dead_consumer") + 1] == ME
    (note,) = rig.notes(TaskDeadLettered)
    assert "not a task" in note.reason
    assert rig.q.delayed == {}


def test_a_member_with_a_task_that_cannot_be_decoded_is_left_to_its_reader() -> None:
    rig = opened()
    rig.q.delayed = {b"1:x,1:0,11:enc_version,1:2,2:id,1:x,": rig.facts.redis_ms}
    rig.pass_time(EVERY)
    assert list(rig.q.bodies.values()) == [(b"enc_version", b"2", b"id", b"x")]


def test_an_error_inside_the_move_is_told_and_looked_at_again() -> None:
    rig = asked()
    rig.answer()
    rig.answer({"promotion.on_moved": But({2: error("ERR strange")})})
    assert "promoting delayed tasks" in [note.operation for note in rig.notes(OperationRefused)]
    assert delayed(rig).backoff.until > rig.now


def test_what_could_not_be_moved_goes_back() -> None:
    """The stream changed its type within one round trip: the member is taken out, and is in no stream."""
    rig = asked()
    rig.answer()
    (gone,) = rig.q.delayed
    rig.answer({"promotion.on_moved": But({2: error("WRONGTYPE no")})})
    rig.answer_all()
    assert [command[3] for command in rig.facts.executed if command[0] == b"ZADD"] == [gone]


def test_queues_have_their_turns() -> None:
    rig = Rig("a", "b", "c", concurrency=10, prefetch=0, block_ms=10**9)
    rig.open()
    for queue in range(3):
        rig.queue(queue).delayed[member(f"d{queue}")] = rig.facts.redis_ms
    rig.pass_time(EVERY)
    assert [len(rig.queue(queue).bodies) for queue in range(3)] == [1, 1, 1]


def test_the_clock_is_learned_from_the_question() -> None:
    rig = asked()
    rig.facts.redis_ms += 500
    rig.answer(after_ms=30)
    assert rig.machine.shared.clock.read(rig.now) == rig.facts.redis_ms - 30


def test_without_a_clock_nothing_is_due() -> None:
    rig = opened(-100)
    rig.machine.shared.clock.offset_ms = None
    assert rig.machine.shared.clock.own(5) == NEVER
    rig.until("promotion.on_look")
    rig.answer()
    assert not delayed(rig).due
    rig.pass_time(RENEW + EVERY)
    assert moved_ids(rig) == ["d0"]


def test_a_group_that_is_gone_waits_for_it() -> None:
    rig = opened(100)
    rig.machine.setup.group_lost(0, "gone")
    rig.machine.setup.states[0].backoff.until = rig.now + 5000
    rig.pass_time(4999)
    assert len(rig.q.delayed) == 1
    rig.pass_time(EVERY)
    assert rig.q.delayed == {}


def test_a_replica_is_left() -> None:
    rig = asked()
    rig.answer()
    rig.answer({"promotion.on_moved": refusal("READONLY no")})
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.COMMAND]
    rig.pass_time(EVERY + 100)
    assert moved_ids(rig) == ["d0"]


def test_a_move_that_could_not_be_written_is_looked_at_again() -> None:
    """Another answer of the question's batch has shown that the connection is of no use."""
    rig = opened(-5)
    rig.bring(task("t1"))
    rig.until("leases.on_look")
    delayed(rig).due = True
    rig.succeed("t1")
    rig.answer()
    assert {"settlement.on_plain", "promotion.on_answer"} <= set(rig.purposes())
    rig.answer({"settlement.on_plain": refusal("READONLY no")})
    assert not rig.in_flight()
    rig.pass_time(EVERY)
    assert moved_ids(rig) == ["d0"]
