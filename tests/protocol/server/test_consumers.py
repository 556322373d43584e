"""Collection of consumers, and of what clients left, by a server."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.effects import Faulted
from streamfleet_protocol.notes import GarbageCollected, OperationRefused
from streamfleet_protocol.replies import RawReply
from tests.protocol.server.support import (
    ABORTED,
    ME,
    OTHER,
    Answer,
    But,
    Rig,
    commands_named,
    error,
    refusal,
    task,
)

DAY = 24 * 3600 * 1000
EVERY = 600_000


def idle(*queues: str, **changes: Any) -> Rig:
    """A server with long intervals, so that days pass in few steps."""
    rig = Rig(
        *queues,
        **{
            "block_ms": 10**10,
            "renew_interval_ms": DAY // 8,
            "lease_ms": DAY // 2,
            "promote_interval_ms": DAY // 8,
            "sweep_interval_ms": 100 * DAY,
            "collect_interval_ms": EVERY,
            **changes,
        },
    )
    rig.open()
    return rig


def collected(rig: Rig, kind: str = "consumer") -> list[str]:
    """Names of what was collected."""
    return [note.name for note in rig.notes(GarbageCollected) if note.kind == kind]


# --- Consumers --------------------------------------------------------------------------------------------


def shown(rig: Rig, name: bytes = OTHER, pending: int = 0, idle_ms: int = 0, queue: int = 0) -> None:
    """XINFO CONSUMERS tells this of a consumer."""
    rig.queue(queue).consumers[name] = (pending, rig.facts.redis_ms - idle_ms)


def test_a_consumer_that_was_silent_for_a_day_of_my_own_time_is_deleted() -> None:
    rig = idle()
    shown(rig)
    began = rig.now
    rig.until("consumers.on_collected", most_ms=2 * DAY)
    assert DAY <= rig.now - began <= DAY + 2 * EVERY
    stream = rig.q.keys.stream
    assert rig.section("consumers.on_collected") == (
        (b"MULTI",),
        (b"XPENDING", stream, b"streamfleet-server", b"-", b"+", 1, OTHER),
        (b"XGROUP", b"DELCONSUMER", stream, b"streamfleet-server", OTHER),
        (b"EXEC",),
    )
    rig.answer_all()
    assert collected(rig) == ["node2:bbbb"]


def test_idle_times_are_not_believed() -> None:
    """A jump of Redis's clock makes everybody idle for a year."""
    rig = idle()
    shown(rig, idle_ms=365 * DAY)
    rig.pass_time(DAY // 2)
    rig.facts.redis_ms += 365 * DAY
    rig.pass_time(DAY // 4)
    assert collected(rig) == []


@pytest.mark.parametrize("name", [ME, OTHER])
def test_what_is_left_alone(name: bytes) -> None:
    rig = idle()
    shown(rig, name, pending=0 if name == ME else 1)
    rig.pass_time(3 * DAY)
    assert collected(rig) == []
    assert not commands_named(rig.facts.executed, b"XGROUP")[1:]


def test_a_sign_of_life_begins_anew() -> None:
    rig = idle()
    shown(rig)
    for _ in range(5):
        rig.pass_time(DAY - 3 * EVERY)
        shown(rig)
    assert collected(rig) == []


def test_a_difference_of_a_second_is_none() -> None:
    """TIME and the idle time are read one after the other."""
    rig = idle()
    for at in range(200):
        shown(rig, idle_ms=at * EVERY + (at % 2) * 1000)
        rig.pass_time(EVERY)
    assert collected(rig) != []


def test_an_outage_of_mine_begins_anew() -> None:
    rig = idle()
    shown(rig)
    rig.pass_time(DAY - 3 * EVERY)
    rig.lose()
    rig.pass_time(DAY - 3 * EVERY)
    assert collected(rig) == []
    rig.pass_time(6 * EVERY)
    assert collected(rig) == ["node2:bbbb"]


def test_queues_take_turns() -> None:
    rig = idle("a", "b")
    shown(rig, b"dead-a", queue=0)
    shown(rig, b"dead-b", queue=1)
    rig.pass_time(DAY + 5 * EVERY)
    assert sorted(collected(rig)) == ["dead-a", "dead-b"]


@pytest.mark.parametrize(
    "answer", [ABORTED, refusal("OOM no"), But({1: error("NOGROUP no")}), But({1: None})], ids=["nil", "oom", "el", "?"]
)
def test_a_deletion_that_did_not_happen_is_made_later(answer: Answer) -> None:
    rig = idle()
    shown(rig)
    rig.until("consumers.on_collected", most_ms=2 * DAY)
    rig.answer({"consumers.on_collected": answer})
    assert collected(rig) == []
    rig.pass_time(DAY + 2 * EVERY)
    assert collected(rig) == ["node2:bbbb"]


def test_a_deletion_without_an_answer_is_made_later() -> None:
    rig = idle()
    shown(rig)
    rig.until("consumers.on_collected", most_ms=2 * DAY)
    rig.lose()
    rig.pass_time(DAY + 3 * EVERY)
    assert collected(rig) == ["node2:bbbb"]


@pytest.mark.parametrize(
    "answer",
    [
        But({0: None}),
        But({0: [b"x", b"y"]}),
        But({0: []}),
        But({1: None}),
        But({1: [None, b"?", [b"name"], [b"name", b"x", b"pending", b"0", b"idle", b"0"]]}),
    ],
)
def test_a_look_of_garbage_shows_nobody(answer: Answer) -> None:
    rig = idle()
    shown(rig)
    rig.until("consumers.on_look")
    rig.answer({"consumers.on_look": answer})
    assert rig.machine.consumers.shown == [{}]


def test_a_refused_look_is_told_and_made_again() -> None:
    rig = idle()
    shown(rig)
    rig.until("consumers.on_look")
    rig.answer({"consumers.on_look": refusal("LOADING no")})
    assert [note.operation for note in rig.notes(OperationRefused)] == ["looking at consumers"]
    rig.pass_time(DAY + 3 * EVERY)
    assert collected(rig) == ["node2:bbbb"]


def test_a_look_without_permission_stops_the_server() -> None:
    rig = idle()
    rig.until("consumers.on_look")
    rig.answer({"consumers.on_look": refusal("NOPERM no")})
    assert len(rig.of(Faulted)) == 1


def test_a_closing_server_collects_nobody() -> None:
    rig = idle(concurrency=1)
    rig.bring(task("t1"))
    shown(rig)
    rig.close(10 * DAY)
    rig.pass_time(3 * DAY)
    assert collected(rig) == []


# --- Clients ----------------------------------------------------------------------------------------------


def test_a_client_that_is_silent_is_collected_and_its_producer_a_day_later() -> None:
    rig = idle()
    rig.q.receivers = {b"gone": b"1000", b"here": b"1000"}
    rig.q.producers = {b"gone": b"7", b"gone:t": b"1000", b"here": b"3", b"here:t": b"1000"}
    began = rig.now
    while rig.now < began + DAY + 4 * EVERY:
        rig.pass_time(EVERY // 2)
        rig.q.receivers[b"here"] = rig.q.producers[b"here:t"] = b"%d" % rig.now
        if rig.now - began < EVERY:
            assert collected(rig, "client") == []
    assert collected(rig, "client") == ["gone"]
    assert collected(rig, "producer") == ["gone"]
    assert list(rig.q.receivers) == [b"here"]
    assert sorted(rig.q.producers) == [b"here", b"here:t"]
    deleted = [command[1] for command in commands_named(rig.facts.executed, b"DEL")]
    assert b"streamfleet:receiver:gone" in deleted
    assert b"{streamfleet:q}:conn:gone" in deleted
    assert b"streamfleet:receiver:here" not in deleted


def test_a_client_that_speaks_at_the_last_moment_is_left_alone() -> None:
    rig = idle()
    rig.q.receivers = {b"slow": b"1000"}
    rig.until("garbage.on_score", most_ms=DAY)
    rig.q.receivers[b"slow"] = b"2000"
    rig.answer_all()
    assert list(rig.q.receivers) == [b"slow"]
    assert collected(rig, "client") == []


def test_a_removal_of_a_client_is_guarded_by_its_question() -> None:
    rig = idle()
    rig.q.receivers = {b"gone": b"1000"}
    rig.until("garbage.on_removed", most_ms=DAY)
    rig.answer({"garbage.on_removed": ABORTED})
    assert list(rig.q.receivers) == [b"gone"]
    assert collected(rig, "client") == []
    rig.pass_time(5 * EVERY)
    assert rig.q.receivers == {}


def test_an_outage_of_mine_gives_clients_their_time_back() -> None:
    rig = idle(silence_ms=10 * EVERY)
    rig.q.receivers = {b"slow": b"1000"}
    rig.pass_time(9 * EVERY)
    rig.lose()
    rig.pass_time(9 * EVERY)
    assert list(rig.q.receivers) == [b"slow"]
    rig.pass_time(4 * EVERY)
    assert rig.q.receivers == {}


@pytest.mark.parametrize("reply", [None, 5, b"?", [b"\xff", b"1"]], ids=repr)
def test_a_client_without_a_name_is_left_alone(reply: RawReply) -> None:
    rig = idle()
    rig.pass_time(10 * EVERY, {"garbage.on_look": But({0: reply, 1: reply})})
    assert collected(rig, "client") == []
    rig.pass_time(1)
