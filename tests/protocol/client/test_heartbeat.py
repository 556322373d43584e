"""The heartbeat: a sign of life, and a look at the sequence, which it never writes."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.commands import ONE_DAY_MS
from streamfleet_protocol.effects import Batch, Confirmed, Disconnect, FaultCleared, Faulted
from streamfleet_protocol.notes import DataLossSeen, OperationRefused
from streamfleet_protocol.replies import Aborted, Refused

from ..support import PRODUCERS, RECEIVER, RECEIVERS, REDIS_START, WATCHED, But, ClientScript, error, notes, of

BEAT, SIGNS, ARMED = "heartbeat.on_beat", "heartbeat.on_signs", "outbox.on_armed"


def beating(**changes: Any) -> ClientScript:
    """A client with one confirmed task, and its second heartbeat in flight."""
    script = ClientScript(collect_interval_ms=10**9, **changes)
    script.enqueue(b"a")
    script.start()
    script.live_to(BEAT)
    return script


def test_its_commands() -> None:
    script = beating()
    (batch,) = of(script.effects[-1:], Batch)
    time = REDIS_START + 10_000
    assert batch.commands == (
        (b"MULTI",),
        (b"HGET", PRODUCERS, b"me"),
        (b"HSET", PRODUCERS, b"me:t", time),
        (b"PEXPIRE", WATCHED, ONE_DAY_MS),
        (b"EXEC",),
        (b"WATCH", WATCHED),
        (b"EXISTS", WATCHED),
        (b"HGET", PRODUCERS, b"me"),
        (b"ZADD", RECEIVERS, time, b"me"),
        (b"TIME",),
    )


def test_the_receiver_stream_is_made_after_the_client_is_listed() -> None:
    """Finding 23: a crash in between must not leave a stream that nobody finds."""
    script = ClientScript()
    script.track(b"a")
    script.connect()
    script.answer()
    (batch,) = of(script.effects[-1:], Batch)
    names = [command[:2] for command in batch.commands]
    assert names.index((b"ZADD", RECEIVERS)) < names.index((b"XGROUP", b"CREATE"))
    assert batch.commands[-1] == (b"XGROUP", b"CREATE", RECEIVER, b"streamfleet-client", b"0", b"MKSTREAM")
    assert names.count((b"XGROUP", b"CREATE")) == 1


def test_it_never_writes_the_sequence() -> None:
    """Finding 22: a late one would turn it back."""
    script = ClientScript()
    script.track(b"a", b"b")
    script.start()
    script.live(100_000)
    for batch in of(script.effects, Batch):
        if BEAT in batch.purposes:
            assert not any(command[:3] == (b"HSET", PRODUCERS, b"me") for command in batch.commands)


def test_its_times() -> None:
    script = ClientScript(heartbeat_ms=2_000, collect_interval_ms=10**9)
    script.start()
    script.enqueue(b"a")
    script.live(20_000)
    beats = [batch for batch in of(script.effects, Batch) if BEAT in batch.purposes]
    assert len(beats) == 11
    assert script.peer.hashes[PRODUCERS] == {b"me": b"1", b"me:t": b"%d" % (REDIS_START + 20_000)}
    assert script.peer.sorted_sets[RECEIVERS] == {b"me": REDIS_START + 20_000}


def test_it_shows_life_in_every_queue() -> None:
    script = ClientScript(queues=("a", "b"))
    script.start()
    script.live(10_000)
    for queue in (b"a", b"b"):
        assert script.peer.sorted_sets[b"streamfleet:%b:receivers" % queue] == {b"me": REDIS_START + 10_000}
        assert b"me:t" in script.peer.hashes[b"{streamfleet:%b}:producers" % queue]


def test_a_batch_waits_for_the_beat_before_it() -> None:
    """One transaction a write: each EXEC ends the WATCH, and the batch's must have been armed one write before."""
    script = beating()
    script.enqueue(b"b")
    script.answer()
    assert script.waits_for("outbox.on_batch", "outbox.on_watched")


def test_a_sequence_below_is_a_loss() -> None:
    script = beating()
    script.peer.flush()
    effects = script.answer({BEAT: But({})})
    assert [(note.queue, note.repaired) for note in notes(effects, DataLossSeen)] == [("jobs", 1)]
    script.answer_all()
    assert script.in_stream() == ["t1"]


def test_a_watch_key_that_is_gone_is_set_before_anything_else() -> None:
    """An absent key guards nothing: FLUSHALL does not touch it."""
    script = beating()
    del script.peer.strings[WATCHED]
    script.enqueue(b"b")
    script.answer()
    assert script.waits_for(ARMED)
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]


def test_aborted_asks_for_the_sequence_and_beats_again() -> None:
    script = beating()
    script.peer.flush()
    script.answer({BEAT: Aborted()})
    assert script.waits_for(ARMED)
    effects = script.answer()
    assert notes(effects, DataLossSeen)
    assert BEAT in script.flight(), "the sign of life is still owed"
    script.answer_all()
    assert script.in_stream() == ["t1"]


def test_unknown_leads_to_the_next_connection() -> None:
    script = beating()
    script.reconnect()
    script.answer_all()
    assert script.in_stream() == ["t1"]
    assert notes(script.effects, DataLossSeen) == []


@pytest.mark.parametrize("purpose", [BEAT, SIGNS])
def test_a_passing_refusal_is_tried_again_with_back_off(purpose: str) -> None:
    script = beating()
    waits = []
    for _ in range(9):
        effects = script.answer({purpose: Refused(error("OOM"))})
        assert [note.reason for note in notes(effects, OperationRefused)] == ["OOM for a test"]
        began = script.now
        script.live_to(BEAT)
        waits.append(script.now - began)
    assert waits[0] <= 50
    assert 2_500 <= waits[-1] <= 5_000
    script.answer()
    began = script.now
    script.live_to(BEAT)
    assert script.now - began == 10_000
    script.answer({BEAT: Refused(error("OOM"))})
    began = script.now
    script.live_to(BEAT)
    assert script.now - began <= 50, "a success begins anew"


def test_an_element_that_is_refused_is_a_refusal() -> None:
    script = beating()
    effects = script.answer({BEAT: But({1: error("WRONGTYPE")})})
    assert of(effects, Faulted) == [Faulted(error("WRONGTYPE"))]
    assert notes(effects, DataLossSeen) == []


def test_two_refusals_that_point_elsewhere_cost_one_connection() -> None:
    script = beating()
    effects = script.answer({BEAT: Refused(error("READONLY")), SIGNS: Refused(error("READONLY"))})
    assert len(of(effects, Disconnect)) == 1
    script.live(100)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1"]


@pytest.mark.parametrize("purpose", [BEAT, SIGNS])
def test_a_fault_of_the_heartbeat_is_over_when_it_works(purpose: str) -> None:
    script = beating()
    for _ in range(12):
        effects = script.answer({purpose: Refused(error("NOPERM"))})
        script.live_to(BEAT)
    assert of(script.effects, Faulted) == [Faulted(error("NOPERM"))]
    assert FaultCleared() not in script.effects, "it does not flicker while it stands"
    effects = script.answer()
    assert of(effects, FaultCleared)


def test_what_it_learns_of_redis_time() -> None:
    script = beating()
    script.peer.redis_ms += 5_000
    script.answer()
    assert script.machine.shared.clock.read(script.now) == script.peer.redis_ms
    script.live_to(BEAT)
    known = script.machine.shared.clock.offset_ms
    script.answer({SIGNS: But({1: b"no time"})})
    assert script.machine.shared.clock.offset_ms == known


def test_its_word_about_the_sequence_confirms_nothing_twice() -> None:
    script = ClientScript()
    script.track(b"a")
    script.start()
    script.live(60_000)
    assert of(script.effects, Confirmed) == [Confirmed(("t1",))]
