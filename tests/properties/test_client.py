"""The client's machine under random inputs.

Two worlds. In the first the server may answer anything, garbage too: then the machine must keep its own rules. In the
second it is honest (but connections break at any point, answers are lost, old bytes are executed late, data is flushed,
everything may be refused): then every task must be there in the end, and without data loss exactly once.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streamfleet_protocol import ClientMachine
from streamfleet_protocol.client.closing import Stage
from streamfleet_protocol.commands import EXEC, MULTI
from streamfleet_protocol.effects import (
    Accepted,
    Batch,
    ClientClosed,
    Connect,
    Disconnect,
    Effect,
    End,
    Flushed,
    Lane,
    Rejected,
    Settled,
)
from streamfleet_protocol.inputs import (
    CloseClient,
    Connected,
    Disconnected,
    Enqueue,
    Flush,
    Reply,
    Several,
    TaskOptions,
    Timeout,
    Withdraw,
)
from streamfleet_protocol.link import LinkState, Section
from streamfleet_protocol.machine import Machine
from streamfleet_protocol.members import unpack_member
from streamfleet_protocol.replies import Aborted, ErrorReply, Ok, RawReply, Refused
from streamfleet_protocol.settings import ClientSettings
from streamfleet_protocol.wire import Notification, NotificationType, decode_task, encode_notification
from tests.protocol.support import REDIS_START, Answer, But, Peer, Script

QUEUES = ("a", "b")
SETTINGS: dict[str, Any] = {
    "queues": QUEUES,
    "client_id": "me",
    "seed": 7,
    "max_local_queue": 6,
    "max_local_bytes": 40,
    "retention_ms": 3_000,
    "retention_bytes": 2_000,
    "heartbeat_ms": 1_000,
    "batch_commands": 3,
    "batch_bytes": 20,
    "command_timeout_ms": 300,
    "connect_timeout_ms": 400,
    "block_ms": 500,
    "read_margin_ms": 200,
    "backoff_most_ms": 400,
    "reconnect_audit_ms": 900,
    "audit_interval_ms": 4_000,
    "audit_grace_ms": 700,
    "deadline_wait_ms": 2_000,
    "silence_ms": 3_000,
    "collect_interval_ms": 800,
}
"""Small numbers, so that everything happens within a few moves."""

OPTIONS = [
    TaskOptions(),
    TaskOptions(expires_in_ms=600),
    TaskOptions(expires_ts=REDIS_START + 2_500),
    TaskOptions(delay_ms=900),
    TaskOptions(due_ts=REDIS_START + 1_500, max_retries=0),
    TaskOptions(expires_in_ms=3_000, delay_ms=10),
]
ERRORS = [
    ErrorReply(text)
    for text in (
        *("LOADING x", "OOM x", "READONLY x", "NOPERM x", "WRONGTYPE x", "BUSYGROUP x", "NOGROUP x", "UNBLOCKED x"),
        *("EXECABORT Transaction discarded because of: OOM x", "ERR strange", "", "CONNECTION x", "WRONGPASS x"),
    )
]
WORD = list(encode_notification(Notification("t1", NotificationType.COMPLETED)))
junk: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, 0, 1, 2, 7, b"", b"OK", b"0", b"1", b"2", b"99", b"1-0", b"x", b"9" * 30, [], [None]]),
    st.sampled_from(ERRORS),
    st.sampled_from(
        [
            [b"0", []],
            [b"7", [b"x", b"1"]],
            [b"1700000000", b"0"],
            [b"x", b"y"],
            [[b"1-0", [b"id", b"t1"]]],
            [[b"s", [[b"1-0", WORD]]]],
            [[b"s", [[b"1-0", WORD[:-1]]]]],
            [[b"s", [[7, []]] * 500]],
            [[]] * 50,
            [b"other", b"5", b"me", b"6"],
            [b"\xff", b"5"],
        ]
    ),
    st.recursive(st.none() | st.integers() | st.binary(max_size=3), lambda inner: st.lists(inner, max_size=3)),
)

small = st.integers(0, 9)
lanes = st.sampled_from([Lane.COMMAND, Lane.COMMAND, Lane.COMMAND, Lane.READ])
enqueues = st.tuples(
    st.just("enqueue"), st.sampled_from([*QUEUES, "unknown"]), st.integers(0, 4), st.booleans(), st.booleans(), small
)
times = st.tuples(st.just("time"), st.sampled_from([0, 1, 10, 50, 100, 300, 700, 1_500, 5_000]))
common = st.one_of(
    enqueues,
    enqueues,
    times,
    *[st.tuples(st.sampled_from(["due", "connect", "answer all"]), small)] * 3,
    *[st.tuples(st.just("live"), st.sampled_from([20, 300, 1_200, 2_500]))] * 2,
    st.tuples(st.sampled_from(["flush", "spurious", "connect"]), small),
    st.tuples(st.just("word"), small, st.sampled_from(list(NotificationType))),
    st.tuples(st.just("take"), small),
)
wild_moves = st.one_of(
    common,
    st.tuples(st.just("answer"), lanes, st.lists(st.tuples(st.integers(0, 6), st.lists(junk, max_size=4)), max_size=5)),
    st.tuples(st.just("answer"), lanes, st.just([])),
    st.tuples(st.just("withdraw"), small),
    st.tuples(st.just("lose"), lanes, small),
    st.tuples(st.just("old news"), small),
    st.tuples(st.just("flush all"), small),
    st.tuples(st.just("several"), small),
)
begins = st.integers(0, 3)
"""How far the world is when the moves begin."""
closes = st.tuples(st.just("close"), st.sampled_from([0, 100, 2_000]))


def moves(one: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Many moves: most short lists are boring."""
    return st.integers(0, 50).flatmap(lambda least: st.lists(one, min_size=least, max_size=least + 10))


class Rules:
    """What must hold of a client, whatever it is fed; looked at after each step."""

    def __init__(self, machine: ClientMachine) -> None:
        self.machine = machine
        self.up: set[Lane] = set()
        self.in_flight: dict[Lane, int] = {}
        self.calls: set[int] = set()
        self.flushes: set[int] = set()
        self.ends: Counter[str] = Counter()
        self.tracked: set[str] = set()
        """Tracked tasks that were accepted, or may have been."""
        self.settled: set[str] = set()
        self.closed = False

    def asked(self, event: Any) -> None:
        """An input goes in."""
        if isinstance(event, Enqueue):
            self.calls.add(event.call)
            if event.tracked:
                self.tracked.update(event.task_ids)
        elif isinstance(event, Flush):
            self.flushes.add(event.call)
        elif isinstance(event, Reply):
            for lane, token in list(self.in_flight.items()):
                if token == event.token:
                    del self.in_flight[lane]
        elif isinstance(event, Connected) and self.machine.links[event.lane].state is LinkState.CONNECTING:
            if event.generation == self.machine.links[event.lane].generation:
                self.up.add(event.lane)
        elif isinstance(event, Disconnected) and self.machine.links[event.lane].concerns(event.generation):
            self.up.discard(event.lane)
            self.in_flight.pop(event.lane, None)
        elif isinstance(event, Several):
            for one in event.inputs:
                self.asked(one)

    def answered(self, effects: list[Effect]) -> None:
        """Effects come out."""
        for effect in effects:
            assert not self.closed or isinstance(effect, Rejected | Flushed), ("after the end", effect)
            if isinstance(effect, Batch):
                assert effect.lane in self.up
                assert effect.lane not in self.in_flight, "one batch in flight a lane"
                self.in_flight[effect.lane] = effect.token
                well_formed(effect)
            elif isinstance(effect, Disconnect):
                self.up.discard(effect.lane)
                self.in_flight.pop(effect.lane, None)
            elif isinstance(effect, Accepted):
                self.calls.remove(effect.call)
            elif isinstance(effect, Rejected):
                assert effect.call in self.calls | self.flushes
                self.calls.discard(effect.call)
                self.flushes.discard(effect.call)
            elif isinstance(effect, Flushed):
                self.flushes.remove(effect.call)
            elif isinstance(effect, Settled):
                assert effect.task_id in self.tracked
                assert effect.task_id not in self.settled, "a handle settles once"
                self.settled.add(effect.task_id)
            elif isinstance(effect, ClientClosed):
                self.closed = True
                assert not self.calls
                assert not self.flushes
                assert not self.machine.tracker.handles
                assert effect.confirmed >= 0
                assert not set(effect.unsent) & set(effect.unknown)
        for lane, link in self.machine.links.items():
            assert (lane in self.up) is (link.state is LinkState.UP)
            assert self.in_flight.get(lane, 0) == link.token

    def counts(self) -> None:
        """What is counted is what is there."""
        machine = self.machine
        admission, outbox = machine.admission, machine.outbox
        held = [
            task
            for queue in machine.queues.values()
            for task in (*queue.waiting, *(queue.in_flight.tasks if queue.in_flight else ()))
        ]
        assert admission.tasks == len(held)
        assert admission.bytes == sum(len(task.data) for task in held)
        kept = sum(batch.size for queue in machine.queues.values() for batch in queue.retained)
        assert outbox.retained_bytes == kept <= machine.settings.retention_bytes
        assert outbox.confirmed >= 0
        assert len({task.task_id for task in held}) == len(held), "a task is held once"
        for queue in machine.queues.values():
            ordinals = [task.ordinal for task in queue.waiting]
            assert ordinals == sorted(ordinals)
            assert 0 <= queue.confirmed <= queue.sequence
            assert not any(task.tracked for batch in queue.retained for task in batch.tasks)
        due = machine.next_timeout()
        assert due is None or due >= machine.now
        if machine.closing.stage is Stage.CLOSED:
            assert due is None


def well_formed(batch: Batch) -> None:
    """At most one EXEC; after it, in the same write, the WATCH that guards the next; MULTI and EXEC in pairs."""
    assert batch.commands.count(EXEC) == batch.commands.count(MULTI) <= 1
    if EXEC in batch.commands:
        after = batch.commands[batch.commands.index(EXEC) + 1 :]
        assert any(command[0] == b"WATCH" and b":conn:me" in command[1] for command in after)  # type: ignore[operator]
        names = [command[0] for command in after]
        assert b"SET" not in names or b"UNWATCH" in names
    if batch.lane is Lane.READ:
        assert [command[0] for command in batch.commands] == [b"XREAD"]


class World(Script):
    """Makes inputs out of moves, and looks after the rules."""

    machine: ClientMachine

    def __init__(self, **changes: Any) -> None:
        super().__init__(ClientMachine(ClientSettings(**{**SETTINGS, **changes})), Peer(), now=50_000)
        self.read_margin_ms = SETTINGS["read_margin_ms"]
        self.rules = Rules(self.machine)
        self.named = 0
        self.call = 0
        self.history: list[tuple[int, Any]] = []

    def feed(self, event: Any) -> list[Effect]:
        self.history.append((self.now, event))
        self.rules.asked(event)
        effects = super().feed(event)
        self.rules.answered(effects)
        self.rules.counts()
        return effects

    def begin(self, how_far: int) -> None:
        """Nothing, a task, a connection, or everything that a client can have."""
        if how_far > 0:
            self.do_enqueue("a", 2, how_far == 3, True, 0)
        if how_far > 1:
            self.connect()
            self.answer_all()
        if how_far > 2:
            self.connect(Lane.READ)

    def move(self, move: tuple[Any, ...]) -> None:
        """One move; where it does not fit, nothing."""
        getattr(self, "do_" + move[0].replace(" ", "_"))(*move[1:])

    def request(self, queue: str, count: int, tracked: bool, wait: bool, options: int) -> Enqueue:
        """An enqueue call of fresh tasks."""
        ids = tuple(f"t{self.named + at + 1}" for at in range(count))
        self.named += count
        self.call += 1
        data = tuple(b"x" * (at * 7 % 13) for at in range(self.named, self.named + count))
        return Enqueue(self.call, queue, ids, data, OPTIONS[options % len(OPTIONS)], tracked, wait)

    def do_enqueue(self, *arguments: Any) -> None:
        self.feed(self.request(*arguments))

    def do_several(self, count: int) -> None:
        tracked = bool(count % 2)
        self.call += 1
        call = self.call
        self.feed(Several((self.request("a", count, tracked, True, count), Flush(call), Timeout())))

    def do_flush(self, _: int) -> None:
        self.call += 1
        self.feed(Flush(self.call))

    def do_withdraw(self, back: int) -> None:
        call = self.call - back
        self.rules.flushes.discard(call)
        self.feed(Withdraw(call))

    def do_connect(self, _: int) -> None:
        for lane, link in self.machine.links.items():
            if link.state is LinkState.CONNECTING:
                self.connect(lane)
                return

    def do_answer_all(self, most: int) -> None:
        for _ in range(most):
            if self.machine.command.token:
                self.answer()

    def do_lose(self, lane: Lane, why: int) -> None:
        link = self.machine.links[lane]
        if link.state in (LinkState.UP, LinkState.CONNECTING):
            reason = ERRORS[why % len(ERRORS)] if why > 6 else ErrorReply("CONNECTION gone")
            self.lose(lane, reason, applied=why % 2 == 0 and lane is Lane.COMMAND)

    def do_answer(self, lane: Lane, modes: list[tuple[int, list[Any]]]) -> None:
        link = self.machine.links[lane]
        if not link.token:
            return
        replies: list[RawReply] = []
        for at, section in enumerate(link.in_flight):
            mode, values = modes[at] if at < len(modes) else (0, [])
            given = answer_of(section, mode, values)
            replies += self._replies((section,), {".".join(section.handler): given} if given else {})
        if modes and modes[0][0] == 6 and link.in_flight[0].commands[0] == MULTI:
            replies[-1 if len(link.in_flight) == 1 else len(link.in_flight[0].commands) - 1] = modes[0][1]
        self.feed(Reply(link.token, replies))

    def do_time(self, span: int) -> None:
        self._move_to(self.now + span)
        self.feed(Timeout())

    def do_live(self, span: int) -> None:
        """A while without faults."""
        end = self.now + span
        for _ in range(200):
            self.do_connect(0)
            if self.machine.command.token:
                self.answer()
                continue
            due = self._due(True)
            if due > end:
                break
            self._move_to(max(self.now, due))
            self._happen(True)
        self._move_to(max(self.now, end))

    def do_due(self, _: int) -> None:
        """What a driver does: come back when asked to. Then something happens, or the machine waits for longer."""
        due = self.machine.next_timeout()
        if due is None:
            return
        self._move_to(max(self.now, due))
        effects = self.feed(Timeout())
        after = self.machine.next_timeout()
        assert after is None or after > self.now or any(isinstance(effect, Batch | Connect) for effect in effects)

    def do_spurious(self, part: int) -> None:
        """A Timeout before its time changes nothing but the clock."""
        due = self.machine.next_timeout()
        assert due is None or due >= self.now or self.machine.now < self.now
        before = self.machine.snapshot()
        twin = Machine[Any].restore(before)
        at = self.machine.now + part if due is None else self.machine.now + (due - self.machine.now) * part // 10
        if due is not None and at >= due:
            return
        assert twin.step(at, Timeout()) == []
        twin.now, twin.due = self.machine.now, self.machine.due
        assert twin.snapshot() == before

    def do_old_news(self, at: int) -> None:
        generation = self.machine.links[Lane.COMMAND].generation
        news = [
            Reply(self.machine.links[Lane.COMMAND].token + 2, []),
            Reply(0, [b"x"]),
            Connected(Lane.COMMAND, generation - 1),
            Connected(Lane.READ, -1),
            Disconnected(Lane.COMMAND, generation - 1, ErrorReply("CONNECTION x")),
            Disconnected(Lane.READ, 99, ErrorReply("NOAUTH x")),
        ]
        before = self.machine.snapshot()
        if self.machine.next_timeout() is None or self.machine.due > self.now:
            effects = self.feed(news[at % len(news)])
            assert effects == []
            assert self.machine.snapshot() == before or self.machine.now != before

    def do_flush_all(self, _: int) -> None:
        self.peer.flush()

    def do_word(self, number: int, kind: NotificationType) -> None:
        word = encode_notification(Notification(f"t{max(1, self.named - number)}", kind, "why", b"result"))
        if b"streamfleet:receiver:me" in self.peer.streams:
            self.peer.append(b"streamfleet:receiver:me", word if number < 9 else word[:-2])

    def do_take(self, number: int) -> None:
        """A worker takes a task, and ends it without a word."""
        task_id = f"t{max(1, self.named - number)}"
        for queue in QUEUES:
            stream = b"streamfleet:" + queue.encode()
            entries = self.peer.streams.get(stream, [])
            self.peer.streams[stream] = [entry for entry in entries if decode_task(entry[1]).task_id != task_id]

    def do_close(self, timeout: int) -> None:
        self.feed(CloseClient(timeout))

    def present(self) -> Counter[str]:
        """The tasks that the server has, and how often."""
        found: Counter[str] = Counter()
        for queue in QUEUES:
            stream = b"streamfleet:" + queue.encode()
            found.update(decode_task(fields).task_id for _, fields in self.peer.streams.get(stream, []))
            members = self.peer.sorted_sets.get(b"{" + stream + b"}:delayed", {})
            found.update(decode_task(unpack_member(member)).task_id for member in members)
        return found


def answer_of(section: Section, mode: int, values: list[Any]) -> Answer | None:
    """One answer of many kinds to a section; None: the peer's own."""
    commands = section.commands
    count = len(commands) - 2 if commands[0] == MULTI else len(commands)
    errors = [value for value in values if isinstance(value, ErrorReply)]
    if mode == 1:
        return Refused(errors[0] if errors else ErrorReply("OOM x"))
    if mode == 2 and commands[0] == MULTI:
        return Aborted()
    if mode == 3:
        return Ok((values * count)[:count] if values else [None] * count)
    if mode in (4, 5):
        return But({at % count: value for at, value in enumerate(values)})
    return None


@settings(max_examples=150, deadline=None)
@given(begins, moves(wild_moves), st.lists(st.one_of(wild_moves, closes), max_size=15))
def test_whatever_the_server_says_the_machine_keeps_its_rules(begin: int, first: list[Any], second: list[Any]) -> None:
    world = World()
    world.begin(begin)
    for move in (*first, *second):
        world.move(move)


@settings(max_examples=60, deadline=None)
@given(begins, moves(wild_moves), moves(st.one_of(wild_moves, closes)))
def test_a_restored_machine_does_the_same_from_there_on(begin: int, first: list[Any], second: list[Any]) -> None:
    world = World()
    world.begin(begin)
    for move in first:
        world.move(move)
    snapshot = world.machine.snapshot()
    hash(snapshot)
    twin = Machine[Any].restore(snapshot)
    assert twin.snapshot() == snapshot
    began, so_far = len(world.history), len(world.effects)
    for move in second:
        world.move(move)
    effects = [effect for at, event in world.history[began:] for effect in twin.step(at, event)]
    assert effects == world.effects[so_far:]
    assert twin.snapshot() == world.machine.snapshot()
    assert twin.next_timeout() == world.machine.next_timeout()


@settings(max_examples=60, deadline=None)
@given(begins, moves(st.one_of(wild_moves, wild_moves, wild_moves, closes)))
def test_equal_histories_lead_to_equal_states(begin: int, chosen: list[Any]) -> None:
    world = World()
    world.begin(begin)
    for move in chosen:
        world.move(move)
    again = ClientMachine(world.machine.settings)
    effects = [effect for at, event in world.history for effect in again.step(at, event)]
    assert effects == world.effects
    assert again.snapshot() == world.machine.snapshot()
    assert hash(again.snapshot()) == hash(world.machine.snapshot())


@settings(max_examples=60, deadline=None)
@given(begins, moves(wild_moves), st.sampled_from([0, 100, 2_000]))
def test_a_closed_client_ends_within_its_time(begin: int, chosen: list[Any], timeout: int) -> None:
    """Whatever came before, and though nobody answers any more."""
    world = World()
    world.begin(begin)
    for move in chosen:
        world.move(move)
    world.do_close(timeout)
    limit = world.now + timeout + 2 * SETTINGS["command_timeout_ms"]
    while not world.rules.closed:
        due = world.machine.next_timeout()
        assert due is not None
        assert due <= limit
        world._move_to(max(world.now, due))
        world.feed(Timeout())


honest_errors = st.sampled_from([ErrorReply(f"{code} x") for code in ("LOADING", "OOM", "READONLY", "NOPERM", "BUSY")])
honest_moves = st.one_of(
    common,
    st.tuples(st.just("answer"), lanes, st.just([])),
    st.tuples(st.just("answer"), lanes, st.just([])),
    st.tuples(
        st.just("answer"),
        lanes,
        st.lists(st.tuples(st.integers(0, 2), st.lists(honest_errors, max_size=1)), max_size=4),
    ),
    st.tuples(st.just("lose"), lanes, st.integers(0, 6)),
    st.tuples(st.just("lose late"), small),
    st.tuples(st.just("cut a batch"), st.sampled_from(QUEUES), st.booleans(), st.integers(0, 2)),
    st.tuples(st.just("execute late"), small, st.integers(0, 5)),
)
flushes = st.tuples(st.just("flush all"), small)
rollbacks = st.tuples(st.sampled_from(["save", "roll back", "roll back"]), small)


class HonestWorld(World):
    """The server executes what it says, and nobody takes tasks away. Settled tasks are expired or completed ones."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self.saved = copy.deepcopy(self.data())

    def do_take(self, number: int) -> None:
        """Nobody does."""

    def do_lose_late(self, _: int) -> None:
        if self.machine.command.state is LinkState.UP:
            self.lose_late()

    def do_cut_a_batch(self, queue: str, tracked: bool, how: int) -> None:
        """The fault that matters most: the answer to a batch is lost, applied or not, or the batch comes late."""
        self.feed(self.request(queue, 1, tracked, True, 0))
        for _ in range(6):
            if "outbox.on_batch" in self.flight():
                if how == 2:
                    self.lose_late()
                else:
                    self.lose(applied=how == 1)
                return
            self.do_connect(0)
            if self.machine.command.token:
                self.answer()

    def do_execute_late(self, at: int, count: int) -> None:
        if self.late:
            self.execute_late(at % len(self.late), count)

    def do_save(self, _: int) -> None:
        """A replica is in step, a snapshot is written."""
        self.saved = copy.deepcopy(self.data())

    def do_roll_back(self, how: int) -> None:
        """That is all that is left: after a restart, or under a live connection (then everything is touched)."""
        for kind, saved in zip(self.data(), copy.deepcopy(self.saved), strict=True):
            kind.clear()
            kind.update(saved)
        for session in (self.peer.session, *self.peer.sessions):
            session.dirty = True
        if how % 2:
            self.late.clear()
            for lane, link in self.machine.links.items():
                if link.state in (LinkState.UP, LinkState.CONNECTING):
                    self.lose(lane)

    def data(self) -> tuple[dict[bytes, Any] | set[Any], ...]:
        """Everything that the server keeps."""
        peer = self.peer
        return (peer.strings, peer.hashes, peer.sorted_sets, peer.streams, peer.groups)

    def finish(self) -> None:
        """Faults stop, old bytes are executed, and what nobody has noticed yet is noticed by the next heartbeat."""
        while self.late:
            self.execute_late(0, 99)
        self.heal()
        self.do_time(2_000)
        self.heal()
        lies = [effect for effect in self.effects if isinstance(effect, Settled) and effect.end is End.UNKNOWN]
        assert not lies, "every task is held here or there"

    def heal(self) -> None:
        """Faults stop: connections come up, and everything is answered, for as long as anything is owed."""
        for _ in range(400):
            for lane in Lane:
                if self.machine.links[lane].state is LinkState.CONNECTING:
                    self.connect(lane)
            if self.machine.command.token:
                self.answer()
            elif self.machine.admission.tasks or self.machine.admission.calls:
                due = self.machine.next_timeout()
                assert due is not None
                self._move_to(max(self.now, due))
                self.feed(Timeout())
            else:
                return
        raise AssertionError("what was accepted is never confirmed")

    def wanted(self) -> set[str]:
        """The tasks that must be there: accepted, never to expire, and without a word that ended them."""
        accepted = {effect.call: effect.count for effect in self.effects if isinstance(effect, Accepted)}
        for effect in self.effects:
            if isinstance(effect, Rejected):
                accepted[effect.call] = effect.accepted
        wanted: set[str] = set()
        for _, event in self.history:
            if isinstance(event, Enqueue) and not event.options.expires_in_ms and not event.options.expires_ts:
                wanted.update(event.task_ids[: accepted.get(event.call, 0)])
        return wanted - self.rules.settled


HONEST = {"retention_ms": 10**9, "retention_bytes": 10**9, "audit_interval_ms": 10**9}


@settings(max_examples=150, deadline=None)
@given(begins, moves(honest_moves))
def test_without_data_loss_every_task_is_there_exactly_once(begin: int, chosen: list[Any]) -> None:
    """Answers lost, writes cut at any place, old bytes executed at any later time: no task is lost, none is doubled."""
    world = HonestWorld(**HONEST)
    world.begin(begin)
    for move in chosen:
        world.move(move)
    world.heal()
    world.finish()
    present = world.present()
    assert world.wanted() <= present.keys()
    assert max(present.values(), default=1) == 1


@settings(max_examples=150, deadline=None)
@given(begins, moves(st.one_of(*[honest_moves] * 5, flushes)))
def test_after_flushes_every_task_is_there_exactly_once(begin: int, chosen: list[Any]) -> None:
    """FLUSHALL at any time, under a live connection too, and with old bytes in the pipes."""
    world = HonestWorld(**HONEST)
    world.begin(begin)
    for move in chosen:
        world.move(move)
    world.finish()
    present = world.present()
    assert world.wanted() <= present.keys()
    assert max(present.values(), default=1) == 1


@settings(max_examples=100, deadline=None)
@given(begins, moves(st.one_of(*[honest_moves] * 5, rollbacks)))
def test_after_rollbacks_every_task_is_there(begin: int, chosen: list[Any]) -> None:
    """Failover to a replica that lagged, restart from a snapshot. Some may come twice (G3 excuses it), none is lost."""
    world = HonestWorld(**HONEST)
    world.begin(begin)
    for move in chosen:
        world.move(move)
    world.finish()
    assert world.wanted() <= world.present().keys()
