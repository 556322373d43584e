"""Settings check themselves, and their relations, when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol.errors import InvalidOption, InvalidQueueName, NoQueues
from streamfleet_protocol.settings import ClientSettings, QueueSettings, ServerSettings


def client(**changes: Any) -> ClientSettings:
    return ClientSettings(**{"queues": ("q",), "client_id": "c", "seed": 1, **changes})


def server(**changes: Any) -> ServerSettings:
    return ServerSettings(**{"queues": (QueueSettings("q"),), "consumer": "n:1", "seed": 1, **changes})


def test_default_values() -> None:
    """The table of values in protocol.md."""
    mine = client()
    assert (mine.max_local_queue, mine.max_local_bytes) == (10_000, 64 * 1024 * 1024)
    assert (mine.retention_ms, mine.retention_bytes) == (30_000, 64 * 1024 * 1024)
    assert (mine.heartbeat_ms, mine.command_timeout_ms, mine.silence_ms) == (10_000, 3_000, 600_000)
    assert (mine.block_ms, mine.read_margin_ms) == (5_000, 2_000)
    assert (mine.backoff_least_ms, mine.backoff_most_ms) == (50, 5_000)
    assert (mine.reconnect_audit_ms, mine.audit_interval_ms) == (30_000, 600_000)
    theirs = server()
    assert (theirs.lease_ms, theirs.renew_interval_ms, theirs.max_deliveries) == (60_000, 10_000, 10)
    assert (theirs.command_timeout_ms, theirs.block_ms, theirs.read_margin_ms) == (3_000, 5_000, 2_000)
    assert (theirs.prefetch, theirs.prefetch_work_ms, theirs.dead_letters_max) == (None, 50, 0)
    assert theirs.command_backoff_most_ms == 5_000
    assert theirs.stamp_tolerance_ms == 50


def test_queues() -> None:
    with pytest.raises(NoQueues, match="at least one queue"):
        client(queues=())
    with pytest.raises(NoQueues, match="at least one handler"):
        server(queues=())
    with pytest.raises(InvalidQueueName):
        client(queues=("q", "receiver:x"))
    with pytest.raises(InvalidQueueName):
        server(queues=(QueueSettings(""),))
    with pytest.raises(InvalidOption, match="named twice: a, b, b"):
        client(queues=("b", "a", "b"))
    with pytest.raises(InvalidOption, match="named twice"):
        server(queues=(QueueSettings("a"), QueueSettings("a", 5)))


CLIENT_POSITIVE = """max_local_queue max_local_bytes heartbeat_ms batch_commands batch_bytes command_timeout_ms
    connect_timeout_ms block_ms backoff_least_ms backoff_most_ms collect_interval_ms silence_ms audit_interval_ms"""
SERVER_POSITIVE = """concurrency lease_ms renew_interval_ms max_deliveries command_timeout_ms connect_timeout_ms
    block_ms backoff_least_ms backoff_most_ms page batch prefetch_most prefetch_work_ms promote_interval_ms
    sweep_interval_ms silence_ms collect_interval_ms consumer_silence_ms finish_timeout_ms"""


@pytest.mark.parametrize("value", [0, -1, 1.5, "7", True, None])
@pytest.mark.parametrize("name", CLIENT_POSITIVE.split())
def test_a_client_needs_positive_numbers(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=name.removesuffix("_ms")):
        client(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.5, "7", True, None])
@pytest.mark.parametrize("name", SERVER_POSITIVE.split())
def test_a_server_needs_positive_numbers(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=name.removesuffix("_ms")):
        server(**{name: value})


@pytest.mark.parametrize("value", [-1, 0.5, False])
def test_numbers_that_may_be_zero(value: object) -> None:
    assert client(retention_ms=0, retention_bytes=0).retention_ms == 0
    assert server(dead_letters_max=0, cancel_wait_ms=0, prefetch=0).prefetch == 0
    for name in ("retention_ms", "retention_bytes"):
        with pytest.raises(InvalidOption, match=name.removesuffix("_ms")):
            client(**{name: value})
    for name in ("dead_letters_max", "cancel_wait_ms", "prefetch"):
        with pytest.raises(InvalidOption, match=name.removesuffix("_ms")):
            server(**{name: value})


def test_retention_outlasts_three_heartbeats() -> None:
    """Else a loss would be seen after the tasks are dropped (finding 21)."""
    client(retention_ms=30_000, heartbeat_ms=10_000)
    client(retention_ms=0, heartbeat_ms=10_000)
    with pytest.raises(InvalidOption, match="three heartbeats"):
        client(retention_ms=29_999, heartbeat_ms=10_000)


def test_a_server_has_an_id() -> None:
    with pytest.raises(InvalidOption, match="server_id"):
        server(consumer="")


def test_renew_interval_is_at_most_a_quarter_of_the_lease() -> None:
    """Finding 2.4d: with more, one lost renewal is a lost lease."""
    server(lease_ms=40_000, renew_interval_ms=10_000)
    with pytest.raises(InvalidOption, match="quarter"):
        server(lease_ms=39_999, renew_interval_ms=10_000)


def test_command_timeout_is_at_most_a_third_of_the_renew_interval() -> None:
    server(renew_interval_ms=9_000, command_timeout_ms=3_000)
    with pytest.raises(InvalidOption, match="third"):
        server(renew_interval_ms=8_999, command_timeout_ms=3_000)


@pytest.mark.parametrize("renew", [3, 10, 100, 199, 200, 204, 1_000, 10_000])
def test_derived_values_keep_to_the_renew_interval(renew: int) -> None:
    """Back-off of commands at most half of it; two delivery times are the same if nearer than a quarter of it."""
    mine = server(renew_interval_ms=renew, command_timeout_ms=renew // 3)
    assert 1 <= mine.command_backoff_most_ms <= max(1, renew // 2)
    assert 1 <= mine.stamp_tolerance_ms <= 50
    assert mine.stamp_tolerance_ms < max(2, renew / 4)
