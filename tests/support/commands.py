"""Running the command `streamfleet`, and other programs of this project, as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.servers import wait_until

ROOT = Path(__file__).parent.parent.parent
ENDS_WITHIN = 20.0
WARNINGS = "error::ResourceWarning,error::RuntimeWarning"


@dataclass
class Result:
    """What a program that has ended left."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of stdout."""
        return self.out.decode().splitlines()


class Running:
    """A program that runs; what it writes goes to files, so that no pipe can fill."""

    def __init__(
        self, arguments: list[str], directory: Path, name: str, environment: Mapping[str, str], data: bytes
    ) -> None:
        self._out, self._err = directory / f"{name}.out", directory / f"{name}.err"
        stdin = directory / f"{name}.in"
        stdin.write_bytes(data)
        with stdin.open("rb") as source, self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                arguments,
                cwd=directory,
                # The tree itself, whether or not it is installed.
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": WARNINGS, **environment},
                stdin=source,
                stdout=out,
                stderr=err,
                process_group=0,
            )

    @property
    def out(self) -> bytes:
        """What it has written to stdout so far."""
        return self._out.read_bytes()

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return self._err.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def signal_terminal(self, number: int) -> None:
        """Send a signal to its process group, as a terminal does for Ctrl-C."""
        os.killpg(self.process.pid, number)

    def until_said(self, text: str) -> None:
        """Wait until `text` is on stderr."""
        wait_until(lambda: text in self.err or self.ended, ENDS_WITHIN, f"{text!r} was never said")
        assert text in self.err, f"it ended with code {self.process.returncode}: {self.err}"

    def result(self) -> Result:
        """Wait for its end."""
        try:
            code = self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end; stderr: {self.err}") from None
        return Result(code, self.out, self.err)


@dataclass
class Commands:
    """Starts programs in one directory; see the fixture `commands`."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    started: list[Running] = field(default_factory=list)

    def start(self, *arguments: str, data: bytes = b"") -> Running:
        """Start `streamfleet <arguments>`."""
        return self.start_python("-m", "streamfleet_drivers", *arguments, data=data)

    def start_python(self, *arguments: str, data: bytes = b"") -> Running:
        """Start `python <arguments>`."""
        name = f"program-{len(self.started)}"
        running = Running([sys.executable, *arguments], self.directory, name, self.environment, data)
        self.started.append(running)
        return running

    def run(self, *arguments: str, data: bytes = b"") -> Result:
        """Run `streamfleet <arguments>` to its end."""
        return self.start(*arguments, data=data).result()

    def close(self) -> None:
        """Leave nothing running."""
        for running in self.started:
            if not running.ended:
                running.signal(signal.SIGKILL)
                running.process.wait()
        for pid in processes_in(self.directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_in(directory: Path) -> Iterator[int]:
    """Ids of the living processes whose working directory is `directory`: what a program run there has left."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and (entry / "cwd").readlink() == directory:
                yield int(entry.name)
