"""The model of the server against the three real ones, reply for reply: random commands, and the rare events.

Both sides get the same commands. What can't be equal is made so before they are compared: ids that `*` gave are
matched by their order, idle times are compared roughly, client ids and TIME by their form.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sim.redis_model import BLOCKED, Connection, ErrorReply, ModelServer, NotModelledError, Reply
from streamfleet_drivers.local_server import LocalServer
from tests.conftest import StartServer
from tests.support.servers import Kind, wait_until

# More for a long search: with 5000, minutes per server.
EXAMPLES = int(os.environ.get("STREAMFLEET_MODEL_EXAMPLES", "180"))
COMMANDS = 50
CONNECTIONS = 4


class RealConnection:
    """A raw connection: one reply at a time, errors as values."""

    def __init__(self, server: LocalServer) -> None:
        address = urlsplit(server.url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(replyError=lambda text: _Error(text))
        self.number = 0

    def send(self, *words: str) -> None:
        self.socket.sendall(hiredis.pack_command(cast(Any, words)))

    def receive(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError("the server closed the connection")
            self._reader.feed(data)
        return reply

    def execute(self, *words: str) -> Any:
        self.send(*words)
        return self.receive()

    def has_data(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def close(self) -> None:
        self.socket.close()


class _Error(Exception):
    """What hiredis makes of an error reply."""


def plain(reply: Any) -> Any:
    """A reply of either side with errors as pairs, so that they compare."""
    if isinstance(reply, _Error):
        return ("error", str(reply))
    if isinstance(reply, ErrorReply):
        return ("error", reply.text)
    return [plain(element) for element in reply] if isinstance(reply, list) else reply


def _rough(milliseconds: int, unit: int) -> int:
    """Times that random commands set differ by far more than the unit; what passes meanwhile is far less."""
    return milliseconds if milliseconds < 0 else (milliseconds + unit // 2) // unit


def comparable(words: Sequence[str], reply: Any) -> Any:
    """The reply with its times made rough."""
    name = " ".join(words[:2]).upper()
    if isinstance(reply, int) and words[0].upper() == "PTTL":
        return _rough(reply, 50_000)
    if isinstance(reply, list) and words[0].upper() == "TIME":
        return [type(part) for part in reply]
    if name == "CLIENT ID":
        return type(reply)
    if isinstance(reply, list) and words[0].upper() == "XPENDING" and len(words) > 3:
        return [[row[0], row[1], _rough(row[2], 5_000_000), row[3]] for row in reply]
    if isinstance(reply, list) and name == "XINFO CONSUMERS":
        return [
            [_rough(v, 5_000_000) if i and row[i - 1] in (b"idle", b"inactive") else v for i, v in enumerate(row)]
            for row in reply
        ]
    return reply


class Pair:
    """A real server and the model of its version, with the same connections."""

    def __init__(self, server: LocalServer, kind: Kind) -> None:
        self.server = server
        self.kind = kind
        self.control = RealConnection(server)
        self.reals: list[RealConnection] = []
        self.reset()

    def reset(self) -> None:
        """No data, fresh connections, a fresh model."""
        for real in self.reals:
            real.close()
        self._await_blocked(0)
        assert self.control.execute("FLUSHALL") == b"OK"
        self.model = ModelServer(self.kind, clock_ms=time.time_ns() // 1_000_000)
        self.reals = [self._connect() for _ in range(CONNECTIONS)]
        self.models: list[Connection] = [self.model.connect() for _ in range(CONNECTIONS)]
        self.queued: list[list[list[str]]] = [[] for _ in range(CONNECTIONS)]
        self.waiting: dict[int, list[str]] = {}
        self.ids: dict[str, tuple[bytes, bytes]] = {}
        """By stream, what `*` gave last: the real server's id, the model's."""
        self.names: dict[bytes, bytes] = {}
        """One name for the ids of both sides; ids of several streams in one millisecond share it."""
        self.woken: list[Any] = []
        """The replies to commands that had to wait."""
        self.log: list[str] = []

    def _connect(self) -> RealConnection:
        connection = RealConnection(self.server)
        connection.number = connection.execute("CLIENT", "ID")
        return connection

    def close(self) -> None:
        """Closes the sockets."""
        for real in [self.control, *self.reals]:
            real.close()

    def _await_blocked(self, count: int) -> None:
        wanted = b"blocked_clients:%d\r" % count
        wait_until(lambda: wanted in self.control.execute("INFO", "clients"), message=f"{count} blocked")

    def run(self, number: int, line: str) -> Any:
        """One command on both sides; returns the common reply, or BLOCKED."""
        words = line.split()
        # Another stream's id is of no use: it may be in this one too, on one side only, by the same millisecond.
        stream = next((word for word in words[1:] if word in self.ids), "")
        sides = [[self._resolve(word, stream, side) for word in words] for side in (0, 1)]
        self.log.append(f"{number}: {line}")
        if "*" in words or words[0] == "EXEC":
            self._await_next_millisecond()
        self.model.set_time(time.time_ns() // 1_000_000)
        modelled = self.models[number].execute(sides[1])
        self.reals[number].send(*sides[0])
        result: Any = BLOCKED
        if modelled is BLOCKED:
            self.waiting[self.models[number].id] = words
            self._await_blocked(len(self.waiting))
        else:
            result = self._compare(number, words, self.reals[number].receive(), modelled)
        self.settle()
        return result

    def settle(self) -> None:
        """Replies to blocked commands: those of the model, in its order, and no others."""
        for connection_id, reply in self.model.take_unblocked():
            number = next(i for i, model in enumerate(self.models) if model.id == connection_id)
            words = self.waiting.pop(connection_id)
            self.log.append(f"{number}: woken")
            self.woken.append(self._compare(number, words, self.reals[number].receive(), reply))
        for number, real in enumerate(self.reals):
            assert not real.has_data(), self._message(f"{number} has a reply that the model has not")

    def look(self, real: RealConnection, model: ModelServer, line: str) -> None:
        """A command to another server and its model, which have some of the same data."""
        words = line.split()
        modelled = model.connect().execute(words)
        assert modelled is not BLOCKED
        self._compare(0, words, real.execute(*words), modelled)

    def reopen(self, number: int) -> None:
        """Closes a connection and opens another in its place."""
        self.log.append(f"{number}: closed")
        self.reals[number].close()
        self.models[number].close()
        self.waiting.pop(self.models[number].id, None)
        self._await_blocked(len(self.waiting))
        self.reals[number] = self._connect()
        self.models[number] = self.model.connect()
        self.queued[number] = []

    def _await_next_millisecond(self) -> None:
        """A stream made again in the millisecond of its last id gives ids anew, perhaps on one side only."""
        last = max((int(i.partition(b"-")[0]) for ids in self.ids.values() for i in ids), default=0)
        while time.time_ns() // 1_000_000 <= last:
            time.sleep(0.0002)

    def _resolve(self, word: str, stream: str, side: int) -> str:
        if "<auto>" in word:
            ids = self.ids.get(stream, (b"7-7", b"7-7"))
            return word.replace("<auto>", ids[side].decode())
        if word.startswith("<client"):
            number = int(word[7])
            return str(self.reals[number].number if side == 0 else self.models[number].id)
        return word

    def _compare(self, number: int, words: list[str], real: Any, modelled: Reply) -> Any:
        real, expected = plain(real), plain(modelled)
        commands = [words]
        if words[0] == "EXEC" and isinstance(real, list) and isinstance(expected, list):
            commands = self.queued[number]
            assert len(real) == len(expected) == len(commands), self._message(f"{real} != {expected}")
            pairs = list(zip(commands, real, expected, strict=True))
        else:
            pairs = [(words, real, expected)]
        for command, a, b in pairs:
            if command[0] == "XADD" and "*" in command and _is_id(a) and _is_id(b):
                self._same(command[1], a, b)
        for command, a, b in pairs:
            a, b = (_rename(comparable(command, reply), self.names) for reply in (a, b))
            assert a == b, self._message(f"{' '.join(command)}\nserver: {a}\nmodel:  {b}")
        if words[0] in ("EXEC", "DISCARD"):
            self.queued[number] = []
        elif real == b"QUEUED":
            self.queued[number].append(words)
        return expected

    def _same(self, stream: str, real: bytes, modelled: bytes) -> None:
        """Both ids name the same entry from now on."""
        self.ids[stream] = (real, modelled)
        old, new = self.names.setdefault(modelled, modelled), self.names.setdefault(real, real)
        for entry_id, name in self.names.items():
            if name == old:
                self.names[entry_id] = new

    def _message(self, text: str) -> str:
        return "\n".join(["", *self.log, text])


def _is_id(reply: Any) -> bool:
    """An id, not nil, an error or QUEUED."""
    return isinstance(reply, bytes) and b"-" in reply


def _rename(reply: Any, names: dict[bytes, bytes]) -> Any:
    if isinstance(reply, list):
        return [_rename(element, names) for element in reply]
    return names.get(reply, reply) if isinstance(reply, bytes) else reply


# --- Random commands --------------------------------------------------------------------------------------

# The alphabets are small, so that commands meet; the rare wrong type and missing key are among them.
WORDS: dict[str, Sequence[str]] = {
    "S": (*["s"] * 12, *["t"] * 5, "none", "k"),
    "K": (*["k"] * 4, *["k2"] * 3, "none", "h"),
    "H": (*["h"] * 8, "none", "s"),
    "Z": (*["z"] * 8, "none", "k"),
    "ANY": ("s", "t", "k", "k2", "h", "z", "none"),
    "G": (*["g"] * 9, "g2"),
    "C": ("c1", "c2", "c3"),
    "ENTRY": ("1-1", "1-1", "1-2", "1-2", "2-1", "2-1", "3-1", "4", "5-1", "<auto>", "<auto>"),
    "ODD": ("0-0", "9-9", "+", "bad"),
    "NEW": ("*", "3-1", "3-*", "4", "5-1", "6-0", "7-*", "8-1", "9-9"),
    "AFTER": ("0", "0", "0", "1-1", "2-1", "<auto>"),
    "LOW": ("-", "-", "1-1", "(1-1", "(1-2", "2", "<auto>", "(<auto>"),
    "HIGH": ("+", "+", "+", "3-1", "(3-1", "2", "<auto>"),
    "N": ("1", "1", "2", "3", "10", "0"),
    "AGE": ("0", "0", "10000000", "30000000", "-5"),
    "SCORE": ("1", "2", "2", "3.5", "-1", "0.1", "1700000000000", "+inf"),
    "MIN": ("-inf", "0", "2", "(2", "3.5"),
    "MAX": ("+inf", "+inf", "3", "(2", "2"),
    "RANK": ("0", "0", "1", "-1", "-1", "-2", "5"),
    "F": ("f", "f", "g", "h"),
    "V": ("1", "2", "abc", "41"),
    "MS": ("100000", "100000", "0", "-1"),
    "CLIENT": ("<client0>", "<client1>", "<client2>", "999999"),
    "WRONG": ("x", "-1", "(", "1.5", ""),
}

# By subject; "*3" stands for three times as likely.
STREAMS = """
XADD S NEW f V *6 | XADD S * f V *2 | XADD S NOMKSTREAM NEW f V | XADD S MAXLEN N NEW f V | XADD S NEW f V g V
XADD S MAXLEN ~ N * f V | XADD S MAXLEN = N NEW f V | XLEN S | XDEL S ENTRY *2 | XDEL S ENTRY ENTRY ENTRY
XTRIM S MAXLEN N | XRANGE S LOW HIGH *2 | XRANGE S LOW HIGH COUNT N | XRANGE S ENTRY ENTRY
XREAD STREAMS S AFTER | XREAD COUNT N STREAMS S t AFTER 0 | XREAD STREAMS S $
"""
GROUPS = """
XREADGROUP GROUP G C STREAMS S > *3 | XREADGROUP GROUP G C COUNT N STREAMS S > *4
XREADGROUP GROUP G C COUNT 1 STREAMS s t > > *2 | XREADGROUP GROUP G C STREAMS S AFTER *2
XREADGROUP GROUP G C COUNT N STREAMS S AFTER *2 | XREADGROUP GROUP G C NOACK COUNT 1 STREAMS S >
XACK S G ENTRY *3 | XACK S G ENTRY ENTRY ENTRY
XPENDING S G *2 | XPENDING S G LOW HIGH 10 *2 | XPENDING S G LOW HIGH N C | XPENDING S G - + 10 C
XPENDING S G IDLE AGE - + 10
XCLAIM S G C AGE ENTRY *4 | XCLAIM S G C AGE ENTRY ENTRY ENTRY JUSTID *3 | XCLAIM S G C 0 ENTRY JUSTID *2
XCLAIM S G C AGE ENTRY FORCE *3 | XCLAIM S G C AGE ENTRY ENTRY FORCE JUSTID *2
XCLAIM S G C 0 ENTRY IDLE 20000000 *4 | XCLAIM S G C 0 ENTRY TIME 1000 RETRYCOUNT N *2
XCLAIM S G C AGE ENTRY TIME 99999999999999 JUSTID | XCLAIM S G C 0 ENTRY LASTID ENTRY
XINFO GROUPS S *3 | XINFO CONSUMERS S G *2 | XGROUP CREATE S G 0 MKSTREAM *2 | XGROUP CREATE S G $ MKSTREAM
XGROUP CREATE S G ENTRY | XGROUP CREATECONSUMER S G C | XGROUP DELCONSUMER S G C *2
"""
BLOCKING = """
XREADGROUP GROUP G C BLOCK 0 STREAMS S > *3 | XREADGROUP GROUP G C COUNT 1 BLOCK 0 STREAMS s t > > *3
XREADGROUP GROUP G C BLOCK 0 STREAMS S AFTER | XREAD BLOCK 0 STREAMS S $ *2
XREAD COUNT 1 BLOCK 0 STREAMS s t $ $ *2 | XREAD BLOCK 0 STREAMS S AFTER | XREAD BLOCK 0 STREAMS none $
XADD S * f V *4 | XADD none * f V | XDEL S <auto> *2 | CLIENT UNBLOCK CLIENT | CLIENT UNBLOCK CLIENT ERROR | CLOSE
DEL S | XGROUP DESTROY S G | XGROUP CREATE S G 0 MKSTREAM *2 | XGROUP DELCONSUMER S G C | SET S V
"""
TRANSACTIONS = """
WATCH ANY *4 | WATCH ANY ANY | UNWATCH | MULTI *4 | EXEC *6 | DISCARD | GET
"""
VALUES = """
SET K V *2 | SET K V PX MS | GET K *2 | INCR K *2 | DEL ANY | DEL ANY ANY | EXISTS ANY ANY | PEXPIRE ANY MS
PTTL ANY | TYPE ANY | HSET H F V *3 | HSET H F V F V | HGET H F | HDEL H F *2 | HDEL H F F | HGETALL H | HLEN H
ZADD Z SCORE F *3 | ZADD Z SCORE F SCORE F | ZREM Z F *2 | ZSCORE Z F | ZCARD Z | ZRANGE Z RANK RANK
ZRANGE Z RANK RANK WITHSCORES *2 | ZRANGEBYSCORE Z MIN MAX | ZRANGEBYSCORE Z MIN MAX WITHSCORES LIMIT N N
ZSCAN Z 0 | ZSCAN Z 0 COUNT 100
"""
REST = """
TIME | PING | CLIENT ID | WAIT 0 0 | SELECT 0 | FLUSHALL | CLOSE | XADD S 0-0 f V | XADD S 1-1 f V | XADD S NEW f
XADD S NEW WRONG V | XADD S MAXLEN WRONG * f V | XDEL S ENTRY ODD | XACK S G ENTRY ODD | XTRIM S MAXLEN WRONG
XTRIM S MAXLEN ~ 1 | XRANGE S WRONG HIGH | XRANGE S LOW WRONG | XRANGE S - + COUNT WRONG | XRANGE S LOW ODD
XREADGROUP GROUP G C BLOCK WRONG STREAMS S > | XREADGROUP GROUP G C STREAMS S t > | XREAD STREAMS S WRONG
XREADGROUP GROUP G C COUNT WRONG STREAMS S AFTER | XREADGROUP GROUP G C STREAMS S $ | XPENDING S G - +
XPENDING S G ODD HIGH N | XPENDING S G - + WRONG | XPENDING S G IDLE WRONG - + 1 | XCLAIM S G C WRONG ENTRY
XCLAIM S G C 0 ENTRY ODD | XCLAIM S G C 0 ENTRY IDLE WRONG | XCLAIM S G C 0 ENTRY IDLE N WRONG
XGROUP CREATE S G ODD | XGROUP CREATE none G 0 | XGROUP DESTROY S G | PEXPIRE K WRONG | SET K V PX WRONG
ZADD Z WRONG F | ZRANGE Z WRONG 1 | ZRANGEBYSCORE Z WRONG MAX | ZSCAN Z bad | CLIENT UNBLOCK CLIENT WRONG
"""
# Runs keep to a subject or two: what meets there would hardly meet among all commands.
SUBJECTS = {
    "groups": 3 * GROUPS + STREAMS,
    "groups, little else": 4 * GROUPS + STREAMS + REST,
    "blocking": 2 * BLOCKING + GROUPS + STREAMS,
    "blocking, transactions": 2 * BLOCKING + STREAMS + 3 * TRANSACTIONS,
    "transactions": STREAMS + GROUPS + VALUES + 5 * TRANSACTIONS,
    "values": 3 * VALUES + TRANSACTIONS,
    "all": STREAMS + GROUPS + BLOCKING + TRANSACTIONS + VALUES + REST,
}

BEGINNING = """
XGROUP CREATE s g 0 MKSTREAM | XGROUP CREATE t g 0 MKSTREAM | XADD s 1-1 f 1 | XADD s 1-2 f 2 | XADD s 2-1 f 3
XADD t 1-1 f 1 | XADD t 2-1 f 2 | SET k 1 | HSET h f 1 | ZADD z 1 f 2 g
"""
# Everything that a server has, for a look at the end.
EVERYTHING = """
XRANGE s - + | XINFO GROUPS s | XINFO CONSUMERS s g | XPENDING s g | XPENDING s g - + 100
XRANGE t - + | XINFO GROUPS t | XINFO CONSUMERS t g | XPENDING t g | XPENDING t g - + 100
XINFO GROUPS none | XPENDING s g2 - + 100 | XINFO CONSUMERS s g2 | GET k | GET k2 | HGETALL h
ZRANGE z 0 -1 WITHSCORES | TYPE none | PTTL k | PTTL s
"""
OBSERVER = CONNECTIONS - 1

_NOTHING = ""


def lines_of(text: str) -> list[str]:
    """The commands of such a text, each as often as it says."""
    found = []
    for part in text.replace("\n", "|").split("|"):
        match = re.fullmatch(r"(.*?)(?: \*(\d+))?", part.strip())
        assert match is not None
        found += [match[1]] * int(match[2] or 1) if match[1] else []
    return found


@st.composite
def commands(draw: st.DrawFn, templates: Sequence[str], alphabet: Mapping[str, Sequence[str]]) -> tuple[int, str]:
    """A connection and a command; the simplest is no command, so that shrinking drops what isn't needed."""
    template = draw(st.sampled_from(templates))
    if template is _NOTHING:
        return 0, _NOTHING
    number = draw(st.integers(0, OBSERVER - 1))
    words = [
        draw(st.sampled_from(alphabet[word])) if word in alphabet and i else word
        for i, word in enumerate(template.split())
    ]
    return number, " ".join(words)


def plans(
    subjects: Mapping[str, str], alphabet: Mapping[str, Sequence[str]], size: int = COMMANDS
) -> st.SearchStrategy[list[tuple[int, str]]]:
    """So many commands of one of the subjects."""
    templates = {subject: [_NOTHING, *lines_of(text)] for subject, text in subjects.items()}
    return st.sampled_from(sorted(subjects)).flatmap(
        lambda subject: st.lists(commands(templates[subject], alphabet), min_size=size, max_size=size)
    )


def search(examples: int) -> settings:
    """Settings for a search through so many plans."""
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    )


@pytest.fixture
def pair(kind: Kind, server: LocalServer) -> Iterator[Pair]:
    """Each kind of server with its model."""
    with contextlib.closing(Pair(server, kind)) as made:
        yield made


def test_random_commands(pair: Pair) -> None:
    compared = [0]

    @search(EXAMPLES)
    @given(plans(SUBJECTS, WORDS))
    def compare(plan: list[tuple[int, str]]) -> None:
        pair.reset()
        for line in lines_of(BEGINNING):
            pair.run(OBSERVER, line)
        for number, line in plan:
            if line == "CLOSE":
                pair.reopen(number)
            elif line and not pair.models[number].blocked:
                pair.run(number, line)
                compared[0] += 1
        for line in lines_of(EVERYTHING):
            pair.run(OBSERVER, line)

    compare()
    assert compared[0] >= 5_000  # With those of the other files 20,000 for all kinds; the usual number is 40,000.


# --- Rare events, on both sides ---------------------------------------------------------------------------

# A heading, then commands: "connection: command"; all servers begin with the same data where it says GROUPS.
_SCRIPTS = """
# key deleted
GROUPS | BLOCKED | 2: XREAD BLOCK 0 STREAMS s $ | 0: DEL s | 0: XADD s 1-1 f v
# flushed
GROUPS | BLOCKED | 2: XREAD BLOCK 0 STREAMS s $ | 0: FLUSHALL
# group destroyed
GROUPS | BLOCKED | 0: XGROUP DESTROY t g | 0: XGROUP DESTROY s g
# type changed
GROUPS | BLOCKED | 2: XREAD BLOCK 0 STREAMS s $ | 0: SET s x
# type changed in MULTI
GROUPS | BLOCKED | 0: MULTI | 0: DEL s | 0: ZADD s 1 m | 0: EXEC
# made again in MULTI
GROUPS | BLOCKED | 2: XREAD BLOCK 0 STREAMS s $ | 0: MULTI | 0: DEL s | 0: XADD s 1-1 f v | 0: EXEC
# added and deleted in MULTI
GROUPS | BLOCKED | 2: XREAD BLOCK 0 STREAMS s $ | 0: MULTI | 0: XADD s 1-1 f v | 0: XDEL s 1-1 | 0: EXEC |
0: XINFO CONSUMERS s g
# two streams in MULTI
GROUPS | 1: XREADGROUP GROUP g c COUNT 1 BLOCK 0 STREAMS s t > > | 0: MULTI | 0: XADD t 1-1 f v |
0: XADD s 1-1 f v | 0: EXEC
# two readers, three entries
GROUPS | 1: XREADGROUP GROUP g a COUNT 2 BLOCK 0 STREAMS s > |
2: XREADGROUP GROUP g b COUNT 2 BLOCK 0 STREAMS s > | 0: MULTI | 0: XADD s 1-1 f v | 0: XADD s 1-2 f v |
0: XADD s 1-3 f v | 0: EXEC | 0: XPENDING s g
# woken for nothing, order of arrival
GROUPS | 1: XREADGROUP GROUP g a COUNT 1 BLOCK 0 STREAMS s t > > |
2: XREADGROUP GROUP g b COUNT 1 BLOCK 0 STREAMS t > | 0: MULTI | 0: DEL none | 0: XGROUP CREATE s g2 0 |
0: XGROUP DESTROY s g2 | 0: EXEC | 0: XADD t 1-1 f v
# consumer deleted while blocked
GROUPS | BLOCKED | 0: XGROUP DELCONSUMER s g c | 0: XADD s 1-1 f v
# no wait inside of MULTI
GROUPS | 0: MULTI | 0: XREADGROUP GROUP g c BLOCK 0 STREAMS s > | 0: EXEC
# client unblocked
GROUPS | BLOCKED | 0: CLIENT UNBLOCK <client1> | 0: CLIENT UNBLOCK <client1> | BLOCKED |
0: CLIENT UNBLOCK <client1> ERROR | 0: CLIENT UNBLOCK <client1> WRONG | 0: MULTI |
0: CLIENT UNBLOCK <client1> | 0: EXEC
# errors while queueing
0: SET k x | 0: MULTI | 0: GET | 0: SET k y | 0: EXEC | 0: GET k | 0: MULTI | 0: XGROUP WRONG s g | 0: EXEC |
0: MULTI | 0: WATCH k | 0: EXEC | 0: MULTI | 0: MULTI | 0: EXEC | 0: EXEC | 0: DISCARD
# errors inside of EXEC
0: SET k x | 0: MULTI | 0: INCR n | 0: XADD k 1-1 f v | 0: INCR k | 0: XREADGROUP GROUP g c STREAMS s > |
0: INCR n | 0: EXEC
# EXECABORT before nil
0: WATCH k | 1: SET k x | 0: MULTI | 0: GET | 0: EXEC | 0: MULTI | 0: GET k | 0: EXEC
# WATCH is blind to groups
GROUPS | 0: XADD s 1-1 f v | 0: WATCH s | 1: XREADGROUP GROUP g c STREAMS s > | 1: XCLAIM s g d 0 1-1 |
1: XACK s g 1-1 | 1: XGROUP CREATE s g2 0 MKSTREAM | 1: XGROUP DELCONSUMER s g c | 1: XGROUP DESTROY s g2 |
1: XDEL s 5-5 | 0: MULTI | 0: PING | 0: EXEC | 0: WATCH s | 1: XDEL s 1-1 | 0: MULTI | 0: PING | 0: EXEC
# WATCH and a sorted set where nothing moves
0: ZADD z 1 m | 0: WATCH z | 1: ZADD z 1 m | 1: ZREM z n | 0: MULTI | 0: EXEC | 0: WATCH z | 1: ZADD z 2 m |
0: MULTI | 0: EXEC
# the highest deleted id counts
GROUPS | 0: XADD s 1-1 f v | 0: XADD s 1-2 f v | 0: XADD s 1-3 f v | 0: XADD s 1-4 f v |
0: XREADGROUP GROUP g c COUNT 1 STREAMS s > | 0: XDEL s 1-3 | 0: XDEL s 1-2 | 0: XINFO GROUPS s |
0: XREADGROUP GROUP g c COUNT 1 STREAMS s > | 0: XINFO GROUPS s | 0: XDEL s 1-1 | 0: XINFO GROUPS s
# WATCH sees a stream made
0: WATCH s | 1: XGROUP CREATE s g 0 MKSTREAM | 0: MULTI | 0: PING | 0: EXEC
# WATCH and a flush
0: SET k x | 0: WATCH k | 2: WATCH none | 1: FLUSHALL | 0: MULTI | 0: EXEC | 2: MULTI | 2: EXEC
# WATCH and expiry
0: SET k x PX 30 | 0: WATCH k | sleep | 0: MULTI | 0: PING | 0: EXEC | 0: GET k
# WATCH of what was expired
0: SET k x PX 30 | sleep | 0: WATCH k | 0: MULTI | 0: PING | 0: EXEC
# a stream expires under its reader
GROUPS | BLOCKED | 2: XREAD BLOCK 0 STREAMS s $ | 0: PEXPIRE s 30 | sleep
# FORCE
GROUPS | 0: XADD s 1-1 f v | 0: XCLAIM s g c 1000 1-1 FORCE | 0: XPENDING s g - + 10 |
0: XCLAIM s g d 1000 1-1 FORCE | 0: XACK s g 1-1 | 0: XCLAIM s g d 1000 1-1 FORCE JUSTID |
0: XCLAIM s g d 0 2-2 FORCE | 0: XPENDING s g - + 10 | 0: XREADGROUP GROUP g c STREAMS s > |
0: XPENDING s g - + 10 | 0: XINFO GROUPS s
# orphans of a consumer
GROUPS | 0: XADD s 1-1 f v | 0: XADD s 1-2 f v | 0: XREADGROUP GROUP g c STREAMS s > |
0: XGROUP DELCONSUMER s g c | 0: XPENDING s g | 0: XREADGROUP GROUP g d STREAMS s > | 0: XCLAIM s g d 0 1-1 |
0: XCLAIM s g d 60000 1-1 1-2 FORCE
# pending and deleted
GROUPS | 0: XADD s 1-1 f v | 0: XADD s 1-2 f v | 0: XREADGROUP GROUP g c STREAMS s > | 0: XDEL s 1-1 |
0: XREADGROUP GROUP g c STREAMS s 0 | 0: XCLAIM s g d 60000 1-1 1-2 JUSTID | 0: XPENDING s g - + 10
# whole nodes only
0: MULTI | 250 times 0: XADD s * f v | 0: EXEC | 0: XTRIM s MAXLEN ~ 151 | 0: XTRIM s MAXLEN ~ 120 |
0: XTRIM s MAXLEN ~ 30 | 0: XLEN s
"""
_SHORT = {
    "GROUPS": "0: XGROUP CREATE s g 0 MKSTREAM | 0: XGROUP CREATE t g 0 MKSTREAM",
    "BLOCKED": "1: XREADGROUP GROUP g c BLOCK 0 STREAMS s >",
}


def _scripts() -> dict[str, list[str]]:
    found = {}
    for part in _SCRIPTS.split("# ")[1:]:
        name, _, text = part.partition("\n")
        for short, meaning in _SHORT.items():
            text = text.replace(short, meaning)
        found[name] = [line.strip() for line in text.replace("\n", " ").split("|")]
    return found


SCRIPTS = _scripts()


@pytest.mark.parametrize("name", SCRIPTS)
def test_rare_event(pair: Pair, name: str) -> None:
    for line in SCRIPTS[name]:
        times, _, line = line.rpartition(" times ")
        if line == "sleep":
            time.sleep(0.05)
            pair.model.set_time(time.time_ns() // 1_000_000)
            pair.settle()
        else:
            number, _, command = line.partition(": ")
            for _ in range(int(times or 1)):
                pair.run(int(number), command)


def test_demotion_ends_blocked_readers(pair: Pair) -> None:
    pair.run(0, "XGROUP CREATE s g 0 MKSTREAM")
    pair.run(1, "XREADGROUP GROUP g c BLOCK 0 STREAMS s >")
    pair.control.execute("REPLICAOF", "127.0.0.1", "1")
    pair.model.demote()
    [(_, reply)] = pair.model.take_unblocked()
    assert plain(pair.reals[1].receive()) == plain(reply)
    with pytest.raises((EOFError, ConnectionError)):
        pair.reals[1].receive()
    assert pair.models[1].closed
    pair.reals[1].close()
    pair.reals[1] = RealConnection(pair.server)
    pair.run(0, "XADD s 1-1 f v")


# --- States of the server that refuse commands ------------------------------------------------------------

EVERY_COMMAND = [
    *("SET k x", "GET k", "DEL k2", "EXISTS k", "TYPE k", "PEXPIRE none 1000", "PTTL k", "INCR n"),
    *("HSET h f v", "HGET h f", "HDEL h f", "HGETALL h", "HLEN h", "ZADD z 1 m", "ZREM z m", "ZSCORE z m"),
    *(
        "ZCARD z",
        "ZRANGE z 0 -1",
        "ZRANGEBYSCORE z 0 1",
        "ZSCAN z 0",
        "XADD s 9-9 f v",
        "XLEN s",
        "XDEL s 1-1",
    ),
    *("XTRIM s MAXLEN 100", "XRANGE s - +", "XREAD STREAMS s 0", "XREADGROUP GROUP g c STREAMS s >"),
    *("XACK s g 1-1", "XPENDING s g", "XCLAIM s g c 0 1-1", "XINFO GROUPS s", "XINFO CONSUMERS s g"),
    *("XGROUP CREATE s g2 0 MKSTREAM", "XGROUP CREATECONSUMER s g d", "XGROUP DELCONSUMER s g d"),
    *("XGROUP DESTROY s g2", "WATCH k", "UNWATCH", "MULTI", "TIME", "PING", "CLIENT ID"),
    *("CLIENT UNBLOCK 999999", "WAIT 0 0", "SELECT 0"),
]


def _oom(pair: Pair) -> None:
    pair.control.execute("CONFIG", "SET", "maxmemory", "1")
    pair.model.oom = True


def _readonly(pair: Pair) -> None:
    pair.control.execute("REPLICAOF", "127.0.0.1", "1")
    pair.model.readonly = True


def _masterdown(pair: Pair) -> None:
    pair.control.execute("CONFIG", "SET", "replica-serve-stale-data", "no")
    pair.control.execute("REPLICAOF", "127.0.0.1", "1")
    pair.model.readonly = pair.model.masterdown = True


def _noreplicas(pair: Pair) -> None:
    pair.control.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    pair.model.noreplicas = True


def _busy(pair: Pair) -> None:
    pair.control.execute("CONFIG", "SET", "lua-time-limit", "1")
    pair.control.send("EVAL", "while true do end", "0")
    wait_until(lambda: "BUSY" in str(_ask(pair.server, "GET", "k")))
    pair.model.busy = True


def _ask(server: LocalServer, *words: str) -> Any:
    """A reply over a connection of its own."""
    with contextlib.closing(RealConnection(server)) as connection:
        return connection.execute(*words)


def _misconf(pair: Pair) -> None:
    # A directory in the place of the dump cannot be replaced, not even by root.
    (pair.server.directory / "dump.rdb" / "full").mkdir(parents=True)
    pair.control.execute("CONFIG", "SET", "save", "900000 1")
    pair.control.execute("BGSAVE")
    wait_until(lambda: b"rdb_last_bgsave_status:err" in pair.control.execute("INFO", "persistence"))
    pair.model.misconf = True


def _loading(pair: Pair) -> None:
    pair.control.execute("DEBUG", "POPULATE", "5000", "key", "2000")
    pair.control.execute("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
    pair.control.execute("CONFIG", "SET", "key-load-delay", "1000")
    pair.control.send("DEBUG", "RELOAD")
    wait_until(lambda: "LOADING" in str(_ask(pair.server, "GET", "k")))
    pair.model.loading = True


STATES: dict[str, Callable[[Pair], None]] = {
    "oom": _oom,
    "readonly": _readonly,
    "masterdown": _masterdown,
    "noreplicas": _noreplicas,
    "busy": _busy,
    "misconf": _misconf,
    "loading": _loading,
}


@pytest.fixture
def debug_pair(kind: Kind, start: StartServer) -> Iterator[Pair]:
    """A pair whose server takes DEBUG."""
    server = start(kind, arguments=("--enable-debug-command", "yes"))
    with contextlib.closing(Pair(server, kind)) as made:
        yield made


@pytest.mark.parametrize("state", STATES)
def test_refusals(debug_pair: Pair, state: str) -> None:
    pair = debug_pair
    for line in (
        "XGROUP CREATE s g 0 MKSTREAM",
        "XADD s 1-1 f v",
        "XADD s 1-2 f v",
        "SET k x",
        "HSET h f v",
        "ZADD z 1 m",
    ):
        pair.run(0, line)
    tried = EVERY_COMMAND
    if state == "loading":  # Servers answer slowly meanwhile, so one command for each set of flags.
        tried = ["SET k x", "GET k", "XACK s g 1-1", *tried[tried.index("WATCH k") :]]
    # Connections with one queued command each: what EXEC answers when the state comes in between.
    queued = range(len(tried))
    pair.reals += [pair._connect() for _ in tried[CONNECTIONS:]]
    pair.models += [pair.model.connect() for _ in tried[CONNECTIONS:]]
    pair.queued += [[] for _ in tried[CONNECTIONS:]]
    for number, line in zip(queued, tried, strict=True):
        pair.run(number, "MULTI")
        pair.run(number, line)
    STATES[state](pair)
    for number in queued:
        pair.run(number, "EXEC")
    for line in tried:
        pair.run(0, line)
        pair.run(0, "DISCARD" if line == "MULTI" else "EXEC")
        pair.run(0, "MULTI")
        pair.run(0, line)
        pair.run(0, "EXEC")
        pair.run(0, "UNWATCH")


def test_what_exec_will_not_execute_does_not_refuse_it(pair: Pair) -> None:
    """Valkey forgets the queue once a command was refused or a watched key changed; the others queue no more."""
    pair.run(0, "MULTI")
    pair.run(0, "SET k x")
    pair.run(0, "GET")
    pair.run(1, "MULTI")
    pair.run(1, "GET")
    pair.run(1, "SET k x")
    for number in (2, 3):
        pair.run(number, "WATCH w")
        pair.run(number, "MULTI")
    pair.run(2, "SET k x")
    pair.reals.append(pair._connect())
    pair.models.append(pair.model.connect())
    pair.queued.append([])
    pair.run(4, "SET w x")
    pair.run(3, "SET k x")
    _oom(pair)
    replies = [pair.run(number, "EXEC") for number in range(4)]
    refused = ("error", "EXECABORT Transaction discarded because of: OOM command not allowed when used memory")
    aborted = ("error", "EXECABORT Transaction discarded because of previous errors.")
    first = aborted if pair.kind == "valkey9" else refused
    third = None if pair.kind == "valkey9" else refused
    assert [r and (r[0], r[1].removesuffix(" > 'maxmemory'.")) for r in replies] == [first, aborted, third, None]


# --- The model alone: what real servers do only when their clock or their disk does it -----------------------


def model(*lines: str, version: Kind = "valkey9", clock_ms: int = 1_000_000) -> tuple[ModelServer, Connection]:
    """A model and a connection after some commands."""
    server = ModelServer(version, clock_ms=clock_ms)
    connection = server.connect()
    for line in lines:
        ask(connection, line)
    return server, connection


def ask(connection: Connection, line: str) -> Any:
    """What one command comes to."""
    return connection.execute(line.split())


PENDING = ("XGROUP CREATE s g 0 MKSTREAM", "XADD s * f v", "XREADGROUP GROUP g c STREAMS s >")


def test_clock_back_hides_idleness() -> None:
    server, connection = model(*PENDING)
    server.set_time(400_000)
    assert ask(connection, "XPENDING s g - + 10") == [[b"1000000-0", b"c", 0, 1]]
    assert ask(connection, "XPENDING s g IDLE 1 - + 10") == []
    assert ask(connection, "XCLAIM s g d 1 1000000-0") == []
    assert ask(connection, "XCLAIM s g d 0 1000000-0 JUSTID") == [b"1000000-0"]
    assert ask(connection, "XADD s * f v") == b"1000000-1"
    server.set_time(1_600_000)
    assert ask(connection, "XPENDING s g - + 10") == [[b"1000000-0", b"d", 1_200_000, 1]]


def test_clock_forward_expires_and_touches() -> None:
    server, connection = model("SET k x PX 5000", "WATCH k", "MULTI", "PING")
    server.set_time(900_000)
    other = server.connect()
    assert ask(other, "PTTL k") == 105_000
    server.set_time(1_005_000)
    assert ask(connection, "EXEC") is None
    assert ask(other, "EXISTS k") == 0


def test_block_ends_by_the_wall_clock() -> None:
    server, first = model("XGROUP CREATE s g 0 MKSTREAM")
    second = server.connect()
    assert ask(second, "XREAD BLOCK 3000 STREAMS s $") is BLOCKED
    assert ask(first, "XREADGROUP GROUP g c BLOCK 1500 STREAMS s >") is BLOCKED
    assert server.next_block_deadline() == 1_001_500
    server.set_time(0)
    assert server.timeouts_due() == []
    server.set_time(2_000_000)
    assert server.timeouts_due() == [(first.id, None), (second.id, None)]
    assert server.next_block_deadline() is None
    assert not first.blocked
    assert server.take_unblocked() == []


def test_closed_reader_gets_nothing() -> None:
    server, reader = model("XGROUP CREATE s g 0 MKSTREAM", "XREADGROUP GROUP g c BLOCK 0 STREAMS s >")
    assert reader.blocked
    reader.close()
    writer = server.connect()
    ask(writer, "XADD s * f v")
    assert server.take_unblocked() == []
    assert ask(writer, "XPENDING s g") == [0, None, None, None]


def test_restart_keeps_data_and_absolute_times() -> None:
    server, connection = model(*PENDING, "SET k x PX 5000", "HSET h f v", "ZADD z 1 m", "WATCH k", "MULTI")
    server.tell_all()
    saved = server.snapshot()
    run_id = server.run_id
    ask(connection, "XADD s * f lost")
    ask(connection, "EXEC")
    server.oom = True
    server.restart(saved)
    assert saved == server.snapshot()
    assert server.run_id != run_id
    assert connection.closed
    with pytest.raises(RuntimeError):
        ask(connection, "PING")
    server.set_time(1_060_000)
    again = server.connect()
    assert again.id != connection.id
    assert ask(again, "XPENDING s g - + 10") == [[b"1000000-0", b"c", 60_000, 1]]
    assert ask(again, "EXISTS k h z") == 2
    assert ask(again, "SET k y") == b"OK"
    server.restart()
    assert ask(server.connect(), "EXISTS s h z") == 0


def test_snapshot_is_no_view() -> None:
    server, connection = model(*PENDING, "HSET h f v", "ZADD z 1 m")
    saved = server.snapshot()
    for line in ("XDEL s 1000000-0", "XACK s g 1000000-0", "HSET h f w", "ZADD z 2 m", "SET k x"):
        ask(connection, line)
    assert server.snapshot() != saved
    ask(connection, "WATCH k")
    server.restore(saved)
    assert server.snapshot() == saved
    ask(connection, "MULTI")
    assert ask(connection, "EXEC") is None
    assert ask(connection, "XPENDING s g") == [1, b"1000000-0", b"1000000-0", [[b"c", b"1"]]]


@pytest.mark.parametrize("line", ["EVAL return 0", "SET k x NX", "ZADD z NX 1 m", "XTRIM s MINID 1", "SELECT 1"])
def test_what_is_not_modelled_is_no_guess(line: str) -> None:
    _, connection = model()
    with pytest.raises(NotModelledError):
        ask(connection, line)
