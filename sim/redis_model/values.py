"""Keys of any type, strings, hashes."""

from __future__ import annotations

from collections.abc import Sequence

from .arguments import parse_int
from .errors import NOT_AN_INTEGER, SYNTAX, CommandError, NotModelledError, wrong_arity
from .keyspace import Keyspace, Value
from .replies import OK, Reply
from .streams import Stream


def set_(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """SET, with PX or without."""
    expires_at: int | None = None
    i = 3
    while i < len(args):
        option = args[i].upper()
        if option == b"PX" and i + 1 < len(args) and expires_at is None:
            milliseconds = parse_int(args[i + 1])
            if milliseconds <= 0:
                raise CommandError("ERR invalid expire time in 'set' command")
            expires_at = keys.now + milliseconds
            i += 2
        elif option in (b"EX", b"EXAT", b"PXAT", b"NX", b"XX", b"GET", b"KEEPTTL", b"IFEQ"):
            raise NotModelledError(f"SET {option!r}")
        else:
            raise CommandError(SYNTAX)
    keys.replace(args[1], args[2])
    if expires_at is not None:
        keys.set_expiry(args[1], expires_at)
    return OK


def get(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """GET."""
    return keys.string(args[1])


def incr(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """INCR; an expiry stays."""
    value = parse_int(keys.string(args[1]) or b"0") + 1
    if value >= 1 << 63:
        raise CommandError("ERR increment or decrement would overflow")
    keys.data[args[1]] = b"%d" % value
    keys.touch(args[1])
    return value


def del_(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """DEL."""
    return sum(keys.delete(key) for key in args[1:])


def exists(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """EXISTS."""
    return sum(key in keys.data for key in args[1:])


def type_(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """TYPE."""
    value: Value | None = keys.data.get(args[1])
    if value is None:
        return b"none"
    if isinstance(value, bytes):
        return b"string"
    if isinstance(value, dict):
        return b"hash"
    return b"stream" if isinstance(value, Stream) else b"zset"


def pexpire(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """PEXPIRE; a time that is over deletes at once."""
    milliseconds = parse_int(args[2], NOT_AN_INTEGER)
    if len(args) > 3:
        raise NotModelledError("PEXPIRE with options")
    if not -(1 << 63) <= keys.now + milliseconds < 1 << 63:
        raise CommandError("ERR invalid expire time in 'pexpire' command")
    if args[1] not in keys.data:
        return 0
    if milliseconds <= 0:
        keys.delete(args[1])
        return 1
    keys.set_expiry(args[1], keys.now + milliseconds)
    keys.touch(args[1])
    return 1


def pttl(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """PTTL."""
    if args[1] not in keys.data:
        return -2
    expires_at = keys.expires.get(args[1])
    return -1 if expires_at is None else max(expires_at - keys.now, 0)


def flushall(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """FLUSHALL."""
    if len(args) > 2 or (len(args) == 2 and args[1].upper() not in (b"SYNC", b"ASYNC")):
        raise CommandError(SYNTAX)
    keys.clear()
    return OK


def hset(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """HSET: how many fields are new."""
    if len(args) % 2:
        raise wrong_arity("hset")
    table = keys.hash(args[1])
    if table is None:
        table = {}
        keys.add(args[1], table)
    before = len(table)
    for i in range(2, len(args), 2):
        table[args[i]] = args[i + 1]
    keys.touch(args[1])
    return len(table) - before


def hget(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """HGET."""
    table = keys.hash(args[1])
    return None if table is None else table.get(args[2])


def hdel(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """HDEL; an empty hash goes."""
    table = keys.hash(args[1])
    if table is None:
        return 0
    deleted = sum(table.pop(name, None) is not None for name in args[2:])
    if not table:
        keys.delete(args[1])
    elif deleted:
        keys.touch(args[1])
    return deleted


def hgetall(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """HGETALL, in the order of insertion, as small hashes of servers give it."""
    table = keys.hash(args[1])
    if table is None:
        return []
    return [part for item in table.items() for part in item]


def hlen(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """HLEN."""
    return len(keys.hash(args[1]) or ())
