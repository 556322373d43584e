"""What really happened, as only the simulator can know it: the facts that the oracles judge.

The ledger sees each call of the application and each answer, each start and end of a handler, each change of a stream
in Redis with its author, each loss of data, and when which process was in touch with Redis.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamfleet_protocol.effects import Accepted, ClientClosed, Confirmed, Flushed, Rejected, ServerStopped, Settled
from streamfleet_protocol.errors import DecodeError
from streamfleet_protocol.keys import SERVER_GROUP, queue_keys, receiver_key
from streamfleet_protocol.members import unpack_member
from streamfleet_protocol.notes import Note
from streamfleet_protocol.replies import ErrorReply
from streamfleet_protocol.wire import Fields, raw_field

from .plan import TaskPlan
from .redis_model import Observer
from .settings import EPOCH_MS

if TYPE_CHECKING:
    from streamfleet_protocol.commands import Command

    from .handlers import Run
    from .network import Wire
    from .processes import Process
    from .world import World

REFUSED_ELEMENT = "wrong type inside a transaction"
_HARMLESS = "BUSYGROUP"
_RECEIVERS = receiver_key("")
_RENEWALS = ("leases.on_look", "leases.on_renewed")


@dataclass(slots=True)
class TaskRecord:
    """One task's history."""

    plan: TaskPlan
    call: int = 0
    incarnation: int = 0
    """Of its client, when it was enqueued."""
    asked_at: int = -1
    accepted_at: int = -1
    rejected: str = ""
    expires_ts: int = 0
    """Deadline on Redis's clock, once it is known: from the entry."""
    stored: list[tuple[int, int]] = field(default_factory=list)
    """(virtual time, retries) of each entry or delayed member that its client wrote."""
    confirmed: list[int] = field(default_factory=list)
    """Virtual times at which its client got the answer to a batch with it."""
    finished_at: int = -1
    """When the settlement of a success deleted its entry."""
    ended_at: int = -1
    """When another ending last deleted its entry."""
    word_at: int = -1
    """When the first word about its success was put into its client's receiver stream."""
    runs: list[Run] = field(default_factory=list)
    settled: list[tuple[int, Settled]] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)
    """(virtual time, reason) of each dead letter."""
    withdrawn: list[tuple[int, str]] = field(default_factory=list)
    """Of these, those that were taken out again, since a success had come in between."""
    known_late: list[tuple[int, str]] = field(default_factory=list)
    """Those that came behind a settled success, as the worker that wrote them has learned."""

    @property
    def succeeded(self) -> bool:
        """Whether some handler returned, and its process knew."""
        return any(run.outcome == "succeeded" for run in self.runs)


@dataclass(slots=True)
class Loss:
    """Redis lost data, or an operator took them away."""

    kind: str
    at: int
    tasks: frozenset[str]
    """Ids of tasks that were in a stream or a delayed set before, and are not after."""
    repairable: bool
    """The clients can see it, by the sequence."""
    key: bytes = b""
    """Of a refused element: where it was to go."""


@dataclass(slots=True)
class Presence:
    """One incarnation of a process, and when it was in touch with Redis."""

    started_at: int
    ended_at: int = 1 << 60
    ended_by: str = ""
    closing_at: int = 1 << 60
    close_ms: int = 0
    """The grace, or the timeout, that it was given."""
    contacts: list[int] = field(default_factory=list)
    """Virtual times at which a look, or a renewal, was answered without a refusal."""
    troubles: list[int] = field(default_factory=list)
    """Virtual times at which a fault struck it."""

    def longest_gap(self, since: int, until: int) -> int:
        """The longest time without contact between two times, a fault being the reason; its end if it ended."""
        if self.ended_at <= until:
            return 1 << 40
        times = self.contacts[bisect_left(self.contacts, since) : bisect_left(self.contacts, until + 1)]
        edge = bisect_left(self.contacts, since)
        before = self.contacts[edge - 1] if edge else self.started_at
        longest = 0
        for at in (*times, until):
            if at - before > longest and self._troubled(before, at):
                longest = at - before
            before = at
        return longest

    def _troubled(self, since: int, until: int) -> bool:
        at = bisect_left(self.troubles, since)
        return at < len(self.troubles) and self.troubles[at] <= until


class Ledger:
    """All facts of a run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tasks: dict[str, TaskRecord] = {}
        self.calls: dict[tuple[str, int], list[TaskRecord]] = {}
        self.flushes: dict[tuple[str, int], int] = {}
        """By identity and call: when each flush was asked for that is not answered."""
        self.losses: list[Loss] = []
        self.presences: dict[str, Presence] = {}
        """By identity."""
        self.notes: Counter[str] = Counter()
        self.duplicates_explained = 0
        self.run_count = 0
        self.bad_entries = 0
        self.acting: Wire | None = None
        """Whose commands are being executed."""
        self.touched: dict[tuple[bytes, bytes], int] = {}
        """By stream and entry: when its pending record was last given to its owner, or renewed."""
        self.entries: dict[tuple[bytes, bytes], TaskRecord] = {}
        """By stream and entry."""
        self.letters: dict[tuple[bytes, bytes], tuple[TaskRecord, tuple[int, str]]] = {}
        """By stream of dead letters and entry."""
        self.known_late: dict[tuple[str, int], int] = {}
        """By task id and retries: when a worker learned that it had put that in behind a settled success."""
        self.delayed: dict[tuple[str, int], int] = {}
        """By task id and retries: the score of its member in a delayed set."""
        self.observer = LedgerObserver(self)
        self.streams = {queue_keys(name).stream: name for name in world.plan.queues}
        self.delayed_sets = {queue_keys(name).delayed: name for name in world.plan.queues}
        self.dead_streams = {queue_keys(name).dead: name for name in world.plan.queues}

    # Calls and answers.

    def asked(self, process: Process, call: int, record: TaskRecord) -> None:
        """The application enqueues a task."""
        record.call = call
        record.incarnation = process.incarnation
        record.asked_at = self.world.now
        self.tasks[record.plan.name] = record
        self.calls.setdefault((process.identity, call), []).append(record)

    def answered(self, process: Process, answer: Accepted | Rejected) -> None:
        """The call has ended."""
        self.flushes.pop((process.identity, answer.call), None)
        records = self.calls.get((process.identity, answer.call), [])
        accepted = answer.count if isinstance(answer, Accepted) else answer.accepted
        for at, record in enumerate(records):
            if at < accepted:
                record.accepted_at = self.world.now
            elif isinstance(answer, Rejected):
                record.rejected = answer.rejection.value
                self.world.oracles.rejected(process, record)

    def flushed(self, process: Process, effect: Flushed) -> None:
        """All that was accepted before a flush call is said to be confirmed."""
        asked_at = self.flushes.pop((process.identity, effect.call))
        self.world.oracles.flushed(process, asked_at)

    def told_confirmed(self, process: Process, effect: Confirmed) -> None:
        """Tracked tasks are said to be in Redis."""
        self.world.oracles.told_confirmed(process, effect)

    def settled(self, process: Process, effect: Settled) -> None:
        """A handle has ended."""
        record = self.tasks.get(effect.task_id)
        if record is not None:
            record.settled.append((self.world.now, effect))
            self.world.oracles.settled(process, record, effect)

    def noted(self, process: Process, note: Note) -> None:
        """A machine tells a person something."""
        self.notes[type(note).__name__] += 1
        self.world.oracles.noted(process, note)

    def faulted(self, process: Process, error: ErrorReply) -> None:
        """A machine says that a person must act. A worker closes by itself."""
        if process.is_worker:
            self.closing(process, 0)
        self.world.oracles.faulted(process, error)

    # Processes.

    def started(self, process: Process) -> None:
        """An incarnation begins."""
        self.presences[process.identity] = Presence(self.world.now)

    def ended(self, process: Process, why: str) -> None:
        """It ends."""
        presence = self.presences[process.identity]
        presence.ended_at = self.world.now
        presence.ended_by = why

    def closing(self, process: Process, within_ms: int) -> None:
        """It is being closed."""
        presence = self.presences[process.identity]
        presence.closing_at = self.world.now
        presence.close_ms = within_ms

    def stopped(self, process: Process, effect: ServerStopped | ClientClosed) -> None:
        """Its machine is closed."""
        presence = self.presences[process.identity]
        presence.closing_at = min(presence.closing_at, self.world.now)
        if isinstance(effect, ClientClosed):
            self.world.oracles.client_closed(process, effect)

    def out_of_touch(self, process: Process) -> None:
        """A fault keeps it from Redis, now."""
        presence = self.presences.get(process.identity)
        if presence is not None and (not presence.troubles or presence.troubles[-1] != self.world.now):
            presence.troubles.append(self.world.now)

    def replied(self, wire: Wire, purposes: tuple[str, ...], replies: Sequence[Any]) -> None:
        """A process has got the answers to a batch."""
        now = self.world.now
        for name, _ in wire.stored:
            self.tasks[name].confirmed.append(now)
        wire.stored = []
        for loss in wire.failed:
            self.losses = [other for other in self.losses if other is not loss]
        for late in wire.late_successors:
            self.known_late[late] = now
        wire.late_successors = []
        for record, letter in wire.late_letters:
            record.known_late.append(letter)
        wire.late_letters = []
        if "outbox.on_armed" in purposes:
            self._forget_what_shows(wire.process)
        wire.failed = []
        if wire.process.frozen or refused(replies):
            self.out_of_touch(wire.process)
        elif any(purpose in _RENEWALS for purpose in purposes):
            self.presences[wire.process.identity].contacts.append(now)

    def executed(self, wire: Wire, elements: list[Any]) -> None:
        """A transaction was executed. Where a key's type is wrong its element fails, and the others are applied.

        Whoever gets the answer puts the task back. Where it does not come, nobody can tell: whoever has replaced the
        key, within one round trip, has lost that task.
        """
        if not any(isinstance(element, ErrorReply) for element in elements):
            return
        assert wire.batch is not None
        done = len(wire.replies)
        commands = wire.batch.commands[done - 1 - len(elements) : done - 1]
        for command, element in zip(commands, elements, strict=True):
            if isinstance(element, ErrorReply) and command[0] in (b"XADD", b"ZADD"):
                key = command[1]
                assert isinstance(key, bytes)
                loss = Loss(REFUSED_ELEMENT, self.world.now, frozenset((_task_of(command),)), False, key)
                self.losses.append(loss)
                wire.failed.append(loss)

    def _forget_what_shows(self, process: Process) -> None:
        """A client asks what there is: where a key is still of a wrong type it can know that a task is not there."""
        data = self.world.site.primary.server.keys.data
        wrong = {
            key
            for keys, kind in ((self.streams, "Stream"), (self.delayed_sets, "ZSet"))
            for key in keys
            if key in data and type(data[key]).__name__ != kind
        }
        self.losses = [loss for loss in self.losses if loss.key not in wrong or not self._is_of(loss, process)]

    def _is_of(self, loss: Loss, process: Process) -> bool:
        return all(self.tasks[name].plan.client == process.name for name in loss.tasks)

    # Losses.

    def data_lost(
        self, kind: str, before: dict[bytes, Any], after: dict[bytes, Any], *, repairable: bool = True
    ) -> None:
        """The data of a server become others."""
        lost = self.present(before) - self.present(after)
        self.losses.append(Loss(kind, self.world.now, frozenset(lost), repairable))
        self.world.trace("server", "lost", (kind, sorted(lost)))

    def present(self, data: dict[bytes, Any]) -> set[str]:
        """Ids of the tasks in the streams and delayed sets of a server's data."""
        found = set()
        for key in self.streams:
            stream = data.get(key)
            for _, fields in getattr(stream, "entries", {}).values():
                found.add(task_key(fields)[0])
        for key in self.delayed_sets:
            for member in getattr(data.get(key), "scores", {}):
                found.add(member_key(member)[0])
        return found

    def lost_since(self, at: int) -> bool:
        """Whether any data were lost at that time or later, or will be: an old primary still answers."""
        return self.world.site.old is not None or (bool(self.losses) and self.losses[-1].at >= at)

    # Takeovers.

    def lapse_ms(self, identity: str, since: int) -> int:
        """The longest time for which an incarnation was out of touch since then, for the fault of others."""
        presence = self.presences.get(identity)
        return 1 << 40 if presence is None else presence.longest_gap(since, self.world.now)


def refused(replies: Sequence[Any]) -> bool:
    """Whether any reply, or any element of one, is a refusal."""
    for reply in replies:
        if isinstance(reply, ErrorReply):
            if reply.code != _HARMLESS:
                return True
        elif type(reply) is list and reply and isinstance(reply[0], ErrorReply):
            return True
    return False


def task_key(fields: Fields) -> tuple[str, int]:
    """Task id and retries of an entry; whatever it holds."""
    if len(fields) >= 18 and fields[2] == b"id" and fields[16] == b"retries":
        task_id, retries = fields[3], fields[17]
    else:
        task_id, retries = raw_field(fields, b"id"), raw_field(fields, b"retries")
    return task_id.decode("utf-8", "replace"), int(retries) if retries.isdigit() else -1


def member_key(member: bytes) -> tuple[str, int]:
    """Task id and retries of a member of a delayed set; whatever it holds."""
    try:
        return task_key(unpack_member(member))
    except DecodeError:
        return "", -1


def _task_of(command: Command) -> str:
    """The id of the task that an XADD, or a ZADD of the delayed set, puts into Redis."""
    last = command[-1]
    assert isinstance(last, bytes)
    if command[0] == b"ZADD":
        return member_key(last)[0]
    task_id = command[command.index(b"id") + 1] if b"id" in command else b""
    return task_id.decode() if isinstance(task_id, bytes) else ""


class LedgerObserver(Observer):
    """Sees each change of streams and delayed sets in the model of Redis."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.oracles: Any = None

    def appended(self, key: bytes, entry_id: bytes, fields: Fields) -> None:
        """XADD."""
        ledger = self.ledger
        if key in ledger.streams:
            name, retries = task_key(fields)
            record = ledger.tasks.get(name)
            if record is not None:
                ledger.entries[key, entry_id] = record
                self._stored(record, retries, fields)
                self.oracles.appended(key, entry_id, record, retries)
                ledger.delayed.pop((name, retries), None)
        elif key.startswith(_RECEIVERS):
            record = ledger.tasks.get(raw_field(fields, b"task_id").decode("utf-8", "replace"))
            if record is not None and record.word_at < 0 and raw_field(fields, b"type") == b"completed":
                record.word_at = ledger.world.now
        elif key in ledger.dead_streams:
            record = ledger.tasks.get(raw_field(fields, b"id").decode("utf-8", "replace"))
            reason = raw_field(fields, b"dead_reason").decode("utf-8", "replace")
            if record is not None:
                record.dead.append((ledger.world.now, reason))
                ledger.letters[key, entry_id] = (record, record.dead[-1])
                if record.finished_at >= 0 and ledger.acting is not None:
                    ledger.acting.late_letters.append((record, record.dead[-1]))
            self.oracles.dead_lettered(record, reason)

    def _stored(self, record: TaskRecord, retries: int, fields: Fields) -> None:
        wire = self.ledger.acting
        if wire is None:
            return
        if wire.process.is_worker:
            if record.finished_at >= 0 and wire.batch is not None and "conclusions.on_replaced" in wire.batch.purposes:
                wire.late_successors.append((record.plan.name, retries))
        else:
            deadline = raw_field(fields, b"expires_ts")
            record.expires_ts = int(deadline) if deadline.isdigit() else 0
            record.stored.append((self.ledger.world.now, retries))
            wire.stored.append((record.plan.name, retries))
            self.oracles.stored(wire, record)

    def deleted(self, key: bytes, entry_id: bytes) -> None:
        """XDEL."""
        letter = self.ledger.letters.get((key, entry_id))
        if letter is not None:
            letter[0].withdrawn.append(letter[1])
        record = self.ledger.entries.get((key, entry_id))
        wire = self.ledger.acting
        if record is None or wire is None or wire.batch is None:
            return
        purposes = wire.batch.purposes
        # One batch may end some and settle others; a success tells them apart.
        if record.succeeded and ("settlement.on_plain" in purposes or "settlement.on_tracked" in purposes):
            record.finished_at = self.ledger.world.now
        if "conclusions.on_replaced" in purposes and not record.succeeded:
            record.ended_at = self.ledger.world.now

    def member_added(self, key: bytes, member: bytes, score: float) -> None:
        """ZADD."""
        ledger = self.ledger
        if key in ledger.delayed_sets:
            name, retries = member_key(member)
            record = ledger.tasks.get(name)
            if record is not None:
                ledger.delayed[name, retries] = int(score)
                self._stored(record, retries, unpack_member(member))

    def delivered(self, key: bytes, group: bytes, entry_id: bytes, consumer: bytes, previous: bytes | None) -> None:
        """XREADGROUP."""
        if key in self.ledger.streams:
            self.ledger.touched[key, entry_id] = self.ledger.world.now

    def claimed(
        self, key: bytes, group: bytes, entry_id: bytes, consumer: bytes, previous: bytes | None, just_id: bool
    ) -> None:
        """XCLAIM."""
        if group == SERVER_GROUP and key in self.ledger.streams:
            if previous != consumer:
                self.oracles.taken(key, entry_id, consumer, previous)
            self.ledger.touched[key, entry_id] = self.ledger.world.now

    def acknowledged(self, key: bytes, group: bytes, entry_id: bytes, owner: bytes) -> None:
        """XACK."""
        if key in self.ledger.streams:
            self.oracles.acknowledged(key, entry_id, owner)

    def consumer_deleted(self, key: bytes, group: bytes, consumer: bytes, entry_ids: list[bytes]) -> None:
        """XGROUP DELCONSUMER."""
        if key in self.ledger.streams and self.ledger.acting is not None:
            self.oracles.consumer_deleted(key, consumer, entry_ids)


def redis_ms(virtual_ms: int, offset_ms: int = 0) -> int:
    """Unix ms of a virtual time on a clock that is `offset_ms` ahead."""
    return EPOCH_MS + virtual_ms + offset_ms
