"""The codec over all values: what is written is read again, and any bytes give a value or a DecodeError."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from streamfleet_protocol import wire
from streamfleet_protocol.errors import DecodeError
from streamfleet_protocol.members import member_task_id, pack_member, unpack_member
from streamfleet_protocol.wire import (
    Notification,
    NotificationType,
    TaskEntry,
    cut_text,
    decode_notification,
    decode_task,
    encode_notification,
    encode_task,
    task_id_of,
    with_retries,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 2**63 - 1)
factors = st.integers(0, 10**9 - 1).map(lambda millionths: millionths / 10**6)

tasks = st.builds(
    TaskEntry,
    task_id=texts.filter(bool),
    client_id=texts,
    data=st.binary(max_size=50),
    max_retries=numbers,
    expires_ts=numbers,
    retry_delay_ms=numbers,
    send_notif=st.booleans(),
    retries=numbers,
    retry_backoff=factors,
    retry_delay_max_ms=numbers,
    no_retry=st.booleans(),
)

names = st.sampled_from([*encode_task(TaskEntry("i", "c", b"", 0, 0, 0, False, 0, 2.0, 1, True))[::2], b"other"])
values = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"", b"0", b"1", b"2", b"-1", b"-0", b"01", b"1.5", b"\xff", b"9" * 19, b"9" * 5000, b"completed"]
    ),
    numbers.map(lambda number: b"%d" % number),
)
junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.binary(max_size=5) | st.text(max_size=5) | st.floats() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=8,
)
flat_fields = st.lists(st.tuples(names, values), max_size=14).map(
    lambda pairs: [part for pair in pairs for part in pair]
)


@st.composite
def damaged_tasks(draw: st.DrawFn) -> list[Any]:
    """The fields of a task in their order, with some values replaced, and perhaps cut short."""
    fields: list[Any] = list(encode_task(draw(tasks)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(fields) - 1))
        fields[at] = draw(values | junk) if at % 2 else draw(names | junk)
    return fields[: draw(st.integers(0, len(fields)))] if draw(st.booleans()) else fields


@given(tasks)
def test_tasks_come_back_as_they_went(entry: TaskEntry) -> None:
    expected = entry._replace(max_retries=0) if entry.no_retry else entry
    assert decode_task(encode_task(entry)) == expected


@given(tasks, st.randoms(use_true_random=False))
def test_the_order_of_fields_does_not_matter(entry: TaskEntry, random: Any) -> None:
    fields = encode_task(entry)
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    random.shuffle(pairs)
    assert decode_task([part for pair in pairs for part in pair]) == decode_task(fields)


@given(st.one_of(damaged_tasks(), flat_fields, junk))
@example(list(encode_task(TaskEntry("i", "c", b"")))[:-1])
def test_anything_is_a_task_or_a_decode_error(fields: Any) -> None:
    try:
        entry = decode_task(fields)
    except DecodeError:
        return
    assert type(entry.task_id) is type(entry.client_id) is str
    assert type(entry.data) is bytes
    for number in (entry.max_retries, entry.expires_ts, entry.retry_delay_ms, entry.retries, entry.retry_delay_max_ms):
        assert 0 <= number < 2**63
    assert 0.0 <= entry.retry_backoff < 1e6


@given(st.one_of(damaged_tasks().filter(lambda fields: all(type(field) is bytes for field in fields)), flat_fields))
def test_the_fast_way_to_decode_agrees_with_the_slow_one(fields: list[bytes]) -> None:
    def outcome(decode: Any) -> object:
        try:
            return decode(fields)
        except DecodeError as error:
            return str(error)

    assert outcome(decode_task) == outcome(wire._decode_by_name)


@given(st.one_of(flat_fields, junk))
def test_anything_is_a_notification_or_a_decode_error(fields: Any) -> None:
    try:
        word = decode_notification(fields)
    except DecodeError:
        return
    assert word.task_id
    assert word.type in NotificationType


@given(
    st.builds(
        Notification,
        task_id=texts.filter(bool),
        type=st.sampled_from(NotificationType),
        error=texts,
        result=st.none() | st.binary(max_size=20),
    )
)
def test_notifications_come_back_as_they_went(word: Notification) -> None:
    assert decode_notification(encode_notification(word)) == word


@given(tasks, flat_fields, numbers)
def test_a_retry_copy_differs_in_its_count_alone(entry: TaskEntry, others: list[bytes], retries: int) -> None:
    extra = tuple(part for at in range(0, len(others), 2) if others[at] == b"other" for part in others[at : at + 2])
    fields = encode_task(entry) + extra
    copy = with_retries(fields, retries)
    assert len(copy) == len(fields)
    assert [at for at, (new, old) in enumerate(zip(copy, fields, strict=True)) if new != old] in ([], [17])
    assert decode_task(copy) == decode_task(fields)._replace(retries=retries)


@given(tasks)
def test_members_are_unpacked_as_they_were_packed(entry: TaskEntry) -> None:
    member = pack_member(encode_task(entry))
    assert unpack_member(member) == encode_task(entry)
    assert member_task_id(member) == entry.task_id.encode() == task_id_of(encode_task(entry))


@given(tasks, tasks)
def test_members_of_different_attempts_differ(one: TaskEntry, other: TaskEntry) -> None:
    """Whatever else is equal: the set would merge two entries into one."""
    again = one._replace(retries=one.retries ^ 1)
    assert pack_member(encode_task(one)) != pack_member(encode_task(again))
    assert (pack_member(encode_task(one)) == pack_member(encode_task(other))) is (
        encode_task(one) == encode_task(other)
    )


@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"1:", b"a,", b"0:,", b"2:bc,", b":"])).map(b"".join))
def test_any_bytes_are_a_member_or_a_decode_error(member: bytes) -> None:
    assert isinstance(member_task_id(member), bytes)
    try:
        fields = unpack_member(member)
    except DecodeError:
        return
    assert len(fields) >= 2
    assert len(fields) % 2 == 0


@given(st.lists(st.binary(max_size=5) | st.integers() | st.none(), max_size=8))
def test_the_raw_task_id_never_raises(fields: list[object]) -> None:
    assert isinstance(task_id_of(fields), bytes)


@given(st.text(max_size=100), st.integers(1, 60))
def test_cut_texts_are_short_and_whole(text: str, times: int) -> None:
    cut = cut_text(text * times)
    assert len(cut) <= wire.ERROR_BYTES_MAX
    whole = (text * times).encode("utf-8", "replace").decode()
    assert whole.startswith(cut.decode())
    assert len(whole) - len(cut.decode()) == 0 or len(cut) > wire.ERROR_BYTES_MAX - 4
