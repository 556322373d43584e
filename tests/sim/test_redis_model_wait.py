"""WAIT, the model against real servers with no replica, with one in step, and with one that lags."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given

from sim.redis_model import BLOCKED, ModelServer
from streamfleet_drivers.local_server import LocalServer
from tests.conftest import StartServer
from tests.sim.test_redis_model import OBSERVER, Pair, lines_of, plain, plans, search
from tests.sim.test_redis_model_replication import FAST_COPIES, ReplicatedPair
from tests.support.servers import Kind

EXAMPLES = int(os.environ.get("STREAMFLEET_MODEL_EXAMPLES", "15"))


class LaggingPair(ReplicatedPair):
    """A real primary with a replica that can be frozen, and the model."""

    def __init__(self, server: LocalServer, kind: Kind, replica: LocalServer) -> None:
        self.process = replica
        super().__init__(server, kind, replica)
        # Pings of the primary count as changes of the data, to 7.0.
        self.control.execute("CONFIG", "SET", "repl-ping-replica-period", "3600")

    def reset(self) -> None:
        """No data, fresh connections, a replica that is in step."""
        if self.process.running:
            self.process.resume()
        super().reset()
        self.model.replicas = 1

    def run(self, number: int, line: str) -> Any:
        """A command, or LAG and RESUME."""
        if line == "LAG":
            self.lag()
        elif line == "RESUME":
            self.resume()
        else:
            self.sync()
            return super().run(number, line)
        return None

    def reopen(self, number: int) -> None:
        """Another connection, which has asked for its id: to 7.0 that counts as if it had written."""
        super().reopen(number)
        self.models[number].execute(["CLIENT", "ID"])

    def sync(self) -> None:
        """The replica acknowledges; by itself it does only once a second, or while somebody is in WAIT."""
        if self.model.replicas_in_step:
            self.control.execute("SET", "control", "x")
            self.control.execute("DEL", "control")
            assert self.control.execute("WAIT", "1", "5000") == 1

    def lag(self) -> None:
        """The replica acknowledges nothing any more."""
        if not self.model.replicas_in_step:
            return
        self.log.append("LAG")
        self.sync()
        self.process.pause()
        self.model.replicas_in_step = 0
        # It has acknowledged all but the question for its acknowledgement.
        self.model.keys.changes += 1

    def resume(self) -> None:
        """It does again."""
        self.log.append("RESUME")
        self.process.resume()
        self.model.replicas_in_step = 1
        self.settle()


@pytest.fixture
def lagging(kind: Kind, start: StartServer) -> Iterator[LaggingPair]:
    """Each kind of server with a replica."""
    server, replica = (start(kind, arguments=FAST_COPIES[kind]) for _ in range(2))
    with contextlib.closing(LaggingPair(server, kind, replica)) as made:
        yield made


WORDS: dict[str, Sequence[str]] = {
    "K": ("k", "k", "n", "none"),
    "NUMBER": ("0", "1", "1", "1", "1", "2", "-1"),
    "MS": ("0", "100000"),
    "ENTRY": ("1-1", "1-2", "2-1"),
    "CLIENT": ("<client0>", "<client1>", "<client2>"),
    "C": ("a", "b"),
}
COMMANDS = """
WAIT NUMBER MS *12 | LAG *5 | RESUME *3 | CLIENT UNBLOCK CLIENT *3 | CLIENT UNBLOCK CLIENT ERROR | CLOSE *2
SET k v *3 | GET k *3 | DEL K *2 | INCR n | EXISTS K | PEXPIRE K 100000 | HSET h f v | HDEL h f *2 | ZADD z 1 m *2
ZREM z m | XADD s * f v *3 | XDEL s ENTRY | XTRIM s MAXLEN 5 | XGROUP CREATE s g 0 MKSTREAM | XGROUP DESTROY s g
XGROUP CREATECONSUMER s g C *2 | XGROUP DELCONSUMER s g C *2 | XREADGROUP GROUP g C COUNT 1 STREAMS s > *2
XREADGROUP GROUP g C STREAMS s 0 *2 | XREADGROUP GROUP g C NOACK STREAMS s > *2 | XACK s g ENTRY *2
XCLAIM s g C 0 ENTRY *2 | XCLAIM s g C 0 ENTRY FORCE | XCLAIM s g C 10000000 9-9 LASTID ENTRY
XREADGROUP GROUP g C BLOCK 0 STREAMS s > *3 | FLUSHALL | PING | TIME | WAIT x 0 | WAIT 0 x | WAIT 0 -1
MULTI ; WAIT NUMBER MS ; EXEC *3 | MULTI ; SET k v ; WAIT NUMBER MS ; EXEC *3 | MULTI ; GET k ; EXEC *2 | WATCH k
WATCH k ; SET k v ; MULTI ; SET k w ; EXEC | XREADGROUP GROUP g C BLOCK 0 STREAMS s > *3 | XADD s * f v *3
"""
BEGINNING = "XGROUP CREATE s g 0 MKSTREAM | XADD s 1-1 f v | XADD s 1-2 f v | SET k v"


def test_random_waits(lagging: LaggingPair) -> None:
    compared = [0]

    @search(EXAMPLES)
    @given(plans({"waits": COMMANDS}, WORDS))
    def compare(plan: list[tuple[int, str]]) -> None:
        lagging.reset()
        for line in lines_of(BEGINNING):
            lagging.run(OBSERVER, line)
        for number, line in plan:
            for part in line.split(" ; "):
                if part == "CLOSE":
                    lagging.reopen(number)
                elif part and not lagging.models[number].blocked:
                    lagging.run(number, part)
                    compared[0] += 1
        lagging.resume()

    compare()
    assert compared[0] >= 200


def test_a_timeout_gives_what_was_reached(lagging: LaggingPair) -> None:
    """By the wall clock, as BLOCK does: the timeout is made a time when the command comes."""
    lagging.run(0, "SET k v")
    assert lagging.run(0, "WAIT 1 0") == 1
    assert lagging.run(0, "WAIT 2 40") is BLOCKED
    lagging.lag()
    assert lagging.run(1, "WAIT 1 40") == 1  # It has written nothing.
    lagging.run(1, "SET k w")
    assert lagging.run(1, "WAIT 1 40") is BLOCKED
    deadline = lagging.model.next_block_deadline()
    assert deadline is not None
    while time.time_ns() // 1_000_000 < lagging.model.clock_ms + 60:
        time.sleep(0.01)
    lagging.model.set_time(time.time_ns() // 1_000_000)
    answers = dict(lagging.model.timeouts_due())
    assert answers == {lagging.models[0].id: 1, lagging.models[1].id: 0}
    assert [lagging.reals[number].receive() for number in (0, 1)] == [1, 0]
    lagging.waiting.clear()


def test_who_has_not_written_waits_for_nobody(lagging: LaggingPair) -> None:
    """So a new connection cannot confirm what an old one wrote, and an EXEC not what it writes itself."""
    lagging.lag()
    lagging.run(0, "SET k v")
    assert lagging.run(1, "WAIT 1 0") == 1
    lagging.run(1, "GET k")
    in_7_0 = lagging.kind == "redis7"
    assert lagging.run(1, "WAIT 1 0") == (BLOCKED if in_7_0 else 1)
    lagging.run(2, "MULTI")
    lagging.run(2, "SET k w")
    lagging.run(2, "WAIT 1 0")
    assert lagging.run(2, "EXEC") == [b"OK", 0 if in_7_0 else 1]
    assert lagging.run(2, "WAIT 1 0") is BLOCKED
    lagging.resume()
    assert lagging.woken == ([1, 1] if in_7_0 else [1])


def test_a_demotion_ends_waits(pair: Pair) -> None:
    assert pair.run(1, "WAIT 1 0") is BLOCKED
    pair.control.execute("REPLICAOF", "127.0.0.1", "1")
    pair.model.demote()
    [(_, reply)] = pair.model.take_unblocked()
    assert plain(pair.reals[1].receive()) == plain(reply)
    pair.reals[1].close()
    pair.reals[1] = pair._connect()
    pair.waiting.clear()
    pair.run(0, "WAIT 0 0")


@pytest.fixture
def pair(kind: Kind, server: LocalServer) -> Iterator[Pair]:
    """Each kind of server, without a replica."""
    with contextlib.closing(Pair(server, kind)) as made:
        yield made


def test_without_replicas(pair: Pair) -> None:
    assert pair.run(0, "WAIT 0 0") == 0
    assert pair.run(0, "WAIT -1 0") == 0
    pair.run(0, "MULTI")
    pair.run(0, "WAIT 1 0")
    assert pair.run(0, "EXEC") == [0]
    assert pair.run(0, "WAIT 1 0") is BLOCKED
    pair.run(1, "CLIENT UNBLOCK <client0>")
    assert pair.woken == [0]


# --- The model alone ----------------------------------------------------------------------------------------


def test_numbers_of_replicas() -> None:
    server = ModelServer()
    with pytest.raises(ValueError, match="-1"):
        server.replicas = -1
    server.replicas = 2
    for count in (-1, 3):
        with pytest.raises(ValueError, match="in step"):
            server.replicas_in_step = count
    connection = server.connect()
    server.replicas_in_step = 1
    connection.execute(["SET", "k", "v"])
    server.replicas_in_step = 0
    assert connection.execute(["WAIT", "1", "0"]) == 1  # The second has got the change before it fell behind.
    assert connection.execute(["WAIT", "2", "1000"]) is BLOCKED
    server.set_time(1000)
    assert server.timeouts_due() == [(connection.id, 1)]
    assert connection.execute(["WAIT", "2", "0"]) is BLOCKED
    server.replicas = 1
    assert (server.replicas, server.replicas_in_step) == (1, 0)
    server.replicas = 3
    assert server.take_unblocked() == [(connection.id, 3)]
    assert (server.replicas, server.replicas_in_step) == (3, 2)


def test_who_waits_for_less_gets_the_number_of_who_waits_for_more() -> None:
    server = ModelServer()
    server.replicas = 2
    server.replicas_in_step = 0
    first, second = server.connect(), server.connect()
    first.execute(["SET", "k", "v"])
    second.execute(["SET", "k", "v"])
    for connection in (first, second):
        assert connection.execute(["WAIT", "1", "0"]) is BLOCKED
    assert server.connect().execute(["WAIT", "2", "0"]) == 2
    server.replicas_in_step = 1
    assert server.take_unblocked() == [(second.id, 1), (first.id, 1)]
