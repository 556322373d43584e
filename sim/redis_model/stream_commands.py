"""XADD, XLEN, XDEL, XTRIM, XRANGE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import format_id, parse_id, parse_int, parse_range_end, parse_range_start
from .errors import INVALID_ID, SYNTAX, CommandError, NotModelledError, wrong_arity
from .keyspace import Keyspace
from .replies import Reply
from .streams import Stream, next_millisecond_sequence


@dataclass(slots=True)
class _Options:
    """The options of XADD and XTRIM."""

    position: int
    """Where they end."""
    maxlen: int | None = None
    approximate: bool = False
    nomkstream: bool = False


def _parse_options(args: Sequence[bytes], *, adding: bool) -> _Options:
    """The options before the id of XADD, or all those of XTRIM."""
    options = _Options(2)
    i = 2
    while i < len(args):
        word = args[i]
        if adding and word == b"*":
            break
        option = word.upper()
        more = len(args) - 1 - i
        if option == b"MAXLEN" and more:
            if options.maxlen is not None:
                raise CommandError("ERR syntax error, MAXLEN and MINID options at the same time are not compatible")
            options.approximate = False
            if more >= 2 and args[i + 1] in (b"~", b"="):
                options.approximate = args[i + 1] == b"~"
                i += 1
            options.maxlen = parse_int(args[i + 1])
            if options.maxlen < 0:
                raise CommandError("ERR The MAXLEN argument must be >= 0.")
            i += 2
        elif option in (b"MINID", b"LIMIT", b"KEEPREF", b"DELREF", b"ACKED"):
            raise NotModelledError(f"{args[0]!r} with {option!r}")
        elif adding and option == b"NOMKSTREAM":
            options.nomkstream = True
            i += 1
        elif adding:
            break
        else:
            raise CommandError(SYNTAX)
    options.position = i
    return options


def xadd(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XADD: with `*`, `ms-*` or an explicit id."""
    key = args[1]
    if args[2] == b"*":
        options = None
        position = 2
    else:
        options = _parse_options(args, adding=True)
        position = options.position
    id_text = args[position] if position < len(args) else b"*"
    entry_id: int | None = None
    open_ms: int | None = None
    if id_text.endswith(b"-*"):
        if not id_text[:-2].isdigit():
            raise CommandError(INVALID_ID)
        open_ms = parse_id(id_text[:-2]) >> 64
    elif id_text != b"*":
        entry_id = parse_id(id_text)
    values = args[position + 1 :]
    if not values or len(values) % 2:
        raise wrong_arity("xadd")
    if entry_id == 0:
        raise CommandError("ERR The ID specified in XADD must be greater than 0-0")
    stream = keys.stream(key)
    if stream is None:
        if options is not None and options.nomkstream:
            return None
        stream = Stream()
        keys.add(key, stream)
    next_id = stream.next_id(keys.now)
    if open_ms is not None:
        entry_id = next_millisecond_sequence(stream, open_ms)
    if entry_id is None:
        entry_id = next_id
    elif entry_id <= stream.last_id:
        raise CommandError("ERR The ID specified in XADD is equal or smaller than the target stream top item")
    text = stream.append(entry_id, values)
    if options is not None and options.maxlen is not None:
        stream.trim(options.maxlen, approximate=options.approximate)
    keys.touch(key)
    keys.signal(key)
    if keys.observer is not None:
        keys.observer.appended(key, text, tuple(values))
    return text


def xlen(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XLEN."""
    stream = keys.stream(args[1])
    return 0 if stream is None else len(stream.ids)


def xdel(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XDEL. Nothing is deleted where one id is invalid."""
    stream = keys.stream(args[1])
    if stream is None:
        return 0
    deleted = stream.delete([parse_id(text) for text in args[2:]])
    if deleted:
        keys.touch(args[1])
    if keys.observer is not None:
        for entry_id in deleted:
            keys.observer.deleted(args[1], format_id(entry_id))
    return len(deleted)


def xtrim(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XTRIM MAXLEN."""
    options = _parse_options(args, adding=False)
    if options.maxlen is None:
        raise CommandError("ERR syntax error, XTRIM must be called with a trimming strategy")
    stream = keys.stream(args[1])
    if stream is None:
        return 0
    deleted = stream.trim(options.maxlen, approximate=options.approximate)
    if deleted:
        keys.touch(args[1])
    return deleted


def xrange(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XRANGE."""
    start = parse_range_start(args[2])
    end = parse_range_end(args[3])
    count = -1
    i = 4
    while i < len(args):
        if args[i].upper() != b"COUNT" or i + 1 >= len(args):
            raise CommandError(SYNTAX)
        count = max(parse_int(args[i + 1]), 0)
        i += 2
    stream = keys.stream(args[1])
    if stream is None:
        return []
    if count == 0:
        return None
    return [stream.show(entry_id) for entry_id in stream.range(start, end, max(count, 0))]
