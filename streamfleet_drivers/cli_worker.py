"""One worker process of `streamfleet worker`: finds the Server, runs it, ends it on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from streamfleet_protocol.errors import ServerRefused, UsageError

from .asyncio import Server

logger = logging.getLogger("streamfleet")

EXIT_USAGE = 2
"""The command cannot be carried out as written: a person must change it. argparse ends with the same code."""
EXIT_REFUSED = 3
"""Redis refuses for a reason that waiting does not cure: a wrong password, a missing permission."""

_THREADS_STOP = 1.0
"""Seconds that threads of handlers get to end after their server has."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TargetError(Exception):
    """`package.module:server` leads to no Server; the message says why."""


def load_server(target: str) -> Server:
    """The Server that `package.module:name` names. The module is looked for in the current directory first.

    Raises TargetError.
    """
    module_name, colon, attributes = target.partition(":")
    if not (module_name and colon and attributes):
        raise TargetError(f"{target!r} is not of the form package.module:server (server = the name of a variable)")
    directory = os.getcwd()
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    found: object = _import(module_name, directory)
    path = module_name
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = ", ".join(_servers_in(found)) or "none"
            raise TargetError(f"{path!r} has no attribute {name!r}; the Servers in it are: {names}") from None
        path = f"{path}{'.' if ':' in path else ':'}{name}"
    if not isinstance(found, Server):
        raise TargetError(f"{path!r} is not a Server but an object of type {type(found).__name__!r}")
    return found


def _import(module_name: str, directory: str) -> object:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only where the named module itself is missing; where one that it imports is, the traceback tells more.
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise TargetError(
                f"there is no module {error.name!r}, neither in the current directory ({directory}) nor installed"
            ) from None
        raise TargetError(_import_failure(module_name)) from error
    except Exception as error:
        raise TargetError(_import_failure(module_name)) from error


def _import_failure(module_name: str) -> str:
    return f"the module {module_name!r} could not be imported:\n{traceback.format_exc().rstrip()}"


def _servers_in(module: object) -> list[str]:
    return sorted(name for name, value in getattr(module, "__dict__", {}).items() if isinstance(value, Server))


def run_worker(server: Server, lifeline: int | None = None) -> int:
    """Run the server until it is told to end; the exit code.

    `lifeline` is the reading end of a pipe that a supervisor holds open: where that is gone, the worker ends too.
    """
    try:
        asyncio.run(serve(server, lifeline))
        code = 0
    except ServerRefused as error:
        logger.error("Redis refuses: %s", error)
        code = EXIT_REFUSED
    except UsageError as error:
        logger.error("%s", error)
        code = EXIT_USAGE
    _leave_threads_behind(code)
    return code


async def serve(server: Server, lifeline: int | None = None) -> None:
    """Run the server until SIGTERM or SIGINT, then close it with its grace; a second signal ends the process at once.

    Raises what `Server.run` raises.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def on_stop(reason: str) -> None:
        if not stop.done():
            stop.set_result(reason)

    if lifeline is not None:
        os.set_inheritable(lifeline, False)
        loop.add_reader(lifeline, _on_lifeline, loop, lifeline, on_stop)
    with signals(lambda name: loop.call_soon_threadsafe(on_stop, name)):
        running = loop.create_task(server.run())
        either: tuple[asyncio.Future[Any], ...] = (running, stop)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if stop.done() and not running.done():
            logger.info("%s: taking no more tasks; handlers may finish. A second signal ends at once", stop.result())
            await server.close()
        await running
    logger.info("worker ended")


def _on_lifeline(loop: asyncio.AbstractEventLoop, lifeline: int, on_stop: Callable[[str], None]) -> None:
    loop.remove_reader(lifeline)
    on_stop("the supervisor is gone")


@contextlib.contextmanager
def signals(on_first: Callable[[str], object]) -> Iterator[None]:
    """While it lasts, the first SIGTERM or SIGINT calls `on_first` with its name, the second ends the process.

    Not by the event loop's own signal handlers: these wait for a coroutine handler that blocks the loop.
    """
    received = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received == 1:
            on_first(signal.Signals(number).name)
            return
        # Buffered output must not be used here, and handlers in threads would hold up an orderly exit.
        os.write(2, b"second signal: ended at once; unfinished tasks are claimed when the lease is over\n")
        os._exit(128 + number)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_threads_behind(code: int) -> None:
    """End here where a handler's thread does not stop: the interpreter would wait for it for ever."""
    deadline = time.monotonic() + _THREADS_STOP
    for thread in threading.enumerate():
        if thread.name.startswith("streamfleet-handler"):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("a handler's thread does not stop; its task was handed back, the process ends anyway")
                logging.shutdown()
                with contextlib.suppress(OSError):
                    sys.stdout.flush()
                os._exit(code)
