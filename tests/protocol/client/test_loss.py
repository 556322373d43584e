"""What Redis loses goes out again: exactly that, in order, under new numbers; and how long it is kept for this."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from streamfleet_protocol.client.records import TASK_OVERHEAD_BYTES
from streamfleet_protocol.effects import Confirmed, Flushed, Lane
from streamfleet_protocol.notes import DataLossSeen, RetentionCut
from streamfleet_protocol.replies import RawReply

from ..support import PRODUCERS, But, ClientScript, Peer, notes, of, sent

BATCH, BEAT, ARMED = "outbox.on_batch", "heartbeat.on_beat", "outbox.on_armed"


def one_batch_each(count: int, *, tracked: bool = False, **changes: Any) -> tuple[ClientScript, list[Peer]]:
    """A client with confirmed tasks t1, t2 ..., a batch each, and the server as it was after each (the first: none)."""
    script = ClientScript(collect_interval_ms=10**9, **changes)
    script.start()
    states = [copy.deepcopy(script.peer)]
    for _ in range(count):
        script.enqueue(b"x", tracked=tracked)
        script.answer_all()
        states.append(copy.deepcopy(script.peer))
    return script, states


def roll_back(script: ClientScript, state: Peer) -> None:
    """The server has the data of an earlier time, and what was watched is touched."""
    now, session = script.peer.redis_ms, script.peer.session
    script.peer.__dict__.update(copy.deepcopy(state).__dict__)
    script.peer.redis_ms, script.peer.session = now, session
    session.dirty = True


@pytest.mark.parametrize("kept", range(5))
def test_after_a_reconnect_exactly_what_is_missing_goes_out_again(kept: int) -> None:
    script, states = one_batch_each(4)
    roll_back(script, states[kept])
    script.reconnect()
    if kept < 4:
        script.advance_to(BATCH)
        assert sent(script.flight()[BATCH]) == [f"t{at}" for at in range(kept + 1, 5)]
        assert script.machine.queues["jobs"].sequence == 5, "a new number"
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3", "t4"]
    assert [note.repaired for note in notes(script.effects, DataLossSeen)] == ([4 - kept] if kept < 4 else [])
    assert script.peer.hashes[PRODUCERS][b"me"] == (b"5" if kept < 4 else b"4")


@pytest.mark.parametrize("tracked", [True, False])
def test_a_flush_under_a_live_connection_is_seen_by_the_next_batch(tracked: bool) -> None:
    """Finding 2: no batch is applied on top of a gap, since the WATCH was there before the flush."""
    script, _ = one_batch_each(2, tracked=tracked)
    script.peer.flush()
    script.enqueue(b"x")
    script.answer()
    assert script.waits_for(ARMED)
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3"]


def test_a_flush_and_then_a_lost_reply() -> None:
    """Finding 2: the sequence alone would say that all is well."""
    script, _ = one_batch_each(1)
    script.peer.flush()
    script.enqueue(b"x")
    script.lose(applied=True)
    script.pass_time(100)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]


def test_a_rollback_after_a_rollback() -> None:
    """What went out again is kept again."""
    script, states = one_batch_each(3)
    for kept in (2, 1, 0, 0):
        roll_back(script, states[kept])
        script.reconnect()
        script.answer_all()
        assert script.in_stream() == ["t1", "t2", "t3"]


def test_a_rollback_to_a_time_before_the_last_repair_loses_nothing() -> None:
    """The old numbers are there again, and the tasks have newer ones: some run twice (G3 excuses it), none is lost."""
    script, states = one_batch_each(3)
    for kept in (0, 2):
        roll_back(script, states[kept])
        script.reconnect()
        script.answer_all()
    assert set(script.in_stream()) == {"t1", "t2", "t3"}


@pytest.mark.parametrize("tracked", [True, False])
def test_a_sequence_that_was_never_sent_proves_nothing(tracked: bool) -> None:
    """Flushed, then an older snapshot of somebody else's making: all that is held is missing."""
    script, _ = one_batch_each(2, tracked=tracked)
    script.peer.flush()
    script.peer.hashes[PRODUCERS] = {b"me": b"77"}
    script.reconnect()
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]


@pytest.mark.parametrize("reply", [None, 7, b"", b"x", b"-1", b"1.0", [b"2"], b"9" * 30], ids=repr)
def test_what_is_no_sequence_is_no_entry(reply: RawReply) -> None:
    script, _ = one_batch_each(2)
    script.live_to(BEAT)
    effects = script.answer({BEAT: But({0: reply})})
    assert [(note.what, note.repaired) for note in notes(effects, DataLossSeen)] == [("the producer's entry", 2)]


def test_the_order_of_acceptance_is_kept() -> None:
    """Lost ones, one in flight, and ones that wait: all in the order in which they were accepted."""
    script, states = one_batch_each(3)
    script.enqueue(b"x")
    script.enqueue(b"x")
    script.track(b"x")
    roll_back(script, states[1])
    script.reconnect()
    script.answer_all()
    assert script.in_stream() == [f"t{at}" for at in range(1, 7)]


def test_queues_lose_apart() -> None:
    script = ClientScript(queues=("a", "b"))
    script.start()
    for queue in ("a", "b"):
        script.enqueue(b"x", queue=queue)
        script.answer_all()
    script.peer._del(b"streamfleet:a", b"{streamfleet:a}:producers")
    script.reconnect()
    script.answer_all()
    assert script.in_stream(b"streamfleet:a") == ["t1"]
    assert script.in_stream(b"streamfleet:b") == ["t2"]
    assert [note.queue for note in notes(script.effects, DataLossSeen)] == ["a"]


def test_a_mixed_batch() -> None:
    """Tracked tasks are kept by their handles, the others by the retention; they go out again in one order."""
    script = ClientScript()
    script.start()
    script.track(b"a")
    script.answer_all()
    script.enqueue(b"b")
    script.track(b"c")
    script.enqueue(b"d")
    script.answer_all()
    script.peer.flush()
    script.reconnect()
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3", "t4"]
    confirmed = [effect.task_ids for effect in of(script.effects, Confirmed)]
    assert confirmed == [("t1",), ("t3",), ("t1", "t3")]


def test_what_settled_stays_settled() -> None:
    script, _ = one_batch_each(2, tracked=True)
    script.connect(Lane.READ)
    script.say("t1")
    script.answer(lane=Lane.READ)
    script.answer_all()
    script.peer.flush()
    script.reconnect()
    script.answer_all()
    assert script.in_stream() == ["t2"]


def test_the_count_of_confirmed_tasks_follows() -> None:
    script, _ = one_batch_each(3)
    assert script.machine.outbox.confirmed == 3
    script.peer.flush()
    script.live_to(BEAT)
    script.answer({BEAT: But({})})
    assert script.machine.outbox.confirmed == 0
    script.answer_all()
    assert script.machine.outbox.confirmed == 3


def test_a_flush_call_waits_for_the_repair() -> None:
    script, _ = one_batch_each(1)
    script.peer.flush()
    script.live_to(BEAT)
    script.answer({BEAT: But({})})
    call = script.calls + 1
    assert of(script.flush(), Flushed) == []
    assert Flushed(call) in script.answer_all()


def test_what_comes_back_may_pass_the_bounds_and_holds_up_new_tasks() -> None:
    """It was accepted before; nothing accepted is dropped."""
    script, _ = one_batch_each(4, max_local_queue=2)
    script.peer.flush()
    script.live_to(BEAT)
    script.answer({BEAT: But({})})
    assert script.machine.admission.tasks == 4
    script.enqueue(b"waits")
    assert len(script.machine.admission.calls) == 1
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3", "t4", "t5"]
    assert script.machine.admission.tasks == script.machine.admission.bytes == 0


def test_bytes_of_an_old_connection_are_executed_after_the_new_one_is_up() -> None:
    """Finding 1: sent again, and then the old batch arrives. Its WATCH has seen the new connection's SET."""
    script, _ = one_batch_each(1)
    script.enqueue(b"x")
    script.lose_late()
    script.pass_time(100)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]
    script.execute_late(0, 99)
    assert script.in_stream() == ["t1", "t2"]
    script.live(30_000)
    assert script.in_stream() == ["t1", "t2"]


def test_bytes_of_an_old_connection_are_executed_before_the_arming() -> None:
    """Then the sequence shows it, and nothing is sent again."""
    script, _ = one_batch_each(1)
    script.enqueue(b"x")
    script.lose_late()
    script.pass_time(100)
    script.connect()
    script.execute_late(0, 99)
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]
    assert notes(script.effects, DataLossSeen) == []


def test_a_flush_between_a_transaction_and_the_watch_after_it() -> None:
    """A server reads a large write in pieces, and serves others in between. The WATCH then stands on an absent key,
    which guards nothing; the EXISTS behind it shows that.
    """
    script, _ = one_batch_each(1)
    script.enqueue(b"x")
    script.peer.flush_before_watch = True
    script.answer()
    script.enqueue(b"x")
    script.live(30_000)
    assert script.in_stream() == ["t1", "t2", "t3"]


def test_a_rollback_between_a_transaction_and_the_watch_after_it() -> None:
    """The key is there, and the WATCH sees nothing any more; the sequence behind it does."""
    script, _ = one_batch_each(1)
    saved = {key: list(entries) for key, entries in script.peer.streams.items()}

    def roll_back() -> None:
        script.peer.streams = saved
        script.peer.hashes[PRODUCERS][b"me"] = b"1"

    script.enqueue(b"x")
    script.peer.before_watch = roll_back
    script.answer()
    script.enqueue(b"x")
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3"]


# Retention.


def kept(script: ClientScript) -> list[str]:
    """Ids of the confirmed tasks that are kept."""
    return [task.task_id for batch in script.machine.queues["jobs"].retained for task in batch.tasks]


def test_a_confirmed_task_is_kept_for_the_retention_time() -> None:
    """Until an Ok that comes that much later: of a batch, or of a heartbeat."""
    script, _ = one_batch_each(1, retention_ms=30_000, heartbeat_ms=10_000)
    script.live(29_999)
    assert kept(script) == ["t1"]
    script.live(1)
    assert kept(script) == []
    assert script.machine.outbox.retained_bytes == 0


def test_a_batch_ends_the_retention_too() -> None:
    script, _ = one_batch_each(1, retention_ms=30_000, heartbeat_ms=10_000)
    script.live(35_000)
    script.enqueue(b"x")
    script.answer_all()
    assert kept(script) == ["t2"]


def test_retention_does_not_run_while_blind() -> None:
    """Finding 21: confirmed, the primary dies a second later, failover takes 40 s: the payload is still there."""
    script, states = one_batch_each(1, retention_ms=30_000)
    script.live(1_000)
    script.lose()
    script.pass_time(60_000)
    roll_back(script, states[0])
    while not script.flight():
        if script.machine.command.state.value == "connecting":
            script.connect()
        else:
            script.pass_time(100)
    script.answer_all()
    assert script.in_stream() == ["t1"]


def test_a_task_that_nobody_tracks_is_lost_after_its_retention() -> None:
    """And the note says that nothing could be repaired."""
    script, _ = one_batch_each(1)
    script.live(60_000)
    script.peer.flush()
    script.live(10_000)
    assert script.in_stream() == []
    assert [note.repaired for note in notes(script.effects, DataLossSeen)] == [0]


def test_a_tracked_task_is_sent_again_after_any_time() -> None:
    script, _ = one_batch_each(1, tracked=True)
    script.live(3600 * 1000)
    script.peer.flush()
    script.live(10_000)
    assert script.in_stream() == ["t1"]


def test_without_retention_nothing_is_kept() -> None:
    script, _ = one_batch_each(2, retention_ms=0)
    assert kept(script) == []
    assert script.machine.outbox.retained_bytes == 0


def test_what_is_kept_is_bounded_in_bytes() -> None:
    """The oldest go first; it is told once, and again when the bound was kept with ease in between."""
    size = 100 + TASK_OVERHEAD_BYTES
    script = ClientScript(retention_bytes=3 * size)
    script.start()
    for at in range(6):
        script.enqueue(b"x" * 100)
        script.answer_all()
        assert script.machine.outbox.retained_bytes == min(at + 1, 3) * size
        script.live(1_000)
    assert kept(script) == ["t4", "t5", "t6"]
    assert notes(script.effects, RetentionCut) == [RetentionCut("jobs", 3_000)]
    script.live(60_000)
    for _ in range(4):
        script.enqueue(b"x" * 100)
        script.answer_all()
    assert len(notes(script.effects, RetentionCut)) == 2


def test_the_bound_is_shared_by_all_queues() -> None:
    size = 100 + TASK_OVERHEAD_BYTES
    script = ClientScript(queues=("a", "b"), retention_bytes=2 * size)
    script.start()
    for queue in ("b", "a", "a"):
        script.enqueue(b"x" * 100, queue=queue)
        script.answer_all()
        script.live(1_000)
    queues = script.machine.queues
    assert len(queues["a"].retained) == 2
    assert len(queues["b"].retained) == 0
    assert notes(script.effects, RetentionCut) == [RetentionCut("b", 2_000)]


def test_a_batch_larger_than_the_bound_is_not_kept() -> None:
    script = ClientScript(retention_bytes=100)
    script.start()
    script.enqueue(b"x" * 200)
    script.answer_all()
    assert kept(script) == []
    assert script.machine.outbox.retained_bytes == 0


def test_bytes_are_counted_right_through_losses() -> None:
    script, states = one_batch_each(5)
    for at in (3, 1, 4, 0):
        roll_back(script, states[at])
        script.reconnect()
        script.answer_all()
        expected = sum(batch.size for batch in script.machine.queues["jobs"].retained)
        assert script.machine.outbox.retained_bytes == expected > 0
    script.live(60_000)
    assert script.machine.outbox.retained_bytes == 0
