"""Sorted sets."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from .arguments import format_float, parse_float, parse_int
from .errors import SYNTAX, CommandError, NotModelledError
from .keyspace import Keyspace
from .replies import Reply
from .zset import ZSet

_NO_BOUND = "ERR min or max is not a float"


def zadd(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """ZADD without options: how many members are new. Where nothing moves, WATCH sees nothing."""
    if args[2].upper() in (b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR"):
        raise NotModelledError(f"ZADD {args[2]!r}")
    if len(args) % 2:
        raise CommandError(SYNTAX)
    scores = [parse_float(args[i]) for i in range(2, len(args), 2)]
    zset = keys.zset(args[1])
    if zset is None:
        zset = ZSet()
        keys.add(args[1], zset)
    added = 0
    changed = False
    for score, member in zip(scores, args[3::2], strict=True):
        if zset.scores.get(member) == score:
            continue
        changed = True
        added += zset.put(member, score)
        if keys.observer is not None:
            keys.observer.member_added(args[1], member, score)
    if changed:
        keys.touch(args[1])
    return added


def zrem(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """ZREM; an empty set goes."""
    zset = keys.zset(args[1])
    if zset is None:
        return 0
    removed = [member for member in args[2:] if zset.remove(member)]
    if keys.observer is not None:
        for member in removed:
            keys.observer.member_removed(args[1], member)
    if not zset.order:
        keys.delete(args[1])
    elif removed:
        keys.touch(args[1])
    return len(removed)


def zscore(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """ZSCORE."""
    zset = keys.zset(args[1])
    score = None if zset is None else zset.scores.get(args[2])
    return None if score is None else format_float(score, keys.version)


def zcard(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """ZCARD."""
    zset = keys.zset(args[1])
    return 0 if zset is None else len(zset.order)


def _show(keys: Keyspace, members: Sequence[tuple[float, bytes]], with_scores: bool) -> Reply:
    if not with_scores:
        return [member for _, member in members]
    return [part for score, member in members for part in (member, format_float(score, keys.version))]


def zrange(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """ZRANGE by rank."""
    with_scores = False
    for option in args[4:]:
        if option.upper() == b"WITHSCORES":
            with_scores = True
        elif option.upper() in (b"BYSCORE", b"BYLEX", b"REV", b"LIMIT"):
            raise NotModelledError(f"ZRANGE {option!r}")
        else:
            raise CommandError(SYNTAX)
    start, stop = parse_int(args[2]), parse_int(args[3])
    zset = keys.zset(args[1])
    if zset is None:
        return []
    size = len(zset.order)
    start = max(start + size, 0) if start < 0 else start
    stop = stop + size if stop < 0 else stop
    return _show(keys, zset.order[start : max(stop + 1, 0)], with_scores)


def _parse_bound(text: bytes) -> tuple[float, bool]:
    """The score and whether it is excluded."""
    if text[:1] == b"(":
        return parse_float(text[1:] or b"0", _NO_BOUND), True
    return parse_float(text, _NO_BOUND), False


def zrangebyscore(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """ZRANGEBYSCORE."""
    with_scores = False
    offset, limit = 0, -1
    i = 4
    while i < len(args):
        option = args[i].upper()
        if option == b"WITHSCORES":
            with_scores = True
            i += 1
        elif option == b"LIMIT" and i + 2 < len(args):
            offset, limit = parse_int(args[i + 1]), parse_int(args[i + 2])
            i += 3
        else:
            raise CommandError(SYNTAX)
    low, low_excluded = _parse_bound(args[2])
    high, high_excluded = _parse_bound(args[3])
    zset = keys.zset(args[1])
    if zset is None or offset < 0:
        return []
    scores = [score for score, _ in zset.order]
    start = bisect_right(scores, low) if low_excluded else bisect_left(scores, low)
    end = bisect_left(scores, high) if high_excluded else bisect_right(scores, high)
    start += offset
    if limit >= 0:
        end = min(end, start + limit)
    return _show(keys, zset.order[start:end], with_scores)


def zscan(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """ZSCAN: all in one page, as servers do while the set is small."""
    if not args[2].isdigit():
        raise CommandError("ERR invalid cursor")
    for i in range(3, len(args), 2):
        option = args[i].upper()
        if option in (b"MATCH", b"NOSCORES"):
            raise NotModelledError(f"ZSCAN {option!r}")
        if option != b"COUNT" or i + 1 >= len(args) or parse_int(args[i + 1]) < 1:
            raise CommandError(SYNTAX)
    zset = keys.zset(args[1])
    return [b"0", [] if zset is None else _show(keys, zset.order, True)]
