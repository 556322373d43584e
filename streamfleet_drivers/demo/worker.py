"""One worker process of the demo; started by it as `python -m streamfleet_drivers.demo.worker`.

Its settings come as one line of JSON on stdin. Stdin stays open as long as the demo lives: where it ends, the demo was
killed, and the worker ends too and removes what the demo would have removed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ..asyncio import Server, StreamfleetError, Task
from .journal import LEASE, RENEW_INTERVAL, Journal, RunEnded, RunStarted, now


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker of the demo is told."""

    url: str
    queue: str
    name: str
    directory: str
    """Of the demo's journals."""
    concurrency: int

    def to_line(self) -> bytes:
        """As it goes through stdin."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        """The inverse of `to_line`."""
        return cls(**json.loads(line))

    @property
    def journal(self) -> Path:
        """Where this worker writes what it does."""
        return Path(self.directory) / f"{self.name}.journal"


class FirstAttemptFails(Exception):
    """Raised by the handler where the task says so."""


async def run(settings: WorkerSettings) -> None:
    """Serve the queue until SIGTERM."""
    journal = Journal(settings.journal)
    server = Server(
        settings.url,
        server_id=settings.name,
        concurrency=settings.concurrency,
        lease=LEASE,
        renew_interval=RENEW_INTERVAL,
        on_event=journal.note,
    )
    runs = 0

    @server.handler(settings.queue)
    async def work(task: Task) -> bytes:
        nonlocal runs
        runs += 1
        this_run = runs
        order = json.loads(task.data)
        journal.write(RunStarted(now(), this_run, task.id, task.entry_id, task.attempt))
        ok = False
        try:
            await asyncio.sleep(order["seconds"])
            if order["fails_first"] and task.attempt == 1:
                raise FirstAttemptFails(f"task number {order['number']} fails once, as it was told to")
            ok = True
            return answer(order["number"])
        finally:
            # Written before Redis is told: whatever is said to be done is in the journal.
            journal.write(RunEnded(now(), this_run, ok))

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), _on_stdin, settings)
    closing: list[asyncio.Task[None]] = []
    loop.add_signal_handler(signal.SIGTERM, lambda: closing.append(loop.create_task(server.close())))
    await server.run()


def answer(number: int) -> bytes:
    """The result of the task with this number."""
    return b"answer %d" % (number * number)


def _on_stdin(settings: WorkerSettings) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        shutil.rmtree(settings.directory, ignore_errors=True)
        os._exit(1)


def main() -> None:
    """Read the settings and run."""
    # Everything worth telling goes to the journal; without a handler, warnings would go to stderr as well.
    logging.getLogger("streamfleet").addHandler(logging.NullHandler())
    try:
        asyncio.run(run(WorkerSettings.from_line(sys.stdin.readline())))
    except StreamfleetError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
