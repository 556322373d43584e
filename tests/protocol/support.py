"""A script for a machine: feed it inputs, look at its effects, answer its batches by their purposes.

    script = Script(ClientMachine(settings()))
    script.feed(enqueue(b"hello"))
    script.connect()
    script.answer({"outbox.on_armed": Refused(error("LOADING"))})

What a batch is not explicitly answered with, the script's `Peer` answers: a toy of a healthy server that knows only
the commands of a client, and one connection. It is no model of Redis (that is `sim`), but enough that a script tells
only what matters to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from streamfleet_protocol.client.machine import ClientMachine
from streamfleet_protocol.commands import MULTI, Command
from streamfleet_protocol.effects import Batch, Connect, Disconnect, Effect, Lane, Noted
from streamfleet_protocol.inputs import (
    CloseClient,
    Connected,
    Disconnected,
    Enqueue,
    Flush,
    Reply,
    TaskOptions,
    Timeout,
    Withdraw,
)
from streamfleet_protocol.link import LinkState, Section
from streamfleet_protocol.machine import Machine
from streamfleet_protocol.members import unpack_member
from streamfleet_protocol.notes import Note
from streamfleet_protocol.replies import Aborted, ErrorReply, Ok, Outcome, RawReply, Refused
from streamfleet_protocol.settings import ClientSettings
from streamfleet_protocol.timing import NEVER
from streamfleet_protocol.wire import Notification, NotificationType, decode_task, encode_notification

T = TypeVar("T")

START = 1_000_000
"""The machine's time at which scripts begin."""
REDIS_START = 1_700_000_000_000
"""Redis's time then, in Unix ms."""
QUEUE = "jobs"
STREAM = b"streamfleet:jobs"
PRODUCERS = b"{streamfleet:jobs}:producers"
DELAYED = b"{streamfleet:jobs}:delayed"
PROMOTIONS = b"{streamfleet:jobs}:promotions"
CLIENT = "me"
WATCHED = b"{streamfleet:jobs}:conn:me"
RECEIVER = b"streamfleet:receiver:me"
RECEIVERS = b"streamfleet:jobs:receivers"

CUT = ErrorReply("CONNECTION closed by the server")


def error(text: str) -> ErrorReply:
    """An error reply; a bare code gets some text."""
    return ErrorReply(text if " " in text else f"{text} for a test")


def settings(**changes: Any) -> ClientSettings:
    """Settings of a client with one queue, `jobs`."""
    values: dict[str, Any] = {"queues": (QUEUE,), "client_id": CLIENT, "seed": 1}
    return ClientSettings(**{**values, **changes})


@dataclass(frozen=True)
class But:
    """An answer: as the peer answers, but for the elements with these indexes (of the plain section, or of EXEC).

    A WATCH is not asked: the transaction is applied.
    """

    elements: Mapping[int, RawReply]


Answer = Outcome | But


@dataclass(eq=False)
class Session:
    """What a server keeps of one connection."""

    watched: set[bytes] = field(default_factory=set)
    dirty: bool = False
    """A watched key was touched."""

    def unwatch(self) -> None:
        """UNWATCH, or the end of any EXEC."""
        self.watched.clear()
        self.dirty = False


@dataclass
class Peer:
    """A toy of a healthy server."""

    redis_ms: int = REDIS_START
    strings: dict[bytes, bytes] = field(default_factory=dict)
    hashes: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)
    sorted_sets: dict[bytes, dict[bytes, int]] = field(default_factory=dict)
    streams: dict[bytes, list[tuple[bytes, tuple[bytes, ...]]]] = field(default_factory=dict)
    groups: set[tuple[bytes, bytes]] = field(default_factory=set)
    ids: int = 0
    flush_before_watch: bool = False
    """The next WATCH comes just after somebody's FLUSHALL."""
    before_watch: Callable[[], object] | None = None
    """What happens just before the next WATCH."""
    session: Session = field(default_factory=Session)
    """Of the connection whose commands are executed."""
    sessions: list[Session] = field(default_factory=list)
    """Of old connections, whose commands may still be executed."""

    def flush(self) -> None:
        """FLUSHALL. It touches the keys that exist."""
        for kind in (self.strings, self.hashes, self.sorted_sets, self.streams):
            self.touch(*kind)
        for all_of_them in (self.strings, self.hashes, self.sorted_sets, self.streams, self.groups):
            all_of_them.clear()

    def touch(self, *keys: bytes) -> None:
        """Somebody writes these keys, this connection included."""
        for session in (self.session, *self.sessions):
            session.dirty = session.dirty or not session.watched.isdisjoint(keys)

    def append(self, stream: bytes, fields: Sequence[bytes]) -> bytes:
        """XADD by somebody else; the new entry's id."""
        self.touch(stream)
        self.ids += 1
        entry_id = b"%d-0" % self.ids
        self.streams.setdefault(stream, []).append((entry_id, tuple(fields)))
        return entry_id

    def execute(self, command: Command) -> RawReply:
        """Execute one command."""
        name, *arguments = command
        assert isinstance(name, bytes)
        method: Callable[..., RawReply] = getattr(self, f"_{name.decode().lower()}")
        return method(*arguments)

    def _time(self) -> RawReply:
        return [b"%d" % (self.redis_ms // 1000), b"%d" % (self.redis_ms % 1000 * 1000)]

    def _set(self, key: bytes, value: bytes, *_expiry: object) -> RawReply:
        self.touch(key)
        self.strings[key] = value
        return b"OK"

    def _get(self, key: bytes) -> RawReply:
        return self.strings.get(key)

    def _exists(self, *keys: bytes) -> RawReply:
        return sum(key in self.strings for key in keys)

    def _watch(self, *keys: bytes) -> RawReply:
        if self.flush_before_watch:
            self.flush_before_watch = False
            self.flush()
        if self.before_watch is not None:
            happen, self.before_watch = self.before_watch, None
            happen()
        self.session.watched.update(keys)
        return b"OK"

    def _unwatch(self) -> RawReply:
        self.session.unwatch()
        return b"OK"

    def _pexpire(self, key: bytes, _after: int) -> RawReply:
        if key in self.strings:
            self.touch(key)
        return int(key in self.strings)

    def _del(self, *keys: bytes) -> RawReply:
        self.touch(*keys)
        kinds: tuple[dict[bytes, Any], ...] = (self.strings, self.hashes, self.sorted_sets, self.streams)
        self.groups -= {(key, group) for key, group in self.groups if key in keys}
        return sum(kind.pop(key, None) is not None for kind in kinds for key in keys)

    def _hget(self, key: bytes, name: bytes) -> RawReply:
        return self.hashes.get(key, {}).get(name)

    def _hgetall(self, key: bytes) -> RawReply:
        return [part for pair in self.hashes.get(key, {}).items() for part in pair]

    def _hset(self, key: bytes, name: bytes, value: bytes | int) -> RawReply:
        self.touch(key)
        fields = self.hashes.setdefault(key, {})
        is_new = name not in fields
        fields[name] = value if isinstance(value, bytes) else b"%d" % value
        return int(is_new)

    def _hdel(self, key: bytes, *names: bytes) -> RawReply:
        self.touch(key)
        return sum(self.hashes.get(key, {}).pop(name, None) is not None for name in names)

    def _zadd(self, key: bytes, score: int, member: bytes) -> RawReply:
        self.touch(key)
        members = self.sorted_sets.setdefault(key, {})
        is_new = member not in members
        members[member] = score
        return int(is_new)

    def _zrem(self, key: bytes, *members: bytes) -> RawReply:
        self.touch(key)
        return sum(self.sorted_sets.get(key, {}).pop(member, None) is not None for member in members)

    def _zcard(self, key: bytes) -> RawReply:
        return len(self.sorted_sets.get(key, {}))

    def _zscore(self, key: bytes, member: bytes) -> RawReply:
        score = self.sorted_sets.get(key, {}).get(member)
        return None if score is None else b"%d" % score

    def _zrange(self, key: bytes, first: int, last: int, *_with_scores: bytes) -> RawReply:
        members = sorted(self.sorted_sets.get(key, {}).items(), key=lambda pair: (pair[1], pair[0]))
        return [part for member, score in members[first : last + 1] for part in (member, b"%d" % score)]

    def _zscan(self, key: bytes, _cursor: bytes, *_count: object) -> RawReply:
        return [b"0", self._zrange(key, 0, 10**9)]

    def _xlen(self, stream: bytes) -> RawReply:
        return len(self.streams.get(stream, []))

    def _xadd(self, stream: bytes, _star: bytes, *fields: bytes) -> RawReply:
        return self.append(stream, fields)

    def _xdel(self, stream: bytes, *ids: bytes) -> RawReply:
        entries = self.streams.get(stream, [])
        kept = [entry for entry in entries if entry[0] not in ids]
        if stream in self.streams:
            self.streams[stream] = kept
        return len(entries) - len(kept)

    def _xrange(self, stream: bytes, first: bytes, last: bytes, *count: Any) -> RawReply:
        low = 0 if first == b"-" else _number(first.removeprefix(b"(")) + first.startswith(b"(")
        high = 10**18 if last == b"+" else _number(last)
        found: list[RawReply] = [
            [entry_id, list(fields)]
            for entry_id, fields in self.streams.get(stream, [])
            if low <= _number(entry_id) <= high
        ]
        return found[: count[1]] if count else found

    def _xread(self, *arguments: Any) -> RawReply:
        stream, after = arguments[-2:]
        found = self._xrange(stream, b"(" + after, b"+", b"COUNT", arguments[1])
        return [[stream, found]] if found else None

    def _xgroup(self, _create: bytes, stream: bytes, group: bytes, *_rest: bytes) -> RawReply:
        if (stream, group) in self.groups:
            return ErrorReply("BUSYGROUP Consumer Group name already exists")
        self.groups.add((stream, group))
        self.streams.setdefault(stream, [])
        return b"OK"


class Script:
    """Drives one machine by hand."""

    def __init__(self, machine: Machine[Any], peer: Peer | None = None, now: int = START) -> None:
        self.machine = machine
        self.peer = peer or Peer()
        self.now = now
        self.effects: list[Effect] = []
        """All effects so far."""
        self.read_margin_ms = 2_000
        self.late: list[tuple[Session, tuple[Section, ...]]] = []
        """What old connections have still in the pipes."""

    # Inputs.

    def feed(self, event: Any) -> list[Effect]:
        """One step; its effects."""
        effects = self.machine.step(self.now, event)
        self.effects += effects
        return effects

    def connect(self, lane: Lane = Lane.COMMAND) -> list[Effect]:
        """The connection that the machine asked for stands."""
        link = self.machine.links[lane]
        assert link.state is LinkState.CONNECTING, link.state
        if lane is Lane.COMMAND:
            self.peer.session = Session()
        return self.feed(Connected(lane, link.generation))

    def lose(self, lane: Lane = Lane.COMMAND, reason: ErrorReply = CUT, *, applied: bool = False) -> list[Effect]:
        """The connection is lost; `applied`: after the server had executed what was in flight."""
        link = self.machine.links[lane]
        if applied:
            self._replies(link.in_flight, {})
        return self.feed(Disconnected(lane, link.generation, reason))

    def lose_late(self) -> list[Effect]:
        """The command lane's connection is lost, and what was in flight may be executed at any later time."""
        session, sections = self.peer.session, self.machine.links[Lane.COMMAND].in_flight
        self.peer.sessions.append(session)
        self.late.append((session, sections))
        return self.lose()

    def execute_late(self, at: int, count: int) -> None:
        """The first `count` sections of what an old connection had in the pipes are executed, the rest never is."""
        session, sections = self.late.pop(at)
        current, self.peer.session = self.peer.session, session
        self._replies(sections[:count], {})
        self.peer.session = current
        self.peer.sessions.remove(session)

    def answer(self, answers: Mapping[str, Answer] | None = None, lane: Lane = Lane.COMMAND) -> list[Effect]:
        """The batch in flight is answered: the sections with these purposes so, the others by the peer."""
        link = self.machine.links[lane]
        assert link.token, f"nothing is in flight on the lane {lane}"
        answers = answers or {}
        strange = answers.keys() - {".".join(section.handler) for section in link.in_flight}
        assert not strange, f"not in flight: {strange}"
        return self.feed(Reply(link.token, self._replies(link.in_flight, answers)))

    def answer_all(self, lane: Lane = Lane.COMMAND) -> list[Effect]:
        """Answer batch after batch, until none is in flight."""
        effects: list[Effect] = []
        for _ in range(1000):
            if not self.machine.links[lane].token:
                return effects
            effects += self.answer(lane=lane)
        raise AssertionError("the machine never comes to rest")

    def pass_time(self, span_ms: int) -> list[Effect]:
        """Time passes, with a Timeout whenever the machine has asked for one; nothing is answered."""
        return self._until(self.now + span_ms, answering=False)

    def live(self, span_ms: int) -> list[Effect]:
        """Time passes as in `pass_time`, with a healthy server: all is answered at once, blocked reads after BLOCK."""
        return self._until(self.now + span_ms, answering=True)

    def _until(self, end: int, *, answering: bool) -> list[Effect]:
        effects: list[Effect] = self.answer_all() if answering else []
        spins = 0
        while (due := self._due(answering)) <= end:
            spins = 0 if due > self.now else spins + 1
            assert spins < 20, "the machine asks for Timeout after Timeout at one time"
            self._move_to(due)
            effects += self._happen(answering)
            if answering:
                effects += self.answer_all()
        self._move_to(end)
        return effects

    def _due(self, answering: bool) -> int:
        due = self.machine.next_timeout()
        return min(NEVER if due is None else due, self._blocked_until() if answering else NEVER)

    def _happen(self, answering: bool) -> list[Effect]:
        if answering and self._blocked_until() <= self.now:
            return self.answer(lane=Lane.READ)
        return self.feed(Timeout())

    def _blocked_until(self) -> int:
        link = self.machine.links[Lane.READ]
        return link.deadline - self.read_margin_ms if link.token else NEVER

    def _move_to(self, now: int) -> None:
        self.peer.redis_ms += now - self.now
        self.now = now

    # What is to be seen.

    def flight(self, lane: Lane = Lane.COMMAND) -> dict[str, tuple[Command, ...]]:
        """What is in flight on a lane: the purposes, with their commands (a transaction without MULTI and EXEC)."""
        found: dict[str, tuple[Command, ...]] = {}
        for section in self.machine.links[lane].in_flight:
            commands = section.commands
            found[".".join(section.handler)] = commands[1:-1] if commands[0] == MULTI else commands
        return found

    def waits_for(self, *purposes: str, lane: Lane = Lane.COMMAND) -> bool:
        """Whether exactly these purposes are in flight."""
        return tuple(self.flight(lane)) == purposes

    def advance_to(self, purpose: str, lane: Lane = Lane.COMMAND) -> None:
        """Answer batch after batch, until one with this purpose is in flight."""
        for _ in range(100):
            if purpose in self.flight(lane):
                return
            self.answer(lane=lane)
        raise AssertionError(f"{purpose} never came")

    def live_to(self, purpose: str, most_ms: int = 100_000) -> None:
        """Time passes, and each batch of the command lane is answered, until one with this purpose is in flight."""
        end = self.now + most_ms
        while purpose not in self.flight():
            if self.flight():
                self.answer()
            else:
                due = self._due(True)
                assert due <= end, f"{purpose} never came"
                self._move_to(due)
                self._happen(True)

    def _replies(self, sections: Sequence[Section], answers: Mapping[str, Answer]) -> list[RawReply]:
        replies: list[RawReply] = []
        for section in sections:
            given = answers.get(".".join(section.handler))
            if section.commands[0] == MULTI:
                replies += self._transaction(section.commands[1:-1], given)
            else:
                replies += self._plain(section.commands, given)
        return replies

    def _transaction(self, commands: Sequence[Command], given: Answer | None) -> list[RawReply]:
        queued: list[RawReply] = [b"OK", *([b"QUEUED"] * len(commands))]
        aborted = self.peer.session.dirty
        self.peer.session.unwatch()
        if isinstance(given, Aborted) or (aborted and given is None):
            return [*queued, None]
        if isinstance(given, Refused):
            queued[1] = given.error
            return [*queued, ErrorReply("EXECABORT Transaction discarded because of previous errors.")]
        return [*queued, self._plain(commands, given)]

    def _plain(self, commands: Sequence[Command], given: Answer | None) -> list[RawReply]:
        if isinstance(given, Ok):
            return list(given.values)
        if isinstance(given, Refused):
            return list(given.values) or [given.error] * len(commands)
        changed = given.elements if isinstance(given, But) else {}
        return [changed[at] if at in changed else self.peer.execute(command) for at, command in enumerate(commands)]


class ClientScript(Script):
    """Drives a client by hand. Its tasks are named t1, t2 ..., in the order of their enqueueing."""

    machine: ClientMachine

    def __init__(self, machine: ClientMachine | None = None, peer: Peer | None = None, **changes: Any) -> None:
        super().__init__(machine or ClientMachine(settings(**changes)), peer)
        self.named = 0
        self.calls = 0

    def enqueue(
        self, *data: bytes, queue: str = QUEUE, tracked: bool = False, wait: bool = True, **options: Any
    ) -> list[Effect]:
        """An enqueue call."""
        ids = tuple(f"t{self.named + at + 1}" for at in range(len(data)))
        self.named += len(data)
        self.calls += 1
        return self.feed(Enqueue(self.calls, queue, ids, data, TaskOptions(**options), tracked, wait))

    def track(self, *data: bytes, **options: Any) -> list[Effect]:
        """An enqueue call of tracked tasks."""
        return self.enqueue(*data, tracked=True, **options)

    def withdraw(self, call: int) -> list[Effect]:
        """The caller gives up."""
        return self.feed(Withdraw(call))

    def flush(self) -> list[Effect]:
        """A flush call."""
        self.calls += 1
        return self.feed(Flush(self.calls))

    def close(self, timeout_ms: int = 10_000) -> list[Effect]:
        """The closing call."""
        return self.feed(CloseClient(timeout_ms))

    def start(self) -> None:
        """Connect, and answer all that follows."""
        if self.machine.links[Lane.COMMAND].state is LinkState.IDLE:
            self.flush()
        self.connect()
        self.answer_all()
        if self.machine.links[Lane.READ].state is LinkState.CONNECTING:
            self.connect(Lane.READ)

    def reconnect(self, lane: Lane = Lane.COMMAND, *, applied: bool = False) -> list[Effect]:
        """Lose the connection, wait out the back-off, and connect again."""
        effects = self.lose(lane, applied=applied)
        link = self.machine.links[lane]
        self.pass_time(link.deadline - self.now)
        return effects + self.connect(lane)

    def say(self, task_id: str, kind: str = "completed", text: str = "", result: bytes | None = None) -> bytes:
        """A worker's word arrives in the receiver stream."""
        return self.peer.append(
            RECEIVER, encode_notification(Notification(task_id, NotificationType(kind), text, result))
        )

    def in_stream(self, stream: bytes = STREAM) -> list[str]:
        """Ids of the tasks in a stream of the peer."""
        return [decode_task(fields).task_id for _, fields in self.peer.streams.get(stream, [])]

    def in_delayed(self) -> dict[str, int]:
        """The delayed tasks at the peer, with their due times."""
        members = self.peer.sorted_sets.get(DELAYED, {})
        return {decode_task(unpack_member(member)).task_id: due for member, due in members.items()}

    def take(self, task_id: str) -> None:
        """A worker settles a task: its entry is gone."""
        for stream, entries in self.peer.streams.items():
            if stream != RECEIVER:
                self.peer.streams[stream] = [entry for entry in entries if decode_task(entry[1]).task_id != task_id]

    def held(self) -> list[str]:
        """Ids of the tasks that wait in the local queue, of all queues."""
        return [task.task_id for queue in self.machine.queues.values() for task in queue.waiting]


def sent(batch: Sequence[Command]) -> list[str]:
    """Ids of the tasks that the commands of a batch write."""
    ids = []
    for command in batch:
        if command[0] == b"XADD":
            ids.append(decode_task(command[3:]).task_id)
        elif command[0] == b"ZADD":
            assert isinstance(command[3], bytes)
            ids.append(decode_task(unpack_member(command[3])).task_id)
    return ids


def of(effects: Sequence[Effect], kind: type[T]) -> list[T]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def notes(effects: Sequence[Effect], kind: type[T] = Note) -> list[T]:  # type: ignore[assignment]
    """The notes of one kind."""
    return [effect.note for effect in effects if isinstance(effect, Noted) and isinstance(effect.note, kind)]


def events(effects: Sequence[Effect]) -> list[Effect]:
    """The effects for the application."""
    return [effect for effect in effects if not isinstance(effect, Batch | Connect | Disconnect | Noted)]


def _number(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])
