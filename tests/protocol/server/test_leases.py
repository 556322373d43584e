"""Looks and renewals: what is mine, what was, and what nobody told me is."""

from __future__ import annotations

import itertools

import pytest

from streamfleet_protocol.commands import TEN_YEARS_MS
from streamfleet_protocol.effects import Disconnect, Faulted, Lane
from streamfleet_protocol.inputs import Reply
from streamfleet_protocol.notes import OperationRefused, TaskAdopted
from streamfleet_protocol.replies import RawReply
from streamfleet_protocol.server.leases import Look, pending_rows
from tests.protocol.server.support import (
    ABORTED,
    ME,
    OTHER,
    RENEW,
    But,
    Rig,
    commands_named,
    error,
    refusal,
    task,
    values,
)


def look(rig: Rig, queue: int = 0) -> Look:
    """A queue's looks."""
    return rig.machine.leases.looks[queue]


def at_look(rig: Rig) -> None:
    """Time passes until the next look is in flight."""
    rig.until("leases.on_look")


def renewed(rig: Rig) -> list[bytes]:
    """Ids that the renewal in flight renews."""
    (claim,) = [command for command in rig.section("leases.on_renewed") if command[0] == b"XCLAIM"]
    return [part for part in claim[5:-1] if isinstance(part, bytes)]


# --- Looks ------------------------------------------------------------------------------------------------


def test_a_look_is_a_probe_then_a_watched_listing_between_two_times() -> None:
    rig = Rig()
    rig.start()
    rig.connect()
    rig.answer()
    keys = rig.q.keys
    assert rig.section("leases.on_probe") == (
        (b"MULTI",),
        (b"XCLAIM", keys.stream, b"streamfleet-server", ME, 0, b"0-0", b"JUSTID"),
        (b"EXEC",),
    )
    assert rig.section("leases.on_look") == (
        (b"WATCH", keys.fence),
        (b"TIME",),
        (b"XPENDING", keys.stream, b"streamfleet-server", b"-", b"+", 500),
        (b"TIME",),
    )
    assert rig.purposes()[-1] == "leases.on_look"


def test_a_look_comes_every_interval_even_when_idle() -> None:
    rig = Rig()
    rig.open()
    times = []
    for _ in range(5):
        at_look(rig)
        times.append(rig.now)
        rig.answer_all()
    assert [after - before for before, after in itertools.pairwise(times)] == [RENEW] * 4


def test_every_queue_is_looked_at_one_after_the_other() -> None:
    rig = Rig("a", "b", "c")
    rig.start()
    rig.connect()
    rig.answer()
    looked = []
    while rig.in_flight():
        if "leases.on_look" in rig.purposes():
            looked.append(rig.section("leases.on_look")[0][1])
        rig.answer()
    assert looked == [rig.queue(at).keys.fence for at in range(3)]
    assert rig.machine.leases.any_ready()


def test_a_look_of_many_entries_goes_page_by_page() -> None:
    rig = Rig(page=2)
    for at in range(5):
        rig.pend(b"%d-0" % (at + 1))
    rig.start()
    rig.connect()
    rig.answer()
    after = []
    while "leases.on_look" in rig.purposes():
        assert not look(rig).looked
        after.append(rig.section("leases.on_look")[2][3])
        rig.answer()
    assert after == [b"-", b"(2-0", b"(4-0"]
    assert look(rig).looked


def test_a_last_page_that_is_just_full_is_followed_by_an_empty_one() -> None:
    rig = Rig(page=2)
    for at in range(4):
        rig.pend(b"%d-0" % (at + 1))
    rig.open()
    listings = [command for command in rig.facts.executed if command[0] == b"XPENDING"]
    assert [command[3] for command in listings] == [b"-", b"(2-0", b"(4-0"]


def test_a_look_refused_is_repeated_with_backoff_and_never_slower_than_half_an_interval() -> None:
    rig = Rig()
    rig.open()
    at_look(rig)
    gaps = []
    for _ in range(12):
        before = rig.now
        rig.answer({"leases.on_look": refusal("LOADING")})
        at_look(rig)
        gaps.append(rig.now - before)
    assert all(gap <= RENEW // 2 for gap in gaps)
    assert gaps[-1] >= RENEW // 4
    assert look(rig).looked  # the last one counts until a lease is over


@pytest.mark.parametrize("text", ["WRONGTYPE wrong", "NOPERM no XPENDING", "ERR unknown command 'XPENDING'"])
def test_a_look_refused_for_good_stops_the_server(text: str) -> None:
    rig = Rig()
    rig.open()
    at_look(rig)
    rig.answer({"leases.on_look": refusal(text)})
    assert [fault.error.text for fault in rig.of(Faulted)] == [text]


@pytest.mark.parametrize("part", ["leases.on_look", "leases.on_probe"])
def test_a_look_at_a_replica_drops_the_connection(part: str) -> None:
    rig = Rig()
    rig.open()
    at_look(rig)
    rig.answer({part: refusal("READONLY You can't write against a read only replica.")})
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.COMMAND]
    rig.pass_time(1000)
    assert look(rig).looked


def test_a_look_without_an_answer_is_made_on_the_next_connection() -> None:
    rig = Rig(concurrency=2)
    rig.open()
    at_look(rig)
    rig.lose()
    assert not look(rig).looked
    rig.reconnect()
    rig.answer()
    assert rig.purposes()[-1] == "leases.on_look"


def test_a_look_without_an_answer_is_given_up_by_the_own_clock() -> None:
    rig = Rig(command_timeout_ms=3000)
    rig.open()
    at_look(rig)
    rig.pass_time(3000, answering=False)
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.COMMAND]


@pytest.mark.parametrize("listing", [b"?", None, 7, [None], [[b"1-0", b"x"]], [[b"1-0", b"x", b"y", b"z"]]], ids=repr)
def test_a_listing_of_garbage_lists_nothing(listing: RawReply) -> None:
    rig = Rig()
    rig.open()
    at_look(rig)
    rig.answer({"leases.on_look": But({2: listing})})
    assert look(rig).looked
    assert pending_rows(listing) == []


def test_a_look_without_a_time_still_looks() -> None:
    rig = Rig()
    rig.open()
    rig.pend(b"1-0", owner=ME)
    at_look(rig)
    rig.answer({"leases.on_look": But({1: None, 3: b"?"})})
    rig.pass_time(RENEW)
    assert rig.started() == ["t1-0"]


# --- Renewals ---------------------------------------------------------------------------------------------


def test_what_is_listed_as_mine_is_renewed_by_the_next_write_first() -> None:
    rig = Rig(concurrency=3, prefetch=0)
    rig.open()
    rig.bring(task("t1"), task("t2"))
    rig.pend(b"5-0")
    at_look(rig)
    rig.succeed("t1")
    rig.answer()
    assert rig.purposes()[0] == "leases.on_renewed"
    assert renewed(rig) == [b"1001-0", b"1002-0"]
    assert rig.section("leases.on_renewed")[1][4] == 0
    rig.wait(1)
    rig.answer_all()
    assert rig.q.pending[b"1002-0"].delivered_at >= rig.facts.redis_ms - 1
    assert rig.q.pending[b"5-0"].owner == OTHER


def test_nothing_mine_nothing_renewed() -> None:
    rig = Rig()
    rig.open()
    rig.pend(b"5-0")
    at_look(rig)
    rig.answer()
    assert "leases.on_renewed" not in rig.purposes()


def test_a_renewal_waits_for_the_fence() -> None:
    rig = Rig()
    rig.q.fenced = False
    rig.pend(b"5-0", owner=ME)
    rig.start()
    rig.connect()
    rig.answer()
    while rig.in_flight():
        refused = {"setup.on_fence": refusal("OOM no")} if "setup.on_fence" in rig.purposes() else None
        rig.answer(refused)
        assert "leases.on_renewed" not in rig.purposes()
    assert look(rig).looked
    assert rig.machine.tasks.by_id == {}
    rig.pass_time(2 * RENEW)
    assert rig.started() == ["t5-0"]


def test_a_renewal_without_an_answer_is_made_by_the_look_of_the_next_connection() -> None:
    rig = Rig()
    rig.open()
    rig.bring(task("t1"))
    at_look(rig)
    rig.answer()
    assert renewed(rig) == [b"1001-0"]
    before = look(rig).renewed_at
    rig.lose()
    assert look(rig).renewed_at == before
    rig.reconnect()
    rig.until("leases.on_renewed")
    assert renewed(rig) == [b"1001-0"]


def test_an_aborted_renewal_is_followed_by_a_look_at_once() -> None:
    rig = Rig()
    rig.open()
    rig.bring(task("t1"))
    at_look(rig)
    rig.answer()
    rig.answer({"leases.on_renewed": ABORTED})
    assert rig.purposes()[-1] == "leases.on_look"
    rig.answer()
    assert renewed(rig) == [b"1001-0"]


def test_an_aborted_renewal_of_one_page_is_made_good_after_the_last() -> None:
    rig = Rig(page=2, concurrency=10, prefetch=0)
    rig.open()
    rig.bring(*[task(f"t{at}") for at in range(3)])
    at_look(rig)
    rig.answer()
    assert renewed(rig) == [b"1001-0", b"1002-0"]
    assert rig.purposes()[-1] == "leases.on_look"
    rig.answer({"leases.on_renewed": ABORTED})
    assert renewed(rig) == [b"1003-0"]
    # Not an interval later: the first page has not been renewed.
    assert rig.purposes()[-1] == "leases.on_look"
    rig.answer()
    assert renewed(rig) == [b"1001-0", b"1002-0"]


def test_a_refused_renewal_of_one_page_ends_the_look() -> None:
    rig = Rig(page=2, concurrency=10, prefetch=0)
    rig.open()
    rig.bring(*[task(f"t{at}") for at in range(3)])
    at_look(rig)
    rig.answer()
    rig.answer({"leases.on_renewed": refusal("OOM no")})
    assert rig.purposes() == ()
    due = rig.machine.next_timeout()
    assert due is not None
    assert due - rig.now <= 50
    rig.pass_time(60)
    assert rig.machine.leases.looks[0].renewed_at >= rig.now - 60


@pytest.mark.parametrize("text", ["OOM no", "MISCONF no", "NOREPLICAS no", "ERR strange"])
def test_a_refused_renewal_is_repeated_soon(text: str) -> None:
    rig = Rig()
    rig.open()
    rig.bring(task("t1"))
    at_look(rig)
    rig.answer()
    sent = rig.now
    rig.answer({"leases.on_renewed": refusal(text)})
    assert [note.operation for note in rig.notes(OperationRefused)] == ["renewing"]
    at_look(rig)
    assert rig.now - sent <= 50
    rig.answer()
    rig.answer()
    assert look(rig).backoff.attempts == 0
    assert look(rig).renewed_at == rig.now


def test_a_renewal_with_an_error_inside_is_refused() -> None:
    rig = Rig()
    rig.open()
    rig.bring(task("t1"))
    at_look(rig)
    rig.answer()
    rig.q.grouped = False
    rig.answer({"leases.on_renewed": But({0: error("NOGROUP no such group")})})
    assert not rig.machine.setup.is_grouped(0)
    rig.pass_time(1000)
    assert rig.q.grouped


def test_a_held_task_can_start_while_renewals_are_refused() -> None:
    """A listing that says "mine" is enough, on a full server too."""
    rig = Rig(concurrency=1, prefetch=1)
    rig.open()
    rig.deliver(task("t1"), task("t2"))
    rig.answer_all()
    oom = refusal("OOM no")
    rig.pass_time(100_000, {"leases.on_renewed": oom, "leases.on_probe": oom})
    rig.succeed("t1")
    assert rig.started() == ["t1", "t2"]


def test_the_owner_that_was_away_touches_the_fence() -> None:
    rig = Rig()
    rig.open()
    rig.bring(task("t1"))
    touched = []
    for away in (False, False, True, False):
        at_look(rig)
        rig.answer()
        touched.append(bool(commands_named(rig.section("leases.on_renewed"), b"PEXPIRE")))
        if away:
            assert commands_named(rig.section("leases.on_renewed"), b"PEXPIRE") == [
                (b"PEXPIRE", rig.q.keys.fence, TEN_YEARS_MS)
            ]
        rig.answer_all()
        if touched == [True, False]:
            # Two looks are refused: the next renewal is more than two intervals late.
            oom = refusal("LOADING no")
            rig.pass_time(2 * RENEW, {"leases.on_look": oom, "leases.on_probe": oom})
    assert touched == [True, False, True, False]


def test_the_touch_is_exactly_for_more_than_two_intervals() -> None:
    rig = Rig()
    rig.open()
    rig.bring(task("t1"))
    at_look(rig)
    rig.answer_all()
    before = look(rig).renewed_at
    for away, touches in ((2 * RENEW, False), (2 * RENEW + 1, True)):
        look(rig).renewed_at = before = rig.now
        look(rig).look_at = before + away
        rig.tick(away)
        rig.answer()
        assert bool(commands_named(rig.section("leases.on_renewed"), b"PEXPIRE")) == touches
        rig.answer_all()


# --- Adoption (finding 5) ---------------------------------------------------------------------------------


def test_mine_and_unknown_with_no_read_in_flight_is_adopted() -> None:
    rig = Rig()
    rig.pend(b"5-0", task("t1"), owner=ME, deliveries=3)
    rig.start()
    rig.connect()
    rig.answer()
    rig.answer()
    assert commands_named(rig.section("leases.on_renewed"), b"XRANGE") == [
        (b"XRANGE", rig.q.keys.stream, b"5-0", b"5-0")
    ]
    rig.answer()
    assert rig.started() == ["t1"]
    assert rig.runs["t1"].deliveries == 3
    assert [note.entry_id for note in rig.notes(TaskAdopted)] == ["5-0"]


def test_what_a_read_may_just_be_bringing_is_not_adopted() -> None:
    rig = Rig(block_ms=100_000)
    rig.open()
    assert rig.blocked
    rig.pend(b"5-0", task("t1"), owner=ME)
    for _ in range(3):
        at_look(rig)
        rig.answer()
        assert renewed(rig) == [b"5-0"]
        assert not commands_named(rig.section("leases.on_renewed"), b"XRANGE")
        rig.answer_all()
    # Its reply arrives: nothing was run before, and it is run once.
    assert rig.started() == []
    rig.answer({"intake.on_read": values([[rig.q.keys.stream, [[b"5-0", list(task("t1"))]]]])}, Lane.READ)
    rig.answer_all()
    assert rig.started() == ["t1"]
    assert rig.notes(TaskAdopted) == []


def test_what_the_read_did_not_bring_is_adopted_by_a_second_listing() -> None:
    rig = Rig(block_ms=100_000)
    rig.open()
    rig.pend(b"5-0", task("t1"), owner=ME)
    at_look(rig)
    rig.answer_all()
    assert rig.started() == []
    rig.answer(None, Lane.READ)  # empty
    # That is known at once; another read is on its way meanwhile, but it cannot be bringing this.
    assert rig.purposes()[-1] == "leases.on_look"
    assert rig.in_flight(Lane.READ)
    rig.answer_all()
    assert rig.started() == ["t1"]


def test_a_read_that_was_over_when_the_listing_was_sent_counts() -> None:
    """The listing must have been sent after the read's end, not only answered."""
    rig = Rig(block_ms=100_000)
    rig.open()
    at_look(rig)
    rig.pend(b"5-0", task("t1"), owner=ME)
    rig.answer(None, Lane.READ)  # over, but the listing was sent before
    rig.answer()
    assert not commands_named(rig.section("leases.on_renewed"), b"XRANGE")
    assert rig.started() == []


def test_a_read_that_began_after_the_listing_was_sent_is_waited_for() -> None:
    rig = Rig(concurrency=1, prefetch=0, block_ms=100_000)
    rig.open()
    rig.deliver(task("t1"))
    assert not rig.in_flight(Lane.READ)
    at_look(rig)
    rig.succeed("t1")
    assert rig.in_flight(Lane.READ)
    rig.pend(b"1500-0", task("t2"), owner=ME)
    rig.answer()
    assert not commands_named(rig.section("leases.on_renewed"), b"XRANGE")
    assert list(look(rig).suspects) == [b"1500-0"]
    rig.answer({"intake.on_read": values([[rig.q.keys.stream, [[b"1500-0", list(task("t2"))]]]])}, Lane.READ)
    assert look(rig).suspects == {}
    assert rig.started() == ["t1", "t2"]


def test_a_suspect_that_is_not_listed_any_more_is_forgotten() -> None:
    rig = Rig(block_ms=100_000)
    rig.open()
    rig.pend(b"5-0", owner=ME)
    at_look(rig)
    rig.answer_all()
    assert list(look(rig).suspects) == [b"5-0"]
    rig.q.pending.pop(b"5-0")
    at_look(rig)
    rig.answer_all()
    assert look(rig).suspects == {}


def test_a_lost_read_is_over() -> None:
    rig = Rig(block_ms=100_000)
    rig.open()
    rig.pend(b"5-0", task("t1"), owner=ME)
    at_look(rig)
    rig.answer_all()
    assert rig.started() == []
    rig.lose(Lane.READ)
    rig.answer_all()
    assert rig.started() == ["t1"]


def test_a_look_that_is_wanted_during_a_look_follows_it() -> None:
    rig = Rig(block_ms=100_000)
    rig.open()
    at_look(rig)
    rig.lose(Lane.READ)
    rig.answer()
    assert rig.purposes()[-1] == "leases.on_look"


def test_an_aborted_adoption_is_made_by_the_next_look() -> None:
    rig = Rig()
    rig.pend(b"5-0", task("t1"), owner=ME)
    rig.start()
    rig.connect()
    rig.answer()
    rig.answer()
    rig.answer({"leases.on_renewed": ABORTED})
    assert rig.started() == []
    rig.answer_all()
    assert rig.started() == ["t1"]


def test_a_ghost_is_acknowledged() -> None:
    """Pending under me, and its entry is gone."""
    rig = Rig()
    rig.pend(b"5-0", owner=ME)
    rig.q.bodies.clear()
    rig.start()
    rig.connect()
    rig.answer()
    rig.answer()
    # XCLAIM of Redis 7.0 drops it by itself; one that does not leaves it to us.
    rig.answer({"leases.on_renewed": values([], [], 1)})
    assert rig.section("missing.on_acknowledged") == ((b"XACK", rig.q.keys.stream, b"streamfleet-server", b"5-0"),)
    rig.answer_all()
    assert rig.q.pending == {}
    assert rig.machine.tasks.by_id == {}


def test_a_ghost_that_cannot_be_acknowledged_is_found_again() -> None:
    rig = Rig()
    rig.pend(b"5-0", owner=ME)
    rig.q.bodies.clear()
    rig.start()
    rig.connect()
    rig.answer()
    rig.answer()
    rig.answer({"leases.on_renewed": values([], [], 1)})
    rig.answer({"missing.on_acknowledged": refusal("LOADING no")})
    assert [note.operation for note in rig.notes(OperationRefused)] == ["removing a ghost"]
    rig.q.pending[b"5-0"].owner = ME
    rig.pass_time(RENEW, {"leases.on_renewed": But({0: []})})
    assert rig.q.pending == {}


def test_what_a_read_brings_while_it_is_being_adopted_is_taken_once() -> None:
    """The group was made again at its beginning, by an operator: `>` gives out what is pending here."""
    rig = Rig(concurrency=1, prefetch=0)
    rig.open()
    rig.deliver(task("busy"))
    rig.answer_all()
    at_look(rig)
    rig.pend(b"5-0", task("t1"), owner=ME)
    rig.answer()
    assert commands_named(rig.section("leases.on_renewed"), b"XRANGE")
    rig.succeed("busy")
    rig.answer({"intake.on_read": values([[rig.q.keys.stream, [[b"5-0", list(task("t1"))]]]])}, Lane.READ)
    rig.answer_all()
    assert rig.started() == ["busy", "t1"]
    assert rig.notes(TaskAdopted) == []


def test_a_new_connection_adopts_what_the_old_one_brought_to_nobody() -> None:
    rig = Rig(concurrency=5)
    rig.open()
    rig.lose(Lane.READ)
    rig.lose(Lane.COMMAND)
    rig.pend(b"5-0", task("t1"), owner=ME)
    rig.pass_time(1000)
    assert rig.started() == ["t1"]


def test_what_was_taken_meanwhile_is_not_missing() -> None:
    """A task that came after the look had begun cannot be in its listing."""
    rig = Rig(concurrency=5, prefetch=0)
    rig.open()
    at_look(rig)
    token_replies = rig.replies()
    rig.deliver(task("t1"))
    rig.feed(Reply(rig.batch().token, token_replies))
    assert "missing.on_answer" not in rig.purposes()
    assert not rig.held(b"1001-0").doubtful
