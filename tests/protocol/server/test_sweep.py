"""Orphans: delivered, and in nobody's list."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.effects import Disconnect, Faulted, Lane
from streamfleet_protocol.notes import OperationRefused, TaskAdopted
from streamfleet_protocol.replies import RawReply
from streamfleet_protocol.server.sweep import Head
from tests.protocol.server.support import (
    ABORTED,
    LEASE,
    ME,
    OTHER,
    Answer,
    But,
    Rig,
    Row,
    error,
    refusal,
    task,
)

EVERY = 300_000


def head(rig: Rig) -> Head:
    """What the sweeps have seen."""
    return rig.machine.sweep.heads[0]


def with_orphans(*ids: bytes, **changes: Any) -> Rig:
    """Entries that were delivered, and whose consumer was deleted."""
    rig = Rig(**{"concurrency": 20, "prefetch": 0, "block_ms": 10**9, **changes})
    rig.open()
    for entry_id in ids or (b"5-0",):
        rig.pend(entry_id)
        del rig.q.pending[entry_id]
    return rig


def swept(*ids: bytes, **changes: Any) -> Rig:
    """The adoption is in flight."""
    rig = with_orphans(*ids, **changes)
    rig.until("sweep.on_adopted")
    return rig


def test_the_sweep_is_one_consistent_view_of_the_head() -> None:
    rig = with_orphans()
    rig.until("sweep.on_head")
    stream = rig.q.keys.stream
    assert rig.section("sweep.on_head") == (
        (b"MULTI",),
        (b"XINFO", b"GROUPS", stream),
        (b"XRANGE", stream, b"-", b"+", b"COUNT", 16),
        (b"XPENDING", stream, b"streamfleet-server", b"-", b"+", 16),
        (b"EXEC",),
    )


def test_sweeps_are_rare_and_not_all_at_the_same_time() -> None:
    first = []
    for seed in range(6):
        rig = Rig(seed=seed, block_ms=10**9)
        began = rig.now
        rig.open()
        rig.until("sweep.on_head")
        first.append(rig.now - began)
        rig.answer_all()
        swept_at = rig.now
        rig.until("sweep.on_head")
        assert rig.now - swept_at == EVERY
    assert all(EVERY // 2 <= wait <= EVERY for wait in first)
    assert len(set(first)) > 3


def test_what_two_sweeps_a_lease_apart_have_seen_is_adopted_and_run() -> None:
    rig = with_orphans(b"5-0")
    rig.until("sweep.on_head")
    seen = rig.now
    rig.answer_all()
    assert list(head(rig).suspects) == [b"5-0"]
    rig.until("sweep.on_adopted")
    assert rig.now - seen == LEASE
    assert rig.section("sweep.on_adopted") == (
        (b"XCLAIM", rig.q.keys.stream, b"streamfleet-server", ME, LEASE, b"5-0", b"FORCE"),
    )
    rig.answer_all()
    assert rig.started() == ["t5-0"]
    assert rig.runs["t5-0"].deliveries == 2
    assert [note.reason for note in rig.notes(TaskAdopted)] == ["delivered, and pending nowhere"]
    assert head(rig).suspects == {}


def test_what_was_settled_in_between_is_forgotten() -> None:
    """A library that acknowledges and deletes in two steps leaves such an entry for a moment."""
    rig = with_orphans()
    rig.until("sweep.on_head")
    rig.answer_all()
    del rig.q.bodies[b"5-0"]
    rig.pass_time(2 * EVERY)
    assert head(rig).suspects == {}
    assert not [command for command in rig.facts.executed if command[-1] == b"FORCE"]


def test_what_its_owner_has_taken_back_is_forgotten() -> None:
    rig = with_orphans()
    rig.until("sweep.on_head")
    rig.answer_all()
    rig.q.pending[b"5-0"] = Row(OTHER, rig.facts.redis_ms)
    rig.until("sweep.on_head")
    rig.answer_all()
    assert head(rig).suspects == {}


def test_what_was_not_delivered_yet_is_no_orphan() -> None:
    rig = with_orphans(b"5-0")
    rig.q.bodies[b"6-0"] = task("new")
    rig.q.last_delivered = b"5-0"
    rig.until("sweep.on_head")
    rig.answer_all()
    assert list(head(rig).suspects) == [b"5-0"]


def test_what_is_pending_is_no_orphan() -> None:
    rig = with_orphans(b"5-0")
    rig.pend(b"3-0")
    rig.pend(b"7-0")
    rig.until("sweep.on_head")
    rig.answer_all()
    assert list(head(rig).suspects) == [b"5-0"]


def test_beyond_a_full_page_of_pending_ids_nothing_is_known() -> None:
    rig = with_orphans(b"5-0", b"30-0", concurrency=1)
    rig.bring(task("busy"))  # no room to claim the others
    for at in range(10, 26):
        rig.pend(b"%d-0" % at)
    for at in (10, 11, 12, 24, 25):
        del rig.q.bodies[b"%d-0" % at]
    rig.until("sweep.on_head")
    rig.answer_all()
    # 30-0 is among the first 16 entries, and above the last of the 16 pending ids.
    assert len(rig.q.bodies) <= 16
    assert list(head(rig).suspects) == [b"5-0"]


def test_exactly_up_to_the_last_of_a_full_page_it_is_known() -> None:
    rig = with_orphans(b"24-5", concurrency=1)
    rig.bring(task("busy"))
    for at in range(10, 26):
        rig.pend(b"%d-0" % at)
        if at < 24:
            del rig.q.bodies[b"%d-0" % at]
    rig.until("sweep.on_head")
    rig.answer_all()
    assert list(head(rig).suspects) == [b"24-5"]


def test_somebody_was_faster() -> None:
    rig = swept()
    rig.q.pending[b"5-0"] = Row(OTHER, rig.facts.redis_ms)
    rig.answer_all()
    assert rig.q.pending[b"5-0"].owner == OTHER
    assert rig.started() == []
    assert rig.machine.tasks.reserved == 0


def test_no_answer_is_found_by_the_look() -> None:
    rig = swept()
    rig.replies()  # carried out
    rig.lose()
    assert rig.machine.tasks.reserved == 0
    rig.pass_time(1000)
    rig.answer(None, Lane.READ)
    rig.answer_all()
    assert rig.started() == ["t5-0"]


def test_no_answer_and_not_carried_out_is_swept_again() -> None:
    rig = swept()
    rig.lose()
    rig.pass_time(EVERY + 2 * LEASE)
    assert rig.started() == ["t5-0"]


def test_what_is_held_here_is_not_taken_twice() -> None:
    rig = Rig(concurrency=5, prefetch=0)
    rig.open()
    rig.bring(task("t1"))
    sweep = rig.machine.sweep
    sweep.heads[0].orphans.append(b"1001-0")
    rig.tick()
    assert rig.purposes() == ("sweep.on_adopted",)
    rig.q.pending.clear()
    rig.answer_all()
    assert rig.started() == ["t1"]
    assert rig.notes(TaskAdopted) == []


def test_no_more_is_adopted_than_there_is_room_for() -> None:
    rig = with_orphans(b"5-0", b"6-0", b"7-0", concurrency=2)
    rig.pass_time(EVERY + 2 * LEASE)
    assert rig.started() == ["t5-0", "t6-0"]
    assert head(rig).orphans == [b"7-0"]
    rig.succeed("t5-0")
    assert "sweep.on_adopted" in rig.purposes()
    rig.answer_all()
    assert rig.started() == ["t5-0", "t6-0", "t7-0"]
    assert rig.machine.tasks.reserved == 0


def test_adoptions_and_claims_together_keep_to_the_room() -> None:
    rig = Rig(concurrency=2, prefetch=0, block_ms=10**9)
    rig.pend(b"1-0", task("claimed"))
    rig.open()
    rig.until("reclaim.on_question")
    rig.pend(b"5-0", task("orphan"))
    del rig.q.pending[b"5-0"]
    rig.machine.sweep.heads[0].orphans.append(b"5-0")
    rig.answer()
    assert {"reclaim.on_claimed", "sweep.on_adopted"} <= set(rig.purposes())
    assert rig.machine.tasks.reserved == 2
    assert rig.machine.tasks.room == 0
    rig.answer()
    assert rig.machine.tasks.reserved == 0
    assert sorted(rig.started()) == ["claimed", "orphan"]


@pytest.mark.parametrize("part", ["sweep.on_head", "sweep.on_adopted"])
@pytest.mark.parametrize("text", ["LOADING no", "ERR strange"])
def test_a_refusal_is_told_and_swept_again(part: str, text: str) -> None:
    rig = with_orphans()
    rig.until(part)
    rig.answer({part: refusal(text)})
    assert len(rig.notes(OperationRefused)) == 1
    assert rig.machine.tasks.reserved == 0
    rig.pass_time(2 * EVERY + 2 * LEASE)
    assert rig.started() == ["t5-0"]


@pytest.mark.parametrize(
    "answer", [ABORTED, But({0: error("ERR no such key")}), But({2: error("NOGROUP no")})], ids=["nil", "key", "group"]
)
def test_a_head_that_is_not_seen_is_swept_again(answer: Answer) -> None:
    rig = with_orphans()
    rig.until("sweep.on_head")
    rig.answer({"sweep.on_head": answer})
    assert head(rig).suspects == {}
    rig.pass_time(2 * EVERY + 2 * LEASE)
    assert rig.started() == ["t5-0"]


@pytest.mark.parametrize("reply", [None, b"?", 5, [None], [[b"5-0"]]], ids=repr)
@pytest.mark.parametrize("at", [0, 1])
def test_garbage_shows_no_orphans(at: int, reply: RawReply) -> None:
    rig = with_orphans()
    rig.until("sweep.on_head")
    rig.answer({"sweep.on_head": But({at: reply})})
    assert head(rig).suspects == {}


@pytest.mark.parametrize("part", ["sweep.on_head", "sweep.on_adopted"])
def test_without_permission_the_server_stops(part: str) -> None:
    rig = with_orphans()
    rig.until(part)
    rig.answer({part: refusal("NOPERM no")})
    assert len(rig.of(Faulted)) == 1


def test_a_replica_is_left() -> None:
    rig = swept()
    rig.answer({"sweep.on_adopted": refusal("READONLY no")})
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.COMMAND]


def test_a_queue_without_its_group_is_not_swept() -> None:
    rig = Rig("a", "b", block_ms=10**9)
    rig.open()
    rig.machine.setup.states[1].grouped = False
    rig.machine.setup.states[1].backoff.until = 10**12
    rig.pass_time(2 * EVERY)
    swept_streams = {command[2] for command in rig.facts.executed if command[:2] == (b"XINFO", b"GROUPS")}
    assert swept_streams == {rig.queue(0).keys.stream}


def test_a_closing_server_sweeps_nothing() -> None:
    rig = with_orphans(concurrency=1)
    rig.bring(task("t1"))
    rig.close(10 * EVERY)
    rig.pass_time(5 * EVERY)
    assert not [command for command in rig.facts.executed if command[:2] == (b"XINFO", b"GROUPS")]
