"""Starting handlers, and what becomes of their answers."""

from __future__ import annotations

import pytest

from streamfleet_protocol.effects import CancelHandler
from streamfleet_protocol.inputs import HandlerCanceled, HandlerFailed, HandlerRejects, HandlerSucceeded, Reply, Several
from streamfleet_protocol.notes import LeaseLost, Stalled, TaskDeadLettered, TaskHasExpired, TaskReleased
from streamfleet_protocol.server.handlers import retry_delay
from streamfleet_protocol.server.lifecycle import TaskState
from streamfleet_protocol.server.tasks import EndKind
from streamfleet_protocol.settings import QueueSettings
from streamfleet_protocol.timing import NEVER
from streamfleet_protocol.wire import RESULT_BYTES_MAX, TaskEntry, decode_notification
from tests.protocol.server.support import (
    LEASE,
    ME,
    OTHER,
    REDIS_START,
    RENEW,
    Rig,
    commands_named,
    refusal,
    task,
)


def rig_with(*tasks: tuple[bytes, ...], **changes: object) -> Rig:
    """A server that a read has just brought these."""
    rig = Rig(**{"concurrency": 1, "prefetch": 10, **changes})
    rig.open()
    rig.deliver(*tasks)
    return rig


# --- Starting ---------------------------------------------------------------------------------------------


def test_a_task_is_started_when_it_is_read() -> None:
    rig = rig_with(task("t1", data=b"\x00\xff"))
    (start,) = (rig.runs[name] for name in rig.started())
    assert (start.queue, start.entry.data, start.deliveries, start.entry_id) == ("q", b"\x00\xff", 1, b"1001-0")


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_no_more_run_than_the_concurrency(concurrency: int) -> None:
    rig = rig_with(*[task(f"t{at}") for at in range(6)], concurrency=concurrency)
    assert rig.started() == [f"t{at}" for at in range(concurrency)]
    rig.succeed("t0")
    assert rig.started() == [f"t{at}" for at in range(min(6, concurrency + 1))]


def test_tasks_are_started_in_the_order_of_their_arrival() -> None:
    rig = rig_with(*[task(f"t{at}") for at in range(5)])
    for at in range(5):
        rig.fail(f"t{at}")
    assert rig.started() == [f"t{at}" for at in range(5)]


def test_many_that_end_together_are_one_step() -> None:
    rig = rig_with(*[task(f"t{at}") for at in range(6)], concurrency=3)
    rig.feed(Several(tuple(HandlerSucceeded(rig.run_of(f"t{at}")) for at in range(3))))
    assert rig.started() == [f"t{at}" for at in range(6)]
    assert rig.section("settlement.on_plain")[0][2:] == (b"1001-0", b"1002-0", b"1003-0")


def test_a_handler_that_was_asked_to_stop_still_counts() -> None:
    rig = Rig(QueueSettings("q", timeout_ms=100), concurrency=1, prefetch=5)
    rig.open()
    rig.deliver(task("t1"), task("t2"))
    rig.tick(100)
    assert rig.canceled() == [rig.run_of("t1")]
    assert rig.started() == ["t1"]
    rig.stop("t1")
    assert rig.started() == ["t1", "t2"]


# --- Expiry, poison ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "starts"), [(1, True), (0, False), (-1, False)])
def test_expiry_is_checked_by_the_clock_of_redis(before: int, starts: bool) -> None:
    rig = Rig()
    rig.open()
    rig.deliver(task("t1", expires_ts=rig.facts.redis_ms + before, send_notif=True))
    assert rig.started() == (["t1"] if starts else [])
    rig.answer_all()
    expired = [decode_notification(fields).type.value for _, fields in rig.facts.words]
    assert expired == ([] if starts else ["expired"])
    assert len(rig.notes(TaskHasExpired)) == (not starts)
    assert (rig.machine.tasks.by_id == {}) != starts


def test_expiry_is_checked_when_the_handler_is_to_start() -> None:
    rig = rig_with(task("t1"), task("t2", expires_ts=REDIS_START + 5000))
    rig.wait(6000)
    rig.succeed("t1")
    assert rig.started() == ["t1"]
    assert rig.held(b"1002-0").conclusion is not None


def test_the_clock_of_redis_is_taken_at_its_least() -> None:
    """A TIME that took long to arrive says less: a task is not ended before its time."""
    rig = Rig()
    rig.start()
    rig.connect()
    rig.answer()
    rig.answer(after_ms=400)  # the look, and with it TIME
    rig.answer_all()
    rig.deliver(task("t1", expires_ts=rig.facts.redis_ms))
    assert rig.started() == ["t1"]


def test_a_step_of_the_clock_shifts_expiry_by_that_step() -> None:
    rig = rig_with(task("t1"), task("t2", expires_ts=REDIS_START + 3_600_000))
    rig.facts.redis_ms += 3_600_000
    rig.pass_time(RENEW + 1)
    rig.succeed("t1")
    assert rig.started() == ["t1"]


def test_a_running_handler_is_not_ended_by_expiry() -> None:
    rig = rig_with(task("t1", expires_ts=REDIS_START + 1000))
    rig.pass_time(50_000)
    assert rig.canceled() == []
    rig.succeed("t1")
    rig.answer_all()
    assert rig.q.bodies == {}


@pytest.mark.parametrize(("deliveries", "starts"), [(10, True), (11, False), (500, False)])
def test_what_kills_its_workers_is_put_away(deliveries: int, starts: bool) -> None:
    rig = Rig()
    rig.pend(b"7-0", task("t1", send_notif=True), owner=ME, deliveries=deliveries)
    rig.open()
    assert rig.started() == (["t1"] if starts else [])
    if not starts:
        (letter,) = rig.q.dead.values()
        assert b"delivered %d times" % deliveries in b" ".join(letter)
        assert [note.task_id for note in rig.notes(TaskDeadLettered)] == ["t1"]
        assert [decode_notification(fields).type.value for _, fields in rig.facts.words] == ["error"]


def test_what_cannot_be_decoded_is_put_away_before_anything_else() -> None:
    broken = (*task("t1")[:2], b"nonsense", b"\xff")
    rig = rig_with(broken, task("t2"))
    assert rig.started() == ["t2"]
    rig.answer_all()
    (letter,) = rig.q.dead.values()
    assert letter[: len(broken)] == broken
    assert b"not a task" in letter[letter.index(b"dead_reason") + 1]


# --- Looks before starts ----------------------------------------------------------------------------------


def test_nothing_starts_where_the_last_look_is_older_than_a_lease() -> None:
    rig = rig_with(task("t1"), task("t2"))
    # Looks are refused for a lease: nobody knows whose the second is now.
    refused = {"leases.on_look": refusal("LOADING"), "leases.on_probe": refusal("LOADING")}
    rig.pass_time(LEASE + 1, refused)
    rig.succeed("t1")
    assert rig.started() == ["t1"]
    rig.pass_time(5_000)
    assert rig.started() == ["t1", "t2"]


def test_something_starts_while_the_last_look_is_young_enough() -> None:
    rig = rig_with(task("t1"), task("t2"))
    refused = {"leases.on_look": refusal("LOADING"), "leases.on_probe": refusal("LOADING")}
    rig.pass_time(LEASE - 1, refused)
    rig.succeed("t1")
    assert rig.started() == ["t1", "t2"]


def test_nothing_starts_without_a_command_connection() -> None:
    rig = rig_with(task("t1"), task("t2"))
    rig.lose()
    rig.succeed("t1")
    assert rig.started() == ["t1"]
    rig.reconnect()
    rig.answer()
    assert rig.started() == ["t1"]
    rig.answer()
    assert rig.started() == ["t1", "t2"]


def test_a_queue_that_could_not_be_looked_at_does_not_hold_up_the_others() -> None:
    rig = Rig("a", "b", concurrency=1, prefetch=5)
    rig.open()
    rig.deliver(task("t1"), task("a2"))
    rig.answer_all()
    rig.deliver(task("b1"), queue=1)
    rig.lose()
    rig.succeed("t1")
    rig.reconnect()
    rig.answer_all({"leases.on_look": lambda s: refusal("ERR strange") if s.context.queue == 0 else None})
    assert rig.started() == ["t1", "b1"]
    rig.succeed("b1")
    rig.pass_time(1000)
    assert rig.started() == ["t1", "b1", "a2"]


def test_after_a_stall_a_look_comes_first() -> None:
    rig = rig_with(task("t1"), task("t2"))
    due = rig.machine.next_timeout()
    assert due is not None
    rig.answer_all()
    rig.wait(due - rig.now + RENEW + 1)
    rig.succeed("t1")
    assert [note.stalled_ms for note in rig.notes(Stalled)] == [RENEW + 1]
    assert rig.started() == ["t1"]
    rig.answer_all()
    assert rig.started() == ["t1", "t2"]


def test_a_short_delay_is_no_stall() -> None:
    rig = rig_with(task("t1"), task("t2"))
    rig.answer_all()
    due = rig.machine.next_timeout()
    assert due is not None
    rig.wait(due - rig.now + RENEW)
    rig.succeed("t1")
    assert rig.notes(Stalled) == []
    assert rig.started() == ["t1", "t2"]


def test_a_look_under_way_at_the_stall_does_not_count() -> None:
    rig = rig_with(task("t1"), task("t2"), command_timeout_ms=3000)
    rig.pass_time(RENEW - 1)
    rig.tick(1)
    assert rig.purposes()[-1] == "leases.on_look"
    rig.succeed("t1")  # t2 runs
    rig.deliver(task("t3"))
    token = rig.batch().token
    replies = rig.replies()
    rig.wait(3000 + RENEW + 1)
    # The program stood still; the answer had come in time, and is older than all of that.
    rig.feed(Reply(token, replies))
    assert rig.notes(Stalled)
    rig.succeed("t2")
    assert rig.started() == ["t1", "t2"]
    rig.answer_all()
    assert rig.started() == ["t1", "t2", "t3"]


def test_what_the_look_did_not_list_is_not_started() -> None:
    """Cut off for a lease: another has it, and may have finished it. To start it would be a needless duplicate."""
    rig = rig_with(task("t1"), task("t2"), task("t3"))
    rig.lose()
    rig.wait(2 * LEASE)
    del rig.q.pending[b"1002-0"], rig.q.bodies[b"1002-0"]
    rig.q.pending[b"1003-0"].owner = OTHER
    rig.reconnect()
    rig.succeed("t1")
    rig.answer_all()
    assert rig.started() == ["t1"]
    assert sorted(note.task_id for note in rig.notes(LeaseLost)) == ["t2", "t3"]
    assert rig.machine.tasks.by_id == {}


def test_what_the_look_did_not_list_is_started_when_it_turns_out_to_be_mine() -> None:
    rig = rig_with(task("t1"), task("t2"))
    rig.answer_all()
    row = rig.q.pending.pop(b"1002-0")
    rig.pass_time(RENEW - 1)
    rig.tick(1)
    rig.answer()
    rig.succeed("t1")
    assert rig.started() == ["t1"]
    rig.q.pending[b"1002-0"] = row
    rig.answer_all()
    assert rig.started() == ["t1", "t2"]


# --- Timeouts ---------------------------------------------------------------------------------------------


def test_a_handler_that_runs_too_long_is_asked_to_stop_and_has_failed() -> None:
    rig = Rig(QueueSettings("q", timeout_ms=2000))
    rig.open()
    rig.deliver(task("t1", max_retries=3, retry_delay_ms=1000))
    assert rig.machine.next_timeout() == rig.now + 2000
    rig.tick(1999)
    assert rig.of(CancelHandler) == []
    rig.tick(1)
    (cancel,) = rig.of(CancelHandler)
    assert (cancel.run, "2000 ms" in cancel.reason) == (rig.run_of("t1"), True)
    # It failed whatever it answers now.
    rig.succeed("t1", b"late")
    conclusion = rig.held(b"1001-0").conclusion
    assert conclusion is not None
    assert conclusion.kind is EndKind.RETRY
    assert "2000 ms" in conclusion.reason


@pytest.mark.parametrize("answer", [HandlerFailed(1, "x"), HandlerCanceled(1), HandlerRejects(1, "no")])
def test_a_timed_out_handler_fails_for_its_timeout(answer: HandlerFailed | HandlerCanceled | HandlerRejects) -> None:
    rig = Rig(QueueSettings("q", timeout_ms=2000))
    rig.open()
    rig.deliver(task("t1", max_retries=3, retry_delay_ms=1000))
    rig.tick(2000)
    rig.feed(answer)
    conclusion = rig.held(b"1001-0").conclusion
    assert conclusion is not None
    assert (conclusion.kind, "timeout" in conclusion.reason) == (EndKind.RETRY, True)


def test_a_handler_that_ends_in_time_is_left_alone() -> None:
    rig = Rig(QueueSettings("q", timeout_ms=2000), "other", concurrency=2, prefetch=0)
    rig.open()
    rig.deliver(task("t1"))
    rig.succeed("t1")
    rig.answer_all()
    rig.pass_time(5000)
    rig.bring(task("t2"), queue=1)
    rig.pass_time(50_000)
    assert rig.of(CancelHandler) == []


# --- Answers ----------------------------------------------------------------------------------------------


def conclusion_of(rig: Rig, entry_id: bytes = b"1001-0") -> tuple[EndKind, str]:
    conclusion = rig.held(entry_id).conclusion
    assert conclusion is not None
    return conclusion.kind, conclusion.reason


def test_success_is_settled() -> None:
    rig = rig_with(task("t1", send_notif=True))
    rig.succeed("t1", b"result")
    held = rig.held(b"1001-0")
    assert (held.state, held.result) == (TaskState.SUCCEEDED, b"result")


def test_a_failure_is_retried_as_the_task_says() -> None:
    rig = rig_with(task("t1", max_retries=2, retries=1, retry_delay_ms=1000))
    rig.fail("t1", "ValueError: bad")
    assert conclusion_of(rig) == (EndKind.RETRY, "ValueError: bad")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, EndKind.RETRY),
        ({"retries": 1_000_000}, EndKind.RETRY),
        ({"max_retries": 1}, EndKind.RETRY),
        ({"max_retries": 1, "retries": 1}, EndKind.DEAD),
        ({"no_retry": True}, EndKind.DEAD),
    ],
)
def test_retries_are_counted(fields: dict[str, int], kind: EndKind) -> None:
    rig = rig_with(task("t1", **fields))
    rig.fail()
    assert conclusion_of(rig)[0] is kind


def test_reject_ends_it_whatever_retries_are_left() -> None:
    rig = rig_with(task("t1"))
    rig.reject("t1", "no such customer")
    assert conclusion_of(rig) == (EndKind.DEAD, "rejected by the handler: no such customer")


@pytest.mark.parametrize("delay_ms", [0, 1, 5000])
def test_retry_may_say_when(delay_ms: int) -> None:
    rig = rig_with(task("t1", retry_delay_ms=77_000))
    rig.ask_retry("t1", delay_ms, "not yet")
    conclusion = rig.held(b"1001-0").conclusion
    assert conclusion is not None
    assert (conclusion.kind, conclusion.delay_ms, conclusion.reason) == (EndKind.RETRY, delay_ms, "not yet")


def test_retry_without_a_time_takes_that_of_the_task() -> None:
    rig = rig_with(task("t1", retry_delay_ms=1000))
    rig.ask_retry("t1", None)
    conclusion = rig.held(b"1001-0").conclusion
    assert conclusion is not None
    assert 500 <= conclusion.delay_ms <= 1000


def test_retry_counts_as_a_retry() -> None:
    rig = rig_with(task("t1", max_retries=1, retries=1))
    rig.ask_retry("t1", 10, "not yet")
    assert conclusion_of(rig) == (EndKind.DEAD, "not yet")


def test_a_handler_that_stops_by_itself_has_failed() -> None:
    rig = rig_with(task("t1"))
    rig.stop("t1")
    assert conclusion_of(rig) == (EndKind.RETRY, "the handler was canceled")


@pytest.mark.parametrize(("size", "fails"), [(RESULT_BYTES_MAX, False), (RESULT_BYTES_MAX + 1, True)])
def test_a_result_that_is_too_large_is_a_failure_that_says_so(size: int, fails: bool) -> None:
    rig = rig_with(task("t1", no_retry=True))
    rig.succeed("t1", b"x" * size)
    assert (rig.held(b"1001-0").state is TaskState.CONCLUDING) == fails
    if fails:
        assert str(size) in conclusion_of(rig)[1]


@pytest.mark.parametrize("run", [0, 2, 99, -1])
def test_answers_to_runs_that_nobody_waits_for_are_ignored(run: int) -> None:
    rig = rig_with(task("t1"))
    assert rig.feed(HandlerSucceeded(run)) == []
    assert rig.held(b"1001-0").state is TaskState.RUNNING


def test_a_second_answer_is_ignored() -> None:
    rig = rig_with(task("t1"))
    rig.succeed("t1")
    assert rig.fail("t1") == []
    assert rig.held(b"1001-0").state is TaskState.SUCCEEDED


def test_answers_before_the_start_and_after_the_end_are_ignored() -> None:
    rig = Rig()
    assert rig.feed(HandlerSucceeded(1)) == []
    rig.close()
    assert rig.feed(HandlerFailed(1, "x")) == []


# --- A lost lease -----------------------------------------------------------------------------------------


def lost(**fields: object) -> Rig:
    """Another has taken over what runs here."""
    rig = rig_with(task("t1", **fields))
    rig.q.pending[b"1001-0"].owner = OTHER
    rig.pass_time(RENEW + 1)
    assert rig.held(b"1001-0").state is TaskState.LOST
    return rig


def test_a_lost_lease_cancels_the_handler() -> None:
    rig = lost()
    (cancel,) = rig.of(CancelHandler)
    assert "node2:bbbb has taken it over" in cancel.reason
    assert [note.task_id for note in rig.notes(LeaseLost)] == ["t1"]
    rig.pass_time(5 * RENEW)
    assert len(rig.of(CancelHandler)) == 1


@pytest.mark.parametrize("answer", [HandlerFailed(1, "x"), HandlerCanceled(1), HandlerRejects(1, "no")])
def test_a_failure_after_a_lost_lease_is_dropped(answer: HandlerFailed | HandlerCanceled | HandlerRejects) -> None:
    rig = lost()
    rig.clear()
    rig.feed(answer)
    assert rig.machine.tasks.by_id == {}
    assert [note.task_id for note in rig.notes(TaskReleased)] == ["t1"]
    rig.pass_time(2 * RENEW)
    assert rig.q.pending[b"1001-0"].owner == OTHER
    assert b"1001-0" in rig.q.bodies


def test_a_success_after_a_lost_lease_is_settled() -> None:
    rig = lost()
    rig.succeed()
    assert commands_named(rig.batch(), b"XDEL")
    rig.answer_all()
    assert rig.q.bodies == {}
    assert rig.machine.tasks.by_id == {}


def test_too_large_a_result_after_a_lost_lease_is_dropped() -> None:
    rig = lost()
    rig.succeed("t1", b"x" * (RESULT_BYTES_MAX + 1))
    assert rig.machine.tasks.by_id == {}
    assert b"1001-0" in rig.q.bodies


def test_a_timeout_after_a_lost_lease_asks_nobody_again() -> None:
    rig = Rig(QueueSettings("q", timeout_ms=RENEW * 2))
    rig.open()
    rig.bring(task("t1"))
    rig.q.pending[b"1001-0"].owner = OTHER
    rig.pass_time(RENEW * 5)
    assert len(rig.of(CancelHandler)) == 1
    assert rig.held(b"1001-0").state is TaskState.LOST


# --- How long a retry waits -------------------------------------------------------------------------------


def entry(**fields: object) -> TaskEntry:
    return TaskEntry(**{"task_id": "t", "client_id": "c", "data": b"", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "delay"),
    [
        ({"retry_delay_ms": 1000}, 1000),
        ({"retry_delay_ms": 0, "retry_backoff": 2.0, "retries": 100}, 0),
        ({"retry_delay_ms": 1000, "retries": 5}, 1000),  # a task of the Go library
        ({"retry_delay_ms": 1000, "retry_backoff": 2.0, "retries": 1}, 2000),
        ({"retry_delay_ms": 1000, "retry_backoff": 2.0, "retries": 4}, 16000),
        ({"retry_delay_ms": 1000, "retry_backoff": 2.0, "retries": 9, "retry_delay_max_ms": 300_000}, 300_000),
        ({"retry_delay_ms": 1000, "retry_backoff": 2.0, "retries": 8, "retry_delay_max_ms": 300_000}, 256_000),
        ({"retry_delay_ms": 9000, "retry_delay_max_ms": 5000}, 5000),
        ({"retry_delay_ms": 1000, "retry_backoff": 0.5, "retries": 3}, 1000),
        ({"retry_delay_ms": 1000, "retry_backoff": 1.5, "retries": 3}, 3375),
        ({"retry_delay_ms": 1, "retry_backoff": 1.5, "retries": 10}, 57),  # small ones grow as well
    ],
)
def test_the_delay_grows_with_the_retries(fields: dict[str, float], delay: int) -> None:
    assert retry_delay(entry(**fields)) == delay


@pytest.mark.parametrize("retries", [2**63 - 1, 10**6, 5000, 100])
@pytest.mark.parametrize("backoff", [1.0, 1.000001, 1.1, 999_999.999999])
@pytest.mark.parametrize("delay", [0, 1, 1000, 2**63 - 1])
def test_whatever_a_producer_wrote_the_delay_is_found_at_once(retries: int, backoff: float, delay: int) -> None:
    """`retries` comes from outside: to count up to it would stop the worker for ever."""
    found = retry_delay(entry(retry_delay_ms=delay, retry_backoff=backoff, retries=retries))
    assert min(delay, NEVER) <= found <= NEVER
    assert retry_delay(entry(retry_delay_ms=delay, retry_backoff=backoff, retries=retries, retry_delay_max_ms=7)) <= 7


def test_delays_are_jittered_on_their_upper_half() -> None:
    delays = set()
    rig = rig_with(*[task(f"t{at}", retry_delay_ms=1000, retry_backoff=2.0, retries=2) for at in range(10)])
    for at in range(10):
        rig.fail(f"t{at}")
        conclusion = rig.held(b"%d-0" % (1001 + at)).conclusion
        assert conclusion is not None
        delays.add(conclusion.delay_ms)
    assert len(delays) > 5
    assert all(2000 <= delay <= 4000 for delay in delays)
