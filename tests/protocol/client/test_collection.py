"""Collection of dead clients: suspected by the own clock, confirmed under a WATCH; nobody alive is ever collected."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.commands import EXEC, MULTI
from streamfleet_protocol.effects import Batch, FaultCleared, Faulted, Lane
from streamfleet_protocol.notes import DataLossSeen, GarbageCollected
from streamfleet_protocol.replies import Aborted, Ok, RawReply, Refused

from ..support import PRODUCERS, RECEIVER, RECEIVERS, STREAM, But, ClientScript, error, notes, of

LOOK, DELETED, SCORE, REMOVED = (f"garbage.on_{name}" for name in ("look", "deleted", "score", "removed"))
PRODUCER, ARMED = "garbage.on_producer_removed", "outbox.on_armed"
DEAD = b"streamfleet:receiver:dead"


def looking(*others: bytes, **changes: Any) -> ClientScript:
    """A client that looks every 10 s and suspects after 60 s, among others that were listed once."""
    script = ClientScript(**{"collect_interval_ms": 10_000, "silence_ms": 60_000, **changes})
    script.enqueue(b"a")
    for client in others:
        script.peer.sorted_sets.setdefault(RECEIVERS, {})[client] = 5
        script.peer.groups.add((b"streamfleet:receiver:" + client, b"streamfleet-client"))
        script.peer.streams[b"streamfleet:receiver:" + client] = []
    script.start()
    return script


def collected(script: ClientScript) -> list[tuple[str, str]]:
    """What was collected so far."""
    return [(note.kind, note.name) for note in notes(script.effects, GarbageCollected)]


def test_the_form_of_a_look() -> None:
    script = looking()
    script.live_to(LOOK)
    assert script.flight()[LOOK] == ((b"ZRANGE", RECEIVERS, 0, 199, b"WITHSCORES"), (b"HGETALL", PRODUCERS))


def test_queues_are_looked_at_in_turn() -> None:
    script = ClientScript(queues=("a", "b"), collect_interval_ms=20_000)
    script.start()
    script.live(60_000)
    looks = [
        batch.commands[batch.purposes.index(LOOK)][1] for batch in of(script.effects, Batch) if LOOK in batch.purposes
    ]
    assert looks[:4] == [b"streamfleet:%b:receivers" % queue for queue in (b"a", b"b", b"a", b"b")]


def test_the_whole_way() -> None:
    """First the stream, then the place in the set: a crash in between leaves it listed for the next collector."""
    script = looking(b"dead")
    begun = script.now
    script.live_to(SCORE)
    assert script.now - begun >= 60_000
    commands = of(script.effects, Batch)[-1].commands
    assert commands[0] == (b"DEL", DEAD)
    assert commands[-2:] == ((b"WATCH", RECEIVERS), (b"ZSCORE", RECEIVERS, b"dead"))
    script.answer()
    commands = of(script.effects, Batch)[-1].commands
    assert commands[:3] == (MULTI, (b"ZREM", RECEIVERS, b"dead"), EXEC), "the first EXEC of the very next write"
    assert commands[3][0] == b"WATCH"
    assert collected(script) == []
    script.answer()
    assert collected(script) == [("client", "dead")]
    assert set(script.peer.sorted_sets[RECEIVERS]) == {b"me"}
    assert DEAD not in script.peer.streams
    script.live(200_000)
    assert collected(script) == [("client", "dead")]


def test_several_are_collected_one_after_the_other() -> None:
    script = looking(b"dead", b"gone", b"lost")
    script.live(90_000)
    assert collected(script) == [("client", "dead"), ("client", "gone"), ("client", "lost")]
    assert set(script.peer.sorted_sets[RECEIVERS]) == {b"me"}


def test_nobody_collects_himself() -> None:
    script = looking(heartbeat_ms=10**9, retention_ms=0)
    script.live(500_000)
    assert collected(script) == []


def test_strange_members_are_left_alone() -> None:
    script = looking(b"\xff\xfe")
    script.live(200_000)
    assert collected(script) == []


@pytest.mark.parametrize("sign", ["score", "time"])
def test_any_sign_of_life_counts(sign: str) -> None:
    """The score of one queue, or the time field; by value: clocks of other machines are not compared."""
    script = looking(b"other")
    for at in range(40):
        if sign == "score":
            script.peer._zadd(RECEIVERS, 100 - at, b"other")
        else:
            script.peer._hset(PRODUCERS, b"other:t", at)
        script.live(10_000)
    assert collected(script) == []
    script.live(80_000)
    assert collected(script) == [("client", "other")]


def test_who_speaks_before_the_question_is_alive() -> None:
    script = looking(b"other")
    script.live_to(SCORE)
    script.peer._zadd(RECEIVERS, 77, b"other")
    script.answer()
    assert REMOVED not in script.flight()
    script.live(40_000)
    assert collected(script) == []
    script.live(60_000)
    assert collected(script) == [("client", "other")], "and is suspected anew from then on"


def test_who_speaks_after_the_question_is_alive() -> None:
    """The WATCH sees it, and the EXEC applies nothing."""
    script = looking(b"other")
    script.live_to(REMOVED)
    script.peer._zadd(RECEIVERS, 77, b"other")
    script.answer()
    assert collected(script) == []
    assert b"other" in script.peer.sorted_sets[RECEIVERS]


def test_who_is_gone_before_the_question_needs_no_collection() -> None:
    script = looking(b"other")
    script.live_to(SCORE)
    script.peer._zrem(RECEIVERS, b"other")
    script.live(100_000)
    assert collected(script) == []


def test_an_aborted_removal_may_have_been_a_flush() -> None:
    """Its EXEC ends the WATCH that guards the tasks, too: what that one saw must not be forgotten (finding 2)."""
    script = looking(b"dead")
    script.live_to(REMOVED)
    script.peer.flush()
    script.answer()
    assert ARMED in script.flight()
    script.answer_all()
    assert [note.repaired for note in notes(script.effects, DataLossSeen)] == [0]


def test_an_aborted_removal_does_not_hide_the_loss_of_a_task() -> None:
    script = looking(b"dead", retention_ms=200_000)
    script.live_to(REMOVED)
    script.enqueue(b"b")
    script.peer.flush()
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]


@pytest.mark.parametrize("lane_time", [0, 59_000])
def test_an_outage_of_mine_proves_nothing_about_others(lane_time: int) -> None:
    script = looking(b"other")
    script.live(lane_time)
    script.reconnect()
    script.answer_all()
    begun = script.now
    while not collected(script):
        script.live(1_000)
    assert script.now - begun >= 60_000


@pytest.mark.parametrize("purpose", ["heartbeat.on_beat", "heartbeat.on_signs", "outbox.on_batch"])
def test_while_my_own_writes_are_refused_nobody_is_suspected(purpose: str) -> None:
    """Those of others are refused as well (a full server), while my looks pass: everybody seems silent."""
    script = looking(b"other")
    for _ in range(60):
        script.enqueue(b"x")
        script.pass_time(2_500)
        while script.flight():
            refused = {purpose: Refused(error("OOM"))} if purpose in script.flight() else {}
            script.answer(refused)
    assert collected(script) == []
    assert b"streamfleet:receiver:other" in script.peer.streams


def test_a_refused_look_starts_all_over() -> None:
    script = looking(b"other")
    script.live(50_000)
    script.live_to(LOOK)
    script.answer({LOOK: Refused(error("BUSY"))})
    begun = script.now
    while not collected(script):
        script.live(1_000)
    assert script.now - begun >= 60_000


@pytest.mark.parametrize("purpose", [DELETED, SCORE, REMOVED])
@pytest.mark.parametrize("code", ["OOM", "NOPERM"])
def test_a_refused_collection_is_tried_again_later(purpose: str, code: str) -> None:
    script = looking(b"dead")
    script.live_to(purpose)
    effects = script.answer({purpose: Refused(error(code))})
    assert bool(of(effects, Faulted)) is (code == "NOPERM")
    script.live(20_000)
    assert bool(of(script.effects, FaultCleared)) is (code == "NOPERM")
    script.live(100_000)
    assert ("client", "dead") in collected(script) or b"dead" not in script.peer.sorted_sets[RECEIVERS]


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("purpose", [LOOK, SCORE, REMOVED])
def test_an_unknown_outcome_is_asked_again(purpose: str, applied: bool) -> None:
    script = looking(b"dead")
    script.live_to(purpose)
    script.reconnect(applied=applied)
    script.answer_all()
    script.live(100_000)
    assert b"dead" not in script.peer.sorted_sets[RECEIVERS]
    assert DEAD not in script.peer.streams


def test_an_aborted_removal_is_tried_again_with_the_next_suspicion() -> None:
    script = looking(b"dead")
    script.live_to(REMOVED)
    script.answer({REMOVED: Aborted()})
    assert collected(script) == []
    script.live(100_000)
    assert collected(script) == [("client", "dead")]


def test_batches_go_on_between_question_and_removal() -> None:
    """Each EXEC is followed by the WATCH that guards the next batch."""
    script = looking(b"dead")
    script.live_to(SCORE)
    script.enqueue(b"b")
    script.enqueue(b"c")
    script.answer()
    assert script.waits_for(REMOVED, "outbox.on_watched")
    script.answer()
    assert script.waits_for("outbox.on_batch", "outbox.on_watched")
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3"]
    assert collected(script) == [("client", "dead")]


@pytest.mark.parametrize(
    "values", [[None, None], [7, 7], [[b"x"], [b"x"]], [[7, 8], [b"x", 7]], [[b"other", b"5"], None]], ids=repr
)
def test_strange_replies_collect_nobody(values: list[RawReply]) -> None:
    script = looking(b"other")
    for _ in range(20):
        script.live_to(LOOK)
        script.answer({LOOK: Ok(values)})
    assert set(collected(script)) <= {("client", "other")}


# Producers: after a day, for without its entry a frozen client would send again what it holds.

HOUR = 3_600_000


def waiting_a_day(**changes: Any) -> ClientScript:
    """A client that beats and looks once an hour, beside a producer that was never a receiver, and an old one."""
    script = ClientScript(collect_interval_ms=HOUR, heartbeat_ms=HOUR, retention_ms=0, **changes)
    script.enqueue(b"a")
    script.peer.hashes[PRODUCERS] = {b"old": b"5", b"old:t": b"1", b"halved:t": b"1", b"\xff": b"1"}
    script.peer.strings[b"{streamfleet:jobs}:conn:old"] = b"1"
    script.start()
    return script


def test_a_producer_is_collected_after_a_day() -> None:
    script = waiting_a_day()
    script.live(24 * HOUR - 1)
    assert collected(script) == []
    script.live(2 * HOUR)
    assert sorted(collected(script)) == [("producer", "halved"), ("producer", "old")]
    assert set(script.peer.hashes[PRODUCERS]) == {b"me", b"me:t", b"\xff"}
    assert b"{streamfleet:jobs}:conn:old" not in script.peer.strings


def test_a_producer_that_sends_is_alive() -> None:
    script = waiting_a_day()
    for at in range(50):
        script.peer._hset(PRODUCERS, b"old", at)
        script.live(HOUR)
    assert collected(script) == [("producer", "halved")]


def test_a_producer_that_only_shows_its_score_is_alive() -> None:
    script = waiting_a_day()
    for at in range(50):
        script.peer._zadd(RECEIVERS, at, b"old")
        script.live(HOUR)
    assert ("producer", "old") not in collected(script)


@pytest.mark.parametrize("code", ["OOM", "NOPERM"])
def test_a_refused_removal_of_a_producer_is_not_told_as_done(code: str) -> None:
    script = waiting_a_day()
    script.live_to(PRODUCER, most_ms=30 * HOUR)
    script.answer({PRODUCER: Refused(error(code))})
    assert collected(script) == []
    assert b"old" in script.peer.hashes[PRODUCERS]
    script.live(30 * HOUR)
    assert ("producer", "old") in collected(script)


@pytest.mark.parametrize("applied", [True, False])
def test_a_removal_of_a_producer_without_an_answer_is_made_again(applied: bool) -> None:
    script = waiting_a_day()
    script.live_to(PRODUCER, most_ms=30 * HOUR)
    script.reconnect(applied=applied)
    script.answer_all()
    assert collected(script) == []
    script.live(30 * HOUR)
    assert b"old" not in script.peer.hashes[PRODUCERS]


def test_a_removal_that_cannot_be_written_any_more_is_given_up() -> None:
    """Still as silent as before, but the connection that has the WATCH turns out to be of no use in the same moment."""
    script = looking(b"dead")
    script.track(b"b")
    script.answer_all()
    script.connect(Lane.READ)
    while True:
        script.live_to(LOOK)
        if script.machine.garbage.clients[0][b"dead"].since <= script.now - 60_000:
            break
        script.answer()
    script.say("nobody")
    script.answer(lane=Lane.READ)
    script.answer()
    assert script.waits_for("receiver.on_deleted", DELETED, SCORE)
    script.answer({"receiver.on_deleted": Refused(error("READONLY"))})
    script.pass_time(100)
    script.connect()
    script.answer_all()
    assert collected(script) == []
    assert b"dead" in script.peer.sorted_sets[RECEIVERS], "without its WATCH the EXEC must not be written"
    script.live(100_000)
    assert collected(script) == [("client", "dead")]


def test_the_tasks_are_untouched_by_all_this() -> None:
    script = looking(b"dead")
    script.live(300_000)
    assert script.in_stream() == ["t1"]
    assert STREAM in script.peer.streams
    assert RECEIVER not in script.peer.streams


def test_a_partly_refused_look_is_a_refused_look() -> None:
    script = looking(b"other")
    script.live_to(LOOK)
    script.answer({LOOK: But({1: error("WRONGTYPE")})})
    assert Faulted(error("WRONGTYPE")) in script.effects
