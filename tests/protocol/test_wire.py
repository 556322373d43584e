"""Wire version 1, field by field."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from streamfleet_protocol.errors import DecodeError
from streamfleet_protocol.members import member_task_id, pack_member, unpack_member
from streamfleet_protocol.wire import (
    ERROR_BYTES_MAX,
    Fields,
    Notification,
    NotificationType,
    TaskEntry,
    cut_text,
    dead_letter,
    decode_notification,
    decode_task,
    encode_notification,
    encode_task,
    task_id_of,
    with_retries,
)

ENTRY = TaskEntry("id-1", "client-1", b"\x00\xff data", 3, 1_700_000_000_000, 1500, True, 2, 2.0, 300_000)
PLAIN = TaskEntry("id-1", "client-1", b"data")


def replaced(fields: Fields, name: bytes, value: bytes) -> Fields:
    at = fields[::2].index(name) * 2 + 1
    return (*fields[:at], value, *fields[at + 1 :])


def without(fields: Fields, name: bytes) -> Fields:
    at = fields[::2].index(name) * 2
    return fields[:at] + fields[at + 2 :]


def reordered(fields: Fields) -> Fields:
    """The fields backwards, as a Go map may give them."""
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    return tuple(part for pair in reversed(pairs) for part in pair)


def test_fields_are_written_in_one_order() -> None:
    """The order of the design, which lets the stream compress the names; additions come after, and only when used."""
    assert encode_task(PLAIN) == (
        *(b"enc_version", b"1", b"id", b"id-1", b"client_id", b"client-1", b"data", b"data"),
        *(b"max_retries", b"0", b"expires_ts", b"0", b"retry_delay", b"0", b"send_notif", b"0", b"retries", b"0"),
    )
    assert encode_task(ENTRY)[18:] == (b"retry_backoff", b"2", b"retry_delay_max", b"300000")


def test_every_field_in_its_place() -> None:
    fields = encode_task(ENTRY)
    assert dict(zip(fields[::2], fields[1::2], strict=True)) == {
        b"enc_version": b"1",
        b"id": b"id-1",
        b"client_id": b"client-1",
        b"data": b"\x00\xff data",
        b"max_retries": b"3",
        b"expires_ts": b"1700000000000",
        b"retry_delay": b"1500",
        b"send_notif": b"1",
        b"retries": b"2",
        b"retry_backoff": b"2",
        b"retry_delay_max": b"300000",
    }


def test_never_to_retry_is_one_retry_for_readers_that_do_not_know_it() -> None:
    fields = encode_task(PLAIN._replace(no_retry=True, max_retries=0))
    assert fields[fields.index(b"max_retries") + 1] == b"1"
    assert fields[-2:] == (b"no_retry", b"1")
    assert decode_task(fields) == PLAIN._replace(no_retry=True)


@pytest.mark.parametrize(
    ("factor", "text"), [(1.5, b"1.5"), (2.0, b"2"), (10.0, b"10"), (1000.0, b"1000"), (1.000001, b"1.000001")]
)
def test_factors(factor: float, text: bytes) -> None:
    fields = encode_task(PLAIN._replace(retry_backoff=factor))
    assert fields[-2:] == (b"retry_backoff", text)
    assert decode_task(fields).retry_backoff == factor


@pytest.mark.parametrize("entry", [ENTRY, PLAIN, PLAIN._replace(no_retry=True), PLAIN._replace(data=b"")])
def test_tasks_come_back_as_they_went(entry: TaskEntry) -> None:
    fields = encode_task(entry)
    assert decode_task(fields) == entry
    assert decode_task(list(fields)) == entry
    assert decode_task(reordered(fields)) == entry


def test_a_task_of_the_go_library() -> None:
    """Its nine fields in the random order of a map; what it does not write has the default value."""
    entry = decode_task(
        [
            *(b"retries", b"1", b"data", b"payload", b"send_notif", b"yes", b"id", b"0192-go", b"enc_version", b"1"),
            *(b"retry_delay", b"250", b"client_id", b"go", b"expires_ts", b"0", b"max_retries", b"7"),
        ]
    )
    assert entry == TaskEntry("0192-go", "go", b"payload", 7, 0, 250, True, 1)
    assert (entry.retry_backoff, entry.retry_delay_max_ms, entry.no_retry) == (1.0, 0, False)


def test_unknown_fields_are_ignored() -> None:
    assert decode_task((*encode_task(ENTRY), b"colour", b"red")) == ENTRY
    assert decode_task((b"colour", b"red", *encode_task(PLAIN))) == PLAIN


@pytest.mark.parametrize(("text", "expected"), [(b"0", False), (b"1", True), (b"", True), (b"false", True)])
def test_everything_but_0_asks_for_a_word(text: bytes, expected: bool) -> None:
    """As the Go library reads it."""
    assert decode_task(replaced(encode_task(PLAIN), b"send_notif", text)).send_notif is expected


NAMES = encode_task(PLAIN)[::2]


@pytest.mark.parametrize("order", [tuple, reordered])
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_field_is_named(name: bytes, order: Callable[[Fields], Fields]) -> None:
    with pytest.raises(DecodeError, match=f"the field {name.decode()} is missing"):
        decode_task(order(without(encode_task(PLAIN), name)))


@pytest.mark.parametrize("order", [tuple, reordered])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"enc_version", b"2"),
        (b"enc_version", b""),
        (b"enc_version", b"01"),
        (b"id", b""),
        (b"id", b"\xff"),
        (b"client_id", b"\xc3\x28"),
        *((name, value) for name in NAMES[4:7] + NAMES[8:] for value in (b"", b"x", b"-1", b"1.5", b" 1", b"1\n")),
        (b"retries", b"+1"),
        (b"retries", b"007"),
        (b"expires_ts", b"9223372036854775808"),
        (b"expires_ts", b"9" * 5000),
        (b"retry_delay", b"1_000"),
        (b"max_retries", "\N{ARABIC-INDIC DIGIT FIVE}".encode()),
    ],
)
def test_a_wrong_field_is_named(name: bytes, value: bytes, order: Callable[[Fields], Fields]) -> None:
    with pytest.raises(DecodeError, match=name.decode()):
        decode_task(order(replaced(encode_task(PLAIN), name, value)))


@pytest.mark.parametrize("value", [b"", b"x", b"-2", b"1e3", b"2.", b".5", b"1234567", b"nan", b"inf", b"2\n"])
def test_a_wrong_factor_is_named(value: bytes) -> None:
    for fields in (encode_task(ENTRY), reordered(encode_task(ENTRY))):
        with pytest.raises(DecodeError, match="retry_backoff"):
            decode_task(replaced(fields, b"retry_backoff", value))


def test_the_largest_number_and_an_empty_client() -> None:
    fields = replaced(encode_task(PLAIN), b"expires_ts", b"9223372036854775807")
    assert decode_task(fields).expires_ts == 2**63 - 1
    assert decode_task(replaced(encode_task(PLAIN), b"client_id", b"")).client_id == ""


GARBAGE: list[Sequence[object]] = [
    *((), [], (b"id",), [b"id", None], [None, None], ["id", "x"], [1, 2], b"bytes", "text"),
    *(encode_task(PLAIN)[:-1], encode_task(ENTRY)[:-1], [*encode_task(PLAIN)[:-1], None]),
    [*encode_task(PLAIN)[:3], [b"nested"], *encode_task(PLAIN)[4:]],
    [*encode_task(PLAIN)[:3], 7, *encode_task(PLAIN)[4:]],
    [*encode_task(PLAIN)[:9], 7, *encode_task(PLAIN)[10:]],
    [*encode_task(PLAIN)[:7], "text", *encode_task(PLAIN)[8:]],
]


@pytest.mark.parametrize("fields", [*GARBAGE, None, 7, {}], ids=repr)
def test_what_is_no_list_of_fields_is_a_decode_error(fields: Sequence[object]) -> None:
    with pytest.raises(DecodeError):
        decode_task(fields)
    with pytest.raises(DecodeError):
        decode_notification(fields)


@pytest.mark.parametrize(
    ("no_retry", "most", "done", "left"),
    [(False, 0, 99, True), (False, 2, 1, True), (False, 2, 2, False), (True, 0, 0, False), (True, 5, 0, False)],
)
def test_retries_left(no_retry: bool, most: int, done: int, left: bool) -> None:
    assert PLAIN._replace(no_retry=no_retry, max_retries=most, retries=done).retries_left is left


def test_a_retry_copy_keeps_what_it_does_not_know() -> None:
    ours = (*encode_task(ENTRY), b"colour", b"red")
    theirs = (b"colour", b"red", *reordered(encode_task(ENTRY)))
    for fields in (ours, theirs):
        copy = with_retries(fields, 3)
        assert copy == replaced(fields, b"retries", b"3")
        assert decode_task(copy) == ENTRY._replace(retries=3)
    assert with_retries((b"a", b"retries"), 3) == (b"a", b"retries")


def test_the_raw_task_id() -> None:
    assert task_id_of(encode_task(ENTRY)) == b"id-1"
    assert task_id_of((b"data", b"id", b"id", b"x")) == b"x"
    assert task_id_of((b"data", b"id")) == b""
    assert task_id_of((b"id",)) == b""
    assert task_id_of((b"id", None)) == b""
    assert task_id_of(()) == b""


# Notifications.


def test_a_notification_in_wire_order() -> None:
    word = Notification("id-1", NotificationType.ERROR, "ValueError: no")
    assert encode_notification(word) == (
        *(b"enc_version", b"1", b"task_id", b"id-1", b"type", b"error", b"err_msg", b"ValueError: no"),
    )


@pytest.mark.parametrize("kind", NotificationType)
@pytest.mark.parametrize("result", [None, b"", b"\x00\xff"])
def test_notifications_come_back_as_they_went(kind: NotificationType, result: bytes | None) -> None:
    word = Notification("id-1", kind, "why", result)
    assert decode_notification(encode_notification(word)) == word
    assert decode_notification(reordered(encode_notification(word))) == word


def test_an_empty_result_is_not_no_result() -> None:
    assert encode_notification(Notification("i", NotificationType.COMPLETED, "", b""))[-2:] == (b"result", b"")
    assert b"result" not in encode_notification(Notification("i", NotificationType.COMPLETED))


WORD = encode_notification(Notification("id-1", NotificationType.COMPLETED))


@pytest.mark.parametrize("name", WORD[::2])
def test_a_missing_field_of_a_notification_is_named(name: bytes) -> None:
    with pytest.raises(DecodeError, match=f"the field {name.decode()} is missing"):
        decode_notification(without(WORD, name))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((b"enc_version", b"2"), (b"task_id", b""), (b"task_id", b"\xff")),
        *((b"type", b""), (b"type", b"done"), (b"type", b"\xff"), (b"type", b"COMPLETED"), (b"type", b"x" * 999)),
    ],
)
def test_a_wrong_field_of_a_notification_is_named(name: bytes, value: bytes) -> None:
    with pytest.raises(DecodeError, match=name.decode()):
        decode_notification(replaced(WORD, name, value))


def test_an_error_text_of_another_encoding_is_shown_as_well_as_can_be() -> None:
    assert decode_notification(replaced(WORD, b"err_msg", b"caf\xe9")).error == "caf\N{REPLACEMENT CHARACTER}"


def test_long_texts_are_cut_between_characters() -> None:
    assert cut_text("short") == b"short"
    assert cut_text("x" * ERROR_BYTES_MAX) == b"x" * ERROR_BYTES_MAX
    assert cut_text("x" * (ERROR_BYTES_MAX + 1)) == b"x" * ERROR_BYTES_MAX
    cut = cut_text("\N{EURO SIGN}" * 2000)
    assert ERROR_BYTES_MAX - 3 < len(cut) <= ERROR_BYTES_MAX
    assert set(cut.decode()) == {"\N{EURO SIGN}"}
    assert cut_text("lone \ud800 surrogate") == b"lone ? surrogate"
    long = encode_notification(Notification("i", NotificationType.ERROR, "x" * 9999))
    assert len(decode_notification(long).error) == ERROR_BYTES_MAX


# Members of the delayed set.


def test_a_member_begins_with_what_makes_it_unique() -> None:
    member = pack_member(encode_task(ENTRY))
    assert member.startswith(b"4:id-1,1:2,11:enc_version,1:1,")
    assert member_task_id(member) == b"id-1"
    assert unpack_member(member) == encode_task(ENTRY)


def test_a_member_of_fields_in_another_order() -> None:
    fields = (b"colour", b"red", *reordered(encode_task(ENTRY)))
    assert pack_member(fields).startswith(b"4:id-1,1:2,6:colour,")
    assert unpack_member(pack_member(fields)) == fields


def test_a_member_of_fields_without_a_count() -> None:
    fields = without(encode_task(ENTRY), b"retries")
    assert pack_member(fields).startswith(b"4:id-1,0:,")
    assert unpack_member(pack_member(fields)) == fields


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (b"", "0 parts"),
        (b"4:id-1,", "1 parts"),
        (b"4:id-1,1:0,", "2 parts"),
        (b"4:id-1,1:0,1:a,", "3 parts"),
        (b"4:id-1,1:0,1:a,1:b,1:c,", "5 parts"),
        (b"id-1", "no length"),
        (b":x,", "no length"),
        (b"-1:x,", "no length"),
        (b"1" * 20 + b":x,", "no length"),
        (b"4:id-1", "does not end"),
        (b"5:id-1,", "does not end"),
        (b"3:id-1,", "does not end"),
        (b"99999999999:x,", "does not end"),
    ],
)
def test_a_damaged_member_is_a_decode_error(member: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        unpack_member(member)


def test_the_task_id_of_a_damaged_member_is_empty() -> None:
    assert member_task_id(b"garbage") == b""
    assert member_task_id(b"3:abc,garbage") == b"abc"


# Dead letters.


def test_a_dead_letter_is_the_entry_and_why() -> None:
    fields = (*encode_task(PLAIN), b"colour", None)
    letter = dead_letter(fields, reason="no retries left", entry_id=b"5-1", consumer=b"n:1", deliveries=3, time_ms=99)
    assert letter == (
        *encode_task(PLAIN),
        *(b"colour", b"", b"dead_reason", b"no retries left", b"dead_entry", b"5-1", b"dead_consumer", b"n:1"),
        *(b"dead_deliveries", b"3", b"dead_ts", b"99"),
    )
    assert decode_task(letter) == PLAIN
