"""The model as a node of a cluster against real nodes: redirections, slots on the move, readers that wait meanwhile.

The model is one node, and gets the same commands and the same changes of its slots as the real one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given

from sim.redis_model import (
    OWNED,
    UNASSIGNED,
    Elsewhere,
    Importing,
    Migrating,
    ModelServer,
    Owned,
    Slots,
    SlotState,
)
from streamfleet_drivers.local_server import HOST, LocalServer
from streamfleet_protocol.keys import SLOTS, slot_of
from tests.sim.test_redis_model import OBSERVER, Pair, RealConnection, lines_of, plain, plans, search
from tests.support.servers import KINDS, Kind, ServerMissing, servers_required, start_server, wait_until

EXAMPLES = int(os.environ.get("STREAMFLEET_MODEL_EXAMPLES", "60"))
OURS = tuple(str(slot_of(tag)) for tag in (b"1", b"2"))
"""The slots of the keys with the hash tags 1 and 2: of the first node, and moved about."""
THEIRS = str(slot_of(b"3"))
SPARE = str(slot_of(b"4"))
"""Without keys: its loss brings the whole cluster down."""


class Nodes:
    """Two real nodes of a cluster, all slots with the first but two, and a server on its own that keys migrate to.

    The second node is only there to be named, and is frozen: Valkey takes a slot that it imports at the moment when it
    hears from the other node that this one does not claim it.
    """

    def __init__(self, kind: Kind, stack: contextlib.ExitStack) -> None:
        self.kind = kind
        self._stack = stack
        # Readers whose slot went are looked for at each tick of `hz`.
        cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "3600000", "--hz", "200", "--cluster-port")
        self.first, named = (self._start(*cluster, str(_free_port())) for _ in range(2))
        self.target = self._start()
        self.control, other, self.target_control = (
            stack.enter_context(contextlib.closing(RealConnection(server)))
            for server in (self.first, named, self.target)
        )
        self.ids = [node.execute("CLUSTER", "MYID").decode() for node in (self.control, other)]
        self.address = f"{HOST}:{named.port}"
        # The other node keeps a second slot: one without slots would not be as it was.
        assert other.execute("CLUSTER", "ADDSLOTS", "0", THEIRS) == b"OK"
        self.ask(f"CLUSTER ADDSLOTSRANGE 1 {int(THEIRS) - 1} {int(THEIRS) + 1} {SLOTS - 1}")
        self.ask(f"CLUSTER MEET {HOST} {named.port} {other.execute('CONFIG', 'GET', 'cluster-port')[1].decode()}")
        self.await_health()
        named.pause()

    def _start(self, *arguments: str) -> LocalServer:
        server = start_server(self.kind, arguments=arguments)
        self._stack.callback(server.close)
        return server

    def await_health(self) -> None:
        """Waits until the first node takes the cluster for complete."""
        wait_until(lambda: b"cluster_state:ok" in self.control.execute("CLUSTER", "INFO"))

    def ask(self, line: str) -> None:
        """A command to the first node of which nothing but success is expected."""
        reply = self.control.execute(*line.split())
        assert reply == b"OK", (line, reply)

    def reset(self) -> None:
        """The slots as they were at first."""
        for slot in OURS:
            self.ask(f"CLUSTER SETSLOT {slot} STABLE")
            self.ask(f"CLUSTER SETSLOT {slot} NODE {self.ids[0]}")
        self.ask(f"CLUSTER SETSLOT {THEIRS} STABLE")
        self.control.execute("CLUSTER", "ADDSLOTS", SPARE)
        self.await_health()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class NodePair(Pair):
    """The first node and its model; `other` is the model of the server that keys migrate to."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        super().__init__(nodes.first, nodes.kind)

    def reset(self) -> None:
        """No data, all slots at home."""
        super().reset()
        self.nodes.reset()
        assert self.nodes.target_control.execute("FLUSHALL") == b"OK"
        self.slots = Slots(OWNED, {int(THEIRS): Elsewhere(self.nodes.address)})
        self.model.cluster = self.slots
        self.other = ModelServer(self.kind, clock_ms=self.model.clock_ms)

    def run(self, number: int, line: str) -> Any:
        """A command, or what an operator does: SLOT and a new state, MOVE and a key, DOWN, UP."""
        words = line.split()
        if words[0] not in ("SLOT", "MOVE", "DOWN", "UP"):
            return super().run(number, line)
        self.log.append(line)
        self.model.set_time(time.time_ns() // 1_000_000)
        if words[0] == "SLOT":
            self._change(words[1], words[2])
        elif words[0] == "MOVE":
            self._move(words[1])
        elif self.slots.down != (words[0] == "DOWN"):
            self.slots.down = words[0] == "DOWN"
            self.nodes.ask(f"CLUSTER {'DELSLOTS' if self.slots.down else 'ADDSLOTS'} {SPARE}")
        self.model.redirect_blocked()
        self.settle()
        return None

    def _change(self, slot: str, to: str) -> None:
        """The next state of a slot, where it may follow."""
        before = self.slots[int(slot)]
        here = isinstance(before, Owned | Migrating)
        if to == "STABLE":
            after: SlotState = OWNED if here else Elsewhere(self.nodes.address)
        elif to == "MIGRATING" and here:
            after = Migrating(self.nodes.address)
        elif to == "IMPORTING" and not here:
            after = Importing(self.nodes.address)
        elif to == "AWAY" and slot in OURS and not self.slots.down and not isinstance(before, Elsewhere):
            self._empty(slot)
            after = Elsewhere(self.nodes.address)
        elif to == "HERE" and slot in OURS and not isinstance(before, Migrating):
            after = OWNED
        else:
            return
        self._set(slot, to)
        self.slots[int(slot)] = after

    def _set(self, slot: str, to: str) -> None:
        setslot = f"CLUSTER SETSLOT {slot}"
        if to == "AWAY":
            self.nodes.ask(f"{setslot} STABLE")
            self.nodes.ask(f"{setslot} NODE {self.nodes.ids[1]}")
        elif to == "HERE":
            self.nodes.ask(f"{setslot} NODE {self.nodes.ids[0]}")
        else:
            self.nodes.ask(f"{setslot} {to} {self.nodes.ids[1] if to != 'STABLE' else ''}")

    def _empty(self, slot: str) -> None:
        for key in [key for key in self.model.keys.data if str(slot_of(key)) == slot]:
            self._move(key.decode())

    def _move(self, key: str) -> None:
        """MIGRATE of a key that the first node may send away."""
        slot = slot_of(key.encode())
        if str(slot) not in OURS or key.encode() not in self.model.keys.data:
            return
        if self.slots.down or isinstance(self.slots[slot], Elsewhere):
            return
        self.other.set_time(self.model.clock_ms)
        self.other.keys.delete(key.encode())
        self.nodes.ask(f"MIGRATE {HOST} {self.nodes.target.port} {key} 0 5000 REPLACE")
        assert self.model.migrate(key.encode(), self.other)

    def compare_other(self, line: str) -> None:
        """A look at what has migrated."""
        self.look(self.nodes.target_control, self.other, line)


# The digit is the hash tag. Streams and keys of two slots meet in one command now and then.
WORDS: dict[str, Sequence[str]] = {
    "S": (*["{1}s"] * 6, *["{1}t"] * 3, "{2}s", "{3}s"),
    "KEY": (*["{1}k"] * 4, *["{1}s"] * 2, "{1}n", "{2}k", "{3}k"),
    "C": ("a", "b"),
    "NEW": ("*", "*", "*", "3-1", "5-1"),
    "ENTRY": ("1-1", "1-2", "3-1", "<auto>"),
    "NUMBER": (*[OURS[0]] * 4, OURS[1], THEIRS),
    "OF": ("MIGRATING", "MIGRATING", "IMPORTING", "IMPORTING", "STABLE", "AWAY", "AWAY", "HERE", "HERE"),
}
OPERATOR = """
SLOT NUMBER OF *10 | MOVE KEY *8 | DOWN | UP *2 | ASKING *3 | ASKING ; SET KEY v *2
ASKING ; EXISTS KEY KEY *2 | SLOT NUMBER MIGRATING ; MOVE KEY ; EXISTS KEY KEY *3 | ASKING ; XREAD STREAMS S S 0 0
"""
KEYS = """
WATCH KEY *2 | WATCH KEY KEY | SET KEY v *3 | GET KEY *2 | DEL KEY *2 | DEL KEY KEY *2 | EXISTS KEY KEY *2
EXISTS KEY KEY KEY | INCR {1}n | SET {1}k v PX 100000 | PTTL {1}k | HSET {2}h f v | HGETALL {2}h | ZADD {1}z 1 m
ZRANGE {1}z 0 -1
"""
STREAMS = """
XADD S NEW f v *6 | XADD S NOMKSTREAM NEW f v | XLEN S | XDEL S ENTRY | XRANGE S - + | XTRIM S MAXLEN 1
XGROUP CREATE S g 0 MKSTREAM *4 | XGROUP CREATE S g 0 | XGROUP DESTROY S g | XGROUP CREATECONSUMER S g C
XGROUP DELCONSUMER S g C | XREADGROUP GROUP g C COUNT 1 STREAMS S > *3 | XREADGROUP GROUP g C STREAMS S S > > *2
XREADGROUP GROUP g C STREAMS S 0 | XREAD STREAMS S 0 | XREAD COUNT 1 STREAMS S S 0 0 | XACK S g ENTRY | XPENDING S g
XCLAIM S g C 0 ENTRY | XINFO GROUPS S | XINFO CONSUMERS S g
"""
BLOCKING = """
XREADGROUP GROUP g C BLOCK 0 STREAMS S > *5 | XREADGROUP GROUP g C BLOCK 0 STREAMS S S > > *2
XREAD BLOCK 0 STREAMS S $ *2 | XREAD BLOCK 0 STREAMS S S $ $ | XADD S * f v *4
ASKING ; XREADGROUP GROUP g C BLOCK 0 STREAMS S > *2 | ASKING ; XADD S * f v *2
"""
TRANSACTIONS = """
MULTI *2 | EXEC *2 | DISCARD | WATCH KEY | MULTI ; SET KEY v ; EXISTS KEY KEY ; EXEC *4
MULTI ; SET KEY v ; INCR {1}n ; MOVE KEY ; SLOT NUMBER OF ; EXEC *4
ASKING ; MULTI ; SET KEY v ; XADD S * f v ; XREADGROUP GROUP g C BLOCK 0 STREAMS S > ; EXEC *4
MULTI ; DEL KEY ; SLOT NUMBER OF ; GET KEY ; MOVE KEY ; EXEC *2 | MULTI ; SET KEY v ; SLOT NUMBER OF ; GET ; EXEC
WATCH KEY ; MULTI ; SET KEY v ; MOVE KEY ; DEL KEY ; SLOT NUMBER OF ; EXEC *2
"""
REST = """
XREADGROUP GROUP g C STREAMS S | XREADGROUP GROUP g C COUNT x STREAMS S > | XREADGROUP GROUP g C STREAMS S S >
XREAD WRONG STREAMS S 0 | XREAD STREAMS | PING | TIME | GET | ASKING x | FLUSHALL | CLIENT UNBLOCK <client1>
"""
SUBJECTS = {
    "keys": 3 * OPERATOR + 3 * KEYS + STREAMS + REST,
    "blocking": 2 * OPERATOR + 3 * BLOCKING + STREAMS,
    "transactions": OPERATOR + KEYS + STREAMS + 4 * TRANSACTIONS,
    "all": OPERATOR + KEYS + STREAMS + BLOCKING + TRANSACTIONS + REST,
}
BEGINNING = """
XGROUP CREATE {1}s g 0 MKSTREAM | XGROUP CREATE {1}t g 0 MKSTREAM | XADD {1}s 1-1 f 1 | XADD {1}s 1-2 f 2
XADD {1}t 1-1 f 1 | SET {1}k 1 | SET {2}k 1
"""
EVERYTHING = """
XRANGE {1}s - + | XINFO GROUPS {1}s | XINFO CONSUMERS {1}s g | XPENDING {1}s g - + 100 | XRANGE {1}t - +
XINFO GROUPS {1}t | XINFO CONSUMERS {1}t g | XPENDING {1}t g - + 100 | XRANGE {2}s - + | XPENDING {2}s g - + 100
GET {1}k | PTTL {1}k | GET {1}n | GET {2}k | HGETALL {2}h | ZRANGE {1}z 0 -1 WITHSCORES
"""


@pytest.fixture(scope="module", params=KINDS)
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """Two nodes of each kind, for all tests of this file."""
    with contextlib.ExitStack() as stack:
        try:
            made = Nodes(request.param, stack)
        except ServerMissing as missing:
            if servers_required():
                pytest.fail(f"{request.param} is required and missing: {missing}", pytrace=False)
            pytest.skip(str(missing))
        yield made


@pytest.fixture
def pair(nodes: Nodes) -> Iterator[NodePair]:
    """The first of the nodes with its model."""
    with contextlib.closing(NodePair(nodes)) as made:
        yield made


def test_random_commands_in_a_cluster(pair: NodePair) -> None:
    compared = [0]

    @search(EXAMPLES)
    @given(plans(SUBJECTS, WORDS))
    def compare(plan: list[tuple[int, str]]) -> None:
        pair.reset()
        for line in lines_of(BEGINNING):
            pair.run(OBSERVER, line)
        for number, line in plan:
            for part in line.split(" ; "):
                if part and not pair.models[number].blocked:
                    pair.run(number, part)
                    compared[0] += 1
        for slot in (*OURS, THEIRS):
            pair.run(OBSERVER, f"SLOT {slot} STABLE")
            pair.run(OBSERVER, f"SLOT {slot} HERE")
        pair.run(OBSERVER, "UP")
        for line in lines_of(EVERYTHING):
            pair.run(OBSERVER, line)
            pair.compare_other(line)

    compare()
    assert compared[0] >= 1_500


# --- Explicit cases, on both sides ------------------------------------------------------------------------

READ = "1: XREADGROUP GROUP g a BLOCK 0 STREAMS {1}s >"
GROUPS = "0: XGROUP CREATE {1}s g 0 MKSTREAM"
BLOCKED_AND_MIGRATING = (GROUPS, READ, f"SLOT {OURS[0]} MIGRATING")


def play(pair: NodePair, *lines: str) -> list[Any]:
    """The common replies to "connection: command", or to what an operator does."""
    replies = []
    for line in lines:
        number, colon, command = line.partition(": ")
        replies.append(pair.run(int(number), command) if colon else pair.run(0, line))
    return replies


def error(text: str) -> tuple[str, str]:
    """An error reply as the pair gives it."""
    return ("error", text)


def test_a_slot_moves_under_a_blocked_group_reader(pair: NodePair) -> None:
    """When its stream migrates; the later change of the slot finds nobody."""
    play(pair, *BLOCKED_AND_MIGRATING, "MOVE {1}s")
    ask = error(f"ASK {OURS[0]} {pair.nodes.address}")
    gone = error("UNBLOCKED the stream key no longer exists")
    assert pair.woken == [gone if pair.kind == "redis7" else ask]
    play(pair, f"SLOT {OURS[0]} AWAY", "0: XLEN {1}s")


def test_a_stream_migrates_out_of_a_slot_that_is_not_marked(pair: NodePair) -> None:
    play(pair, GROUPS, READ, "MOVE {1}s")
    assert [reply[1].split()[0] for reply in pair.woken] == ["UNBLOCKED" if pair.kind == "redis7" else "NOGROUP"]


def test_a_slot_moves_under_a_blocked_reader_without_group(pair: NodePair) -> None:
    """It waits on without the stream, and learns when the slot has gone."""
    play(pair, "0: XADD {1}s 1-1 f v", "1: XREAD BLOCK 0 STREAMS {1}s $", f"SLOT {OURS[0]} MIGRATING", "MOVE {1}s")
    assert pair.woken == []
    play(pair, f"SLOT {OURS[0]} AWAY")
    assert pair.woken == [error(f"MOVED {OURS[0]} {pair.nodes.address}")]


def test_the_cluster_goes_down_under_blocked_readers(pair: NodePair) -> None:
    play(pair, GROUPS, READ, "2: XREAD BLOCK 0 STREAMS {2}s $", "DOWN")
    assert pair.woken == 2 * [error("CLUSTERDOWN The cluster is down")]
    assert play(pair, "0: GET {1}k", "0: PING", "0: MULTI", "0: GET {3}k", "0: EXEC", "UP", "0: GET {1}k")[0] == error(
        "CLUSTERDOWN The cluster is down"
    )


def test_a_reader_blocks_in_an_importing_slot(pair: NodePair) -> None:
    """It is served where ASKING came before it, though others are sent away."""
    slot = OURS[0]
    play(pair, f"SLOT {slot} AWAY", f"SLOT {slot} IMPORTING", "0: ASKING", GROUPS, "1: ASKING", READ)
    assert play(pair, "0: XADD {1}s 1-1 f v", "0: ASKING", "0: XADD {1}s 1-1 f v")[0] == error(
        f"MOVED {slot} {pair.nodes.address}"
    )
    assert pair.woken == [[[b"{1}s", [[b"1-1", [b"f", b"v"]]]]]]
    play(pair, f"SLOT {slot} HERE", "1: XACK {1}s g 1-1")


def test_asking_lasts_for_one_command_or_one_transaction(pair: NodePair) -> None:
    slot = OURS[0]
    moved = error(f"MOVED {slot} {pair.nodes.address}")
    play(pair, f"SLOT {slot} AWAY", f"SLOT {slot} IMPORTING")
    assert play(pair, "0: ASKING", "0: SET {1}k v", "0: GET {1}k") == [b"OK", b"OK", moved]
    assert play(pair, "0: ASKING", "0: PING", "0: GET {1}k")[2] == moved
    assert play(pair, "0: ASKING", "0: GET", "0: GET {1}k")[2] == moved
    assert play(pair, "0: ASKING", "0: MULTI", "0: GET {1}k", "0: GET {1}n", "0: EXEC", "0: GET {1}k")[3:] == [
        b"QUEUED",
        error("TRYAGAIN Multiple keys request during rehashing of slot"),
        moved,
    ]
    assert play(pair, "0: MULTI", "0: ASKING", "0: GET {1}k", "0: EXEC", "0: GET {1}k")[2:] == [
        moved,
        error("EXECABORT Transaction discarded because of previous errors."),
        moved,
    ]
    play(pair, "0: MULTI", "0: ASKING", "0: EXEC", "0: GET {1}k", "0: ASKING", "0: WATCH {1}k", "0: WATCH {1}k")


def test_a_transaction_and_a_key_that_is_missing_in_a_migrating_slot(pair: NodePair) -> None:
    """Valkey 9 asks for keys only at EXEC, the others for each command."""
    play(pair, "0: SET {1}k v", f"SLOT {OURS[0]} MIGRATING")
    replies = play(pair, "0: MULTI", "0: GET {1}k", "0: SET {1}n v", "0: EXEC", "0: GET {1}k", "0: GET {1}n")
    ask = error(f"ASK {OURS[0]} {pair.nodes.address}")
    if pair.kind == "valkey9":
        assert replies[2:4] == [b"QUEUED", error("TRYAGAIN Multiple keys request during rehashing of slot")]
    else:
        assert replies[2:4] == [ask, error("EXECABORT Transaction discarded because of previous errors.")]
    assert replies[4:] == [b"v", ask]


def test_a_slot_leaves_between_multi_and_exec(pair: NodePair) -> None:
    moved = error(f"MOVED {OURS[0]} {pair.nodes.address}")
    assert play(pair, "0: MULTI", "0: SET {1}k v", f"SLOT {OURS[0]} AWAY", "0: EXEC", "0: EXEC")[3:] == [
        moved,
        error("ERR EXEC without MULTI"),
    ]
    play(pair, f"SLOT {OURS[0]} HERE", "0: MULTI", "0: SET {1}k v", "0: GET", f"SLOT {OURS[0]} AWAY")
    aborted = error("EXECABORT Transaction discarded because of previous errors.")
    assert play(pair, "0: EXEC") == [aborted if pair.kind == "valkey9" else moved]


def test_redirections_come_before_other_refusals(pair: NodePair) -> None:
    play(pair, "0: MULTI", "0: SET {1}k v", "1: MULTI", "1: SET {2}k v")
    pair.control.execute("CONFIG", "SET", "maxmemory", "1")
    pair.model.oom = True
    play(pair, f"SLOT {OURS[0]} AWAY")
    replies = play(pair, "0: EXEC", "1: EXEC", "2: SET {1}k v", "2: SET {2}k v", "2: SET {1}k", "2: DEL {1}k {2}k")
    pair.control.execute("CONFIG", "SET", "maxmemory", "0")
    codes = ["MOVED", "EXECABORT", "MOVED", "OOM", "ERR", "CROSSSLOT"]
    assert [reply[1].split()[0] for reply in replies] == codes


def test_slots_of_nobody(pair: NodePair) -> None:
    """Without full coverage only that slot is refused."""
    pair.control.execute("CONFIG", "SET", "cluster-require-full-coverage", "no")
    play(pair, "1: XREAD BLOCK 0 STREAMS {1}s $")
    pair.nodes.ask(f"CLUSTER DELSLOTS {OURS[0]}")
    pair.slots[int(OURS[0])] = UNASSIGNED
    pair.model.redirect_blocked()
    pair.settle()
    not_served = error("CLUSTERDOWN Hash slot not served")
    assert pair.woken == [not_served]
    assert play(pair, "0: GET {1}k", "0: GET {2}k", "0: DEL {2}k {1}k") == [
        not_served,
        None,
        error("CROSSSLOT Keys in request don't hash to the same slot"),
    ]
    pair.nodes.ask(f"CLUSTER ADDSLOTS {OURS[0]}")
    pair.control.execute("CONFIG", "SET", "cluster-require-full-coverage", "yes")


def test_expiries_and_deliveries_migrate(pair: NodePair) -> None:
    play(pair, GROUPS, "0: XADD {1}s 1-1 f v", "0: XREADGROUP GROUP g a STREAMS {1}s >", "0: SET {1}k v PX 100000")
    play(pair, "0: XCLAIM {1}s g b 0 1-1 IDLE 20000000 RETRYCOUNT 7", "MOVE {1}s", "MOVE {1}k")
    for line in ("XPENDING {1}s g - + 10", "XINFO GROUPS {1}s", "XINFO CONSUMERS {1}s g", "PTTL {1}k"):
        pair.compare_other(line)


# --- The model alone ----------------------------------------------------------------------------------------


def test_asking_a_server_on_its_own() -> None:
    reply = ModelServer().connect().execute(["ASKING"])
    assert plain(reply) == error("ERR This instance has cluster support disabled")


def test_what_is_no_slot() -> None:
    slots = Slots()
    with pytest.raises(ValueError, match="16384"):
        slots[SLOTS] = UNASSIGNED
    with pytest.raises(ValueError, match="-1"):
        slots.set([1, -1], UNASSIGNED)


def test_a_copy_of_the_slots() -> None:
    slots = Slots(Elsewhere("h:1"), {5: OWNED})
    slots.down = True
    copy = slots.copy()
    slots[5] = UNASSIGNED
    assert copy[5] is OWNED
    assert copy[6] == Elsewhere("h:1")
    assert copy.down
    ModelServer().redirect_blocked()


def test_a_key_migrates_only_where_it_can() -> None:
    here, there = ModelServer(clock_ms=1_000), ModelServer(clock_ms=50_000)
    here.connect().execute(["SET", "k", "v", "PX", "500"])
    assert not here.migrate(b"none", there)
    assert here.migrate(b"k", there)
    assert there.connect().execute(["PTTL", "k"]) == 500
    here.connect().execute(["SET", "k", "w"])
    assert not here.migrate(b"k", there)
    assert there.connect().execute(["GET", "k"]) == b"v"
