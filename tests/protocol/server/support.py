"""A script for a server machine: inputs by hand, batches answered section by section, no I/O and no waiting.

    rig = Rig(concurrency=2)
    rig.open()                                        # connected, looked, and a read is blocked
    rig.deliver(task("t1"))                           # the read brings an entry; its handler starts
    rig.succeed("t1")
    rig.answer({"settlement.on_plain": refusal("OOM")})

What a batch is not explicitly answered with, the rig's `Facts` answer: a toy of a healthy server that carries out the
commands of one worker, knows no WATCH, and lets the test be the other workers. It is no model of Redis (that is `sim`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from streamfleet_protocol.commands import MULTI, Command
from streamfleet_protocol.effects import Batch, CancelHandler, Connect, Disconnect, Effect, Lane, Noted, StartHandler
from streamfleet_protocol.inputs import (
    CloseServer,
    Connected,
    Disconnected,
    HandlerAsksRetry,
    HandlerCanceled,
    HandlerDone,
    HandlerFailed,
    HandlerRejects,
    HandlerSucceeded,
    Reply,
    ServerInput,
    Several,
    StartServer,
    Timeout,
)
from streamfleet_protocol.keys import SERVER_GROUP, QueueKeys, queue_keys
from streamfleet_protocol.link import LinkState, Section
from streamfleet_protocol.notes import Note
from streamfleet_protocol.replies import ErrorReply, RawReply
from streamfleet_protocol.server.machine import ServerMachine
from streamfleet_protocol.server.missing import id_parts
from streamfleet_protocol.server.tasks import HeldTask
from streamfleet_protocol.settings import QueueSettings, ServerSettings
from streamfleet_protocol.wire import Fields, TaskEntry, encode_task

E = TypeVar("E", bound=Effect)
N = TypeVar("N", bound=Note)

ME = b"node1:aaaa"
OTHER = b"node2:bbbb"
START = 1_000_000
"""The machine's time at which scripts begin."""
REDIS_START = 1_700_000_000_000
"""Redis's time then, in Unix ms."""
LEASE = 60_000
RENEW = 10_000
CUT = ErrorReply("CONNECTION closed by the server")
OK = b"OK"
QUEUED = b"QUEUED"

QUESTION_OF = {
    "leases.on_renewed": "leases.on_look",
    "reclaim.on_claimed": "reclaim.on_question",
    "conclusions.on_replaced": "conclusions.on_answer",
    "promotion.on_moved": "promotion.on_answer",
    "garbage.on_removed": "garbage.on_score",
}
"""Each guarded EXEC, and the question that must have been asked in the write before."""


def settings(*queues: str | QueueSettings, **changes: Any) -> ServerSettings:
    """Settings of a server; one queue, `q`, unless said."""
    named = tuple(QueueSettings(queue) if isinstance(queue, str) else queue for queue in queues or ("q",))
    values: dict[str, Any] = {"queues": named, "consumer": ME.decode(), "seed": 1}
    return ServerSettings(**{**values, **changes})


def error(text: str) -> ErrorReply:
    """An error reply; a bare code gets some text."""
    return ErrorReply(text if " " in text else f"{text} for a test")


def task(task_id: str = "t1", **fields: Any) -> Fields:
    """The fields of a task entry."""
    return encode_task(TaskEntry(**{"task_id": task_id, "client_id": "c1", "data": b"data", **fields}))


def purpose(section: Section) -> str:
    """What a section is for."""
    return ".".join(section.handler)


# --- Answers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """Answer a section with these: EXEC's elements for a transaction, else one reply a command."""

    values: tuple[RawReply, ...]


@dataclass(frozen=True)
class But:
    """As the facts answer, but for the elements with these indexes; the others are carried out all the same."""

    elements: Mapping[int, RawReply]


@dataclass(frozen=True)
class Refusal:
    """Refuse the section; of a plain one only the commands from the index `at` on."""

    error: ErrorReply
    at: int = 0


@dataclass(frozen=True)
class Abort:
    """EXEC answers nil."""


Answer = Values | But | Refusal | Abort
Answers = Mapping[str, Answer | Callable[[Section], Answer | None]]
ABORTED = Abort()


def values(*replies: RawReply) -> Values:
    """Answer with exactly these."""
    return Values(replies)


def refusal(text: str, at: int = 0) -> Refusal:
    """Refuse with this error."""
    return Refusal(error(text), at)


# --- Facts ------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What is pending of one entry."""

    owner: bytes
    delivered_at: int
    """By Redis's clock."""
    deliveries: int = 1


@dataclass
class QueueFacts:
    """What Redis knows of one queue."""

    keys: QueueKeys
    grouped: bool = True
    fenced: bool = True
    bodies: dict[bytes, Fields] = field(default_factory=dict)
    pending: dict[bytes, Row] = field(default_factory=dict)
    last_delivered: bytes = b"0-0"
    dead: dict[bytes, Fields] = field(default_factory=dict)
    delayed: dict[bytes, int] = field(default_factory=dict)
    consumers: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Name: (pending, time of its last deed by Redis's clock)."""
    receivers: dict[bytes, bytes] = field(default_factory=dict)
    producers: dict[bytes, bytes] = field(default_factory=dict)

    def listed(self) -> list[bytes]:
        """Pending ids in their order."""
        return sorted(self.pending, key=id_parts)

    def stored(self) -> list[bytes]:
        """Ids of the stream in their order."""
        return sorted(self.bodies, key=id_parts)


class Facts:
    """A toy of a healthy server."""

    def __init__(self, queues: Sequence[QueueKeys]) -> None:
        self.redis_ms = REDIS_START
        self.by_key: dict[bytes, QueueFacts] = {}
        for keys in queues:
            facts = QueueFacts(keys)
            auxiliary = (keys.fence, keys.dead, keys.delayed, keys.promotions, keys.receivers, keys.producers)
            self.by_key.update(dict.fromkeys((keys.stream, *auxiliary), facts))
        self.words: list[tuple[bytes, Fields]] = []
        """Notifications, by receiver stream."""
        self.ids = 0
        self.unblocked = False
        """The blocked read was ended by CLIENT UNBLOCK: it can be answered."""
        self.executed: list[Command] = []

    def next_id(self) -> bytes:
        """A fresh entry id."""
        self.ids += 1
        return b"%d-0" % (5000 + self.ids)

    def execute(self, command: Command) -> RawReply:
        """Carry out one command."""
        self.executed.append(command)
        name, *arguments = command
        assert isinstance(name, bytes)
        method: Callable[..., RawReply] = getattr(self, f"_{name.decode().lower()}")
        return method(*arguments)

    def _row(self, facts: QueueFacts, entry_id: bytes) -> RawReply:
        row = facts.pending[entry_id]
        return [entry_id, row.owner, max(0, self.redis_ms - row.delivered_at), row.deliveries]

    def _time(self) -> RawReply:
        return [b"%d" % (self.redis_ms // 1000), b"%d" % (self.redis_ms % 1000 * 1000)]

    def _info(self, _section: bytes) -> RawReply:
        return b"# Memory\r\nmaxmemory_policy:noeviction\r\n"

    def _client(self, what: bytes, *_number: int) -> RawReply:
        if what == b"ID":
            return 7
        self.unblocked = True
        return 1

    def _watch(self, *_keys: bytes) -> RawReply:
        return OK

    def _pexpire(self, key: bytes, _after: int) -> RawReply:
        return int(self.by_key[key].fenced)

    def _incr(self, key: bytes) -> RawReply:
        facts = self.by_key[key]
        if key == facts.keys.fence:
            facts.fenced = True
        return 1

    def _xgroup(self, what: bytes, key: bytes, *_arguments: object) -> RawReply:
        facts = self.by_key[key]
        if what == b"DELCONSUMER":
            return 0
        if facts.grouped:
            return ErrorReply("BUSYGROUP Consumer Group name already exists")
        facts.grouped = True
        return OK

    def _xpending(self, key: bytes, _group: bytes, first: bytes, last: bytes, count: int, *consumer: bytes) -> RawReply:
        facts = self.by_key[key]
        if first == last:
            return [self._row(facts, first)] if first in facts.pending else []
        above = id_parts(first[1:]) if first.startswith(b"(") else (-1, -1)
        ids = [
            entry_id
            for entry_id in facts.listed()
            if id_parts(entry_id) > above and (not consumer or facts.pending[entry_id].owner == consumer[0])
        ]
        return [self._row(facts, entry_id) for entry_id in ids[:count]]

    def _xrange(self, key: bytes, first: bytes, _last: bytes, *count: object) -> RawReply:
        facts = self.by_key[key]
        if not count:
            return [[first, list(facts.bodies[first])]] if first in facts.bodies else []
        number = count[1]
        assert isinstance(number, int)
        return [[entry_id, list(facts.bodies[entry_id])] for entry_id in facts.stored()[:number]]

    def _xlen(self, key: bytes) -> RawReply:
        facts = self.by_key[key]
        return len(facts.dead if key == facts.keys.dead else facts.bodies)

    def _xinfo(self, what: bytes, key: bytes, *_group: bytes) -> RawReply:
        facts = self.by_key[key]
        if what == b"GROUPS":
            return [
                [b"name", b"another", b"last-delivered-id", b"9999-0"],
                [b"name", SERVER_GROUP, b"consumers", 1, b"pending", 0, b"last-delivered-id", facts.last_delivered],
            ]
        return [
            [b"name", name, b"pending", pending, b"idle", self.redis_ms - at]
            for name, (pending, at) in facts.consumers.items()
        ]

    def _xclaim(self, key: bytes, _group: bytes, consumer: bytes, least_idle: int, *arguments: bytes) -> RawReply:
        facts = self.by_key[key]
        only_ids = b"JUSTID" in arguments
        force = b"FORCE" in arguments
        ids = [entry_id for entry_id in arguments if entry_id not in (b"JUSTID", b"FORCE")]
        claimed: list[bytes] = []
        for entry_id in ids:
            row = facts.pending.get(entry_id)
            if row is None and not (force and entry_id in facts.bodies):
                continue
            if entry_id not in facts.bodies:
                facts.pending.pop(entry_id, None)
                continue
            if row is None:
                row = facts.pending[entry_id] = Row(consumer, 0)
            elif least_idle and self.redis_ms - row.delivered_at < least_idle:
                continue
            row.owner, row.delivered_at = consumer, self.redis_ms
            row.deliveries += not only_ids
            claimed.append(entry_id)
        return list(claimed) if only_ids else [[entry_id, list(facts.bodies[entry_id])] for entry_id in claimed]

    def _xdel(self, key: bytes, *ids: bytes) -> RawReply:
        facts = self.by_key[key]
        entries = facts.dead if key == facts.keys.dead else facts.bodies
        return sum(entries.pop(entry_id, None) is not None for entry_id in ids)

    def _xack(self, key: bytes, _group: bytes, *ids: bytes) -> RawReply:
        return sum(self.by_key[key].pending.pop(entry_id, None) is not None for entry_id in ids)

    def _xadd(self, key: bytes, *arguments: bytes) -> RawReply:
        fields = arguments[arguments.index(b"*") + 1 :]
        facts = self.by_key.get(key)
        entry_id = self.next_id()
        if facts is None:
            self.words.append((key, fields))
        elif key == facts.keys.dead:
            facts.dead[entry_id] = fields
        else:
            facts.bodies[entry_id] = fields
        return entry_id

    def _zadd(self, key: bytes, score: int, member: bytes) -> RawReply:
        self.by_key[key].delayed[member] = score
        return 1

    def _zrem(self, key: bytes, *members: bytes) -> RawReply:
        facts = self.by_key[key]
        removed_from: dict[bytes, Any] = facts.receivers if key == facts.keys.receivers else facts.delayed
        return sum(removed_from.pop(member, None) is not None for member in members)

    def _zcard(self, key: bytes) -> RawReply:
        return len(self.by_key[key].delayed)

    def _zscore(self, key: bytes, member: bytes) -> RawReply:
        return self.by_key[key].receivers.get(member)

    def _zrange(self, key: bytes, _first: int, last: int, _scores: bytes) -> RawReply:
        facts = self.by_key[key]
        if key == facts.keys.receivers:
            return [part for pair in facts.receivers.items() for part in pair]
        members = sorted(facts.delayed.items(), key=lambda pair: pair[1])[: last + 1]
        return [part for member, score in members for part in (member, b"%d" % score)]

    def _hgetall(self, key: bytes) -> RawReply:
        return [part for pair in self.by_key[key].producers.items() for part in pair]

    def _hdel(self, key: bytes, *names: bytes) -> RawReply:
        return sum(self.by_key[key].producers.pop(name, None) is not None for name in names)

    def _del(self, *_keys: bytes) -> RawReply:
        return 1

    def _xreadgroup(self, *_arguments: object) -> RawReply:
        return None


# --- The watch over every step ----------------------------------------------------------------------------


class Watch:
    """Holds every effect of a machine against what must always be true of them. Raises AssertionError."""

    def __init__(self, machine: ServerMachine) -> None:
        self.machine = machine
        self.in_flight: dict[Lane, Batch] = {}
        self.before: tuple[int, str] | None = None
        """Generation, and last purpose, of the command lane's batch before."""
        self.started: set[tuple[int, bytes, int]] = set()
        self.running: dict[int, tuple[int, bytes, int]] = {}
        self.tokens: set[int] = set()

    def fed(self, event: ServerInput) -> None:
        """This input is about to be fed."""
        if isinstance(event, Several):
            for one in event.inputs:
                self.fed(one)
        elif isinstance(event, HandlerDone):
            self.running.pop(event.run, None)
        elif isinstance(event, Reply):
            for lane, batch in list(self.in_flight.items()):
                if batch.token == event.token:
                    del self.in_flight[lane]
        elif isinstance(event, Disconnected):
            link = self.machine.links[event.lane]
            if link.concerns(event.generation):
                self.in_flight.pop(event.lane, None)

    def emitted(self, effects: Sequence[Effect]) -> None:
        """The machine has emitted these."""
        for effect in effects:
            if isinstance(effect, Batch):
                self._batch(effect)
            elif isinstance(effect, Disconnect):
                self.in_flight.pop(effect.lane, None)
            elif isinstance(effect, StartHandler):
                self._start(effect)

    def _batch(self, batch: Batch) -> None:
        assert batch.lane not in self.in_flight, "one batch in flight"
        assert batch.token not in self.tokens, "a token is used once"
        assert batch.commands
        self.tokens.add(batch.token)
        self.in_flight[batch.lane] = batch
        if batch.lane is not Lane.COMMAND:
            return
        names = [command[0] for command in batch.commands]
        first_watch = names.index(b"WATCH") if b"WATCH" in names else len(names)
        assert b"EXEC" not in names[first_watch:], "all WATCHes stand after the last EXEC"
        generation = self.machine.links[Lane.COMMAND].generation
        for at, name in enumerate(batch.purposes):
            question = QUESTION_OF.get(name)
            if question is not None:
                assert at == 0, "a guarded EXEC is the first of its write"
                assert self.before == (generation, question), "right after its question, on the same connection"
        self.before = (generation, batch.purposes[-1])

    def _start(self, start: StartHandler) -> None:
        held = [task for task in self.machine.tasks.by_id.values() if task.run == start.run]
        assert len(held) == 1, "what is started is in the table"
        identity = (held[0].queue, held[0].entry_id, held[0].serial)
        assert identity not in self.started, "an entry is started once while it is in the table"
        self.started.add(identity)
        self.running[start.run] = identity
        assert len(self.running) <= self.machine.settings.concurrency, "the concurrency is kept"


# --- The rig ----------------------------------------------------------------------------------------------


class Rig:
    """A server machine, its time, its effects, and its Redis."""

    def __init__(self, *queues: str | QueueSettings, **changes: Any) -> None:
        self.settings = settings(*queues, **changes)
        self.machine = ServerMachine(self.settings)
        self.facts = Facts([queue_keys(queue.name) for queue in self.settings.queues])
        self.watch = Watch(self.machine)
        self.now = START
        self.effects: list[Effect] = []
        """All effects since the last `clear`."""
        self.runs: dict[str, StartHandler] = {}
        """The last start of each task."""
        self.block_ends = START
        """When the blocked read in flight is answered with nothing."""

    # Looking.

    @property
    def q(self) -> QueueFacts:
        """Facts of the first queue."""
        return self.queue(0)

    def queue(self, index: int) -> QueueFacts:
        """Facts of a queue."""
        return self.facts.by_key[self.machine.queues[index].keys.stream]

    def batch(self, lane: Lane = Lane.COMMAND) -> Batch:
        """The batch in flight."""
        return self.watch.in_flight[lane]

    def in_flight(self, lane: Lane = Lane.COMMAND) -> bool:
        """Whether there is one."""
        return lane in self.watch.in_flight

    def purposes(self, lane: Lane = Lane.COMMAND) -> tuple[str, ...]:
        """Purposes of the batch in flight; empty where there is none."""
        return self.batch(lane).purposes if self.in_flight(lane) else ()

    def section(self, name: str, lane: Lane = Lane.COMMAND) -> tuple[Command, ...]:
        """The commands of the one section in flight with this purpose."""
        found = [section for section in self.machine.links[lane].in_flight if purpose(section) == name]
        assert len(found) == 1, (name, self.purposes(lane))
        return found[0].commands

    def of(self, kind: type[E]) -> list[E]:
        """The effects of a kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def notes(self, kind: type[N]) -> list[N]:
        """The notes of a kind."""
        return [noted.note for noted in self.of(Noted) if isinstance(noted.note, kind)]

    def started(self) -> list[str]:
        """Ids of the tasks whose handlers were started."""
        return [start.entry.task_id for start in self.of(StartHandler)]

    def canceled(self) -> list[int]:
        """Runs whose handlers were asked to stop."""
        return [cancel.run for cancel in self.of(CancelHandler)]

    def held(self, entry_id: bytes, queue: int = 0) -> HeldTask:
        """A task of the table."""
        return self.machine.tasks.by_id[queue, entry_id]

    def clear(self) -> None:
        """Forget the effects seen so far."""
        self.effects.clear()

    # Feeding.

    def feed(self, event: ServerInput) -> list[Effect]:
        """One step."""
        self.watch.fed(event)
        effects = self.machine.step(self.now, event)
        self.watch.emitted(effects)
        self.effects += effects
        self.runs.update((effect.entry.task_id, effect) for effect in effects if isinstance(effect, StartHandler))
        if any(isinstance(effect, Batch) and effect.lane is Lane.READ for effect in effects):
            self.block_ends = self.now + self.settings.block_ms
            self.facts.unblocked = False
        return effects

    def wait(self, ms: int, *, redis: int | None = None) -> None:
        """Let time pass without a step; Redis's clock moves by `redis`, by as much unless said."""
        self.now += ms
        self.facts.redis_ms += ms if redis is None else redis

    def tick(self, ms: int = 0) -> list[Effect]:
        """Time passes, and the driver says so."""
        self.wait(ms)
        return self.feed(Timeout())

    def pass_time(self, ms: int, answers: Answers | None = None, *, answering: bool = True) -> None:
        """Time passes as a driver would let it: a Timeout whenever one is due, and healthy answers at once."""
        end = self.now + ms
        while True:
            if answering:
                self.answer_all(answers)
            if not self._next_moment(end, answering=answering):
                break
        self.wait(end - self.now)

    def until(self, name: str, answers: Answers | None = None, *, most_ms: int = 1_000_000) -> None:
        """Time passes, with healthy answers, until a batch with this purpose is in flight on the command lane."""
        end = self.now + most_ms
        while name not in self.purposes():
            if not self.answer_one(answers):
                assert self._next_moment(end), f"no {name} in {most_ms} ms"

    def _next_moment(self, end: int, *, answering: bool = True) -> bool:
        """Go on to the next time when something happens by itself; False where that is after `end`."""
        due = self.machine.next_timeout()
        if answering and self.blocked and self.block_ends <= min(end, end if due is None else due):
            self.wait(self.block_ends - self.now)
            self.answer(None, Lane.READ)
            return True
        if due is None or due > end:
            return False
        assert due >= self.now
        self.wait(due - self.now)
        emitted = self.feed(Timeout())
        after = self.machine.next_timeout()
        assert emitted or after is None or after > self.now, "no busy loop"
        return True

    def start(self) -> None:
        """StartServer."""
        self.feed(StartServer())

    def close(self, grace_ms: int = 30_000) -> None:
        """CloseServer."""
        self.feed(CloseServer(grace_ms))

    def connect(self, lane: Lane = Lane.COMMAND) -> None:
        """The connection that the machine is waiting for stands."""
        link = self.machine.links[lane]
        assert link.state is LinkState.CONNECTING, link.state
        self.feed(Connected(lane, link.generation))

    def lose(self, lane: Lane = Lane.COMMAND, error: ErrorReply = CUT) -> None:
        """The connection is lost; what was in flight is Unknown."""
        self.feed(Disconnected(lane, self.machine.links[lane].generation, error))

    def reconnect(self, lane: Lane = Lane.COMMAND) -> None:
        """Wait for the next attempt to connect, which succeeds."""
        link = self.machine.links[lane]
        if link.state is LinkState.DOWN:
            self.tick(link.deadline - self.now)
        self.connect(lane)

    def replies(self, answers: Answers | None = None, lane: Lane = Lane.COMMAND) -> list[RawReply]:
        """The replies to the batch in flight."""
        answers = answers or {}
        unused = set(answers)
        replies: list[RawReply] = []
        for section in self.machine.links[lane].in_flight:
            answer = answers.get(purpose(section))
            unused.discard(purpose(section))
            if answer is not None and not isinstance(answer, Answer):
                answer = answer(section)
            replies += self._replies(section, answer)
        assert not unused, f"not in the batch {self.purposes(lane)}: {unused}"
        return replies

    def _replies(self, section: Section, answer: Answer | None) -> list[RawReply]:
        commands = section.commands
        transaction = commands[0] == MULTI
        inner = commands[1:-1] if transaction else commands
        if isinstance(answer, Abort):
            assert transaction
            return [OK, *[QUEUED] * len(inner), None]
        if isinstance(answer, Refusal):
            if transaction:
                aborted = ErrorReply("EXECABORT Transaction discarded because of previous errors.")
                return [OK, *[answer.error] * len(inner), aborted]
            carried = [self.facts.execute(command) for command in inner[: answer.at]]
            return [*carried, *[answer.error] * (len(inner) - answer.at)]
        if isinstance(answer, Values):
            assert len(answer.values) == len(inner), (inner, answer)
            elements = list(answer.values)
        else:
            but = answer.elements if isinstance(answer, But) else {}
            assert all(at < len(inner) for at in but)
            elements = [
                but[at] if isinstance(but.get(at), ErrorReply) else self.facts.execute(command)
                for at, command in enumerate(inner)
            ]
            for at, element in but.items():
                elements[at] = element
        return [OK, *[QUEUED] * len(inner), elements] if transaction else elements

    def answer(self, answers: Answers | None = None, lane: Lane = Lane.COMMAND, *, after_ms: int = 0) -> list[Effect]:
        """The batch in flight is answered: the named sections so, the others by the facts."""
        token = self.batch(lane).token
        replies = self.replies(answers, lane)
        self.wait(after_ms)
        return self.feed(Reply(token, replies))

    def answer_all(self, answers: Answers | None = None, *, most: int = 200) -> None:
        """Answer, connect, and answer again until nothing is in flight but a blocked read.

        `answers` are used where they fit, any number of times.
        """
        for _ in range(most):
            if not self.answer_one(answers):
                return
        raise AssertionError(f"no end of batches: {self.purposes()} {self.purposes(Lane.READ)}")

    def answer_one(self, answers: Answers | None = None) -> bool:
        """Answer one batch, or let one connection stand; False where only a blocked read is in flight."""
        for lane in Lane:
            if self.in_flight(lane) and not (lane is Lane.READ and self.blocked):
                fitting = {name: answer for name, answer in (answers or {}).items() if name in self.purposes(lane)}
                self.answer(fitting, lane)
                return True
        for lane, link in self.machine.links.items():
            if link.state is LinkState.CONNECTING:
                self.connect(lane)
                return True
        return False

    @property
    def blocked(self) -> bool:
        """Whether a read is in flight that waits."""
        blocking = self.in_flight(Lane.READ) and b"BLOCK" in self.batch(Lane.READ).commands[0]
        return blocking and not self.facts.unblocked

    def open(self) -> None:
        """Start, connect, and answer until a read is blocked, or there is nothing to do."""
        self.start()
        self.answer_all()

    # What others do.

    def pend(
        self,
        entry_id: bytes,
        fields: Fields | None = None,
        *,
        owner: bytes = OTHER,
        deliveries: int = 1,
        queue: int = 0,
        idle_ms: int = 5,
    ) -> None:
        """An entry is pending under somebody."""
        facts = self.queue(queue)
        facts.bodies[entry_id] = task(f"t{entry_id.decode()}") if fields is None else fields
        facts.pending[entry_id] = Row(owner, self.facts.redis_ms - idle_ms, deliveries)
        if id_parts(entry_id) > id_parts(facts.last_delivered):
            facts.last_delivered = entry_id

    def deliver(self, *tasks: Fields, queue: int = 0) -> list[bytes]:
        """The read in flight brings these as new entries; their ids."""
        facts = self.queue(queue)
        ids = []
        for fields in tasks:
            self.facts.ids += 1
            entry_id = b"%d-0" % (1000 + self.facts.ids)
            self.pend(entry_id, fields, owner=ME, queue=queue, idle_ms=0)
            ids.append(entry_id)
        entries: list[RawReply] = [[entry_id, list(facts.bodies[entry_id])] for entry_id in ids]
        self.answer({"intake.on_read": values([[facts.keys.stream, entries]])}, Lane.READ)
        return ids

    def bring(self, *tasks: Fields, queue: int = 0) -> list[bytes]:
        """Like `deliver`, then everything is answered."""
        ids = self.deliver(*tasks, queue=queue)
        self.answer_all()
        return ids

    def run_of(self, task_id: str) -> int:
        """The number of the task's last run."""
        return self.runs[task_id].run

    def succeed(self, task_id: str = "t1", result: bytes | None = None) -> list[Effect]:
        """The task's handler returns."""
        return self.feed(HandlerSucceeded(self.run_of(task_id), result))

    def fail(self, task_id: str = "t1", text: str = "ValueError: no") -> list[Effect]:
        """The task's handler raises."""
        return self.feed(HandlerFailed(self.run_of(task_id), text))

    def ask_retry(self, task_id: str = "t1", delay_ms: int | None = None, reason: str = "later") -> list[Effect]:
        """The task's handler raises Retry."""
        return self.feed(HandlerAsksRetry(self.run_of(task_id), delay_ms, reason))

    def reject(self, task_id: str = "t1", reason: str = "never") -> list[Effect]:
        """The task's handler raises Reject."""
        return self.feed(HandlerRejects(self.run_of(task_id), reason))

    def stop(self, task_id: str = "t1") -> list[Effect]:
        """The task's handler has stopped."""
        return self.feed(HandlerCanceled(self.run_of(task_id)))


def commands_named(batch: Batch | Sequence[Command], name: bytes) -> list[Command]:
    """The commands of this name."""
    commands = batch.commands if isinstance(batch, Batch) else batch
    return [command for command in commands if command[0] == name]


def connects(effects: Sequence[Effect]) -> list[Lane]:
    """Lanes that are to be connected."""
    return [effect.lane for effect in effects if isinstance(effect, Connect)]
