"""Every Redis key name, built in one place.

Keys of one queue must share a cluster slot, so that MULTI/EXEC works on them (Redis Cluster specification, "Hash
tags"). The stream's own key is given by the wire format, so the other keys are named after it: where the stream's key
holds a hash tag they repeat it, else the whole stream key becomes their hash tag.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidQueueName

PREFIX = "streamfleet:"
SERVER_GROUP = b"streamfleet-server"
RECEIVER_GROUP = b"streamfleet-client"
SLOTS = 16384
_SUFFIXES = ("producers", "fence", "dead", "delayed", "promotions", "verdicts")


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue. All but `receivers` are in the slot `slot`."""

    name: str
    stream: bytes
    """Stream of tasks, consumer group `streamfleet-server`."""
    receivers: bytes
    """Sorted set: client id, score = time of the heartbeat in Unix ms."""
    producers: bytes
    """Hash: client id -> sequence of its last applied batch; `<client id>:t` -> time of its last heartbeat."""
    fence: bytes
    """Counter; touched by whatever takes an entry from another consumer."""
    dead: bytes
    """Stream of dead letters."""
    delayed: bytes
    """Sorted set of packed entries, score = due time in Unix ms."""
    promotions: bytes
    """Counter; touched by each move from `delayed` to the stream."""
    verdicts: bytes
    """Hash of negative outcomes that are not yet sent (cluster only)."""
    slot: int

    def connection(self, client_id: str) -> bytes:
        """The tiny key whose only use is to be watched by one client's batches."""
        return _auxiliary(self.stream.decode(), f"conn:{client_id}")


def queue_keys(name: str) -> QueueKeys:
    """The keys of the queue `name`. Raises InvalidQueueName where the name cannot work."""
    check_queue_name(name)
    stream = PREFIX + name
    producers, fence, dead, delayed, promotions, verdicts = (_auxiliary(stream, suffix) for suffix in _SUFFIXES)
    return QueueKeys(
        name=name,
        stream=stream.encode(),
        receivers=f"{stream}:receivers".encode(),
        producers=producers,
        fence=fence,
        dead=dead,
        delayed=delayed,
        promotions=promotions,
        verdicts=verdicts,
        slot=slot_of(stream.encode()),
    )


def receiver_key(client_id: str) -> bytes:
    """The stream of notifications to one client."""
    return f"{PREFIX}receiver:{client_id}".encode()


def check_queue_name(name: str) -> None:
    """Raise InvalidQueueName, saying why, unless `name` can name a queue."""
    if not name or not isinstance(name, str):
        raise InvalidQueueName(f"a queue's name is a text of at least one character, not {name!r}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise InvalidQueueName(f"the queue name {name!r} cannot be encoded as UTF-8: {error.reason}") from None
    if name.startswith("receiver:"):
        raise InvalidQueueName(f"the queue name {name!r} begins with 'receiver:', which names notification streams")
    if name.endswith(":receivers"):
        raise InvalidQueueName(f"the queue name {name!r} ends in ':receivers', which names sets of clients")
    if b"}" not in encoded:
        return
    if not _tag(encoded):
        raise InvalidQueueName(
            f"the queue name {name!r} has a '}}' but no hash tag ('{{' then text then '}}'): "
            "no other key can be given its cluster slot. Take the brace out, or write a tag."
        )
    if ":conn:" in name or name.endswith(tuple(f":{suffix}" for suffix in _SUFFIXES)):
        raise InvalidQueueName(f"the queue name {name!r} would collide with a key that belongs to another queue")


def slot_of(key: bytes) -> int:
    """The cluster slot of a key: CRC16 (XMODEM) of its hash tag, or of all of it, modulo 16384."""
    crc = 0
    for byte in _tag(key) or key:
        crc = ((crc << 8) & 0xFFFF) ^ _CRC16[(crc >> 8) ^ byte]
    return crc % SLOTS


def _tag(key: bytes) -> bytes:
    """What is between the first `{` and the first `}` after it; empty where there is no valid tag."""
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    return key[start + 1 : end] if 0 <= start < end else b""


def _auxiliary(stream: str, suffix: str) -> bytes:
    tagged = bool(_tag(stream.encode()))
    return (f"{stream}:{suffix}" if tagged else f"{{{stream}}}:{suffix}").encode()


def _crc16_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
        table.append(crc)
    return tuple(table)


_CRC16 = _crc16_table()
