"""Workers for soaks: processes of their own, each with another PYTHONHASHSEED, which may hang or die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

_START_S = 60.0
"""So long may a process take to start and to import the function: that does not count as the job's time."""


class Broken(NamedTuple):
    """A job without a result: its process hung, or died."""

    hung: bool
    text: str


class Done(NamedTuple):
    """A job that is over."""

    worker: int
    key: Any
    result: Any
    """What the function returned, or Broken."""


class Pool(Protocol):
    """Does jobs; one at a time on each worker."""

    workers: int

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def idle(self) -> list[int]:
        """The workers that have nothing to do."""

    def give(self, worker: int, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Have an idle worker call a function, which must not raise."""

    def wait(self, seconds: float) -> list[Done]:
        """The jobs that ended; after so many seconds maybe none."""


def make_pool(jobs: int, timeout_s: float) -> Pool:
    """A pool of so many processes; with 0 all happens in this one, where a profiler sees it."""
    return Processes(jobs, timeout_s) if jobs else Inline()


class Inline:
    """No process: `give` does the job at once."""

    def __init__(self) -> None:
        self.workers = 1
        self._done: list[Done] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def idle(self) -> list[int]:
        return [] if self._done else [0]

    def give(self, worker: int, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        self._done.append(Done(worker, key, function(*arguments)))

    def wait(self, seconds: float) -> list[Done]:
        done, self._done = self._done, []
        return done


class _Worker:
    """One process, and what it is at."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.key: Any = None
        self.busy = False
        self.due = 0.0
        self.pipe: Connection
        self.process: BaseProcess
        self.start()

    def start(self) -> None:
        """A fresh process. Spawned, not forked: a fork would have this process's hash seed."""
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _hash_seed(self.index + 1):
            self.process.start()
        theirs.close()

    def end(self) -> None:
        """It is over, whatever it is at."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


class Processes:
    """As many processes as there are workers."""

    def __init__(self, jobs: int, timeout_s: float) -> None:
        self.workers = jobs
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        self._workers = [_Worker(index) for index in range(self.workers)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()

    def idle(self) -> list[int]:
        return [worker.index for worker in self._workers if not worker.busy]

    def give(self, worker: int, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        chosen = self._workers[worker]
        # To a worker that has died nothing can be sent; its end is seen when its answer is read.
        with suppress(OSError):
            chosen.pipe.send((function, arguments))
        chosen.key = key
        chosen.busy = True
        chosen.due = time.monotonic() + _START_S + self._timeout_s

    def wait(self, seconds: float) -> list[Done]:
        busy = [worker for worker in self._workers if worker.busy]
        ready = wait([worker.pipe for worker in busy], max(0.0, min([seconds, *self._left(busy)])))
        done = []
        for worker in busy:
            if worker.pipe in ready:
                over, result = self._receive(worker)
                if not over:
                    worker.due = time.monotonic() + self._timeout_s
                    continue
                done.append(Done(worker.index, worker.key, result))
            elif worker.due <= time.monotonic():
                done.append(Done(worker.index, worker.key, self._give_up(worker)))
            else:
                continue
            worker.busy = False
        return done

    @staticmethod
    def _left(busy: list[_Worker]) -> list[float]:
        now = time.monotonic()
        return [worker.due - now for worker in busy]

    @staticmethod
    def _receive(worker: _Worker) -> tuple[bool, Any]:
        """Whether the job is over, and its result; it tells first that it begins."""
        try:
            message: tuple[bool, Any] = worker.pipe.recv()
            return message
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode
            worker.end()
            worker.start()
            return True, Broken(False, f"its process ended with exit code {code}")

    def _give_up(self, worker: _Worker) -> Broken:
        worker.end()
        worker.start()
        return Broken(True, f"it was not over after {self._timeout_s:g} s of wall time")


@contextmanager
def _hash_seed(seed: int) -> Iterator[None]:
    """Processes started meanwhile hash text with this seed."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before


def _serve(pipe: Connection) -> None:
    """The life of a worker process."""
    # Ctrl-C reaches the whole group of processes; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            function, arguments = pipe.recv()
            pipe.send((False, None))
            pipe.send((True, function(*arguments)))
        except (EOFError, OSError):
            return
