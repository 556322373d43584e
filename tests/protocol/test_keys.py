"""Key names: of which queues, in which slots, and which names are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from streamfleet_protocol.errors import InvalidQueueName
from streamfleet_protocol.keys import check_queue_name, queue_keys, receiver_key, slot_of

GOOD_NAMES = [
    "messages",
    "a",
    "mail:urgent",
    "{tag}",
    "{tag}:mail",
    "mail{tag}more",
    "open{brace",
    "a}b{c}d",
    "{a}{b}",
    "{{a}}",
    "räksmörgås",
    "任务",
    "with space",
    "receiver",
    "receivers",
    "my:receiver:x",
    "fence",
    "mail:fence",
    "mail:conn:x",
    "\N{PILE OF POO}",
    "x" * 300,
]


def test_names_of_a_plain_queue() -> None:
    """As in the table of the wire format: auxiliary keys take the whole stream key as their hash tag."""
    keys = queue_keys("mail")
    assert keys.stream == b"streamfleet:mail"
    assert keys.receivers == b"streamfleet:mail:receivers"
    assert keys.producers == b"{streamfleet:mail}:producers"
    assert keys.fence == b"{streamfleet:mail}:fence"
    assert keys.dead == b"{streamfleet:mail}:dead"
    assert keys.delayed == b"{streamfleet:mail}:delayed"
    assert keys.promotions == b"{streamfleet:mail}:promotions"
    assert keys.verdicts == b"{streamfleet:mail}:verdicts"
    assert keys.connection("id") == b"{streamfleet:mail}:conn:id"
    assert receiver_key("id") == b"streamfleet:receiver:id"


def test_names_of_a_tagged_queue() -> None:
    """Where the stream's key holds a hash tag, the others repeat it."""
    keys = queue_keys("{t}mail")
    assert keys.stream == b"streamfleet:{t}mail"
    assert keys.producers == b"streamfleet:{t}mail:producers"
    assert keys.connection("id") == b"streamfleet:{t}mail:conn:id"


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_all_keys_of_a_queue_share_its_slot(name: str) -> None:
    keys = queue_keys(name)
    others = (keys.producers, keys.fence, keys.dead, keys.delayed, keys.promotions, keys.verdicts)
    assert {key_slot(key) for key in (keys.stream, *others, keys.connection("client"))} == {keys.slot}


@given(st.text(max_size=30))
def test_any_name_has_its_keys_in_one_slot_or_is_refused(name: str) -> None:
    try:
        keys = queue_keys(name)
    except InvalidQueueName:
        return
    others = (keys.producers, keys.fence, keys.dead, keys.delayed, keys.promotions, keys.verdicts)
    assert {key_slot(key) for key in (keys.stream, *others, keys.connection("client"))} == {keys.slot}


@given(st.binary(min_size=1, max_size=40) | st.text("{}ab", min_size=1, max_size=8).map(str.encode))
def test_slots_are_those_of_redis(key: bytes) -> None:
    assert slot_of(key) == key_slot(key)


def test_keys_of_different_queues_differ() -> None:
    """No key of one queue is a key of another."""
    seen: dict[bytes, str] = {}
    for name in GOOD_NAMES:
        keys = queue_keys(name)
        for key in (
            *(keys.stream, keys.receivers, keys.producers, keys.fence, keys.dead, keys.delayed),
            *(keys.promotions, keys.verdicts, keys.connection("client"), receiver_key(f"client of {name}")),
        ):
            assert key not in seen, (key, name, seen.get(key))
            seen[key] = name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "at least one character"),
        ("receiver:x", "notification streams"),
        ("receiver:", "notification streams"),
        ("mail:receivers", "sets of clients"),
        (":receivers", "sets of clients"),
        ("a}b", "no hash tag"),
        ("}", "no hash tag"),
        ("{}", "no hash tag"),
        ("{}a{b}", "no hash tag"),
        ("}{", "no hash tag"),
        ("{t}mail:fence", "belongs to another queue"),
        ("{t}mail:dead", "belongs to another queue"),
        ("{t}mail:delayed", "belongs to another queue"),
        ("{t}mail:producers", "belongs to another queue"),
        ("{t}mail:promotions", "belongs to another queue"),
        ("{t}mail:verdicts", "belongs to another queue"),
        ("{t}mail:conn:x", "belongs to another queue"),
        ("\ud800", "UTF-8"),
    ],
)
def test_names_that_cannot_work_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(InvalidQueueName, match=reason):
        check_queue_name(name)


@pytest.mark.parametrize("name", [None, b"mail", 7, True])
def test_what_is_no_text_names_no_queue(name: object) -> None:
    with pytest.raises(InvalidQueueName, match="a text"):
        check_queue_name(name)  # type: ignore[arg-type]
