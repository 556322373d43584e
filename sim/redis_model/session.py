"""Commands of a connection: transactions, blocking reads, and what asks the server itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .arguments import parse_int
from .errors import CommandError, ErrorReply, NotModelledError, wrong_arity
from .gate import Flag, mode_text, refusing_mode
from .reading import parse_read
from .reading import read as read_now
from .replies import BLOCKED, OK, Outcome, Reply

if TYPE_CHECKING:
    from .server import Connection, ModelServer
    from .table import Command


def read(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """XREAD and XREADGROUP; inside of EXEC they do not wait."""
    request = parse_read(server.keys, args)
    found = read_now(server.keys, request)
    if found is not None or request.block_ms is None or connection.executing:
        return found
    server.readers.block(connection.id, request, server.keys.now, asking=bool(connection.asking))
    return BLOCKED


def watch(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """WATCH."""
    if connection.queue is not None:
        if server.version.refuses_watch_inside:
            connection.failed = True
            raise CommandError("ERR Command 'watch' not allowed inside a transaction")
        raise CommandError("ERR WATCH inside MULTI is not allowed")
    for key in args[1:]:
        if key not in connection.watched:
            connection.watched.append(key)
            server.keys.watched.setdefault(key, []).append(connection)
    return OK


def unwatch(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """UNWATCH."""
    forget_watches(server, connection)
    return OK


def forget_watches(server: ModelServer, connection: Connection) -> None:
    """All WATCHes of the connection end, touched or not."""
    watched = server.keys.watched
    for key in connection.watched:
        watchers = watched[key]
        watchers.remove(connection)
        if not watchers:
            del watched[key]
    connection.watched.clear()
    connection.dirty = False


def multi(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """MULTI."""
    if connection.queue is not None:
        if server.version.refuses_watch_inside:
            connection.failed = True
            raise CommandError("ERR Command 'multi' not allowed inside a transaction")
        raise CommandError("ERR MULTI calls can not be nested")
    connection.queue = []
    return OK


def discard(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """DISCARD."""
    if connection.queue is None:
        raise CommandError("ERR DISCARD without MULTI")
    end_transaction(server, connection)
    return OK


def end_transaction(server: ModelServer, connection: Connection) -> None:
    """What is queued is dropped, the WATCHes end."""
    connection.queue = None
    connection.failed = False
    forget_watches(server, connection)


def exec_(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """EXEC: nil where a watched key was touched; an error of one element does not stop the others."""
    queue = connection.queue
    if queue is None:
        raise CommandError("ERR EXEC without MULTI")
    failed, dirty = connection.failed, connection.dirty
    end_transaction(server, connection)
    if failed:
        raise CommandError("EXECABORT Transaction discarded because of previous errors.")
    if dirty:
        return None
    connection.executing = True
    replies: list[Reply] = []
    try:
        for command, words in queue:
            reply = server.run(connection, command, words)
            assert reply is not BLOCKED
            replies.append(reply)
    finally:
        connection.executing = False
    return replies


def judged_queue(server: ModelServer, connection: Connection) -> Sequence[tuple[Command, list[bytes]]]:
    """What of the queued commands counts for whether EXEC as a whole is refused or redirected."""
    if connection.queue is None or (server.version.forgets_failed and (connection.failed or connection.dirty)):
        return ()
    return connection.queue


def refuse_exec(server: ModelServer, connection: Connection) -> ErrorReply | None:
    """EXEC refused as a whole, for the state of the server and what is queued; nothing is applied then."""
    flags = Flag.ALWAYS
    for command, _ in judged_queue(server, connection):
        flags |= command.flags & (Flag.WRITE | Flag.NEEDS_MEMORY)
        if not command.flags & Flag.ALWAYS:
            flags &= ~Flag.ALWAYS
    mode = refusing_mode(server.modes, server.version, flags, queueing=False)
    if mode is None:
        return None
    end_transaction(server, connection)
    text = mode_text(mode, server.version)
    return ErrorReply(f"EXECABORT Transaction discarded because of: {text}")


def time(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """TIME: seconds and microseconds of the wall clock."""
    seconds, milliseconds = divmod(server.keys.now, 1000)
    return [b"%d" % seconds, b"%d" % (milliseconds * 1000)]


def ping(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """PING."""
    if len(args) > 2:
        raise wrong_arity("ping")
    return args[1] if len(args) == 2 else b"PONG"


def info(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """INFO: of the sections only what the protocol looks at."""
    sections = {
        b"SERVER": f"# Server\r\nrun_id:{server.run_id}\r\n",
        b"MEMORY": f"# Memory\r\nmaxmemory_policy:{server.maxmemory_policy}\r\n",
    }
    wanted = [name.upper() for name in args[1:]] or list(sections)
    return "\r\n".join(sections[name] for name in wanted if name in sections).encode()


def wait(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """WAIT: how many replicas have what this connection has written; it waits for the number that is wanted."""
    if server.readonly:
        raise CommandError(server.version.no_wait)
    wanted = parse_int(args[1])
    timeout = parse_int(args[2], "ERR timeout is not an integer or out of range")
    if timeout < 0:
        raise CommandError("ERR timeout is negative")
    replicas = server.replica_state
    offset = replicas.written.get(connection.id, 0)
    acknowledged = replicas.acknowledged(offset)
    if acknowledged >= wanted or connection.executing:
        return acknowledged
    server.readers.wait(connection.id, timeout, wanted, offset)
    return BLOCKED


def select(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """SELECT 0."""
    number = parse_int(args[1])
    if not 0 <= number < 16:
        raise CommandError("ERR DB index is out of range")
    if number:
        raise NotModelledError("databases other than 0")
    return OK


def asking(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """ASKING: the next command may concern a slot that is being imported. Inside of EXEC it is too late."""
    if server.cluster is None:
        raise CommandError("ERR This instance has cluster support disabled")
    if not connection.executing:
        connection.asking = 2
    return OK


def client_id(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """CLIENT ID."""
    return connection.id


def client_unblock(server: ModelServer, connection: Connection, args: Sequence[bytes]) -> Outcome:
    """CLIENT UNBLOCK: 1 where that connection was blocked."""
    reason = args[3].upper() if len(args) == 4 else b"TIMEOUT"
    if reason not in (b"TIMEOUT", b"ERROR") or len(args) > 4:
        raise CommandError("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    other = parse_int(args[2])
    error = ErrorReply("UNBLOCKED client unblocked via CLIENT UNBLOCK")
    return int(server.readers.answer(other, error) if reason == b"ERROR" else server.readers.time_out(other))
