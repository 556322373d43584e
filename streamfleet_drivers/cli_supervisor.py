"""`streamfleet worker --processes N`: keeps N worker processes alive until a signal ends them all.

Each child is a whole `streamfleet worker` of its own, so that a crash takes one of them only. A child is in a process
group of its own: Ctrl-C in a terminal reaches this process alone, which passes it on once. The children hold the
reading end of a pipe whose writing end is here: where this process is killed, they see it and end in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence

from .cli_worker import EXIT_REFUSED, EXIT_USAGE, SIGNALS

logger = logging.getLogger("streamfleet")

BACKOFF_LEAST = 0.5
BACKOFF_MOST = 30.0
LIVED_WELL = 60.0
"""A child that lived for this many seconds is replaced without a longer back-off."""
KILL_AFTER = 1.0
"""Seconds between the second signal, which ends a child at once, and SIGKILL."""

_FATAL = (EXIT_USAGE, EXIT_REFUSED)


def run_supervisor(arguments: Sequence[str], processes: int) -> int:
    """Run `streamfleet <arguments>` in that many processes until a signal comes; the exit code.

    0 after an orderly end; the child's own code where one cannot work at all (a wrong password, a wrong module); 1
    where one ended badly while closing; 128 + the number of the second signal.
    """
    return asyncio.run(Supervisor(arguments, processes).run())


class Supervisor:
    """The children, and how they end."""

    def __init__(self, arguments: Sequence[str], processes: int) -> None:
        self._lifeline, self._held_open = os.pipe()
        self._command = [sys.executable, "-m", "streamfleet_drivers", *arguments, "--lifeline", str(self._lifeline)]
        self._processes = processes
        self._children: dict[int, Process] = {}
        self._stopping = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Until all children have ended."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        logger.info("starting %d worker processes", self._processes)
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(1, self._processes + 1):
                    group.create_task(self._keep(index))
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
            os.close(self._lifeline)
            os.close(self._held_open)
        logger.info("all worker processes have ended")
        return self._code

    def _on_signal(self, number: int) -> None:
        if not self._stopping.is_set():
            logger.info("%s: passed on to %d processes", signal.Signals(number).name, len(self._children))
            self._stop(number)
            return
        self._code = 128 + number
        self._tell(number)
        asyncio.get_running_loop().call_later(KILL_AFTER, self._tell, signal.SIGKILL)

    def _stop(self, number: int) -> None:
        self._stopping.set()
        self._tell(number)

    def _tell(self, number: int) -> None:
        for child in self._children.values():
            if child.returncode is None:
                child.send_signal(number)

    async def _keep(self, index: int) -> None:
        """Run one child, and another whenever it ends without being told to."""
        loop = asyncio.get_running_loop()
        pause = BACKOFF_LEAST
        while not self._stopping.is_set():
            began = loop.time()
            try:
                name, code = await self._run_child(index)
            except OSError as error:
                logger.error("worker %d could not be started: %s; trying again in %.1f s", index, error, pause)
            else:
                if self._stopping.is_set():
                    self._ended(name, code)
                    return
                if code in _FATAL:
                    logger.error("%s cannot work (%s): ending all", name, how(code))
                    self._code = code
                    self._stop(signal.SIGTERM)
                    return
                if loop.time() - began >= LIVED_WELL:
                    pause = BACKOFF_LEAST
                logger.warning("%s %s; another starts in %.1f s", name, how(code), pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(pause * 2, BACKOFF_MOST)

    async def _run_child(self, index: int) -> tuple[str, int]:
        """One child's life: its name for people, and its exit code."""
        child = await asyncio.create_subprocess_exec(
            *self._command, stdin=DEVNULL, pass_fds=(self._lifeline,), process_group=0
        )
        self._children[index] = child
        name = f"worker {index} (pid {child.pid})"
        logger.info("%s started", name)
        if self._stopping.is_set():
            # The signal came while the child was being started.
            child.send_signal(signal.SIGTERM)
        code = await child.wait()
        del self._children[index]
        return name, code

    def _ended(self, name: str, code: int) -> None:
        # One that was told before it listened to signals dies of it, and has held no task yet.
        if code not in (0, -signal.SIGTERM, -signal.SIGINT) and not self._code:
            logger.error("%s %s while closing", name, how(code))
            self._code = 1


def how(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
