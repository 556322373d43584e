"""XREAD and XREADGROUP: parsing, serving at once, serving a reader that was blocked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .arguments import MAX_ID, NEW_ENTRIES, format_id, parse_id, parse_int
from .errors import SYNTAX, CommandError, NotModelledError
from .keyspace import Keyspace
from .lag import note_delivery
from .observer import Observer
from .replies import ReadRequest, Reply
from .streams import Consumer, Group, Stream
from .versions import Version

BLOCKED_COUNT = 1000
"""How many entries 7.0 gives to a reader without COUNT that was blocked."""

_NO_DOLLAR = (
    "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the "
    "history of this consumer by specifying a proper ID, or use the > ID to get new messages. The $ ID would "
    "just return an empty result set."
)
_NO_NEW = "ERR The > ID can be specified only when calling XREADGROUP using the GROUP <group> <consumer> option."


def _unbalanced(version: Version, command: str) -> CommandError:
    if not version.reexecutes:
        text = "ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified."
    else:
        ids = "ID or '>'" if command == "xreadgroup" else "ID or '$'"
        if command == "xread" and version.mentions_last:
            ids = "ID, '+', or '$'"
        text = f"ERR Unbalanced '{command}' list of streams: for each stream key an {ids} must be specified."
    return CommandError(text)


def parse_read(keys: Keyspace, args: Sequence[bytes]) -> ReadRequest:
    """The command's arguments; `$` becomes the id that it means now."""
    command = args[0].decode().lower()
    grouped = command == "xreadgroup"
    block_ms: int | None = None
    group: bytes | None = None
    consumer = b""
    count = 0
    noack = False
    streams: Sequence[bytes] = ()
    i = 1
    while i < len(args):
        option = args[i].upper()
        more = len(args) - i - 1
        if option == b"BLOCK" and more:
            i += 1
            block_ms = parse_int(args[i], "ERR timeout is not an integer or out of range")
            if block_ms < 0:
                raise CommandError("ERR timeout is negative")
        elif option == b"COUNT" and more:
            i += 1
            count = max(parse_int(args[i]), 0)
        elif option == b"STREAMS" and more:
            streams = args[i + 1 :]
            if len(streams) % 2:
                raise _unbalanced(keys.version, command)
            break
        elif option == b"GROUP" and more >= 2:
            if not grouped:
                raise CommandError(_only_xreadgroup("GROUP"))
            group, consumer = args[i + 1], args[i + 2]
            i += 2
        elif option == b"NOACK":
            if not grouped:
                raise CommandError(_only_xreadgroup("NOACK"))
            noack = True
        elif option == b"CLAIM":
            raise NotModelledError("XREADGROUP CLAIM")
        else:
            raise CommandError(SYNTAX)
        i += 1
    if not streams:
        raise CommandError(SYNTAX)
    if grouped and group is None:
        raise CommandError("ERR Missing GROUP option for XREADGROUP")
    half = len(streams) // 2
    after = tuple(
        _parse_after(keys, key, text, group) for key, text in zip(streams[:half], streams[half:], strict=True)
    )
    return ReadRequest(tuple(streams[:half]), after, count, block_ms, group, consumer, noack)


def _only_xreadgroup(option: str) -> str:
    return f"ERR The {option} option is only supported by XREADGROUP. You called XREAD instead."


def _parse_after(keys: Keyspace, key: bytes, text: bytes, group: bytes | None) -> int:
    """The id above which to read that stream."""
    stream = keys.stream(key)
    if group is not None and (stream is None or group not in stream.groups):
        raise _no_group(key, group)
    if text == b"$":
        if group is not None:
            raise CommandError(_NO_DOLLAR)
        return 0 if stream is None else stream.last_id
    if text == b">":
        if group is None:
            raise CommandError(_NO_NEW)
        return NEW_ENTRIES
    if text == b"+" and keys.version.reexecutes:
        raise NotModelledError("XREAD of the last entry with +")
    return parse_id(text)


def _no_group(key: bytes, group: bytes) -> CommandError:
    names = [name.decode("utf-8", "backslashreplace") for name in (key, group)]
    return CommandError(
        f"NOGROUP No such key '{names[0]}' or consumer group '{names[1]}' in XREADGROUP with GROUP option"
    )


def check_again(keys: Keyspace, request: ReadRequest) -> None:
    """What a command that runs again checks: types, and that key and group are still there."""
    for key in request.keys:
        stream = keys.stream(key)
        if request.group is not None and (stream is None or request.group not in stream.groups):
            raise _no_group(key, request.group)


def read(keys: Keyspace, request: ReadRequest) -> Reply:
    """What can be given at once; None for nothing."""
    found: list[Reply] = []
    for key, after in zip(request.keys, request.after, strict=True):
        stream = keys.stream(key)
        if stream is None:
            continue
        if request.group is None:
            if stream.ids and stream.ids[-1] > after:
                ids = stream.range(after + 1, MAX_ID, request.count)
                found.append([key, [stream.show(entry_id) for entry_id in ids]])
            continue
        group = stream.groups[request.group]
        if keys.version.eager_consumers:
            _reader(keys, group, request)
        if after != NEW_ENTRIES:
            found.append([key, _history(keys, stream, group, after, request)])
        elif stream.ids and stream.ids[-1] > group.last_id:
            found.append([key, deliver(keys, key, stream, group, request, request.count)])
    return found or None


def deliver(keys: Keyspace, key: bytes, stream: Stream, group: Group, request: ReadRequest, count: int) -> list[Reply]:
    """New entries for a consumer; they are pending for it from now on, unless NOACK."""
    now = keys.now
    consumer = _reader(keys, group, request)
    found: list[Reply] = []
    for entry_id in stream.range(group.last_id + 1, MAX_ID, count):
        note_delivery(stream, group, entry_id, keys.version)
        group.last_id = entry_id
        found.append(stream.show(entry_id))
        if keys.observer is not None:
            _tell_delivery(keys.observer, key, group, entry_id, request)
        if not request.noack:
            group.assign(entry_id, request.consumer, consumer, now, 1)
            consumer.active = now
    if not found:
        return found
    keys.changes += 1
    if not request.noack:
        consumer.tell(now)
    if request.noack or keys.version.tells_reads:
        group.told_read = group.entries_read
    return found


def _reader(keys: Keyspace, group: Group, request: ReadRequest) -> Consumer:
    """The consumer that reads; it is made where it is missing, of which replicas are told only with NOACK."""
    consumer = group.consumers.get(request.consumer)
    if consumer is None:
        consumer = group.consumers[request.consumer] = Consumer(keys.now)
        if request.noack:
            consumer.tell(keys.now)
            keys.changes += 1
    consumer.seen = keys.now
    return consumer


def _tell_delivery(observer: Observer, key: bytes, group: Group, entry_id: int, request: ReadRequest) -> None:
    """Before the record is changed."""
    old = group.pending.get(entry_id)
    assert request.group is not None
    observer.delivered(key, request.group, format_id(entry_id), request.consumer, None if old is None else old[0])


def _history(keys: Keyspace, stream: Stream, group: Group, after: int, request: ReadRequest) -> list[Reply]:
    """Own pending entries above an id; it counts as a delivery of those that still exist."""
    now = keys.now
    ids = _reader(keys, group, request).ids
    found: list[Reply] = []
    low = bisect_left(ids, after + 1)
    high = min(low + request.count, len(ids)) if request.count else len(ids)
    for entry_id in ids[low:high]:
        entry = stream.entries.get(entry_id)
        if entry is None:
            found.append([format_id(entry_id), None])
        else:
            record = group.pending[entry_id]
            group.told_pending.setdefault(entry_id, record)
            group.pending[entry_id] = (record[0], now, record[2] + 1)
            found.append(stream.show(entry_id))
    return found


def serve_one_stream(keys: Keyspace, request: ReadRequest, key: bytes) -> Reply:
    """How 7.0 serves a blocked reader: only the stream that woke it, and by its last id, not its content.

    So an XADD undone by XDEL in the same EXEC gives an empty list. None: the reader stays blocked.
    """
    stream = keys.stream(key)
    assert stream is not None
    count = request.count or BLOCKED_COUNT
    if request.group is None:
        after = request.after[request.keys.index(key)]
        if stream.last_id <= after:
            return None
        return [[key, [stream.show(entry_id) for entry_id in stream.range(after + 1, MAX_ID, count)]]]
    group = stream.groups.get(request.group)
    if group is None:
        raise CommandError("NOGROUP the consumer group this client was blocked on no longer exists")
    if stream.last_id <= group.last_id:
        return None
    return [[key, deliver(keys, key, stream, group, request, count)]]
