"""A worker in a process of its own, for tests that kill it: `python -m tests.drivers.workers URL RECORD SECONDS ...`.

It appends a line to the file RECORD when it is ready, and for each task that begins and each that ends, and works
SECONDS on each task (-1: for ever).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from streamfleet_drivers.asyncio import Task, events
from tests.drivers.support import until, worker


class Record:
    """What the workers of a test have written to their file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, word: str, text: str) -> None:
        """Add a line, which is there even if the process is killed at once."""
        with self.path.open("a") as file:
            file.write(f"{word} {text}\n")

    def of(self, word: str) -> list[str]:
        """The texts of one word."""
        lines = (line.split(" ", 1) for line in self.path.read_text().splitlines())
        return [text for first, text in lines if first == word]


class WorkerProcess:
    """A running worker."""

    def __init__(self, url: str, record: Record, seconds: float, *options: str) -> None:
        command = [sys.executable, "-m", "tests.drivers.workers", url, str(record.path), str(seconds), *options]
        self.record = record
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self) -> None:
        """Wait until it has begun to serve."""
        await until(lambda: str(self.pid) in self.record.of("ready"), "the worker process never was ready")

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it where it stands."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


@contextlib.contextmanager
def worker_process(url: str, record: Record, seconds: float, *options: str) -> Iterator[WorkerProcess]:
    """Start a worker, and kill it at the end."""
    process = WorkerProcess(url, record, seconds, *options)
    try:
        yield process
    finally:
        process.kill()


async def serve(arguments: argparse.Namespace) -> None:
    """Work until the process is killed."""
    record = Record(arguments.record)

    async def handler(task: Task) -> bytes:
        record.write("begin", task.text)
        await (asyncio.sleep(arguments.seconds) if arguments.seconds >= 0 else asyncio.Event().wait())
        record.write("end", task.text)
        return task.data

    def note(event: events.Note) -> None:
        record.write(type(event).__name__, str(event))

    server = worker(
        arguments.url,
        handler,
        on_event=note,
        concurrency=arguments.concurrency,
        prefetch=arguments.prefetch,
        lease=arguments.lease,
        renew_interval=arguments.renew,
    )
    async with server:
        record.write("ready", str(os.getpid()))
        await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("record", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--prefetch", type=int, default=0)
    parser.add_argument("--lease", type=float, default=4)
    parser.add_argument("--renew", type=float, default=1)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
