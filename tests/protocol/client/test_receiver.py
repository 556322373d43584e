"""The receiver stream: made before the first tracked task leaves, read from a cursor, emptied by what was read."""

from __future__ import annotations

import pytest

from streamfleet_protocol.effects import Batch, Connect, End, FaultCleared, Faulted, Lane, Settled
from streamfleet_protocol.link import LinkState
from streamfleet_protocol.notes import BadNotification, DataLossSeen, OperationRefused
from streamfleet_protocol.replies import ErrorReply, Ok, RawReply, Refused
from streamfleet_protocol.timing import NEVER
from streamfleet_protocol.wire import Notification, NotificationType, encode_notification

from ..support import RECEIVER, But, ClientScript, error, events, notes, of

MADE, READ, DELETED, BATCH = "receiver.on_made", "receiver.on_read", "receiver.on_deleted", "outbox.on_batch"
BUSY = ErrorReply("BUSYGROUP Consumer Group name already exists")


def tracking(tasks: int = 1) -> ClientScript:
    """A client with tracked tasks in Redis, reading."""
    script = ClientScript(collect_interval_ms=10**9)
    script.track(*[b"x"] * tasks)
    script.start()
    assert script.waits_for(READ, lane=Lane.READ)
    return script


def cursor(script: ClientScript) -> object:
    """From where the read in flight begins."""
    return script.flight(Lane.READ)[READ][0][-1]


def words(script: ClientScript) -> list[Settled]:
    """All settlements so far."""
    return of(script.effects, Settled)


# Making it.


def test_nobody_makes_it_for_tasks_that_are_not_tracked() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    script.start()
    script.live(100_000)
    assert RECEIVER not in script.peer.streams
    assert not any(Lane.READ is connect.lane for connect in of(script.effects, Connect))


def test_it_is_made_and_confirmed_before_the_first_tracked_batch_leaves() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    script.track(b"b")
    script.enqueue(b"c")
    script.connect()
    script.advance_to(MADE)
    assert BATCH not in script.flight()
    script.answer()
    assert BATCH in script.flight()
    script.answer_all()
    assert script.in_stream() == ["t1", "t2", "t3"]


def test_a_task_tracked_later_has_it_made_then() -> None:
    script = ClientScript()
    script.start()
    script.track(b"a")
    assert script.waits_for("heartbeat.on_beat", "outbox.on_watched", "heartbeat.on_signs", MADE)
    script.answer()
    assert BATCH in script.flight()


@pytest.mark.parametrize("code", ["OOM", "LOADING", "NOPERM", "WRONGTYPE"])
def test_while_it_cannot_be_made_no_tracked_task_leaves(code: str) -> None:
    script = ClientScript()
    script.start()
    script.track(b"a")
    waits = []
    for _ in range(8):
        script.answer({MADE: Refused(error(code))})
        began = script.now
        script.live_to(MADE)
        assert script.in_stream() == []
        waits.append(script.now - began)
    assert waits[-1] >= 1_500
    assert bool(of(script.effects, Faulted)) is (code in ("NOPERM", "WRONGTYPE"))
    script.answer_all()
    assert script.in_stream() == ["t1"]
    assert bool(of(script.effects, FaultCleared)) is (code in ("NOPERM", "WRONGTYPE"))


def test_tasks_behind_one_that_waits_for_it_keep_their_place() -> None:
    script = ClientScript()
    script.start()
    script.track(b"a")
    script.enqueue(b"b")
    script.answer({MADE: Refused(error("OOM"))})
    script.answer_all()
    assert script.in_stream() == []
    script.live(1_000)
    assert script.in_stream() == ["t1", "t2"]


def test_tasks_before_one_that_waits_for_it_do_not_wait() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    script.track(b"b")
    script.enqueue(b"c")
    script.connect()
    script.answer()
    script.answer({MADE: Refused(error("OOM"))})
    script.answer_all()
    assert script.in_stream() == ["t1"]
    script.live(1_000)
    assert script.in_stream() == ["t1", "t2", "t3"]


def test_each_heartbeat_makes_sure_of_it() -> None:
    script = tracking()
    script.live_to(MADE)
    effects = script.answer()
    assert notes(effects, DataLossSeen) == []
    assert script.machine.tracker.audit_at == NEVER, "BUSYGROUP: it was there"


def test_where_it_had_to_be_made_again_words_may_be_lost() -> None:
    script = tracking()
    script.peer._del(RECEIVER)
    script.live_to(MADE)
    began = script.now
    effects = script.answer()
    assert [note.what for note in notes(effects, DataLossSeen)] == ["the stream of notifications"]
    assert script.machine.tracker.audit_at == began + 30_000


@pytest.mark.parametrize("applied", [True, False])
def test_a_creation_whose_answer_is_lost_counts_as_was_gone(applied: bool) -> None:
    """Finding 19: the next one says BUSYGROUP, and would hide the loss."""
    script = tracking()
    script.peer._del(RECEIVER)
    script.live_to(MADE)
    script.reconnect(applied=applied)
    script.machine.tracker.audit_at = NEVER
    script.advance_to(MADE)
    script.answer()
    assert script.machine.tracker.audit_at == script.now + 30_000


def test_the_first_creation_loses_nothing() -> None:
    """No tracked task was sent before it."""
    script = ClientScript()
    script.start()
    script.track(b"a")
    script.reconnect(applied=True)
    script.answer_all()
    assert script.machine.tracker.audit_at == script.now + 30_000, "the regular audit after a reconnect"
    assert notes(script.effects, DataLossSeen) == []


def test_a_new_connection_makes_sure_of_it_at_once() -> None:
    script = tracking()
    script.reconnect()
    script.answer()
    assert MADE in script.flight()


# Reading it.


def test_the_form_of_a_read() -> None:
    script = tracking()
    assert script.flight(Lane.READ)[READ] == ((b"XREAD", b"COUNT", 500, b"BLOCK", 5_000, b"STREAMS", RECEIVER, b"0"),)
    assert script.machine.links[Lane.READ].deadline == script.now + 7_000


def test_a_read_without_words_is_made_again() -> None:
    script = tracking()
    effects = script.answer(lane=Lane.READ)
    assert [batch.purposes for batch in of(effects, Batch)] == [(READ,)]
    assert cursor(script) == b"0"


def test_a_word_settles_and_is_deleted() -> None:
    script = tracking(2)
    one = script.say("t2", result=b"42")
    effects = script.answer(lane=Lane.READ)
    assert events(effects) == [Settled("t2", End.COMPLETED, "", b"42")]
    assert script.flight()[DELETED] == ((b"XDEL", RECEIVER, one),)
    assert cursor(script) == one
    script.answer_all()
    assert script.peer.streams[RECEIVER] == []


@pytest.mark.parametrize(
    ("kind", "text", "end"),
    [
        ("completed", "", End.COMPLETED),
        ("error", "ValueError: no", End.FAILED),
        ("expired", "", End.EXPIRED),
        ("canceled", "why", End.CANCELED),
    ],
)
def test_kinds_of_words(kind: str, text: str, end: End) -> None:
    script = tracking()
    script.say("t1", kind, text, b"result")
    effects = script.answer(lane=Lane.READ)
    assert events(effects) == [Settled("t1", end, text, b"result" if end is End.COMPLETED else None, True)]


def test_a_canceled_task_without_a_reason() -> None:
    script = tracking()
    script.say("t1", "canceled")
    assert of(script.answer(lane=Lane.READ), Settled)[0].text == "a worker gave it up"


def test_the_first_word_wins() -> None:
    script = tracking()
    script.say("t1", "completed", result=b"first")
    script.say("t1", "error", "second")
    script.answer(lane=Lane.READ)
    script.say("t1", "expired")
    script.answer(lane=Lane.READ)
    script.answer_all()
    assert words(script) == [Settled("t1", End.COMPLETED, "", b"first")]
    assert script.peer.streams[RECEIVER] == []


def test_a_word_about_nobody_is_deleted() -> None:
    script = tracking()
    script.say("somebody-else")
    assert events(script.answer(lane=Lane.READ)) == []
    script.answer_all()
    assert script.peer.streams[RECEIVER] == []


def test_a_word_may_come_before_the_confirmation() -> None:
    """The batch's reply is lost, and a worker is quicker than the next connection."""
    script = tracking()
    script.track(b"b")
    script.lose(applied=True)
    script.say("t2")
    assert of(script.answer(lane=Lane.READ), Settled)
    script.pass_time(100)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1", "t2"]
    assert script.machine.admission.tasks == 0


def test_what_settled_is_not_sent_again() -> None:
    """The batch's reply is lost, the task has run, and the server was rolled back since."""
    script = tracking()
    script.track(b"b")
    script.lose(applied=False)
    script.say("t2")
    script.answer(lane=Lane.READ)
    script.pass_time(100)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1"]
    assert script.machine.admission.tasks == 0
    assert script.held() == []


def test_bad_words_are_told_and_deleted() -> None:
    script = tracking()
    script.peer.append(RECEIVER, [b"enc_version", b"1"])
    script.peer.append(RECEIVER, [b"enc_version", b"9", b"task_id", b"t1", b"type", b"completed", b"err_msg", b""])
    effects = script.answer(lane=Lane.READ)
    assert ["missing" in note.reason for note in notes(effects, BadNotification)] == [True, False]
    assert events(effects) == []
    script.answer_all()
    assert script.peer.streams[RECEIVER] == []


WORD = list(encode_notification(Notification("t1", NotificationType.COMPLETED)))


@pytest.mark.parametrize(
    "reply",
    [
        *(7, b"x", [], [7], [[RECEIVER]], [[RECEIVER, 7]], [[RECEIVER, [7]]], [[RECEIVER, [[b"1-0"]]]]),
        *([[RECEIVER, [[7, WORD]]]], [[RECEIVER, [[b"1-0", 7]]]], [[RECEIVER, [[b"1-0", [7, 8]]]]]),
        *([[RECEIVER, [[b"1-0", None]]]], [[RECEIVER, None]]),
    ],
    ids=repr,
)
def test_strange_replies_settle_nothing(reply: RawReply) -> None:
    script = tracking()
    effects = script.answer({READ: Ok([reply])}, lane=Lane.READ)
    assert events(effects) == []
    assert script.waits_for(READ, lane=Lane.READ)


def test_many_words_are_deleted_in_bounded_commands() -> None:
    script = tracking(3)
    for at in range(1_200):
        script.say("t1" if at % 2 else "nobody")
    script.enqueue(b"b")
    for _ in range(3):
        script.answer(lane=Lane.READ)
    script.answer()
    assert len(script.flight()[DELETED][0]) == 2 + 1_000
    script.answer_all()
    assert script.peer.streams[RECEIVER] == []


# The cursor.


def test_the_cursor_goes_back_on_every_new_connection() -> None:
    """Finding 20: after a failover to a clock that lags, new ids may be lower than old ones."""
    script = tracking()
    script.say("t1")
    script.answer(lane=Lane.READ)
    script.answer_all()
    assert cursor(script) != b"0"
    script.reconnect(Lane.READ)
    assert cursor(script) == b"0"


def test_the_cursor_goes_back_when_the_stream_was_made_again() -> None:
    script = tracking(2)
    script.say("t1")
    script.answer(lane=Lane.READ)
    script.answer_all()
    script.peer._del(RECEIVER)
    script.peer.ids = 0
    script.live_to(MADE)
    script.answer()
    script.say("t2")
    script.answer({READ: Ok([None])}, lane=Lane.READ)
    assert cursor(script) == b"0"
    script.answer(lane=Lane.READ)
    assert [settled.task_id for settled in words(script)] == ["t1", "t2"]


def test_a_read_that_was_begun_before_the_cursor_went_back_does_not_move_it() -> None:
    """It began at an old cursor, and has passed over what stands below that."""
    script = tracking(3)
    script.peer.ids = 100
    script.say("t1")
    script.answer(lane=Lane.READ)
    script.answer_all()
    script.peer._del(RECEIVER)
    script.live_to(MADE)
    script.answer()
    script.peer.ids = 0
    script.say("t2")
    script.peer.ids = 200
    script.say("t3")
    script.answer(lane=Lane.READ)
    assert [settled.task_id for settled in words(script)] == ["t1", "t3"]
    assert cursor(script) == b"0"
    script.answer(lane=Lane.READ)
    assert [settled.task_id for settled in words(script)] == ["t1", "t3", "t2"]


def test_what_could_not_be_deleted_is_read_and_deleted_again() -> None:
    script = tracking()
    script.say("t1")
    script.answer(lane=Lane.READ)
    script.lose()
    script.pass_time(100)
    script.connect()
    script.answer({READ: Ok([None])}, lane=Lane.READ)
    script.answer(lane=Lane.READ)
    script.answer_all()
    assert script.peer.streams[RECEIVER] == []
    assert len(words(script)) == 1


def test_a_refused_deletion_is_tried_again_with_back_off() -> None:
    """MISCONF refuses deletions, and lets reads pass: without a pause they would chase each other."""
    script = tracking()
    script.say("t1")
    script.answer(lane=Lane.READ)
    waits = []
    for _ in range(9):
        effects = script.answer({DELETED: Refused(error("MISCONF"))})
        assert [note.operation for note in notes(effects, OperationRefused)] == ["deleting notifications"]
        began = script.now
        script.live_to(DELETED)
        waits.append(script.now - began)
    assert waits[-1] >= 2_500
    assert script.answer({DELETED: Refused(error("NOPERM"))})[0] == Faulted(error("NOPERM"))
    script.live_to(DELETED)
    assert FaultCleared() in script.answer()
    assert script.peer.streams[RECEIVER] == []


def test_a_refused_read_is_tried_again_with_back_off() -> None:
    script = tracking()
    waits = []
    for _ in range(9):
        script.answer({READ: Refused(error("LOADING"))}, lane=Lane.READ)
        assert script.flight(Lane.READ) == {}
        began = script.now
        while not script.flight(Lane.READ):
            script.live(1)
        waits.append(script.now - began)
    assert waits[0] <= 50
    assert waits[-1] >= 2_500
    assert cursor(script) == b"0"


def test_a_read_lane_that_points_elsewhere_is_opened_again() -> None:
    """UNBLOCKED after REPLICAOF counts as a reconnect: the words may be rolled back (finding 2, section 2)."""
    script = tracking()
    script.answer({READ: Refused(error("UNBLOCKED"))}, lane=Lane.READ)
    assert script.machine.links[Lane.READ].state is LinkState.DOWN
    assert script.machine.command.state is LinkState.UP
    script.pass_time(100)
    script.connect(Lane.READ)
    assert script.machine.tracker.audit_at == script.now + 30_000


def test_a_fault_of_the_read_lane() -> None:
    script = tracking()
    effects = script.answer({READ: Refused(error("NOPERM"))}, lane=Lane.READ)
    assert Faulted(error("NOPERM")) in effects
    script.live(50)
    assert FaultCleared() in script.answer(lane=Lane.READ)


def test_a_read_that_is_never_answered_is_given_up() -> None:
    """BLOCK runs on the server's clock; the deadline on our own."""
    script = tracking()
    script.pass_time(6_999)
    assert script.machine.links[Lane.READ].state is LinkState.UP
    script.pass_time(1)
    assert script.machine.links[Lane.READ].state is LinkState.DOWN


def test_reading_goes_on_while_the_command_lane_is_down() -> None:
    script = tracking()
    script.lose()
    script.say("t1")
    assert of(script.answer(lane=Lane.READ), Settled)


def test_deletions_go_on_while_nothing_else_is_taken() -> None:
    """A full server refuses to arm, and lets XDEL pass, which makes room."""
    script = tracking()
    script.enqueue(b"b")
    script.answer({BATCH: Refused(error("OOM"))})
    script.pass_time(50)
    script.answer({"outbox.on_armed": But({1: error("OOM")})})
    script.say("t1")
    script.answer(lane=Lane.READ)
    assert DELETED in script.flight()
