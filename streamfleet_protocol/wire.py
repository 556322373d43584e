"""Wire version 1: task entries, notifications and dead letters; bytes in both directions.

Readable and writable by the Go library streamfleet. Two rules:

- Decoding is strict and total: any bytes give a value or a DecodeError, never another exception.
- Fields are written in one fixed order, which lets a stream node store their names once (232 B a task, not 389).

An entry travels as a flat tuple `(name, value, name, value ...)` of bytes, as XADD takes it and XRANGE gives it. The
copy of an entry (retry, hand-back, delay) keeps fields that this version does not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from .errors import DecodeError

VERSION = b"1"
ERROR_BYTES_MAX = 4096
"""An error text on the wire is cut at this length."""
RESULT_BYTES_MAX = 1024 * 1024
"""A handler's result longer than this is a failure."""

Fields = tuple[bytes, ...]

_TASK_NAMES = (
    b"enc_version",
    b"id",
    b"client_id",
    b"data",
    b"max_retries",
    b"expires_ts",
    b"retry_delay",
    b"send_notif",
    b"retries",
)
_OUR_NAMES = (*_TASK_NAMES, b"retry_backoff", b"retry_delay_max")
_RETRIES_AT = 2 * _TASK_NAMES.index(b"retries") + 1
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]{0,18})\Z")
_FACTOR = re.compile(rb"[0-9]{1,6}(?:\.[0-9]{1,6})?\Z")
_INT64_MAX = 2**63 - 1
_ZERO = ord("0")


class TaskEntry(NamedTuple):
    """One task as it stands in a stream. A tuple, since one is made for each task and a frozen dataclass takes 3 us."""

    task_id: str
    client_id: str
    data: bytes
    max_retries: int = 0
    """0 = until success."""
    expires_ts: int = 0
    """Unix ms on Redis's clock; 0 = never."""
    retry_delay_ms: int = 0
    send_notif: bool = False
    retries: int = 0
    retry_backoff: float = 1.0
    """Factor between one delay and the next. A task of the Go library has none: 1.0."""
    retry_delay_max_ms: int = 0
    """0 = no upper bound."""
    no_retry: bool = False
    """Never retry. `max_retries` is then 1 on the wire, for readers that do not know this field."""

    @property
    def retries_left(self) -> bool:
        """Whether a failure of this attempt may be followed by another attempt."""
        return not self.no_retry and (self.max_retries == 0 or self.retries < self.max_retries)


class NotificationType(StrEnum):
    """What a notification says."""

    COMPLETED = "completed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Notification:
    """One word to a client about one of its tasks."""

    task_id: str
    type: NotificationType
    error: str = ""
    result: bytes | None = None


def encode_task(entry: TaskEntry) -> Fields:
    """The entry's fields in wire order."""
    fields: Fields = (
        b"enc_version",
        VERSION,
        b"id",
        entry.task_id.encode(),
        b"client_id",
        entry.client_id.encode(),
        b"data",
        entry.data,
        b"max_retries",
        b"1" if entry.no_retry else b"%d" % entry.max_retries,
        b"expires_ts",
        b"%d" % entry.expires_ts,
        b"retry_delay",
        b"%d" % entry.retry_delay_ms,
        b"send_notif",
        b"1" if entry.send_notif else b"0",
        b"retries",
        b"%d" % entry.retries,
    )
    if entry.retry_backoff != 1.0:
        fields += (b"retry_backoff", f"{entry.retry_backoff:.6f}".rstrip("0").rstrip(".").encode())
    if entry.retry_delay_max_ms:
        fields += (b"retry_delay_max", b"%d" % entry.retry_delay_max_ms)
    if entry.no_retry:
        fields += (b"no_retry", b"1")
    return fields


def decode_task(fields: Sequence[object]) -> TaskEntry:
    """The task in an entry's flat fields. Raises DecodeError, naming the field that is wrong."""
    try:
        entry = _decode_in_order(fields)
    except (AttributeError, LookupError, TypeError, UnicodeDecodeError):
        entry = None
    return entry or _decode_by_name(fields)


def _decode_in_order(fields: Sequence[Any]) -> TaskEntry | None:
    """Decode fields that stand in our own order with plain values, as most do, in a third of the time.

    None, or one of the errors that the caller catches, where a field needs a closer look.
    """
    names, values = tuple(fields[::2]), fields[1::2]
    if len(names) != len(values):
        return None
    if names == _OUR_NAMES:
        backoff, delay_max = values[9], values[10]
    elif names == _TASK_NAMES:
        backoff, delay_max = b"1", b"0"
    else:
        return None
    version, task_id, client_id, data, max_retries, expires_ts, retry_delay, send_notif, retries = values[:9]
    if version != VERSION or not task_id or type(data) is not bytes or type(send_notif) is not bytes:
        return None
    if backoff != b"2" and not _FACTOR.match(backoff):
        return None
    for number in (max_retries, expires_ts, retry_delay, retries, delay_max):
        if number != b"0" and (not number.isdigit() or len(number) > 18 or number[0] == _ZERO):
            return None
    return TaskEntry(
        task_id.decode(),
        client_id.decode(),
        data,
        int(max_retries),
        int(expires_ts),
        int(retry_delay),
        send_notif != b"0",
        int(retries),
        float(backoff),
        int(delay_max),
    )


def _decode_by_name(fields: Sequence[object]) -> TaskEntry:
    values = _by_name(fields)
    _check_version(values)
    max_retries = _natural(values, b"max_retries")
    no_retry = values.get(b"no_retry", b"0") == b"1"
    return TaskEntry(
        task_id=_text(values, b"id"),
        client_id=_text(values, b"client_id", may_be_empty=True),
        data=_value(values, b"data"),
        max_retries=0 if no_retry else max_retries,
        expires_ts=_natural(values, b"expires_ts"),
        retry_delay_ms=_natural(values, b"retry_delay"),
        # The Go library takes everything but the exact text 0 for true.
        send_notif=_value(values, b"send_notif") != b"0",
        retries=_natural(values, b"retries"),
        retry_backoff=_factor(values, b"retry_backoff"),
        retry_delay_max_ms=_natural(values, b"retry_delay_max", default=b"0"),
        no_retry=no_retry,
    )


def with_retries(fields: Fields, retries: int) -> Fields:
    """A copy of a task entry's fields that counts `retries` retries."""
    number = b"%d" % retries
    if tuple(fields[0 : 2 * len(_TASK_NAMES) : 2]) == _TASK_NAMES:
        return (*fields[:_RETRIES_AT], number, *fields[_RETRIES_AT + 1 :])
    copy = list(fields)
    for at in range(0, len(copy) - 1, 2):
        if copy[at] == b"retries":
            copy[at + 1] = number
    return tuple(copy)


def raw_field(fields: Sequence[object], name: bytes) -> bytes:
    """The raw value of a field of an entry; empty where there is none. Never raises."""
    for at in range(0, len(fields) - 1, 2):
        if fields[at] == name:
            value = fields[at + 1]
            return value if isinstance(value, bytes) else b""
    return b""


def task_id_of(fields: Sequence[object]) -> bytes:
    """The raw task id in an entry's fields; empty where there is none. Never raises."""
    return raw_field(fields, b"id")


def encode_notification(notification: Notification) -> Fields:
    """The notification's fields in wire order; its error is cut at 4 KiB."""
    fields: Fields = (
        b"enc_version",
        VERSION,
        b"task_id",
        notification.task_id.encode(),
        b"type",
        notification.type.encode(),
        b"err_msg",
        cut_text(notification.error),
    )
    return fields if notification.result is None else (*fields, b"result", notification.result)


def decode_notification(fields: Sequence[object]) -> Notification:
    """The notification in an entry's flat fields. Raises DecodeError, naming the field that is wrong."""
    values = _by_name(fields)
    _check_version(values)
    kind = _value(values, b"type")
    try:
        notification_type = NotificationType(kind.decode("ascii", "replace"))
    except ValueError:
        raise DecodeError(f"the field type of a notification is {_shown(kind)}, which is no known type") from None
    return Notification(
        task_id=_text(values, b"task_id"),
        type=notification_type,
        error=_value(values, b"err_msg").decode("utf-8", "replace"),
        result=values.get(b"result"),
    )


def dead_letter(
    fields: Sequence[object], *, reason: str, entry_id: bytes, consumer: bytes, deliveries: int, time_ms: int
) -> Fields:
    """The fields of a dead letter: those of the entry as they were, then why, which, by whom, and when."""
    return (
        *(field if isinstance(field, bytes) else b"" for field in fields),
        b"dead_reason",
        cut_text(reason),
        b"dead_entry",
        entry_id,
        b"dead_consumer",
        consumer,
        b"dead_deliveries",
        b"%d" % deliveries,
        b"dead_ts",
        b"%d" % time_ms,
    )


def cut_text(text: str) -> bytes:
    """`text` as UTF-8 of at most 4 KiB, cut between two characters."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= ERROR_BYTES_MAX:
        return encoded
    return encoded[:ERROR_BYTES_MAX].decode("utf-8", "ignore").encode()


def _by_name(fields: Sequence[object]) -> dict[bytes, bytes]:
    if not isinstance(fields, (list, tuple)) or len(fields) % 2:
        raise DecodeError("an entry's fields are no list of names and values")
    values: dict[bytes, bytes] = {}
    for at in range(0, len(fields), 2):
        name, value = fields[at], fields[at + 1]
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise DecodeError("an entry has a field that is not made of bytes")
        values[name] = value
    return values


def _check_version(values: dict[bytes, bytes]) -> None:
    version = _value(values, b"enc_version")
    if version != VERSION:
        raise DecodeError(
            f"enc_version is {_shown(version)}, this library reads version 1: a newer writer may share the queue"
        )


def _value(values: dict[bytes, bytes], name: bytes) -> bytes:
    value = values.get(name)
    if value is None:
        raise DecodeError(f"the field {name.decode()} is missing")
    return value


def _text(values: dict[bytes, bytes], name: bytes, *, may_be_empty: bool = False) -> str:
    value = _value(values, name)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise DecodeError(f"the field {name.decode()} is {_shown(value)}, which is not UTF-8") from None
    if not text and not may_be_empty:
        raise DecodeError(f"the field {name.decode()} is empty")
    return text


def _natural(values: dict[bytes, bytes], name: bytes, *, default: bytes | None = None) -> int:
    value = _value(values, name) if default is None else values.get(name, default)
    number = int(value) if _INTEGER.match(value) else -1
    if not 0 <= number <= _INT64_MAX:
        raise DecodeError(f"the field {name.decode()} is {_shown(value)}, a whole number from 0 was expected")
    return number


def _factor(values: dict[bytes, bytes], name: bytes) -> float:
    value = values.get(name, b"1")
    if not _FACTOR.match(value):
        raise DecodeError(f"the field {name.decode()} is {_shown(value)}, a decimal number was expected")
    return float(value)


def _shown(value: bytes) -> str:
    return repr(value[:40]) + ("..." if len(value) > 40 else "")
