"""Consumer groups but for reading: XGROUP, XACK, XPENDING, XINFO. WATCH sees none of their changes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .arguments import MAX_ID, format_id, parse_id, parse_int, parse_range_end, parse_range_start
from .errors import SYNTAX, CommandError, NotModelledError
from .keyspace import Keyspace
from .lag import lag
from .replies import OK, Reply
from .streams import Consumer, Group, Stream

_NEEDS_KEY = (
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the "
    "MKSTREAM option to create an empty stream automatically."
)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _find(keys: Keyspace, key: bytes, group_name: bytes) -> tuple[Stream, Group]:
    """The stream and the group, or NOGROUP."""
    stream = keys.stream(key)
    group = None if stream is None else stream.groups.get(group_name)
    if stream is None or group is None:
        raise CommandError(f"NOGROUP No such key '{_text(key)}' or consumer group '{_text(group_name)}'")
    return stream, group


def _find_for_xgroup(keys: Keyspace, key: bytes, group_name: bytes) -> Group:
    """The group, with the errors of XGROUP and XINFO CONSUMERS."""
    stream = keys.stream(key)
    if stream is None:
        raise CommandError(_NEEDS_KEY)
    group = stream.groups.get(group_name)
    if group is None:
        raise _no_such_group(key, group_name)
    return group


def _no_such_group(key: bytes, group_name: bytes) -> CommandError:
    return CommandError(f"NOGROUP No such consumer group '{_text(group_name)}' for key name '{_text(key)}'")


def xgroup_create(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XGROUP CREATE; making the key touches it, making the group does not."""
    make = False
    for option in args[5:]:
        if option.upper() == b"MKSTREAM":
            make = True
        elif option.upper() == b"ENTRIESREAD":
            raise NotModelledError("XGROUP CREATE ENTRIESREAD")
        else:
            raise CommandError(
                f"ERR unknown subcommand or wrong number of arguments for '{_text(args[1])}'. Try XGROUP HELP."
            )
    key = args[2]
    stream = keys.stream(key)
    if stream is None and not make:
        raise CommandError(_NEEDS_KEY)
    latest = 0 if stream is None else stream.last_id
    last_id = latest if args[4] == b"$" else parse_id(args[4])
    if stream is None:
        stream = Stream()
        keys.add(key, stream)
        keys.touch(key)
    if args[3] in stream.groups:
        raise CommandError("BUSYGROUP Consumer Group name already exists")
    stream.groups[args[3]] = Group(last_id)
    keys.changes += 1
    return OK


def xgroup_destroy(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XGROUP DESTROY; its blocked readers are woken with an error."""
    stream = keys.stream(args[2])
    if stream is None:
        raise CommandError(_NEEDS_KEY)
    if stream.groups.pop(args[3], None) is None:
        return 0
    keys.changes += 1
    keys.signal(args[2])
    return 1


def xgroup_createconsumer(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XGROUP CREATECONSUMER."""
    group = _find_for_xgroup(keys, args[2], args[3])
    if args[4] in group.consumers:
        return 0
    group.consumers[args[4]] = Consumer(keys.now, told=keys.now, in_log=True)
    keys.changes += 1
    return 1


def xgroup_delconsumer(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XGROUP DELCONSUMER: how many pending entries went with it."""
    ids = _find_for_xgroup(keys, args[2], args[3]).drop_consumer(args[4])
    if ids is None:
        return 0
    keys.changes += 1
    if keys.observer is not None:
        keys.observer.consumer_deleted(args[2], args[3], args[4], [format_id(entry_id) for entry_id in ids])
    return len(ids)


def xack(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XACK: any client may acknowledge any entry."""
    stream = keys.stream(args[1])
    group = None if stream is None else stream.groups.get(args[2])
    if group is None:
        return 0
    done = 0
    for entry_id in [parse_id(text) for text in args[3:]]:
        owner = group.release(entry_id)
        if owner is None:
            continue
        done += 1
        if keys.observer is not None:
            keys.observer.acknowledged(args[1], args[2], format_id(entry_id), owner)
    if done:
        keys.changes += 1
    return done


def xpending(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XPENDING: the summary, or the entries of a range."""
    if len(args) == 3:
        return _pending_summary(_find(keys, args[1], args[2])[1])
    if not 6 <= len(args) <= 9:
        raise CommandError(SYNTAX)
    i = 3
    min_idle = 0
    if args[3].upper() == b"IDLE":
        min_idle = parse_int(args[4])
        if len(args) < 8:
            raise CommandError(SYNTAX)
        i = 5
    count = parse_int(args[i + 2])
    start = parse_range_start(args[i])
    end = parse_range_end(args[i + 1])
    _, group = _find(keys, args[1], args[2])
    ids = group.ids
    if i + 3 < len(args):
        consumer = group.consumers.get(args[i + 3])
        if consumer is None:
            return []
        ids = consumer.ids
    found: list[Reply] = []
    for at in range(bisect_left(ids, start), len(ids)):
        entry_id = ids[at]
        if len(found) >= count or entry_id > end:
            break
        owner, delivered, deliveries = group.pending[entry_id]
        idle = keys.now - delivered
        if not min_idle or idle >= min_idle:
            found.append([format_id(entry_id), owner, max(idle, 0), deliveries])
    return found


def _pending_summary(group: Group) -> Reply:
    if not group.ids:
        return [0, None, None, None]
    owners = [
        [name, b"%d" % len(group.consumers[name].ids)] for name in sorted(group.consumers) if group.consumers[name].ids
    ]
    return [len(group.ids), format_id(group.ids[0]), format_id(group.ids[-1]), owners]


def xinfo_groups(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XINFO GROUPS."""
    stream = keys.stream(args[2])
    if stream is None:
        raise CommandError("ERR no such key")
    return [
        [
            b"name",
            name,
            b"consumers",
            len(group.consumers),
            b"pending",
            len(group.ids),
            b"last-delivered-id",
            format_id(group.last_id),
            b"entries-read",
            None if group.entries_read < 0 else group.entries_read,
            b"lag",
            lag(stream, group, keys.version),
        ]
        for name, group in stream.sorted_groups()
    ]


def xinfo_consumers(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XINFO CONSUMERS."""
    stream = keys.stream(args[2])
    if stream is None:
        raise CommandError("ERR no such key")
    group = stream.groups.get(args[3])
    if group is None:
        raise _no_such_group(args[2], args[3])
    rows: list[Reply] = []
    for name in sorted(group.consumers):
        consumer = group.consumers[name]
        row: list[Reply] = [b"name", name, b"pending", len(consumer.ids)]
        row += [b"idle", max(keys.now - consumer.seen, 0)]
        if keys.version.eager_consumers:
            row += [b"inactive", -1 if consumer.active == -1 else keys.now - consumer.active]
        rows.append(row)
    return rows


def xclaim(keys: Keyspace, args: Sequence[bytes]) -> Reply:
    """XCLAIM: takes from anybody; what is no more in the stream leaves the pending list, whatever its age."""
    stream, group = _find(keys, args[1], args[2])
    name = args[3]
    min_idle = max(parse_int(args[4], "ERR Invalid min-idle-time argument for XCLAIM"), 0)
    ids: list[int] = []
    for text in args[5:]:
        try:
            ids.append(parse_id(text))
        except CommandError:
            break
    delivered, retry_count, force, just_id, last_id = _claim_options(keys.now, args, 5 + len(ids))
    moved = last_id > group.last_id
    group.last_id = max(group.last_id, last_id)
    version = keys.version
    consumer = group.consumers.get(name)
    if version.eager_consumers:
        consumer = group.consumer(name, keys.now)
        consumer.seen = keys.now
    claimed: list[Reply] = []
    for entry_id in ids:
        old = group.pending.get(entry_id)
        if entry_id not in stream.entries:
            moved = moved and old is None
            _drop(keys, args[1], args[2], group, entry_id)
            continue
        if old is None and not force:
            continue
        if old is not None and min_idle and keys.now - old[1] < min_idle:
            continue
        if consumer is None:
            consumer = group.consumer(name, keys.now)
        if not version.eager_consumers:
            consumer.seen = keys.now
        count = 1 if old is None else old[2]
        if retry_count >= 0:
            count = retry_count
        elif not just_id:
            count += 1
        group.assign(entry_id, name, consumer, delivered, count)
        consumer.active = keys.now
        consumer.tell(keys.now)
        keys.changes += 1
        moved = False
        if keys.observer is not None:
            previous = None if old is None else old[0]
            keys.observer.claimed(args[1], args[2], format_id(entry_id), name, previous, just_id)
        claimed.append(format_id(entry_id) if just_id else stream.show(entry_id))
    if moved:  # Nobody is told of the id by a claim, so it is by an XGROUP SETID.
        group.told_read = group.entries_read
        keys.changes += 1
    return claimed


def _drop(keys: Keyspace, key: bytes, group_name: bytes, group: Group, entry_id: int) -> None:
    """XCLAIM of an entry that is gone: it is not pending any more. Replicas are told by a claim for its owner."""
    owner = group.release(entry_id)
    if owner is None:
        return
    keys.changes += 1
    if keys.version.eager_consumers:
        group.consumers[owner].tell(keys.now)
    if keys.observer is not None:
        keys.observer.acknowledged(key, group_name, format_id(entry_id), owner)


def _claim_options(now: int, args: Sequence[bytes], i: int) -> tuple[int, int, bool, bool, int]:
    """Delivery time, count (-1: as it is), FORCE, JUSTID and LASTID of XCLAIM."""
    delivered, retry_count, last_id = -1, -1, 0
    force = just_id = False
    while i < len(args):
        option = args[i].upper()
        more = i + 1 < len(args)
        if option == b"FORCE":
            force = True
        elif option == b"JUSTID":
            just_id = True
        elif option in (b"IDLE", b"TIME") and more:
            i += 1
            value = parse_int(args[i], f"ERR Invalid {_text(option)} option argument for XCLAIM")
            delivered = now - value if option == b"IDLE" else value
        elif option == b"RETRYCOUNT" and more:
            i += 1
            retry_count = parse_int(args[i], "ERR Invalid RETRYCOUNT option argument for XCLAIM")
        elif option == b"LASTID" and more:
            i += 1
            last_id = parse_id(args[i])
        else:
            raise CommandError(f"ERR Unrecognized XCLAIM option '{_text(args[i])}'")
        i += 1
    # Servers clamp a time in the future: a lease cannot be extended in advance.
    if not 0 <= delivered <= now:
        delivered = now
    return delivered, retry_count, force, just_id, min(last_id, MAX_ID)
