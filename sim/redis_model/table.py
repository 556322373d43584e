"""The table of commands: names, arity, flags, handlers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import group_commands, session, stream_commands, values, zset_commands
from .errors import CommandError, NotModelledError
from .gate import Flag
from .keyspace import Keyspace
from .replies import Outcome, Reply

if TYPE_CHECKING:
    from .server import Connection, ModelServer

KeyHandler = Callable[[Keyspace, Sequence[bytes]], Reply]
SessionHandler = Callable[["ModelServer", "Connection", Sequence[bytes]], Outcome]


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Exactly one of the handlers is there."""

    name: str
    arity: int
    """Number of words, the name's included; negative: at least so many."""
    flags: Flag
    on_keys: KeyHandler | None
    """Works on the keys alone."""
    on_session: SessionHandler | None
    """Works on the connection or the server too."""
    immediate: bool
    """Not queued inside of MULTI."""
    first_key: int = 0
    """The word that is the first key; 0: there is none."""
    more_keys: bool = False
    """All words after it are keys too."""

    def fits(self, words: int) -> bool:
        """Whether the number of words is right."""
        return words == self.arity if self.arity > 0 else words >= -self.arity

    def keys(self, words: Sequence[bytes]) -> Sequence[bytes]:
        """The keys among the words of the command."""
        first = self.first_key
        if not first:
            return stream_keys(words) if self.on_session is session.read else ()
        return words[first:] if self.more_keys else words[first : first + 1]


def stream_keys(words: Sequence[bytes]) -> Sequence[bytes]:
    """The keys of XREAD and XREADGROUP as a cluster finds them: none where the syntax is wrong before or after."""
    i = 1
    while i < len(words):
        option = words[i].upper()
        if option == b"STREAMS":
            count = len(words) - i - 1
            return () if count % 2 else words[i + 1 : i + 1 + count // 2]
        if option not in _OPTION_WORDS:
            break
        i += _OPTION_WORDS[option]
    return ()


_OPTION_WORDS = {b"BLOCK": 2, b"COUNT": 2, b"GROUP": 3, b"NOACK": 1}


_NONE = Flag(0)
_W = Flag.WRITE
_WM = Flag.WRITE | Flag.NEEDS_MEMORY
_ALWAYS = Flag.ALWAYS
_CONTROL = Flag.ALWAYS | Flag.WHILE_BUSY | Flag.IN_MULTI

_ON_KEYS: tuple[tuple[str, int, Flag, KeyHandler], ...] = (
    ("set", -3, _WM, values.set_),
    ("get", 2, _NONE, values.get),
    ("del", -2, _W, values.del_),
    ("exists", -2, _NONE, values.exists),
    ("type", 2, _NONE, values.type_),
    ("pexpire", -3, _W, values.pexpire),
    ("pttl", 2, _NONE, values.pttl),
    ("incr", 2, _WM, values.incr),
    ("flushall", -1, _W, values.flushall),
    ("hset", -4, _WM, values.hset),
    ("hget", 3, _NONE, values.hget),
    ("hdel", -3, _W, values.hdel),
    ("hgetall", 2, _NONE, values.hgetall),
    ("hlen", 2, _NONE, values.hlen),
    ("zadd", -4, _WM, zset_commands.zadd),
    ("zrem", -3, _W, zset_commands.zrem),
    ("zscore", 3, _NONE, zset_commands.zscore),
    ("zcard", 2, _NONE, zset_commands.zcard),
    ("zrange", -4, _NONE, zset_commands.zrange),
    ("zrangebyscore", -4, _NONE, zset_commands.zrangebyscore),
    ("zscan", -3, _NONE, zset_commands.zscan),
    ("xadd", -5, _WM, stream_commands.xadd),
    ("xlen", 2, _NONE, stream_commands.xlen),
    ("xdel", -3, _W, stream_commands.xdel),
    ("xtrim", -4, _W, stream_commands.xtrim),
    ("xrange", -4, _NONE, stream_commands.xrange),
    ("xack", -4, _W, group_commands.xack),
    ("xpending", -3, _NONE, group_commands.xpending),
    ("xclaim", -6, _W, group_commands.xclaim),
    ("xinfo|groups", 3, _NONE, group_commands.xinfo_groups),
    ("xinfo|consumers", 4, _NONE, group_commands.xinfo_consumers),
    ("xgroup|create", -5, _WM, group_commands.xgroup_create),
    ("xgroup|destroy", 4, _W, group_commands.xgroup_destroy),
    ("xgroup|createconsumer", 5, _WM, group_commands.xgroup_createconsumer),
    ("xgroup|delconsumer", 5, _W, group_commands.xgroup_delconsumer),
)

_ON_SESSION: tuple[tuple[str, int, Flag, SessionHandler], ...] = (
    ("xread", -4, _NONE, session.read),
    ("xreadgroup", -7, _W, session.read),
    ("watch", -2, _CONTROL, session.watch),
    ("unwatch", 1, _ALWAYS | Flag.WHILE_BUSY, session.unwatch),
    ("multi", 1, _CONTROL, session.multi),
    ("exec", 1, _ALWAYS | Flag.IN_MULTI, session.exec_),
    ("discard", 1, _CONTROL, session.discard),
    ("time", 1, _ALWAYS, session.time),
    ("ping", -1, Flag.PING, session.ping),
    ("info", -1, _ALWAYS, session.info),
    ("wait", 3, _NONE, session.wait),
    ("client|id", 2, _ALWAYS, session.client_id),
    ("client|unblock", -3, _ALWAYS, session.client_unblock),
    ("select", 2, _ALWAYS, session.select),
    ("asking", 1, _NONE, session.asking),
)

_MANY_KEYS = frozenset(("del", "exists"))


def _first_key(name: str) -> int:
    if name == "flushall":
        return 0
    return 2 if "|" in name else 1


Table = dict[bytes, Command | dict[bytes, Command]]


def build_table(*, busy_allows_select: bool) -> Table:
    """The table, by names in upper case; a command with subcommands has a table of its own."""
    commands = [
        Command(name, arity, flags, handler, None, False, _first_key(name), name in _MANY_KEYS)
        for name, arity, flags, handler in _ON_KEYS
    ]
    for name, arity, flags, on_session in _ON_SESSION:
        if busy_allows_select and name in ("select", "client|id"):
            flags |= Flag.WHILE_BUSY
        immediate = bool(flags & Flag.IN_MULTI)
        watches = name == "watch"
        commands.append(Command(name, arity, flags, None, on_session, immediate, int(watches), watches))
    table: Table = {}
    for command in commands:
        first, _, second = command.name.upper().partition("|")
        if not second:
            table[first.encode()] = command
            continue
        subcommands = table.setdefault(first.encode(), {})
        assert isinstance(subcommands, dict)
        subcommands[second.encode()] = command
    return table


def find(table: Table, args: Sequence[bytes]) -> Command:
    """The command that the words begin with."""
    found = table.get(args[0]) or table.get(args[0].upper())
    if isinstance(found, dict):
        name = args[0].decode("utf-8", "backslashreplace")
        if len(args) < 2:
            raise CommandError(f"ERR wrong number of arguments for '{name.lower()}' command")
        inner = found.get(args[1].upper())
        if inner is None:
            word = args[1].decode("utf-8", "backslashreplace")
            if args[1].upper() in _LEFT_OUT:
                raise NotModelledError(f"{name} {word}")
            raise CommandError(f"ERR unknown subcommand '{word}'. Try {name.upper()} HELP.")
        return inner
    if found is None:
        raise NotModelledError(repr(args[0]))
    return found


_LEFT_OUT = frozenset((b"STREAM", b"SETID", b"HELP", b"KILL", b"LIST", b"SETNAME", b"SETINFO", b"NO-EVICT"))
