"""The command `streamfleet` as a person runs it: processes, signals, exit codes, messages; a real server."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfleet_drivers import cli
from streamfleet_drivers.asyncio import InvalidOption, Server
from streamfleet_drivers.local_server import LocalServer
from tests.conftest import StartServer
from tests.support.commands import Commands, Result, Running, processes_in
from tests.support.servers import connect, wait_until, wait_until_async

APP = """
import asyncio, os, time
from pathlib import Path
from streamfleet_drivers.asyncio import Reject, Server

server = Server("redis://127.0.0.1:1", concurrency=4)
hasty = Server("redis://127.0.0.1:1", grace=0)
idle = Server("redis://127.0.0.1:1")
number = 7

async def until_released(task):
    Path("started").touch()
    while not Path("released").exists():
        await asyncio.sleep(0.01)
    return "done"

server.handler("slow")(until_released)

@server.handler("blocking")
async def block_the_loop(task):
    Path("started").touch()
    while True:
        time.sleep(0.1)

@hasty.handler("stuck")
def never_end(task):
    Path("started").touch()
    while True:
        time.sleep(0.1)

@server.handler("echo")
async def echo(task):
    return task.data

@server.handler("nothing")
async def nothing(task):
    pass

@server.handler("wrong")
def wrong(task):
    raise Reject("this is no good")
"""


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Runs commands in a directory with a module `app`; nothing is left running."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "broken.py").write_text("import no_such_thing\n")
    found = Commands(tmp_path)
    yield found
    found.close()


def start_worker(commands: Commands, server: LocalServer, *options: str, name: str = "server") -> Running:
    """A worker that has come so far that it listens to signals."""
    worker = commands.start("worker", f"app:{name}", "--url", server.url, *options)
    worker.until_said("started")
    return worker


def start_task(commands: Commands, server: LocalServer, queue: str) -> Running:
    """`enqueue --track`, once the handler runs."""
    tracker = commands.start("enqueue", queue, "data", "--track", "--url", server.url)
    wait_until((commands.directory / "started").exists, message="the handler never started")
    return tracker


def release(commands: Commands) -> None:
    """Let the handler end."""
    (commands.directory / "released").touch()


# --- worker: one process ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_handler_finish(commands: Commands, valkey: LocalServer, number: signal.Signals) -> None:
    worker = start_worker(commands, valkey)
    tracker = start_task(commands, valkey, "slow")
    worker.signal(number)
    worker.until_said(f"{number.name}: taking no more tasks")
    assert not worker.ended
    release(commands)
    result = worker.result()
    assert result.code == 0
    assert "worker ended" in result.err
    assert tracker.result().lines[1:] == ["done"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(
    commands: Commands, valkey: LocalServer, number: signal.Signals, code: int
) -> None:
    worker = start_worker(commands, valkey)
    start_task(commands, valkey, "slow")
    worker.signal(number)
    worker.until_said("taking no more tasks")
    worker.signal(number)
    result = worker.result()
    assert result.code == code
    assert "ended at once" in result.err


def test_a_second_signal_ends_a_worker_whose_handler_blocks_the_event_loop(
    commands: Commands, valkey: LocalServer
) -> None:
    worker = start_worker(commands, valkey)
    start_task(commands, valkey, "blocking")

    def signaled_and_ended() -> bool:
        # Two signals that come at the same time count as one, so it is sent until it has worked.
        worker.signal(signal.SIGTERM)
        return worker.ended

    wait_until(signaled_and_ended)
    assert worker.result().code == 143


def test_a_thread_that_never_ends_does_not_hold_up_the_process(commands: Commands, valkey: LocalServer) -> None:
    worker = start_worker(commands, valkey, name="hasty")
    start_task(commands, valkey, "stuck")
    worker.signal(signal.SIGTERM)
    result = worker.result()
    assert result.code == 0
    assert "handed back" in result.err
    assert "thread does not stop" in result.err


# --- worker: several processes ----------------------------------------------------------------------------


def pids(supervisor: Running) -> list[int]:
    """The children that were started so far."""
    return [int(pid) for pid in re.findall(r"worker \d+ \(pid (\d+)\) started", supervisor.err)]


def serving(supervisor: Running) -> int:
    """How many children have come so far that they consume."""
    return supervisor.err.count("started; SIGTERM or Ctrl-C ends it")


def start_two(commands: Commands, server: LocalServer) -> Running:
    """A supervisor with two children that consume."""
    supervisor = start_worker(commands, server, "--processes", "2")
    wait_until(lambda: serving(supervisor) == 2)
    return supervisor


def test_a_killed_child_is_replaced(commands: Commands, valkey: LocalServer) -> None:
    supervisor = start_two(commands, valkey)
    first, second = pids(supervisor)
    os.kill(first, signal.SIGKILL)
    supervisor.until_said(f"(pid {first}) was killed by SIGKILL; another starts in 0.5 s")
    wait_until(lambda: serving(supervisor) == 3)
    third = pids(supervisor)[2]
    assert set(processes_in(commands.directory)) == {supervisor.process.pid, second, third}
    assert commands.run("enqueue", "echo", "hello", "--track", "--url", valkey.url).lines[1:] == ["hello"]
    supervisor.signal(signal.SIGTERM)
    assert supervisor.result().code == 0
    assert not list(processes_in(commands.directory))


def test_ctrl_c_in_a_terminal_reaches_children_once(commands: Commands, valkey: LocalServer) -> None:
    supervisor = start_two(commands, valkey)
    tracker = start_task(commands, valkey, "slow")
    supervisor.signal_terminal(signal.SIGINT)
    wait_until(lambda: supervisor.err.count("SIGINT: taking no more tasks") == 2)
    release(commands)
    assert tracker.result().lines[1:] == ["done"]
    result = supervisor.result()
    assert result.code == 0
    assert "ended at once" not in result.err


def test_a_second_signal_ends_all_children_at_once(commands: Commands, valkey: LocalServer) -> None:
    supervisor = start_two(commands, valkey)
    tracker = start_task(commands, valkey, "slow")
    supervisor.signal(signal.SIGTERM)
    supervisor.until_said("taking no more tasks")
    supervisor.signal(signal.SIGTERM)
    assert supervisor.result().code == 143
    assert list(processes_in(commands.directory)) == [tracker.process.pid]


def test_children_of_a_killed_supervisor_end_in_order(commands: Commands, valkey: LocalServer) -> None:
    supervisor = start_two(commands, valkey)
    tracker = start_task(commands, valkey, "slow")
    supervisor.signal(signal.SIGKILL)
    wait_until(lambda: supervisor.err.count("the supervisor is gone: taking no more tasks") == 2)
    release(commands)
    assert tracker.result().lines[1:] == ["done"]
    wait_until(lambda: not list(processes_in(commands.directory)))


# --- What a person gets wrong -----------------------------------------------------------------------------


Call = Callable[..., Result]


@pytest.fixture
def call(commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Carries out a command line in this process, as far as that takes no signals; starting one takes longer."""
    monkeypatch.chdir(commands.directory)
    monkeypatch.setattr(sys, "path", list(sys.path))
    logger = logging.getLogger("streamfleet")
    level = logger.level

    def run(*arguments: str) -> Result:
        try:
            code: Any = cli.main(arguments)
        except SystemExit as exit_of_argparse:
            code = exit_of_argparse.code
        out, err = capsys.readouterr()
        return Result(code, out.encode(), err)

    yield run
    logger.setLevel(level)
    for name in ("app", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("app", "'app' is not of the form package.module:server"),
        ("app:", "is not of the form package.module:server"),
        ("nowhere.tasks:server", "there is no module 'nowhere'"),
        ("app.tasks:server", "there is no module 'app.tasks'"),
        ("app:sever", "'app' has no attribute 'sever'; the Servers in it are: hasty, idle, server"),
        ("app:number", "'app:number' is not a Server but an object of type 'int'"),
        ("app:number.real", "'app:number.real' is not a Server but an object of type 'int'"),
        ("app:number.server", "'app:number' has no attribute 'server'; the Servers in it are: none"),
        ("broken:server", "No module named 'no_such_thing'"),
    ],
)
def test_a_wrong_target(call: Call, target: str, message: str) -> None:
    result = call("worker", target)
    assert result.code == 2
    assert message in result.err
    assert ("Traceback" in result.err) == (target == "broken:server")


def test_a_server_without_handlers(commands: Commands) -> None:
    result = commands.run("worker", "app:idle")
    assert result.code == 2
    assert "a server needs at least one handler" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["worker", "app:server", "--concurrency", "0"], "'0' is not a whole number of at least 1"),
        (["worker", "app:server", "--url", "http://127.0.0.1"], "it begins with redis://"),
        (["worker", "app:server", "--url", "redis://:pass/word@127.0.0.1"], "written as %2F"),
        (["worker", "app:server", "--url", "redis://127.0.0.1/five"], "not the number of a database"),
        (["worker", "app:server", "--url", "redis://127.0.0.1?sock=1"], "the URL cannot be used"),
        (["enqueue", "", "data"], "a queue's name is a text of at least one character"),
        (["enqueue", "messages", "data", "--delay=-1"], "delay is -1.0"),
        (["enqueue", "messages", "data", "--timeout=-1"], "timeout is -1.0"),
        (["demo", "--workers", "1"], "at least 2"),
        (["demo", "--url", "http://127.0.0.1"], "it begins with redis://"),
    ],
)
def test_wrong_usage(call: Call, arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert "pass/word" not in result.err


@pytest.mark.parametrize("command", [[], ["worker"], ["enqueue"], ["demo"]], ids=" ".join)
def test_help_has_examples(call: Call, command: list[str]) -> None:
    result = call(*command, "--help")
    assert result.code == 0
    assert "examples:\n  streamfleet " in result.out.decode()


PASSWORD = ("--requirepass", "right")


def with_wrong_password(server: LocalServer) -> str:
    """The server's URL with a password that it refuses."""
    return server.url.replace("redis://", "redis://:not-right@")


def check_refusal(result: Result) -> None:
    """The command has ended as it should with a wrong password."""
    assert result.code == 3
    assert "Redis refuses: " in result.err
    assert "not-right" not in result.err
    assert "Traceback" not in result.err
    assert result.out == b""


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["one", "two"])
def test_a_worker_with_a_wrong_password(commands: Commands, start: StartServer, options: list[str]) -> None:
    url = with_wrong_password(start(arguments=PASSWORD))
    check_refusal(commands.run("worker", "app:server", "--url", url, *options))
    assert not list(processes_in(commands.directory))


@pytest.mark.parametrize(
    "arguments",
    [["enqueue", "messages", "data"], ["enqueue", "messages", "data", "--track"], ["demo"]],
    ids=["enqueue", "track", "demo"],
)
def test_a_wrong_password(call: Call, start: StartServer, arguments: list[str]) -> None:
    check_refusal(call(*arguments, "--url", with_wrong_password(start(arguments=PASSWORD))))


# --- enqueue ----------------------------------------------------------------------------------------------


def entries(server: LocalServer) -> list[dict[bytes, bytes]]:
    """The tasks in the queue `messages`."""
    found: Any = connect(server).xrange("streamfleet:messages")
    return [fields for _, fields in found]


def test_enqueue_prints_the_id_of_a_task_that_is_in_redis(commands: Commands, valkey: LocalServer) -> None:
    result = commands.run("enqueue", "messages", "grüße", "--max-retries", "3", "--url", valkey.url)
    assert (result.code, result.err) == (0, "")
    [fields] = entries(valkey)
    assert [fields[b"id"].decode()] == result.lines
    assert fields[b"data"].decode() == "grüße"
    assert fields[b"max_retries"] == b"3"
    assert fields[b"send_notif"] == b"0"


def test_enqueue_reads_bytes_from_stdin(commands: Commands, valkey: LocalServer) -> None:
    data = bytes(range(256)) + b"\r\n"
    assert commands.run("enqueue", "messages", "-", "--url", valkey.url, data=data).code == 0
    [fields] = entries(valkey)
    assert fields[b"data"] == data


def test_enqueue_with_a_delay(call: Call, valkey: LocalServer) -> None:
    assert call("enqueue", "messages", "data", "--delay", "60", "--url", valkey.url).code == 0
    assert connect(valkey).zcard("{streamfleet:messages}:delayed") == 1


def test_enqueue_track_prints_the_result(commands: Commands, valkey: LocalServer) -> None:
    start_worker(commands, valkey)
    url = ["--url", valkey.url]
    result = commands.run("enqueue", "echo", "-", "--track", *url, data=b"a\xff\nb")
    assert result.code == 0
    assert result.out.split(b"\n", 1)[1] == b"a\xff\nb\n"
    result = commands.run("enqueue", "nothing", "data", "--track", *url)
    assert result.code == 0
    assert len(result.lines) == 1


def test_enqueue_track_tells_how_else_it_ended(commands: Commands, call: Call, valkey: LocalServer) -> None:
    start_worker(commands, valkey)
    url = ["--url", valkey.url]
    failed = call("enqueue", "wrong", "data", "--track", *url)
    assert failed.code == 1
    assert failed.err.startswith(f"streamfleet: task {failed.lines[0]} failed: ")
    assert failed.err.endswith("this is no good\n")
    expired = call("enqueue", "nobody-serves-it", "data", "--track", "--expires-in", "0.2", *url)
    assert expired.code == 1
    assert f"task {expired.lines[0]} expired" in expired.err
    waiting = call("enqueue", "nobody-serves-it", "data", "--track", "--timeout", "0.2", *url)
    assert waiting.code == 1
    assert f"task {waiting.lines[0]} has not ended yet" in waiting.err


def test_ctrl_c_gives_up_waiting_and_not_the_task(commands: Commands, valkey: LocalServer) -> None:
    tracker = commands.start("enqueue", "nobody-serves-it", "data", "--track", "--url", valkey.url)
    wait_until(lambda: tracker.out)
    tracker.signal(signal.SIGINT)
    result = tracker.result()
    assert result.code == 130
    assert result.err == f"streamfleet: task {result.lines[0]} goes on without being waited for\n"
    assert connect(valkey).xlen("streamfleet:nobody-serves-it") == 1


def test_enqueue_without_redis_says_so(call: Call, valkey: LocalServer) -> None:
    valkey.kill()
    result = call("enqueue", "messages", "data", "--timeout", "0.3", "--url", valkey.url)
    assert result.code == 1
    assert "Redis did not confirm task" in result.err
    assert "was not sent, and is given up" in result.err
    assert result.out == b""


# --- Server.configure -------------------------------------------------------------------------------------


async def consume_nothing(task: object) -> None:
    """A handler."""


async def serve_until_the_queue_is_there(server: Server, url: LocalServer) -> None:
    """Start, wait for a trace of it in Redis, close."""
    async with server:
        with pytest.raises(InvalidOption, match="has started"):
            server.configure(concurrency=2)
        await wait_until_async(lambda: connect(url).exists("streamfleet:messages"))


def test_configure_replaces_options_until_the_start(valkey: LocalServer) -> None:
    server = Server("redis://127.0.0.1:1", concurrency=1, lease=8)
    server.handler("messages")(consume_nothing)
    with pytest.raises(InvalidOption):
        server.configure(valkey.url, concurrency=0)
    with pytest.raises(InvalidOption):
        server.configure("http://127.0.0.1")
    server.configure(valkey.url, concurrency=3, grace=1)
    assert server.queues == ("messages",)
    asyncio.run(serve_until_the_queue_is_there(server, valkey))
