"""The server: its connections, its clock, its states, and the way of a command through it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from .arguments import to_bytes
from .blocking import Reader, Readers
from .errors import CommandError, ErrorReply, wrong_arity
from .gate import Flag, Mode, mode_text, refusing_mode
from .keyspace import Frozen, Keyspace, Snapshot, freeze
from .observer import Observer
from .propagation import replay_of, replica_of, tell_all
from .replicas import Replicas
from .replies import BLOCKED, QUEUED, Outcome, Reply
from .session import end_transaction, forget_watches, judged_queue, refuse_exec
from .slots import Slots
from .table import Command, Table, build_table, find
from .versions import VERSIONS, Version, VersionName

if TYPE_CHECKING:
    from typing import Any

_READ_FLAGS = {True: Flag.WRITE, False: Flag(0)}
_DEMOTED = "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"


@cache
def _table(busy_allows_select: bool) -> Table:
    return build_table(busy_allows_select=busy_allows_select)


class _Switch:
    """A state of the server as an attribute: `server.oom = True`."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode

    def __get__(self, server: ModelServer, owner: type[Any]) -> bool:
        return bool(server.modes & self._mode)

    def __set__(self, server: ModelServer, on: bool) -> None:
        server.modes = server.modes | self._mode if on else server.modes & ~self._mode


class _Processes:
    """Counts the processes of a server and of its forks, so that no two have one run id."""

    __slots__ = ("_started",)

    def __init__(self) -> None:
        self._started = 0

    def start(self) -> int:
        """The number of a new process."""
        self._started += 1
        return self._started


class Connection:
    """A client's connection as the server has it."""

    __slots__ = ("asking", "closed", "dirty", "executing", "failed", "id", "queue", "server", "watched")

    def __init__(self, server: ModelServer, number: int) -> None:
        self.server = server
        self.id = number
        self.closed = False
        self.queue: list[tuple[Command, list[bytes]]] | None = None
        """What MULTI gathered; None outside of MULTI."""
        self.failed = False
        """A command was refused while queueing: EXEC will be EXECABORT."""
        self.watched: list[bytes] = []
        self.dirty = False
        """A watched key was touched: EXEC will be nil."""
        self.executing = False
        self.asking = 0
        """2 once ASKING was executed, 1 during the next command or the transaction that it begins."""

    @property
    def blocked(self) -> bool:
        """Whether a read waits. Servers leave later commands in the socket till then; so must the caller."""
        return self.id in self.server.readers.by_connection

    def execute(self, command: Sequence[bytes | str | int]) -> Outcome:
        """Executes one command; its reply, or BLOCKED and the reply later."""
        if self.closed:
            raise RuntimeError("the connection is closed")
        if self.id in self.server.readers.by_connection:
            raise RuntimeError("the connection is blocked")
        return self.server.execute(self, [a if type(a) is bytes else to_bytes(a) for a in command])

    def close(self) -> None:
        """The client is gone: nothing queued is executed, no waiting read is served, no reply reaches it."""
        self.server.drop(self)
        self.server.readers.forget_replies(self.id)


class ModelServer:
    """A Redis or Valkey server in memory, with a clock that the caller sets."""

    oom = _Switch(Mode.OOM)
    loading = _Switch(Mode.LOADING)
    readonly = _Switch(Mode.READONLY)
    busy = _Switch(Mode.BUSY)
    misconf = _Switch(Mode.MISCONF)
    noreplicas = _Switch(Mode.NOREPLICAS)
    masterdown = _Switch(Mode.MASTERDOWN)

    def __init__(self, version: VersionName = "valkey9", clock_ms: int = 0) -> None:
        self.version: Version = VERSIONS[version]
        self.modes = 0
        self.maxmemory_policy = "noeviction"
        self.cluster: Slots | None = None
        """What this node of a cluster knows of the slots; None: a server on its own."""
        self.keys = Keyspace(self.version, clock_ms)
        self.replica_state = Replicas()
        self.readers = Readers(self.keys, self.replica_state, self._refuse_again)
        self.connections: dict[int, Connection] = {}
        self._table = _table(self.version.busy_allows_select)
        self._last_connection = 0
        self._processes = _Processes()
        self._process = self._processes.start()

    @property
    def observer(self) -> Observer | None:
        """Who is told of changes; None for nobody. A fork begins without."""
        return self.keys.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self.keys.observer = observer

    # The clock.

    @property
    def clock_ms(self) -> int:
        """The wall clock."""
        return self.keys.now

    def set_time(self, clock_ms: int) -> None:
        """Sets the wall clock, which may go back. Keys expire; waits end only through `timeouts_due`."""
        self.keys.set_time(clock_ms)
        self._serve()

    def next_block_deadline(self) -> int | None:
        """When the next BLOCK ends, on the wall clock; None where nobody waits, or only without end."""
        return self.readers.next_deadline()

    def timeouts_due(self) -> list[tuple[int, Reply]]:
        """Ends the waits whose BLOCK is over by the wall clock; returns their replies."""
        return self.readers.end_overdue()

    def take_unblocked(self) -> list[tuple[int, Reply]]:
        """The replies to blocked commands since the last call, in the order in which they were served."""
        taken = self.readers.unblocked
        if not taken:
            return []
        self.readers.unblocked = []
        return taken

    # Connections.

    def connect(self) -> Connection:
        """A new connection; ids are never used twice."""
        self._last_connection += 1
        connection = Connection(self, self._last_connection)
        self.connections[connection.id] = connection
        return connection

    def drop(self, connection: Connection) -> None:
        """The connection is gone, with its WATCHes and its wait."""
        connection.closed = True
        connection.queue = None
        forget_watches(self, connection)
        self.readers.remove(connection.id)
        self.connections.pop(connection.id, None)
        self.replica_state.written.pop(connection.id, None)

    # Commands.

    def execute(self, connection: Connection, words: list[bytes]) -> Outcome:
        """A command of a connection: checks, queueing or execution, then the readers that it woke."""
        try:
            command = find(self._table, words)
            if not command.fits(len(words)):
                raise wrong_arity(command.name)
        except CommandError as error:
            connection.failed = connection.queue is not None
            if connection.queue is None:
                connection.asking = 0
            return error.reply
        if self.cluster is not None:
            redirected = self._redirect(self.cluster, connection, command, words)
            if redirected is not None:
                return redirected
        queueing = connection.queue is not None and not command.immediate
        if self.modes:
            refused = self._refuse(connection, command)
            if refused is not None:
                return refused
        if queueing:
            assert connection.queue is not None
            # What EXEC will not execute is not kept, so it does not count for what refuses the EXEC either.
            if not connection.failed and not connection.dirty:
                connection.queue.append((command, words))
            return QUEUED
        if self.replica_state.lagging:
            reply = self._run_noting_changes(connection, command, words)
        else:
            reply = self.run(connection, command, words)
        if self.keys.ready:
            self._serve()
        return reply

    def run(self, connection: Connection, command: Command, words: list[bytes]) -> Outcome:
        """Executes a command that nothing refuses."""
        try:
            if command.on_keys is not None:
                return command.on_keys(self.keys, words)
            assert command.on_session is not None
            return command.on_session(self, connection, words)
        except CommandError as error:
            return error.reply

    def _run_noting_changes(self, connection: Connection, command: Command, words: list[bytes]) -> Outcome:
        """While a replica lags: WAIT has to know what a connection has written, or in 7.0 what was before it."""
        before = self.keys.changes
        reply = self.run(connection, command, words)
        changes = self.keys.changes
        if changes != before or not self.version.reexecutes:
            self.replica_state.written[connection.id] = changes
        if reply is BLOCKED and command.name == "wait":
            self.keys.changes += 1  # The replicas are asked for acknowledgements in the stream of changes.
        return reply

    def _refuse(self, connection: Connection, command: Command) -> ErrorReply | None:
        if command.name == "exec":
            return refuse_exec(self, connection)
        # WATCH and MULTI inside of MULTI are refused like what is queued, DISCARD is not.
        inside = connection.queue is not None and command.name != "discard"
        mode = refusing_mode(self.modes, self.version, command.flags, queueing=inside)
        if mode is None:
            return None
        if connection.queue is not None:
            connection.failed = True
        return ErrorReply(mode_text(mode, self.version))

    def _redirect(
        self, cluster: Slots, connection: Connection, command: Command, words: list[bytes]
    ) -> ErrorReply | None:
        """The error for a command whose keys another node serves; EXEC is judged by all that is queued."""
        queue = connection.queue
        if queue is None and connection.asking:
            connection.asking -= 1
        if command.name == "watch" and queue is not None and self.version.refuses_watch_inside:
            return None  # That refusal comes first.
        if command.name != "exec":
            keys = command.keys(words)
        else:
            keys = [key for queued, its_words in judged_queue(self, connection) for key in queued.keys(its_words)]
        if not keys:
            return None
        asks_later = queue is not None and self.version.asks_at_exec and command.name != "exec"
        error = cluster.redirection(keys, None if asks_later else self.keys.data, bool(connection.asking))
        if error is not None and queue is not None:
            if command.name == "exec":
                end_transaction(self, connection)
            else:
                connection.failed = True
        return error

    def _refuse_again(self, reader: Reader) -> ErrorReply | None:
        """A blocked read that runs again is checked like a new one."""
        request = reader.request
        if self.cluster is not None:
            redirected = self.cluster.redirection(request.keys, self.keys.data, reader.asking)
            if redirected is not None:
                return redirected
        if not self.modes:
            return None
        flags = _READ_FLAGS[request.group is not None]
        mode = refusing_mode(self.modes, self.version, flags, queueing=False)
        return None if mode is None else ErrorReply(mode_text(mode, self.version))

    def _serve(self) -> None:
        if self.keys.ready:
            self.readers.serve()

    # Replicas.

    @property
    def replicas(self) -> int:
        """How many replicas are attached. Those that come are in step; those that go are the ones that lag."""
        return self.replica_state.attached

    @replicas.setter
    def replicas(self, count: int) -> None:
        self.replica_state.attached = count
        self.readers.acknowledge()

    @property
    def replicas_in_step(self) -> int:
        """How many of them acknowledge each change at once.

        The others have acknowledged what was there when they fell behind, and get no further till they are in step
        again. ValueError for more than are attached.
        """
        return self.replica_state.attached - len(self.replica_state.lagging)

    @replicas_in_step.setter
    def replicas_in_step(self, count: int) -> None:
        self.replica_state.set_in_step(count, self.keys.changes)
        self.readers.acknowledge()

    # Slots of a cluster.

    def redirect_blocked(self) -> None:
        """Ends the waits of readers whose slot is not served here any more, with an error for each.

        Servers look now and then: it happens within a second after `cluster` has changed, not at once.
        """
        if self.cluster is None:
            return
        for number, reader in list(self.readers.by_connection.items()):
            error = self.cluster.eviction(reader.request.keys[0]) if isinstance(reader, Reader) else None
            if error is not None:
                self.readers.answer(number, error)

    def migrate(self, key: bytes, target: ModelServer) -> bool:
        """MIGRATE: the key goes to another server; returns whether it did: it is here, and not there.

        What remains of an expiry goes along; times of deliveries stay as they are, whatever the target's clock says.
        """
        value = self.keys.data.get(key)
        if value is None or key in target.keys.data:
            return False
        expires_at = self.keys.expires.get(key)
        target.keys.add(key, value)
        if expires_at is not None:
            target.keys.set_expiry(key, target.keys.now + expires_at - self.keys.now)
        target.keys.touch(key)
        self.keys.delete(key)
        target._serve()
        self._serve()
        return True

    # Persistence and loss.

    @property
    def run_id(self) -> str:
        """Another one after each restart, and for each fork; servers made on their own all begin with the same."""
        return f"{self._process:040x}"

    def snapshot(self) -> Snapshot:
        """A copy of all data; entries and pending records are shared, not copied."""
        return self.keys.snapshot()

    def frozen(self) -> Frozen:
        """What `snapshot().frozen()` is, without the copy between."""
        return freeze(self.keys.data, self.keys.expires)

    def fork(self, clock_ms: int, data: Snapshot | None = None) -> ModelServer:
        """A replica that is promoted: another process of the same version, with what it was told of the data.

        The data is that of the snapshot, or else what is here now. It has a clock and a run id of its own, no
        connections, replicas, slots or observer, and no state that refuses commands. What replicas are not told of is
        in `propagation`.
        """
        other = ModelServer(self.version.name, clock_ms)
        other.maxmemory_policy = self.maxmemory_policy
        other._processes = self._processes
        other._process = self._processes.start()
        other.keys.restore(replica_of(data if data is not None else self.snapshot(), clock_ms))
        tell_all(other.keys.data, rewritten=False)
        return other

    def tell_all(self) -> None:
        """A replica got a full copy just now, or the append-only file was rewritten: it knows everything up to here."""
        tell_all(self.keys.data, rewritten=True)

    def restore(self, snapshot: Snapshot) -> None:
        """Replaces the data under the connections, as a full resync does: their WATCHes are touched."""
        self.keys.restore(snapshot)
        self._serve()

    def restart(self, data: Snapshot | None = None, *, append_only: bool = False) -> None:
        """Another process with that data, or none: no connection or wait is left; times are absolute.

        With `append_only` the data comes from the append-only file, which lacks what replicas are not told of, too;
        else from a snapshot file, which has everything.
        """
        for connection in list(self.connections.values()):
            self.drop(connection)
        self.readers.clear()
        self.modes = 0
        self._process = self._processes.start()
        data = data if data is not None else Snapshot({}, {})
        self.keys.restore(replay_of(data, self.keys.now) if append_only else data)
        tell_all(self.keys.data, rewritten=not append_only)

    def demote(self) -> None:
        """A primary becomes a replica: read-only, and every blocked reader gets an error and is cut off.

        The replies come through `take_unblocked`; the connections are closed already.
        """
        self.readonly = True
        for number in list(self.readers.by_connection):
            self.readers.answer(number, ErrorReply(_DEMOTED))
            self.drop(self.connections[number])
