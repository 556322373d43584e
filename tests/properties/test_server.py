"""The server machine under whatever can be fed to it.

`Chaos` feeds anything in any order, garbage too, and asks for what must always hold: no exception, one batch in flight,
guards in their places (`Watch`), no busy loop, snapshots that go on as if nothing had been. `Faults` feeds only what a
server and a network can do, and asks that in the end every task has had its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfleet_protocol.commands import MULTI, Command
from streamfleet_protocol.effects import Batch, Effect, Lane, Noted, ServerStopped, StartHandler
from streamfleet_protocol.inputs import (
    CloseServer,
    Connected,
    Disconnected,
    HandlerAsksRetry,
    HandlerCanceled,
    HandlerFailed,
    HandlerRejects,
    HandlerSucceeded,
    Reply,
    ServerInput,
    Several,
    StartServer,
    Timeout,
)
from streamfleet_protocol.link import LinkState, Section
from streamfleet_protocol.members import pack_member, unpack_member
from streamfleet_protocol.notes import TaskHasExpired
from streamfleet_protocol.replies import ErrorReply, RawReply
from streamfleet_protocol.server.closing import Stage
from streamfleet_protocol.server.machine import ServerMachine
from streamfleet_protocol.server.missing import id_parts
from streamfleet_protocol.settings import QueueSettings
from streamfleet_protocol.wire import decode_task, task_id_of
from tests.protocol.server.support import (
    CUT,
    LEASE,
    ME,
    OK,
    OTHER,
    QUEUED,
    RENEW,
    Facts,
    Rig,
    Row,
    task,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]

TRANSIENT = [
    "LOADING Redis is loading the dataset in memory",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "BUSY Redis is busy running a script.",
    "MISCONF Redis is configured to save RDB snapshots",
    "NOREPLICAS Not enough good replicas to write.",
    "READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down",
    "UNBLOCKED the stream key no longer exists",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "ERR something that nobody has heard of",
    "nonsense",
    "",
]
FATAL = ["WRONGTYPE Operation against a key holding the wrong kind of value", "NOPERM no", "NOAUTH no", "WRONGPASS no"]
NOGROUP = "NOGROUP No such key 'streamfleet:a' or consumer group 'streamfleet-server'"

errors = st.sampled_from([*TRANSIENT, NOGROUP]).map(ErrorReply)
any_errors = st.sampled_from([*TRANSIENT, *TRANSIENT, NOGROUP, *FATAL]).map(ErrorReply)
leaves: st.SearchStrategy[RawReply] = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.integers(),
    st.binary(max_size=6),
    st.sampled_from([b"1-0", b"1001-0", b"OK", ME, OTHER, b"name", b"pending", b"idle", b"0-0", b"inf", b"nan"]),
    any_errors,
)
garbage: st.SearchStrategy[RawReply] = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"concurrency": 1, "prefetch": 1},
    {"concurrency": 3, "prefetch": 3},
    {"concurrency": 2, "prefetch": 0, "page": 2, "batch": 2, "batch_bytes": 300, "dead_letters_max": 5},
    {"concurrency": 5, "lease_ms": 4000, "renew_interval_ms": 1000, "command_timeout_ms": 300, "block_ms": 700},
]
QUEUES: list[tuple[QueueSettings, ...]] = [
    (QueueSettings("a"),),
    (QueueSettings("a", timeout_ms=500), QueueSettings("b")),
    (QueueSettings("a"), QueueSettings("b", timeout_ms=20_000), QueueSettings("{c}x")),
]


class LiveFacts(Facts):
    """Facts that give new entries to a reader, and keep to WATCH: others touch keys in between."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.watched: set[bytes] = set()
        self.dirty = False

    def next_id(self) -> bytes:
        self.ids += 1
        return b"%d-0" % (1000 + self.ids)

    def touch(self, key: bytes) -> None:
        """Somebody else has changed this key."""
        self.dirty |= key in self.watched

    def forget_watches(self) -> None:
        """EXEC, or the end of the connection."""
        self.watched.clear()
        self.dirty = False

    def _watch(self, *keys: bytes) -> RawReply:
        self.watched |= set(keys)
        return OK

    def _xreadgroup(self, *arguments: object) -> RawReply:
        consumer = arguments[2]
        assert consumer == ME
        count = arguments[arguments.index(b"COUNT") + 1]
        assert isinstance(count, int)
        names = arguments[arguments.index(b"STREAMS") + 1 :]
        found: list[RawReply] = []
        for name in names[: len(names) // 2]:
            assert isinstance(name, bytes)
            facts = self.by_key[name]
            after = id_parts(facts.last_delivered)
            ids = [entry_id for entry_id in facts.stored() if id_parts(entry_id) > after][:count]
            for entry_id in ids:
                facts.pending[entry_id] = Row(ME, self.redis_ms)
                facts.last_delivered = entry_id
            if ids:
                found.append([name, [[entry_id, list(facts.bodies[entry_id])] for entry_id in ids]])
        return found or None


class Chaos:
    """One run: a rig, and what is drawn for it."""

    def __init__(self, draw: Draw, *, faults_only: bool = False) -> None:
        self.draw = draw
        self.faults_only = faults_only
        queues = draw(st.sampled_from(QUEUES))
        self.rig = Rig(*queues, seed=draw(st.integers(0, 3)), **draw(st.sampled_from(SETTINGS)))
        self.facts = self.rig.facts = LiveFacts([queue.keys for queue in self.rig.machine.queues])
        self.names = 0
        self.put: set[str] = set()
        """All tasks ever put in a queue."""
        self.succeeded: set[str] = set()

    # Feeding, with its checks.

    def feed(self, event: ServerInput) -> list[Effect]:
        """One step, now and then of a machine that was frozen and thawed just before."""
        rig = self.rig
        if self.draw(st.integers(0, 7)) == 0:
            frozen = rig.machine.snapshot()
            twin = ServerMachine.restore(frozen)
            assert isinstance(twin, ServerMachine)
            effects = rig.feed(event)
            assert twin.step(rig.now, event) == effects
            assert twin.snapshot() == rig.machine.snapshot()
            assert twin.next_timeout() == rig.machine.next_timeout()
            rig.machine = rig.watch.machine = twin
        else:
            effects = rig.feed(event)
        if not self.faults_only:
            rig.effects.clear()
        return effects

    def is_over(self) -> bool:
        """Whether the server has ended."""
        return self.rig.machine.closing.stage is Stage.STOPPED

    # What can happen.

    def a_connection_stands(self) -> None:
        lane = self.draw(st.sampled_from(Lane))
        link = self.rig.machine.links[lane]
        stale = self.draw(st.integers(0, 9)) == 0
        if link.state is LinkState.CONNECTING or stale:
            if lane is Lane.COMMAND and not stale:
                self.facts.forget_watches()
            self.feed(Connected(lane, link.generation - stale))

    def a_connection_is_lost(self) -> None:
        lane = self.draw(st.sampled_from(Lane))
        link = self.rig.machine.links[lane]
        if self.rig.in_flight(lane) and self.draw(st.booleans()):
            self.carry_out(lane)  # the reply is lost
        error = self.draw(st.just(CUT) | errors if self.faults_only else any_errors)
        stale = self.draw(st.integers(0, 9)) == 0
        if lane is Lane.COMMAND and not stale:
            self.facts.forget_watches()
        self.feed(Disconnected(lane, link.generation - stale, error))

    def a_batch_is_answered(self) -> None:
        lanes = [lane for lane in Lane if self.rig.in_flight(lane)]
        if not lanes:
            return
        lane = self.draw(st.sampled_from(lanes))
        token = self.rig.batch(lane).token
        replies = self.carry_out(lane, well=self.draw(st.integers(0, 3)) > 0)
        self.rig.wait(self.draw(st.sampled_from([0, 0, 1, 20, 200])))
        if not self.faults_only and self.draw(st.integers(0, 20)) == 0:
            token += 2
        self.feed(Reply(token, replies))

    def carry_out(self, lane: Lane, *, well: bool = True) -> list[RawReply]:
        """Let the facts carry out the batch in flight; its replies, or something else instead."""
        replies: list[RawReply] = []
        sections = self.rig.machine.links[lane].in_flight
        # Often only one goes wrong, and the others go on as if nothing had been.
        bad = () if well else range(len(sections)) if self.draw(st.booleans()) else (self._one_of(len(sections)),)
        for at, section in enumerate(sections):
            replies += self._badly(section) if at in bad else self._well(section)
        return replies

    def _one_of(self, count: int) -> int:
        at: int = self.draw(st.integers(0, count - 1))
        return at

    def _execute(self, command: Command) -> RawReply:
        try:
            return self.facts.execute(command)
        except (KeyError, AssertionError, ValueError, TypeError, AttributeError):
            # What garbage has led to: the toy does not know such a key.
            assert not self.faults_only
            return ErrorReply("ERR no such key")

    def _well(self, section: Section) -> list[RawReply]:
        if section.commands[0] != MULTI:
            return [self._execute(command) for command in section.commands]
        inner = section.commands[1:-1]
        dirty = self.facts.dirty
        self.facts.forget_watches()
        elements: RawReply = None if dirty else [self._execute(command) for command in inner]
        return [OK, *[QUEUED] * len(inner), elements]

    def _badly(self, section: Section) -> list[RawReply]:
        how = self.draw(st.sampled_from(["well", "refused", "refused"] + ["garbage"] * (not self.faults_only)))
        if how == "well":
            return self._well(section)
        error = self.draw(errors if self.faults_only else any_errors)
        if section.commands[0] == MULTI:
            inner = section.commands[1:-1]
            self.facts.forget_watches()
            if how == "refused":
                return [OK, *[error] * len(inner), ErrorReply("EXECABORT Transaction discarded")]
            result = self.draw(st.none() | st.lists(garbage, min_size=len(inner), max_size=len(inner)) | garbage)
            if isinstance(result, list) and len(result) != len(inner):
                result = 5
            return [OK, *[QUEUED] * len(inner), result]
        if how == "refused":
            at = self.draw(st.integers(0, len(section.commands)))
            return [self._execute(command) for command in section.commands[:at]] + [error] * (
                len(section.commands) - at
            )
        return [self.draw(garbage) for _ in section.commands]

    def a_task_comes(self) -> None:
        self.names += 1
        name = f"t{self.names}"
        facts = self.rig.queue(self.draw(st.integers(0, len(self.rig.machine.queues) - 1)))
        self.put.add(name)
        fields = task(
            name,
            send_notif=self.draw(st.booleans()),
            max_retries=self.draw(st.sampled_from([0, 0, 2])),
            retry_delay_ms=self.draw(st.sampled_from([0, 100, 5000])),
            expires_ts=self.draw(st.sampled_from([0, 0, 0, self.facts.redis_ms + 10_000])),
        )
        if not self.faults_only and self.draw(st.integers(0, 9)) == 0:
            fields = tuple(self.draw(st.lists(st.binary(max_size=3), min_size=2, max_size=4)))
        how = self.draw(st.sampled_from(["new", "new", "new", "delayed", "another's", "mine", "orphan"]))
        if how == "delayed" and len(fields) > 9:
            facts.delayed[pack_member(fields)] = self.facts.redis_ms + self.draw(st.sampled_from([-5, 100, 9000]))
            return
        entry_id = self.facts.next_id()
        facts.bodies[entry_id] = fields
        if how in ("another's", "mine", "orphan"):
            # All before it were delivered as well, to somebody who is dead now.
            for earlier in facts.stored():
                if id_parts(facts.last_delivered) < id_parts(earlier):
                    facts.pending[earlier] = Row(OTHER, self.facts.redis_ms)
            facts.last_delivered = entry_id
            deliveries = self.draw(st.sampled_from([1, 1, 10, 50]))
            facts.pending[entry_id] = Row(OTHER if how == "another's" else ME, self.facts.redis_ms, deliveries)
            if how == "orphan":
                del facts.pending[entry_id]

    def some_tasks_come(self) -> None:
        for _ in range(3):
            self.a_task_comes()

    def another_takes_over(self) -> None:
        """A healthy worker claims something of mine; as it must, it touches the fence."""
        for facts in {id(facts): facts for facts in self.facts.by_key.values()}.values():
            mine = [entry_id for entry_id, row in facts.pending.items() if row.owner == ME]
            if mine:
                row = facts.pending[self.draw(st.sampled_from(mine))]
                row.owner, row.delivered_at, row.deliveries = OTHER, self.facts.redis_ms, row.deliveries + 1
                self.facts.touch(facts.keys.fence)
                return

    def another_promotes(self) -> None:
        for queue in self.rig.machine.queues:
            self.facts.touch(queue.keys.promotions)

    def a_handler_answers(self) -> None:
        running = list(self.rig.watch.running)
        bogus = not self.faults_only and self.draw(st.integers(0, 5)) == 0
        if not running and not bogus:
            return
        run = self.draw(st.integers(-1, 40)) if bogus else self.draw(st.sampled_from(running))
        self.feed(self._answer(run))

    def many_handlers_answer(self) -> None:
        answers = [self._answer(run) for run in self.rig.watch.running]
        if answers:
            self.feed(Several(tuple(answers)))

    def _answer(self, run: int) -> ServerInput:
        held = self.rig.machine.tasks.running.get(run)
        name = held.task_id if held is not None else ""
        if self.draw(st.integers(0, 2)) == 0:
            failures: list[ServerInput] = [
                HandlerFailed(run, "ValueError: no"),
                HandlerCanceled(run),
                HandlerAsksRetry(run, None, "later"),
                HandlerAsksRetry(run, 0, "now"),
                HandlerAsksRetry(run, 3000, "then"),
                HandlerRejects(run, "never"),
            ]
            return failures[self.draw(st.integers(0, len(failures) - 1))]
        self.succeeded.add(name)
        return HandlerSucceeded(run, self.draw(st.sampled_from([None, b"", b"r" * 200])))

    def time_passes(self) -> None:
        rig = self.rig
        due = rig.machine.next_timeout()
        how = self.draw(st.sampled_from(["due", "due", "due", "early", "a little", "long", "very long"]))
        if how == "early":
            self.a_spurious_timeout()
        elif how == "due":
            if due is None:
                return
            rig.wait(due - rig.now, redis=self.draw(st.sampled_from([due - rig.now] * 5 + [-5000, 3_600_000])))
            emitted = self.feed(Timeout())
            after = rig.machine.next_timeout()
            assert emitted or after is None or after > rig.now, "no busy loop"
        else:
            rig.wait({"a little": 7, "long": 12_345, "very long": 10**8}[how])
            self.feed(Timeout())

    def a_spurious_timeout(self) -> None:
        """Before the time that was asked for: nothing changes but the clock."""
        rig = self.rig
        due = rig.machine.next_timeout()
        rig.wait(self.draw(st.sampled_from([0, 1, 50])))
        if due is not None and rig.now >= due:
            rig.now = min(due, rig.now) - 1 if due > rig.machine.now else rig.machine.now
        if due is not None and rig.now >= due:
            return
        before = rig.machine.snapshot()
        assert rig.feed(Timeout()) == []
        assert rig.machine.next_timeout() == due
        twin = ServerMachine.restore(before)
        twin.now = rig.now
        assert twin.snapshot() == rig.machine.snapshot()

    def all_is_well_for_a_while(self) -> None:
        """Answers are healthy and at once, so that a run gets somewhere between its disturbances."""
        rig = self.rig
        end = rig.now + self.draw(st.sampled_from([10, 100, RENEW, RENEW, 2 * RENEW, LEASE + 2 * RENEW]))
        for _ in range(200):
            answer_healthily(self, handlers=False)
            due = rig.machine.next_timeout()
            if due is None or due > end:
                break
            rig.wait(max(0, min(due, rig.block_ends if rig.blocked else due) - rig.now))
            self.facts.unblocked |= rig.blocked and rig.now >= rig.block_ends
            if due <= rig.now:
                rig.feed(Timeout())

    def an_entry_is_dropped(self) -> None:
        """Somebody deletes a consumer, and what was pending under it is pending nowhere."""
        facts = self.rig.queue(self.draw(st.integers(0, len(self.rig.machine.queues) - 1)))
        if facts.pending:
            del facts.pending[self.draw(st.sampled_from(sorted(facts.pending)))]

    def the_group_is_made_again(self) -> None:
        """Somebody destroys the group; another worker has made it again, from the first entry on."""
        if self.draw(st.integers(0, 3)) == 0:
            facts = self.rig.queue(self.draw(st.integers(0, len(self.rig.machine.queues) - 1)))
            facts.pending.clear()
            facts.last_delivered = b"0-0"

    def the_server_is_closed(self) -> None:
        if self.draw(st.integers(0, 5)) == 0:
            self.feed(CloseServer(self.draw(st.sampled_from([0, 100, 30_000]))))

    def it_is_started(self) -> None:
        self.feed(StartServer())

    # Runs.

    def step(self) -> None:
        """Something happens."""
        self.draw(
            st.sampled_from(
                [
                    self.a_batch_is_answered,
                    self.a_batch_is_answered,
                    self.a_batch_is_answered,
                    self.a_batch_is_answered,
                    self.a_connection_stands,
                    self.a_connection_stands,
                    self.a_connection_is_lost,
                    self.a_task_comes,
                    self.a_task_comes,
                    self.some_tasks_come,
                    self.a_handler_answers,
                    self.a_handler_answers,
                    self.many_handlers_answer,
                    self.another_takes_over,
                    self.another_promotes,
                    self.an_entry_is_dropped,
                    self.the_group_is_made_again,
                    self.time_passes,
                    self.time_passes,
                    self.all_is_well_for_a_while,
                    self.all_is_well_for_a_while,
                    self.the_server_is_closed,
                ]
            )
        )()

    def nothing_but_timeouts_until_the_end(self) -> None:
        """Close: whatever was before, the end comes in time, though nothing is ever answered."""
        rig = self.rig
        machine = rig.machine
        grace = self.draw(st.sampled_from([0, 1, 30_000]))
        began = rig.now
        if self.is_over():
            assert machine.next_timeout() is None
            return
        bound = grace + rig.settings.cancel_wait_ms + rig.settings.finish_timeout_ms
        if machine.closing.stage is Stage.DRAINING:
            bound += max(0, machine.closing.due_at - began)
        effects = rig.feed(CloseServer(grace))
        for _ in range(10_000):
            if any(isinstance(effect, ServerStopped) for effect in effects):
                break
            due = machine.next_timeout()
            assert due is not None, "it hangs"
            rig.wait(max(0, due - rig.now))
            effects = rig.feed(Timeout())
            after = machine.next_timeout()
            assert effects or after is None or after > rig.now, "no busy loop"
        assert self.is_over()
        assert rig.now - began <= bound
        assert machine.next_timeout() is None
        assert {link.state for link in machine.links.values()} == {LinkState.IDLE}
        assert rig.feed(StartServer()) == []
        assert rig.feed(CloseServer(0)) == []


PROFILE = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@given(st.data())
@settings(PROFILE, max_examples=120)
def test_whatever_is_fed_the_invariants_hold(data: st.DataObject) -> None:
    chaos = Chaos(data.draw)
    if data.draw(st.integers(0, 9)):
        chaos.it_is_started()
    if data.draw(st.booleans()):
        chaos.rig.answer_all()
    for _ in range(data.draw(st.integers(1, 60))):
        chaos.step()
    chaos.nothing_but_timeouts_until_the_end()


# --- In the end all is well -------------------------------------------------------------------------------


def heal(chaos: Chaos) -> None:
    """The faults stop, handlers answer, and dead workers stay dead: everything must come to its end."""
    rig, facts = chaos.rig, chaos.facts
    end = rig.now + 3 * rig.settings.sweep_interval_ms + 10 * rig.settings.lease_ms
    rounds = 0
    while rig.now < end:
        rounds += 1
        assert rounds < 20_000, "no end of rounds"
        answer_healthily(chaos)
        if chaos.rig.machine.closing.stage is Stage.STOPPED:
            return
        due = rig.machine.next_timeout()
        assert due is not None
        if at_rest(chaos) and not rig.machine.tasks.by_id:
            return
        step = max(0, min(due, rig.block_ends if rig.blocked else due) - rig.now)
        rig.wait(step)
        facts.unblocked |= rig.blocked and rig.now >= rig.block_ends
        if due <= rig.now:
            rig.feed(Timeout())
    raise AssertionError(f"not at rest: {left(chaos)}, {rig.machine.tasks.by_id}")


def answer_healthily(chaos: Chaos, *, handlers: bool = True) -> None:
    """All that is in flight is carried out and answered; a blocked read when it has found something."""
    rig, facts = chaos.rig, chaos.facts
    for _ in range(5000):
        for run in list(rig.watch.running) if handlers else ():
            held = rig.machine.tasks.running.get(run)
            if held is not None:  # else it was abandoned, and is among those handed back
                chaos.succeeded.add(held.task_id)
            rig.feed(HandlerSucceeded(run))
        waiting = [lane for lane in Lane if rig.in_flight(lane)]
        if rig.blocked and not any(
            id_parts(entry_id) > id_parts(queue.last_delivered)
            for stream, queue in facts.by_key.items()
            if stream in rig.batch(Lane.READ).commands[0]
            for entry_id in queue.bodies
        ):
            waiting.remove(Lane.READ)
        if waiting:
            if not chaos.faults_only:
                rig.effects.clear()
            token = rig.batch(waiting[0]).token
            rig.feed(Reply(token, chaos.carry_out(waiting[0])))
            continue
        connecting = [lane for lane, link in rig.machine.links.items() if link.state is LinkState.CONNECTING]
        if not connecting:
            return
        facts.forget_watches()
        rig.connect(connecting[0])
    last = [(rig.batch(lane).purposes, rig.batch(lane).commands) for lane in Lane if rig.in_flight(lane)]
    raise AssertionError(f"no end of batches: {last}")


def left(chaos: Chaos) -> dict[str, list[str]]:
    """Everything that is still somewhere in Redis."""
    found: dict[str, list[str]] = {}
    for queue in chaos.rig.machine.queues:
        facts = chaos.rig.queue(queue.index)
        found[f"{queue.name} stream"] = [f"{entry_id!r} {facts.pending.get(entry_id)}" for entry_id in facts.bodies]
        found[f"{queue.name} pending"] = [repr(entry_id) for entry_id in facts.pending]
        found[f"{queue.name} delayed"] = [repr(unpack_member(member)) for member in facts.delayed]
    return found


def at_rest(chaos: Chaos) -> bool:
    """Nothing is left in any stream, list of pending entries, or set of delayed tasks."""
    return not any(left(chaos).values())


@given(st.data())
@settings(PROFILE, max_examples=60)
def test_when_the_faults_stop_every_task_has_its_end(data: st.DataObject) -> None:
    """No task is lost: each was run to success, or has expired, or is among the dead letters."""
    chaos = Chaos(data.draw, faults_only=True)
    chaos.it_is_started()
    chaos.rig.answer_all()
    for _ in range(data.draw(st.integers(1, 50))):
        chaos.step()
    stopped = chaos.rig.machine.closing.is_closing
    heal(chaos)
    ended = set(chaos.succeeded)
    for queue in chaos.rig.machine.queues:
        facts = chaos.rig.queue(queue.index)
        ended |= {task_id_of(fields).decode() for fields in facts.dead.values()}
        in_redis = [*facts.bodies.values(), *(unpack_member(member) for member in facts.delayed)]
        if stopped:
            ended |= {decode_task(fields).task_id for fields in in_redis}
    ended |= expired(chaos)
    assert chaos.put <= ended, chaos.put - ended


def expired(chaos: Chaos) -> set[str]:
    """Tasks of which the machine has said that their time was over."""
    noted = [effect.note for effect in chaos.rig.of(Noted)]
    return {note.task_id for note in noted if isinstance(note, TaskHasExpired)}


@pytest.mark.parametrize("seed", range(3))
def test_the_same_inputs_give_the_same_effects(seed: int) -> None:
    """Byte for byte, in another machine of the same settings."""

    def run() -> list[Effect]:
        rig = Rig("a", "b", seed=seed, concurrency=3, prefetch=2)
        rig.facts = LiveFacts([queue.keys for queue in rig.machine.queues])
        rig.open()
        for at in range(20):
            facts = rig.queue(at % 2)
            facts.bodies[rig.facts.next_id()] = task(f"t{at}", retry_delay_ms=1000, max_retries=2)
            rig.pass_time(700)
            for run_number in list(rig.watch.running):
                rig.feed(HandlerFailed(run_number, "no") if at % 3 else HandlerSucceeded(run_number))
        rig.close(1000)
        rig.pass_time(2 * LEASE)
        return rig.effects

    first = run()
    assert first == run()
    assert any(isinstance(effect, StartHandler) for effect in first)
    assert sum(isinstance(effect, Batch) for effect in first) > 50
