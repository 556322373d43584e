"""Taking over from the dead, and from nobody else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamfleet_protocol.effects import Faulted
from streamfleet_protocol.notes import OperationRefused, TaskClaimed, TaskDeadLettered
from streamfleet_protocol.replies import RawReply
from streamfleet_protocol.server.reclaim import Sights
from tests.protocol.server.support import (
    ABORTED,
    LEASE,
    ME,
    OTHER,
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

THIRD = b"node3:cccc"


def sights(rig: Rig, queue: int = 0) -> Sights:
    """A queue's sights."""
    return rig.machine.reclaim.sights[queue]


def watching(*ids: bytes, **changes: object) -> Rig:
    """Entries of another are pending, seen from the first look on; the owner is dead."""
    rig = Rig(**{"concurrency": 5, "prefetch": 0, **changes})
    for entry_id in ids or (b"5-0",):
        rig.pend(entry_id)
    rig.open()
    return rig


def asked(*ids: bytes, **changes: object) -> Rig:
    """The question before a claim is in flight."""
    rig = watching(*ids, **changes)
    rig.until("reclaim.on_question", most_ms=LEASE + RENEW)
    return rig


def time_of(redis_ms: int) -> RawReply:
    """A TIME reply."""
    return [b"%d" % (redis_ms // 1000), b"%d" % (redis_ms % 1000 * 1000)]


def claimed_at(rig: Rig, entry_id: bytes = b"5-0", most_ms: int = 10 * LEASE) -> int:
    """The time at which the entry becomes mine."""
    end = rig.now + most_ms
    while rig.q.pending[entry_id].owner != ME:
        assert rig.now < end, "never claimed"
        rig.pass_time(100)
    return rig.now


# --- The whole way ----------------------------------------------------------------------------------------


def test_what_nobody_has_touched_for_a_lease_is_claimed_and_run() -> None:
    rig = watching()
    began = rig.now
    took = claimed_at(rig) - began
    assert LEASE <= took <= LEASE + RENEW
    assert rig.started() == ["t5-0"]
    assert rig.runs["t5-0"].deliveries == 2
    (note,) = rig.notes(TaskClaimed)
    assert (note.owner, note.deliveries) == ("node2:bbbb", 2)


def test_a_healthy_owner_is_left_alone() -> None:
    rig = watching(b"5-0", b"6-0")
    for _ in range(40):
        rig.pass_time(RENEW - 3)
        rig.q.pending[b"5-0"].delivered_at = rig.facts.redis_ms
    assert rig.q.pending[b"5-0"].owner == OTHER
    assert rig.q.pending[b"6-0"].owner == ME


@pytest.mark.parametrize("every", [RENEW, 2 * RENEW, 4 * RENEW, LEASE - RENEW])
def test_an_owner_that_renews_now_and_then_is_left_alone(every: int) -> None:
    rig = watching()
    for _ in range(10):
        rig.pass_time(every)
        rig.q.pending[b"5-0"].delivered_at = rig.facts.redis_ms
    assert rig.q.pending[b"5-0"].owner == OTHER


def test_the_question_and_the_claim() -> None:
    rig = asked(b"5-0", b"6-0")
    keys = rig.q.keys
    assert rig.section("reclaim.on_question") == (
        (b"WATCH", keys.fence),
        (b"TIME",),
        (b"XPENDING", keys.stream, b"streamfleet-server", b"5-0", b"5-0", 1),
        (b"XPENDING", keys.stream, b"streamfleet-server", b"6-0", b"6-0", 1),
        (b"TIME",),
    )
    rig.answer()
    assert rig.purposes()[0] == "reclaim.on_claimed"
    assert rig.section("reclaim.on_claimed") == (
        (b"MULTI",),
        (b"XCLAIM", keys.stream, b"streamfleet-server", ME, 0, b"5-0", b"6-0"),
        (b"INCR", keys.fence),
        (b"EXEC",),
    )


def test_the_age_counts_from_the_answer_of_the_first_to_the_sending_of_the_last() -> None:
    rig = Rig()
    rig.start()
    rig.connect()
    rig.answer()
    rig.pend(b"5-0")
    rig.answer(after_ms=1500)  # the first look's answer takes its time
    answered = rig.now
    sight = sights(rig).known[b"5-0"]
    assert (sight.since, sight.until) == (answered, answered - 1500)
    rig.pass_time(LEASE - 2000)
    rig.until("leases.on_look")
    sent = rig.now
    rig.answer(after_ms=2500)
    sight = sights(rig).known[b"5-0"]
    assert (sight.since, sight.until) == (answered, sent)
    assert ("reclaim.on_question" in rig.purposes()) == (sent - answered >= LEASE)


def test_a_lease_is_a_lease() -> None:
    rig = watching()
    began = rig.now
    while not sights(rig).dead:
        rig.pass_time(500)
        if b"5-0" in sights(rig).known:
            sight = sights(rig).known[b"5-0"]
            assert bool(sights(rig).dead) == (sight.until - sight.since >= LEASE) or rig.q.pending[b"5-0"].owner == ME
        if rig.q.pending[b"5-0"].owner == ME:
            break
    assert rig.now - began >= LEASE


# --- What begins every age anew ---------------------------------------------------------------------------


def gap(rig: Rig) -> None:
    """Nothing at all is done for more than two intervals."""
    rig.answer_all()
    rig.wait(2 * RENEW + 100)
    rig.tick()


def new_connection(rig: Rig) -> None:
    rig.lose()


def during_a_look(answers: dict[str, Answer]) -> Callable[[Rig], None]:
    """The next look is answered so."""

    def disturb(rig: Rig) -> None:
        rig.until("leases.on_look")
        rig.answer(answers)

    return disturb


def refused_renewal(rig: Rig) -> None:
    """My own renewals are refused: so may be those of the owner."""
    rig.bring(task("mine"))
    rig.until("leases.on_renewed")
    rig.answer({"leases.on_renewed": refusal("OOM no")})


def step_forward(rig: Rig) -> None:
    rig.facts.redis_ms += 1000


def step_back(rig: Rig) -> None:
    """Still after the delivery: its idle time does not become 0."""
    rig.facts.redis_ms -= 1000


def another_owner(rig: Rig) -> None:
    rig.q.pending[b"5-0"].owner = THIRD


def another_count(rig: Rig) -> None:
    rig.q.pending[b"5-0"].deliveries += 1


def another_stamp(rig: Rig) -> None:
    rig.q.pending[b"5-0"].delivered_at += 51


def gone_and_back(rig: Rig) -> None:
    row = rig.q.pending.pop(b"5-0")
    rig.pass_time(RENEW)
    rig.q.pending[b"5-0"] = row


def times_apart(rig: Rig) -> None:
    """The two TIMEs of a look are further apart than the tolerance."""
    rig.until("leases.on_look")
    now = rig.facts.redis_ms
    rig.answer({"leases.on_look": But({1: time_of(now - 51), 3: time_of(now)})})


def times_backwards(rig: Rig) -> None:
    rig.until("leases.on_look")
    now = rig.facts.redis_ms
    rig.answer({"leases.on_look": But({1: time_of(now + 1), 3: time_of(now)})})


DISTURBANCES: list[Callable[[Rig], None]] = [
    gap,
    new_connection,
    refused_renewal,
    step_forward,
    step_back,
    another_owner,
    another_count,
    another_stamp,
    gone_and_back,
    times_apart,
    times_backwards,
]
LOOKS: dict[str, dict[str, Answer]] = {
    "probe refused": {"leases.on_probe": refusal("OOM no")},
    "probe with an error inside": {"leases.on_probe": values(error("NOGROUP no"))},
    "look refused": {"leases.on_look": refusal("LOADING no")},
    "no time before": {"leases.on_look": But({1: None})},
    "no time after": {"leases.on_look": But({3: b"?"})},
}


@pytest.mark.parametrize(
    "disturb",
    [*DISTURBANCES, *(during_a_look(answers) for answers in LOOKS.values())],
    ids=[*(disturbance.__name__ for disturbance in DISTURBANCES), *LOOKS],
)
def test_what_may_have_hidden_a_renewal_begins_the_age_anew(disturb: Callable[[Rig], None]) -> None:
    rig = watching()
    rig.pass_time(LEASE - 12_000)
    before = rig.now
    disturb(rig)
    assert rig.now - before <= 2 * RENEW + 100
    disturbed = rig.now
    assert claimed_at(rig) - disturbed >= LEASE
    assert rig.now - disturbed <= LEASE + 2 * RENEW


@pytest.mark.parametrize("disturb", [lambda rig: None, lambda rig: rig.wait(2 * RENEW - 5100)], ids=["none", "no gap"])
def test_without_a_disturbance_it_does_not(disturb: Callable[[Rig], None]) -> None:
    rig = watching()
    began = rig.now
    rig.pass_time(LEASE - 25_000)
    disturb(rig)
    rig.tick()
    assert claimed_at(rig) - began <= LEASE + 2 * RENEW


@pytest.mark.parametrize("step", [50, -50])
def test_a_step_within_the_tolerance_is_none(step: int) -> None:
    rig = watching()
    began = rig.now
    rig.pass_time(LEASE // 2)
    rig.facts.redis_ms += step
    assert claimed_at(rig) - began <= LEASE + RENEW


@pytest.mark.parametrize("step", [51, -51])
def test_a_step_beyond_the_tolerance_is_one(step: int) -> None:
    rig = watching()
    rig.pass_time(LEASE // 2)
    rig.facts.redis_ms += step
    stepped = rig.now
    assert claimed_at(rig) - stepped >= LEASE


def test_a_slow_answer_is_no_step() -> None:
    """TIME was read somewhere within the round trip."""
    rig = watching()
    began = rig.now
    rig.until("leases.on_look")
    rig.answer(after_ms=2000)
    assert claimed_at(rig) - began <= LEASE + RENEW + 2000


@pytest.mark.parametrize(("moved", "same"), [(50, True), (-50, True), (51, False)])
def test_a_stamp_is_the_same_within_the_tolerance(moved: int, same: bool) -> None:
    rig = watching()
    began = rig.now
    rig.pass_time(LEASE // 2)
    rig.q.pending[b"5-0"].delivered_at += moved
    assert (claimed_at(rig) - began <= LEASE + RENEW) == same


def test_a_stamp_may_not_creep() -> None:
    """Each change is within the tolerance, all together are not: it is compared with the first."""
    rig = watching()
    for _ in range(20):
        rig.pass_time(RENEW)
        rig.q.pending[b"5-0"].delivered_at += 30
    assert rig.q.pending[b"5-0"].owner == OTHER


def test_a_probe_that_was_aborted_was_not_refused() -> None:
    """A WATCH of an unused question is left over, and other workers touch its key all the time.

    Nobody's renewal was refused, so nothing is hidden: without this an idle worker in a busy fleet never claims.
    """
    rig = watching()
    began = rig.now
    while rig.q.pending[b"5-0"].owner != ME:
        rig.pass_time(100, {"leases.on_probe": ABORTED})
        assert rig.now - began <= LEASE + 2 * RENEW


def test_two_refused_looks_in_a_row_are_told_once_each() -> None:
    rig = watching()
    rig.until("leases.on_look")
    rig.answer({"leases.on_probe": refusal("OOM no")})
    assert [note.operation for note in rig.notes(OperationRefused)] == ["renewing"]


def test_a_probe_without_permission_stops_the_server() -> None:
    rig = watching()
    rig.until("leases.on_look")
    rig.answer({"leases.on_probe": refusal("NOPERM no XCLAIM")})
    assert len(rig.of(Faulted)) == 1


# --- The future -------------------------------------------------------------------------------------------


def in_the_future(**changes: object) -> Rig:
    """Redis's clock was set back by ten minutes before this server started; the owner is dead."""
    rig = Rig(**changes)
    rig.pend(b"5-0", idle_ms=-600_000)
    rig.open()
    rig.pass_time(10)
    return rig


def test_what_is_in_the_future_twice_is_claimed_after_a_lease_too() -> None:
    rig = in_the_future()
    began = rig.now
    assert sights(rig).known[b"5-0"].future
    assert LEASE - 100 <= claimed_at(rig) - began <= LEASE + RENEW


def test_the_second_listing_is_some_ms_after_the_first() -> None:
    rig = Rig()
    rig.pend(b"5-0", idle_ms=0)
    rig.open()
    assert b"5-0" not in sights(rig).known
    due = rig.machine.next_timeout()
    assert due == rig.now + 6
    rig.tick(6)
    stream = rig.q.keys.stream
    assert rig.section("reclaim.on_recheck") == (
        (b"TIME",),
        (b"XPENDING", stream, b"streamfleet-server", b"5-0", b"5-0", 1),
        (b"TIME",),
    )
    rig.answer()
    sight = sights(rig).known[b"5-0"]
    assert not sight.future
    assert sight.stamp == rig.facts.redis_ms - 6


def test_only_just_touched_is_not_in_the_future() -> None:
    """Renewed in the very ms of each look: idle is 0 each time, but not twice some ms apart."""
    rig = watching()
    for _ in range(20):
        rig.until("leases.on_look")
        rig.q.pending[b"5-0"].delivered_at = rig.facts.redis_ms
        rig.answer_all()
    assert rig.q.pending[b"5-0"].owner == OTHER


def test_what_leaves_the_future_begins_anew() -> None:
    rig = Rig()
    rig.pend(b"5-0", idle_ms=-LEASE // 2)
    rig.open()
    began = rig.now
    assert claimed_at(rig) - began >= LEASE // 2 + LEASE


def test_a_touch_between_the_look_and_its_recheck_is_counted_from_the_recheck() -> None:
    """The age is that of the last thing that was seen: until the second listing the owner may have renewed."""
    rig = Rig()
    rig.pend(b"5-0", idle_ms=0)
    rig.open()
    rig.tick(6)
    rig.answer(after_ms=2000)
    assert sights(rig).known[b"5-0"].since == rig.now


@pytest.mark.parametrize(
    "answer",
    [
        refusal("LOADING no"),
        But({0: None}),
        But({2: b"?"}),
        But({0: time_of(1_700_000_000_000)}),
    ],
    ids=["refused", "no time", "no time after", "apart"],
)
def test_a_recheck_that_says_nothing_begins_anew(answer: Answer) -> None:
    rig = in_the_future()
    rig.pass_time(LEASE // 2)
    assert sights(rig).known
    rig.until("reclaim.on_recheck")
    rig.answer({"reclaim.on_recheck": answer})
    disturbed = rig.now
    assert sights(rig).known == {}
    assert claimed_at(rig) - disturbed >= LEASE


def test_a_recheck_without_an_answer_begins_anew() -> None:
    rig = in_the_future()
    rig.until("reclaim.on_recheck")
    rig.lose()
    assert sights(rig).known == {}
    disturbed = rig.now
    assert claimed_at(rig) - disturbed >= LEASE


def test_a_restart_before_the_recheck_is_answered_holds() -> None:
    rig = in_the_future()
    rig.until("reclaim.on_recheck")
    rig.machine.reclaim.restart(0)
    rig.answer()
    assert sights(rig).known == {}


@pytest.mark.parametrize(
    "change", [lambda row: setattr(row, "owner", THIRD), lambda row: setattr(row, "deliveries", 7), None]
)
def test_what_changes_between_the_look_and_its_recheck_is_not_counted(change: Callable[[object], None] | None) -> None:
    rig = in_the_future()
    rig.pend(b"6-0", idle_ms=-600_000)
    rig.until("reclaim.on_recheck")
    if change is None:
        del rig.q.pending[b"5-0"]
    else:
        change(rig.q.pending[b"5-0"])
    rig.answer()
    assert list(sights(rig).known) == [b"6-0"]


def test_a_new_look_replaces_one_that_waits_for_its_recheck() -> None:
    rig = Rig()
    rig.pend(b"5-0", idle_ms=-600_000)
    rig.open()
    assert sights(rig).recheck_at == rig.now + 6
    rig.machine.leases.look_now(rig.now, 0)
    rig.tick()
    assert rig.purposes()[-1] == "leases.on_look"
    assert "reclaim.on_recheck" not in rig.purposes()
    rig.answer()
    rig.pass_time(6)
    assert list(sights(rig).known) == [b"5-0"]


def test_two_hundred_are_rechecked_and_the_others_wait() -> None:
    rig = Rig(concurrency=300)
    for at in range(250):
        rig.pend(b"%d-0" % (at + 1), idle_ms=-600_000)
    rig.open()
    rig.pass_time(10)
    assert len(sights(rig).known) == 200
    rig.pass_time(2 * LEASE + 4 * RENEW)
    assert {row.owner for row in rig.q.pending.values()} == {ME}


# --- The question -----------------------------------------------------------------------------------------


def test_what_is_still_unchanged_is_claimed_and_the_rest_is_not() -> None:
    rig = asked(b"5-0", b"6-0", b"7-0", b"8-0")
    rig.q.pending[b"5-0"].owner = THIRD
    rig.q.pending[b"6-0"].delivered_at += 1000
    del rig.q.pending[b"7-0"]
    rig.answer()
    (claim,) = commands_named(rig.section("reclaim.on_claimed"), b"XCLAIM")
    assert claim[5:] == (b"8-0",)


def test_an_owner_that_came_back_is_left_alone() -> None:
    rig = asked()
    rig.q.pending[b"5-0"].delivered_at = rig.facts.redis_ms
    rig.answer()
    assert "reclaim.on_claimed" not in rig.purposes()
    back = rig.now
    assert claimed_at(rig) - back >= LEASE


def test_the_future_must_still_be_one() -> None:
    rig = in_the_future()
    rig.until("reclaim.on_question", most_ms=LEASE + RENEW)
    rig.q.pending[b"5-0"].delivered_at = rig.facts.redis_ms - 1
    rig.answer()
    assert "reclaim.on_claimed" not in rig.purposes()
    assert rig.q.pending[b"5-0"].owner == OTHER


@pytest.mark.parametrize(
    "answer",
    [But({1: None}), But({3: b"?"}), But({1: time_of(1_700_000_000_000)})],
    ids=["no time", "garbage", "apart"],
)
def test_a_question_without_good_times_claims_nothing(answer: Answer) -> None:
    rig = asked()
    rig.answer({"reclaim.on_question": answer})
    assert "reclaim.on_claimed" not in rig.purposes()
    assert rig.machine.tasks.reserved == 0
    claimed_at(rig)


def test_a_question_that_is_refused_is_asked_again_a_lease_later() -> None:
    rig = asked()
    rig.answer({"reclaim.on_question": refusal("LOADING no")})
    assert [note.operation for note in rig.notes(OperationRefused)] == ["claiming"]
    refused = rig.now
    assert claimed_at(rig) - refused >= LEASE


def test_a_question_without_an_answer_is_over() -> None:
    rig = asked()
    assert rig.machine.tasks.reserved == 1
    rig.lose()
    assert rig.machine.tasks.reserved == 0
    lost = rig.now
    assert claimed_at(rig) - lost >= LEASE


# --- The claim --------------------------------------------------------------------------------------------


def test_an_aborted_claim_is_followed_by_a_look_and_the_age_goes_on() -> None:
    """Every claim of anybody touches the fence: in a fleet that takes over many entries most of them abort."""
    rig = asked()
    rig.answer()
    aborted = rig.now
    rig.answer({"reclaim.on_claimed": ABORTED})
    assert rig.purposes()[-1] == "leases.on_look"
    assert rig.machine.tasks.reserved == 0
    assert claimed_at(rig) - aborted <= RENEW


def test_an_aborted_claim_of_what_another_has_taken_is_dropped() -> None:
    rig = asked()
    rig.answer()
    rig.q.pending[b"5-0"].owner = THIRD
    rig.q.pending[b"5-0"].deliveries += 1
    rig.answer({"reclaim.on_claimed": ABORTED})
    taken = rig.now
    assert claimed_at(rig) - taken >= LEASE


@pytest.mark.parametrize("answer", [refusal("OOM no"), But({0: error("WRONGTYPE no")}), But({1: error("ERR value")})])
def test_a_refused_claim_begins_anew(answer: Answer) -> None:
    rig = asked()
    rig.answer()
    rig.answer({"reclaim.on_claimed": answer})
    assert sights(rig).known == {}
    assert rig.machine.tasks.reserved == 0
    assert rig.now < sights(rig).backoff.until <= rig.now + 50


def test_a_claim_without_an_answer_is_found_by_the_look() -> None:
    rig = asked()
    rig.answer()
    rig.replies()  # carried out
    rig.lose()
    rig.reconnect()
    rig.pass_time(RENEW)
    assert rig.started() == ["t5-0"]
    assert rig.runs["t5-0"].deliveries == 2


def test_a_claimed_entry_without_a_body_is_gone() -> None:
    rig = asked(b"5-0", b"6-0")
    rig.answer()
    del rig.q.bodies[b"5-0"]
    rig.answer_all()
    assert rig.started() == ["t6-0"]
    assert b"5-0" not in rig.q.pending


@pytest.mark.parametrize("reply", [None, b"?", [], [None], [[b"5-0", None]], [[b"9-9", [b"a", b"b"]]]], ids=repr)
def test_a_claim_answered_with_garbage_takes_nothing(reply: RawReply) -> None:
    rig = asked()
    rig.answer()
    rig.answer({"reclaim.on_claimed": But({0: reply})})
    assert rig.machine.tasks.by_id == {}
    # It is mine and unknown now: the next look adopts it.
    rig.pass_time(3 * RENEW)
    assert rig.started() == ["t5-0"]


@pytest.mark.parametrize(("deliveries", "dead"), [(9, False), (10, True)])
def test_what_was_delivered_too_often_is_put_away(deliveries: int, dead: bool) -> None:
    rig = watching()
    rig.q.pending[b"5-0"].deliveries = deliveries
    rig.pass_time(LEASE + 2 * RENEW)
    assert len(rig.q.dead) == dead
    assert len(rig.notes(TaskDeadLettered)) == dead
    assert (rig.started() == []) == dead


def test_what_i_already_have_is_not_taken_twice() -> None:
    """Lost to another while its handler runs on, and claimed back: the handler goes on, and is the only one."""
    rig = Rig(concurrency=2, prefetch=0)
    rig.open()
    rig.bring(task("t1"))
    rig.q.pending[b"1001-0"].owner = OTHER
    rig.pass_time(LEASE + 3 * RENEW)
    assert rig.q.pending[b"1001-0"].owner == ME
    assert rig.started() == ["t1"]
    assert rig.notes(TaskClaimed) == []
    rig.fail()
    rig.pass_time(2 * RENEW)
    assert rig.started() == ["t1", "t1"]


# --- Room -------------------------------------------------------------------------------------------------


def test_no_more_is_claimed_than_there_is_room_for() -> None:
    ids = [b"%d-0" % at for at in range(1, 8)]
    rig = watching(*ids, concurrency=3)
    rig.pass_time(LEASE + 2 * RENEW)
    assert len(rig.started()) == 3
    assert sum(row.owner == ME for row in rig.q.pending.values()) == 3
    for at in range(4):
        rig.succeed(f"t{at + 1}-0")
        rig.pass_time(1)
        assert len(rig.started()) == 4 + at
        assert sum(row.owner == ME for row in rig.q.pending.values()) == 3


def test_without_room_nobody_is_asked() -> None:
    rig = Rig(concurrency=1, prefetch=0)
    rig.pend(b"5-0")
    rig.open()
    rig.bring(task("mine"))
    rig.pass_time(2 * LEASE)
    assert rig.q.pending[b"5-0"].owner == OTHER
    rig.succeed("mine")
    assert "reclaim.on_question" in rig.purposes()


def test_a_page_of_claims_is_bounded() -> None:
    rig = watching(*[b"%d-0" % at for at in range(1, 8)], concurrency=50, batch=3)
    rig.until("reclaim.on_question")
    assert len(rig.section("reclaim.on_question")) == 6
    # There are more, and room for them: this part has something for the next write.
    assert rig.machine.reclaim.due_at() <= rig.now
    rig.answer_all()
    assert {row.owner for row in rig.q.pending.values()} == {ME}


def test_claims_of_two_queues_at_once_keep_to_the_room() -> None:
    rig = Rig("a", "b", concurrency=4, prefetch=0)
    for at in range(1, 5):
        rig.pend(b"%d-0" % at, queue=0)
        rig.pend(b"%d-0" % at, task(f"b{at}"), queue=1)
    rig.open()
    rig.pass_time(LEASE - RENEW)
    tasks = rig.machine.tasks
    end = rig.now + 4 * RENEW
    while rig.now < end:
        rig.until("leases.on_look", most_ms=2 * RENEW)
        while rig.answer_one():
            assert tasks.reserved >= 0
            assert tasks.held + len(tasks.running) + tasks.reserved <= 4
    assert len(rig.started()) == 4
    assert tasks.reserved == 0


def test_room_is_kept_for_a_claim_under_way() -> None:
    rig = asked(b"5-0", b"6-0", concurrency=2)
    assert rig.machine.tasks.reserved == 2
    assert rig.machine.tasks.room == 0
    rig.answer()
    assert rig.machine.tasks.reserved == 2
    rig.answer()
    assert rig.machine.tasks.reserved == 0
    assert len(rig.started()) == 2


def test_no_claim_without_the_fence() -> None:
    rig = watching()
    rig.machine.setup.states[0].fenced = False
    rig.machine.setup.states[0].backoff.until = rig.now + 2 * LEASE
    rig.pass_time(2 * LEASE - 1)
    assert rig.q.pending[b"5-0"].owner == OTHER
    rig.pass_time(RENEW)
    assert rig.q.pending[b"5-0"].owner == ME


def test_a_closing_server_claims_nothing() -> None:
    rig = watching(b"5-0", concurrency=2)
    rig.bring(task("mine"))
    rig.pass_time(LEASE // 2)
    rig.close(3 * LEASE)
    rig.pass_time(2 * LEASE)
    assert rig.q.pending[b"5-0"].owner == OTHER


def test_a_question_answered_while_the_server_closes_claims_nothing() -> None:
    rig = asked()
    rig.close()
    rig.answer()
    assert "reclaim.on_claimed" not in rig.purposes()
    assert rig.machine.tasks.reserved == 0


def test_a_claim_answered_while_the_server_closes_is_handed_back() -> None:
    rig = asked()
    rig.answer()
    rig.close()
    rig.pass_time(5_000)
    assert rig.started() == []
    assert list(rig.q.bodies.values()) == [task("t5-0")]
    assert rig.q.pending == {}
