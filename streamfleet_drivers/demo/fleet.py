"""The demo's worker processes, seen from the demo: start, kill in the middle of work, end, and their journals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .journal import JournalReader, Record, now
from .worker import WorkerSettings

_CLOSE_TIMEOUT = 15.0
"""Seconds for a worker to end after SIGTERM."""


class WorkerProcess:
    """One worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.name = settings.name
        self.journal = JournalReader(settings.journal)
        self.killed_at: float | None = None
        self._end_is_told = False
        self._stderr = settings.journal.with_suffix(".stderr")
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streamfleet_drivers.demo.worker"],
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                # Ctrl-C in a terminal is for the demo, which then ends its workers.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(settings.to_line())
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def died_unexpectedly(self) -> str | None:
        """How it ended, where nobody told it to. None at further calls."""
        if self._end_is_told or self.alive:
            return None
        self._end_is_told = True
        stderr = self._stderr.read_text(errors="replace").strip()[-1000:]
        return f"{self.name} ended by itself, exit code {self._process.returncode}: {stderr}"

    def kill_at_work(self) -> bool:
        """Kill it with SIGKILL if a handler is at work in it; False where none is.

        It is frozen first, so that it does not come to the end of its work between the look and the kill.
        """
        if not self.alive:
            return False
        self._process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self._process.returncode = os.waitstatus_to_exitcode(status)
            return False
        self.journal.read()
        if not self.journal.open_runs():
            self._process.send_signal(signal.SIGCONT)
            return False
        self._end_is_told = True
        self.killed_at = now()
        self._process.kill()
        self._process.wait()
        return True

    async def close(self) -> str | None:
        """End it in order, with SIGTERM. What went wrong, or None."""
        self._end_is_told = True
        self._process.terminate()
        try:
            code = await asyncio.to_thread(self._process.wait, _CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"{self.name} did not end within {_CLOSE_TIMEOUT:g} s"
        return f"{self.name} ended with exit code {code} when it was closed" if code else None

    def release(self) -> None:
        """Leave nothing of it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


class Fleet:
    """All workers of a run."""

    def __init__(self, url: str, queue: str, directory: Path, workers: int, concurrency: int) -> None:
        self._settings = [
            WorkerSettings(url, queue, f"worker-{number}", str(directory), concurrency)
            for number in range(1, workers + 1)
        ]
        self.workers: list[WorkerProcess] = []

    def start(self) -> None:
        """Start all."""
        for settings in self._settings:
            self.workers.append(WorkerProcess(settings))

    @property
    def alive(self) -> list[WorkerProcess]:
        """Those that run."""
        return [worker for worker in self.workers if worker.alive]

    def news(self) -> Iterator[tuple[WorkerProcess, list[Record]]]:
        """Each worker with what is new in its journal."""
        for worker in self.workers:
            yield worker, worker.journal.take_new()

    async def close(self) -> list[str]:
        """End all in order. What went wrong."""
        incidents = await asyncio.gather(*(worker.close() for worker in self.alive))
        return [incident for incident in incidents if incident is not None]

    def release(self) -> None:
        """Leave no process."""
        for worker in self.workers:
            worker.release()
