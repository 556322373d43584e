"""What replicas and the append-only file know, the model against real servers: the data after a promotion or a restart.

A command that changes the primary may change its replica otherwise, or not at all; the model has to say the same.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given

from sim.redis_model import ModelServer
from streamfleet_drivers.local_server import HOST, LocalServer
from tests.conftest import StartServer
from tests.sim.test_redis_model import (
    BEGINNING,
    BLOCKING,
    EVERYTHING,
    GROUPS,
    OBSERVER,
    STREAMS,
    TRANSACTIONS,
    VALUES,
    WORDS,
    Pair,
    RealConnection,
    lines_of,
    plans,
    search,
)
from tests.support.servers import Kind, wait_until

EXAMPLES = int(os.environ.get("STREAMFLEET_MODEL_EXAMPLES", "40"))

# What is told differently: reads with NOACK, of history, of nothing; claims of what is gone, with LASTID alone.
UNTOLD = """
XREADGROUP GROUP g C NOACK STREAMS S > *2 | XREADGROUP GROUP g C NOACK BLOCK 0 STREAMS S >
XREADGROUP GROUP g C NOACK STREAMS S 0 | XREADGROUP GROUP g C STREAMS S 0 *3 | XREADGROUP GROUP g2 C STREAMS S >
XCLAIM S g C 10000000 9-9 LASTID ENTRY *2 | XCLAIM S g C 0 ENTRY ENTRY LASTID ENTRY *2 | XDEL S ENTRY *2
XGROUP CREATECONSUMER S g C *2 | XGROUP DELCONSUMER S g C | COPY *2
"""
SUBJECTS = {
    "groups": 2 * GROUPS + STREAMS + 2 * UNTOLD,
    "blocking": 2 * BLOCKING + GROUPS + STREAMS + UNTOLD,
    "all": STREAMS + GROUPS + BLOCKING + TRANSACTIONS + VALUES + UNTOLD,
}


# So that a replica is in step some milliseconds after it attached. With the defaults it takes up to a second: a primary
# that streams its copy waits for the replica's next sign of life, Valkey looks at that pace whether a file is complete.
FAST_COPIES: dict[Kind, tuple[str, ...]] = {
    "redis7": ("--hz", "500", "--repl-diskless-sync", "no"),
    "redis8": ("--hz", "500", "--repl-diskless-sync", "no"),
    "valkey9": ("--hz", "500", "--repl-diskless-sync", "no", "--repl-diskless-load", "flush-before-load"),
}


class ReplicatedPair(Pair):
    """A real primary with a real replica, and the model of the primary."""

    def __init__(self, server: LocalServer, kind: Kind, replica: LocalServer) -> None:
        self.replica = RealConnection(replica)
        super().__init__(server, kind)
        self.attach()

    def attach(self) -> None:
        """The replica gets a full copy, as it does after each promotion."""
        assert self.replica.execute("REPLICAOF", "NO", "ONE") == b"OK"
        assert self.replica.execute("REPLICAOF", HOST, str(self.server.port)) == b"OK"
        self._await_replica()
        self.model.tell_all()

    def promote(self) -> ModelServer:
        """Makes the replica a primary once it has everything; returns the model of it."""
        self._await_replica()
        assert self.replica.execute("REPLICAOF", "NO", "ONE") == b"OK"
        return self.model.fork(time.time_ns() // 1_000_000)

    def _await_replica(self) -> None:
        """Till it has everything, by the offsets."""

        def in_step() -> bool:
            there = _info(self.replica, "replication")
            here = _info(self.control, "replication")["master_repl_offset"]
            return there["master_link_status"] == "up" and there["slave_repl_offset"] == here

        wait_until(in_step, message="the replica is behind")

    def close(self) -> None:
        """Closes the sockets."""
        self.replica.close()
        super().close()


def _info(connection: RealConnection, section: str) -> dict[str, str]:
    lines = connection.execute("INFO", section).decode().splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


_COPYING = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")


@pytest.fixture
def replicated(kind: Kind, start: StartServer) -> Iterator[ReplicatedPair]:
    """Each kind of server with a replica."""
    server, replica = (start(kind, arguments=FAST_COPIES[kind]) for _ in range(2))
    with contextlib.closing(ReplicatedPair(server, kind, replica)) as made:
        yield made


def play(pair: Pair, plan: list[tuple[int, str]], copy: Callable[[], None]) -> int:
    """Runs a plan from its beginning; `copy` makes a full copy. Returns how many commands were compared."""
    pair.reset()
    for line in lines_of(BEGINNING):
        pair.run(OBSERVER, line)
    compared = 0
    for number, line in plan:
        if line == "COPY":
            copy()
        elif line == "CLOSE":
            pair.reopen(number)
        elif line and not pair.models[number].blocked:
            pair.run(number, line)
            compared += 1
    return compared


def test_a_promoted_replica_has_what_a_fork_has(replicated: ReplicatedPair) -> None:
    compared = [0]

    @search(EXAMPLES)
    @given(plans(SUBJECTS, WORDS))
    def compare(plan: list[tuple[int, str]]) -> None:
        compared[0] += play(replicated, plan, replicated.attach)
        fork = replicated.promote()
        for line in lines_of(EVERYTHING):
            replicated.look(replicated.replica, fork, line)
        replicated.attach()

    compare()
    assert compared[0] >= 800


# --- Times, which random commands are too fast for ----------------------------------------------------------

STEP = 0.3  # seconds between two groups of commands, to tell their times apart
NEAR = 140  # milliseconds that a time may be off

UNHEARD = "XREADGROUP GROUP g unheard STREAMS s 0"
# Groups of commands, a step apart. Consumers are named after what they do, or what replicas know of them.
SIGNS_OF_LIFE = [
    ["XGROUP CREATE s g 0 MKSTREAM", "XADD s 1-1 f v", "XADD s 1-2 f v", "XADD s 1-3 f v", "XADD s 1-4 f v"],
    ["XREADGROUP GROUP g reader COUNT 2 STREAMS s >", "XGROUP CREATECONSUMER s g made"],
    ["XREADGROUP GROUP g silent NOACK COUNT 1 STREAMS s >", "XREADGROUP GROUP g other COUNT 1 STREAMS s >"],
    ["XREADGROUP GROUP g reader STREAMS s >", "XREADGROUP GROUP g made STREAMS s >", "XACK s g 1-1"],
    ["XREADGROUP GROUP g silent NOACK STREAMS s >", "XREADGROUP GROUP g reader STREAMS s 0", "XDEL s 1-4"],
    [UNHEARD, "XCLAIM s g idle 10000000 1-2", "XCLAIM s g thief 0 1-4"],
]
LOOKS = ("XINFO CONSUMERS s g", "XPENDING s g - + 10", "XINFO GROUPS s", "XRANGE s - +")


def play_slowly(pair: Pair) -> None:
    """Times of deliveries and signs of life, a step apart."""
    for lines in SIGNS_OF_LIFE:
        for line in lines:
            pair.run(0, line)
        time.sleep(STEP)


def look_closely(real: RealConnection, model: ModelServer) -> None:
    """The same data, with times that are nearly equal."""
    connection = model.connect()
    for line in LOOKS:
        model.set_time(time.time_ns() // 1_000_000)
        modelled, expected = times_apart(connection.execute(line.split()))
        shown, times = times_apart(real.execute(*line.split()))
        assert shown == modelled
        assert all(abs(one - other) <= NEAR for one, other in zip(times, expected, strict=True)), (times, expected)


def times_apart(reply: Any) -> tuple[Any, list[int]]:
    """The reply without its times, and the times; one that there is not (-1) is none."""
    times: list[int] = []

    def strip(row: Any) -> Any:
        if not isinstance(row, list):
            return row
        timed = [i for i, element in enumerate(row) if isinstance(element, int) and _is_time(row, i) and element >= 0]
        times.extend(row[i] for i in timed)
        return [None if i in timed else strip(element) for i, element in enumerate(row)]

    return strip(reply), times


def _is_time(row: list[Any], i: int) -> bool:
    """After its name in XINFO; the third of a row of XPENDING."""
    return row[i - 1] in (b"idle", b"inactive") or (len(row) == 4 and i == 2)


def test_signs_of_life_on_a_promoted_replica(replicated: ReplicatedPair) -> None:
    """One that attaches late, with a full copy, knows more."""
    play_slowly(replicated)
    fork = replicated.promote()
    look_closely(replicated.replica, fork)
    assert b"unheard" not in consumers_of(fork)
    replicated.attach()
    fork = replicated.promote()
    look_closely(replicated.replica, fork)
    look_closely(replicated.control, replicated.model)
    assert b"unheard" in consumers_of(fork)


def consumers_of(model: ModelServer) -> list[bytes]:
    """The names of the consumers."""
    return [row[1] for row in cast(Any, model.connect().execute(["XINFO", "CONSUMERS", "s", "g"]))]


def test_an_id_that_no_claim_tells_of(replicated: ReplicatedPair) -> None:
    """XCLAIM LASTID that claims nothing: 7.0 tells what was read with it, and else only with NOACK."""
    for line in ("XGROUP CREATE s g 0 MKSTREAM", "XADD s 1-1 f v", "XADD s 1-2 f v", "XADD s 1-3 f v"):
        replicated.run(0, line)
    replicated.run(0, "XREADGROUP GROUP g a COUNT 1 STREAMS s >")
    before = replicated.promote()
    replicated.look(replicated.replica, before, "XINFO GROUPS s")
    [group] = cast(Any, before.connect().execute(["XINFO", "GROUPS", "s"]))
    assert group[group.index(b"entries-read") + 1] == (None if replicated.kind == "redis7" else 1)
    replicated.attach()
    replicated.run(0, "XREADGROUP GROUP g a COUNT 1 STREAMS s >")
    replicated.run(0, "XCLAIM s g a 10000000 1-1 LASTID 1-3")
    replicated.look(replicated.replica, replicated.promote(), "XINFO GROUPS s")


# --- Restarts ---------------------------------------------------------------------------------------------


class RestartedPair(Pair):
    """A real server that keeps its data, and its model."""

    def copy(self) -> None:
        """Everything goes into a file: into a new append-only file, or a snapshot."""
        rewrites = self.server.persistence == "aof"
        self.log.append("COPY")
        self.control.execute("BGREWRITEAOF" if rewrites else "BGSAVE")
        wait_until(lambda: not any(self._persistence()[name] == "1" for name in _COPYING))
        status = self._persistence()["aof_last_bgrewrite_status" if rewrites else "rdb_last_bgsave_status"]
        assert status == "ok", self.server.log
        self.model.set_time(time.time_ns() // 1_000_000)
        self.model.tell_all()
        self.saved = self.model.snapshot()

    def _persistence(self) -> dict[str, str]:
        return _info(self.control, "persistence")

    def restart(self) -> None:
        """Kills both and starts them from their file."""
        self.server.kill()
        append_only = self.server.persistence == "aof"
        data = self.model.snapshot() if append_only else self.saved
        self.server.start()
        self.model.set_time(time.time_ns() // 1_000_000)
        self.model.restart(data, append_only=append_only)
        for connection in (self.control, *self.reals):
            connection.close()
        self.control = RealConnection(self.server)
        self.reals = [self._connect() for _ in self.reals]
        self.models = [self.model.connect() for _ in self.models]
        self.queued = [[] for _ in self.queued]
        self.waiting.clear()


@pytest.fixture
def logged(kind: Kind, start: StartServer) -> Iterator[RestartedPair]:
    """Each kind of server with an append-only file."""
    with contextlib.closing(RestartedPair(start(kind, persistence="aof"), kind)) as made:
        yield made


def test_the_append_only_file_has_what_the_model_says(logged: RestartedPair) -> None:
    compared = [0]

    @search(EXAMPLES // 2)
    @given(plans(SUBJECTS, WORDS))
    def compare(plan: list[tuple[int, str]]) -> None:
        compared[0] += play(logged, plan, logged.copy)
        logged.restart()
        for line in lines_of(EVERYTHING):
            logged.look(logged.control, logged.model, line)

    compare()
    assert compared[0] >= 300


def test_signs_of_life_in_the_append_only_file(logged: RestartedPair) -> None:
    """They are as old as the restart. A file that was rewritten has everything."""
    play_slowly(logged)
    logged.restart()
    look_closely(logged.control, logged.model)
    time.sleep(STEP)
    logged.run(0, UNHEARD)
    logged.copy()
    time.sleep(STEP)
    logged.restart()
    look_closely(logged.control, logged.model)
    assert b"unheard" in consumers_of(logged.model)


def test_a_snapshot_file_has_everything(kind: Kind, start: StartServer) -> None:
    with contextlib.closing(RestartedPair(start(kind, persistence="rdb"), kind)) as pair:
        play_slowly(pair)
        pair.copy()
        pair.run(0, "XADD s 9-9 f lost")
        time.sleep(STEP)
        pair.restart()
        look_closely(pair.control, pair.model)
