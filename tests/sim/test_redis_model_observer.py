"""What the model tells an observer, and copies of its data: frozen, forked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.redis_model import BLOCKED, Connection, ModelServer, Observer, VersionName

VERSION_NAMES: tuple[VersionName, ...] = ("redis7", "redis8", "valkey9")


class Recorder(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def appended(self, key: bytes, entry_id: bytes, fields: tuple[bytes, ...]) -> None:
        self.told.append(("appended", key, entry_id, fields))

    def deleted(self, key: bytes, entry_id: bytes) -> None:
        self.told.append(("deleted", key, entry_id))

    def delivered(self, key: bytes, group: bytes, entry_id: bytes, consumer: bytes, previous: bytes | None) -> None:
        self.told.append(("delivered", key, group, entry_id, consumer, previous))

    def claimed(
        self, key: bytes, group: bytes, entry_id: bytes, consumer: bytes, previous: bytes | None, just_id: bool
    ) -> None:
        self.told.append(("claimed", key, group, entry_id, consumer, previous, just_id))

    def acknowledged(self, key: bytes, group: bytes, entry_id: bytes, owner: bytes) -> None:
        self.told.append(("acknowledged", key, group, entry_id, owner))

    def consumer_deleted(self, key: bytes, group: bytes, consumer: bytes, entry_ids: list[bytes]) -> None:
        self.told.append(("consumer_deleted", key, group, consumer, entry_ids))

    def member_added(self, key: bytes, member: bytes, score: float) -> None:
        self.told.append(("member_added", key, member, score))

    def member_removed(self, key: bytes, member: bytes) -> None:
        self.told.append(("member_removed", key, member))


@pytest.fixture(params=VERSION_NAMES)
def server(request: pytest.FixtureRequest) -> ModelServer:
    """A model of each version, with a stream of two entries and a group."""
    server = ModelServer(request.param, clock_ms=1_000_000)
    for line in ("XGROUP CREATE s g 0 MKSTREAM", "XADD s 1-1 f a", "XADD s 1-2 f b"):
        ask(server.connect(), line)
    return server


def ask(connection: Connection, line: str) -> Any:
    """What one command comes to."""
    return connection.execute(line.split())


def told(server: ModelServer, *lines: str) -> list[tuple[Any, ...]]:
    """What an observer hears of these commands."""
    recorder = Recorder()
    server.observer = recorder
    connection = server.connect()
    for line in lines:
        ask(connection, line)
    server.observer = None
    return recorder.told


READ = "XREADGROUP GROUP g a STREAMS s >"


def test_appended(server: ModelServer) -> None:
    assert told(server, "XADD s 2-1 f c g d", "XADD s 2-1 f late", "XADD none NOMKSTREAM * f v") == [
        ("appended", b"s", b"2-1", (b"f", b"c", b"g", b"d"))
    ]


def test_deleted(server: ModelServer) -> None:
    assert told(server, "XDEL s 1-2 1-2 9-9", "XDEL none 1-1") == [("deleted", b"s", b"1-2")]


def test_delivered(server: ModelServer) -> None:
    assert told(server, "XCLAIM s g b 0 1-2 FORCE", READ)[1:] == [
        ("delivered", b"s", b"g", b"1-1", b"a", None),
        ("delivered", b"s", b"g", b"1-2", b"a", b"b"),
    ]
    assert told(server, "XREADGROUP GROUP g a STREAMS s 0") == []
    assert told(server, "XADD s 2-1 f c", "XREADGROUP GROUP g a NOACK STREAMS s >")[1:] == [
        ("delivered", b"s", b"g", b"2-1", b"a", None)
    ]


def test_delivered_to_a_blocked_reader(server: ModelServer) -> None:
    reader = server.connect()
    ask(reader, READ)
    assert ask(reader, "XREADGROUP GROUP g a BLOCK 0 STREAMS s >") is BLOCKED
    assert told(server, "XADD s 2-1 f c") == [
        ("appended", b"s", b"2-1", (b"f", b"c")),
        ("delivered", b"s", b"g", b"2-1", b"a", None),
    ]


def test_claimed(server: ModelServer) -> None:
    lines = ("XCLAIM s g b 0 1-1 9-9", "XCLAIM s g b 0 1-1 JUSTID", "XCLAIM s g b 60000 1-1", "XACK s g 1-1")
    assert told(server, READ, *lines, "XCLAIM s g a 0 1-1 FORCE")[2:] == [
        ("claimed", b"s", b"g", b"1-1", b"b", b"a", False),
        ("claimed", b"s", b"g", b"1-1", b"b", b"b", True),
        ("acknowledged", b"s", b"g", b"1-1", b"b"),
        ("claimed", b"s", b"g", b"1-1", b"a", None, False),
    ]


def test_acknowledged(server: ModelServer) -> None:
    assert told(server, READ, "XACK s g 1-1 1-1 9-9", "XACK s none 1-2", "XACK none g 1-2")[2:] == [
        ("acknowledged", b"s", b"g", b"1-1", b"a")
    ]


def test_a_claim_drops_what_is_deleted(server: ModelServer) -> None:
    assert told(server, READ, "XDEL s 1-1", "XCLAIM s g b 60000 1-1 9-9")[2:] == [
        ("deleted", b"s", b"1-1"),
        ("acknowledged", b"s", b"g", b"1-1", b"a"),
    ]


def test_consumer_deleted(server: ModelServer) -> None:
    assert told(server, READ, "XGROUP DELCONSUMER s g a", "XGROUP DELCONSUMER s g a")[2:] == [
        ("consumer_deleted", b"s", b"g", b"a", [b"1-1", b"1-2"])
    ]


def test_members(server: ModelServer) -> None:
    assert told(server, "ZADD z 1 m 2 n", "ZADD z 1 m 3 n", "ZREM z m none m", "ZREM none m") == [
        ("member_added", b"z", b"m", 1.0),
        ("member_added", b"z", b"n", 2.0),
        ("member_added", b"z", b"n", 3.0),
        ("member_removed", b"z", b"m"),
    ]


def test_an_observer_may_be_silent(server: ModelServer) -> None:
    server.observer = Observer()
    connection = server.connect()
    for line in (READ, "XCLAIM s g b 0 1-1", "XDEL s 1-1", "XACK s g 1-1", "XGROUP DELCONSUMER s g b", "XADD s * f v"):
        ask(connection, line)
    ask(connection, "ZADD z 1 m")
    ask(connection, "ZREM z m")
    server.observer = None


LINES = [
    *("XADD s 5-1 f v", "XADD s 5-2 f v", "XDEL s 1-1", "XDEL s 5-1", READ, "XREADGROUP GROUP g b COUNT 1 STREAMS s >"),
    *("XREADGROUP GROUP g a STREAMS s 0", "XREADGROUP GROUP g c STREAMS s 0", "XGROUP CREATECONSUMER s g c"),
    *("XACK s g 1-1", "XACK s g 1-2", "XCLAIM s g b 0 1-1", "XGROUP DELCONSUMER s g a", "XGROUP DESTROY s g"),
    *("SET k 1", "SET k 2", "SET k 1 PX 5000", "DEL k", "HSET h f 1 g 2", "HSET h g 2 f 1", "HDEL h f", "DEL h"),
    *("ZADD z 1 m", "ZADD z 2 n", "ZREM z m", "ZREM z n", "XTRIM s MAXLEN 1", "DEL s"),
]


@given(st.lists(st.sampled_from(LINES), max_size=12), st.lists(st.sampled_from(LINES), max_size=12))
def test_frozen_is_equal_where_the_data_is(first: list[str], second: list[str]) -> None:
    servers = (ModelServer(clock_ms=1_000), ModelServer(clock_ms=1_000))
    for server, lines in zip(servers, (first, second), strict=True):
        connection = server.connect()
        for line in ("XGROUP CREATE s g 0 MKSTREAM", "XADD s 1-1 f a", "XADD s 1-2 f b", *lines):
            ask(connection, line)
    one, other = (server.snapshot() for server in servers)
    assert (one == other) is (one.frozen() == other.frozen())
    assert servers[0].frozen() == one.frozen()
    assert one != other or hash(one.frozen()) == hash(other.frozen())


def test_a_fork_is_another_process_with_a_copy(server: ModelServer) -> None:
    connection = server.connect()
    ask(connection, READ)
    ask(connection, "SET k v PX 5000")
    server.oom = True
    fork = server.fork(clock_ms=1_002_000)
    assert fork.version is server.version
    assert fork.run_id != server.run_id
    ask(fork.connect(), "SET k2 v")
    assert ask(fork.connect(), "PTTL k") == 3000
    assert ask(fork.connect(), "XPENDING s g - + 10")[0] == [b"1-1", b"a", 2000, 1]
    ask(fork.connect(), "XACK s g 1-1")
    assert ask(connection, "XPENDING s g")[0] == 2
    assert ask(connection, "EXISTS k2") == 0
    server.restart()
    fork.restart()
    assert len({server.run_id, fork.run_id, fork.fork(0).run_id}) == 3


def test_a_fork_lacks_what_replicas_are_not_told_of(server: ModelServer) -> None:
    for line in (READ, "XREADGROUP GROUP g a STREAMS s 0", "XREADGROUP GROUP g b STREAMS s 0"):
        ask(server.connect(), line)
    fork = server.fork(clock_ms=1_000_000)
    assert ask(fork.connect(), "XPENDING s g - + 1") == [[b"1-1", b"a", 0, 1]]
    assert len(ask(fork.connect(), "XINFO CONSUMERS s g")) == 1
    server.tell_all()
    fork = server.fork(clock_ms=1_000_000)
    assert ask(fork.connect(), "XPENDING s g - + 1") == [[b"1-1", b"a", 0, 2]]
    assert len(ask(fork.connect(), "XINFO CONSUMERS s g")) == 2
    assert fork.snapshot() == server.snapshot()


def test_no_delivery_in_the_future_of_who_executes_it(server: ModelServer) -> None:
    """A replica, or a restart with the append-only file, with an earlier clock; a snapshot file keeps the times."""
    ask(server.connect(), READ)
    saved = server.snapshot()
    fork = server.fork(clock_ms=400_000)
    server.set_time(400_000)
    server.restart(saved, append_only=True)
    for other in (fork, server):
        other.set_time(400_500)
        assert ask(other.connect(), "XPENDING s g - + 1")[0][2] == 500
    server.restart(saved)
    assert ask(server.connect(), "XPENDING s g - + 1")[0][2] == 0


def test_a_fork_of_an_earlier_copy(server: ModelServer) -> None:
    earlier = server.snapshot()
    ask(server.connect(), "XADD s 9-9 f v")
    fork = server.fork(clock_ms=1_000_000, data=earlier)
    assert ask(fork.connect(), "XLEN s") == 2
    assert fork.snapshot() == earlier
