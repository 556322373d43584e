"""`streamfleet demo`: sets the stage, has the play run, takes everything away, and gives the account."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import redis

from ..local_server import LocalServer, LocalServerError, valkey_binary
from .display import Display, count, make_display
from .fleet import Fleet
from .journal import LEASE, RENEW_INTERVAL, now
from .plan import CONCURRENCY, Plan, make_plan
from .play import Play
from .report import account
from .server import describe, remove_keys

EXIT_BROKEN = 1
EXIT_MISSING = 2
EXIT_REFUSED = 3

_REFUSALS = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)


def run_demo(*, url: str | None, seed: int | None, tasks: int, workers: int) -> int:
    """Run it; the exit code. Without `url` on an embedded Valkey, which is killed and restarted on the way.

    Raises InvalidOption for a wrong URL.
    """
    if workers < 2:
        return _complain("the demo kills a worker; it needs at least 2, so that one can take over", EXIT_MISSING)
    plan = make_plan(secrets.randbits(32) if seed is None else seed, tasks, workers)
    # What is worth telling is on the display; log lines would only tear the progress bar.
    logging.getLogger("streamfleet").addHandler(logging.NullHandler())
    with _ends_as_interrupts() as signals, _directory() as directory:
        try:
            if url is not None:
                return asyncio.run(_run(plan, workers, directory, url, None))
            with LocalServer(valkey_binary(), persistence="aof") as server:
                return asyncio.run(_run(plan, workers, directory, server.url, server))
        except KeyboardInterrupt:
            return _complain("interrupted; nothing is left behind", 128 + (signals[0] if signals else signal.SIGINT))
        except LocalServerError as error:
            return _complain(str(error), EXIT_MISSING)
        except _REFUSALS as error:
            return _complain(f"Redis refuses: {error}", EXIT_REFUSED)
        except redis.RedisError as error:
            return _complain(f"the server cannot be used: {error}", EXIT_MISSING)


async def _run(plan: Plan, workers: int, directory: Path, url: str, server: LocalServer | None) -> int:
    began = now()
    # On a server of somebody's the queue must not be one that is in use.
    queue = f"demo-{secrets.token_hex(8)}"
    with make_display(len(plan.orders)) as display:
        fleet = Fleet(url, queue, directory, workers, CONCURRENCY)
        play = Play(plan, display, url, queue, fleet, server)
        _introduce(display, plan, workers, await asyncio.to_thread(describe, url), own=server is not None)
        try:
            fleet.start()
            await play.run()
            play.incidents += await fleet.close()
            play.look()
        finally:
            fleet.release()
            await play.close()
            if server is None:
                await _clean(display, url, queue, play.client.client_id)
    report = account(play.evidence())
    display.table(report, now() - began)
    for problem in report.problems:
        print(f"PROBLEM: {problem}")
    return EXIT_BROKEN if report.problems else 0


def _introduce(display: Display, plan: Plan, workers: int, server: str, *, own: bool) -> None:
    display.say(
        "", f"{count(len(plan.orders), 'task')}, {plan.fail_once:,} of them to fail once; --seed {plan.seed} repeats it"
    )
    kind = "started for this, with an append-only file" if own else "your own, which is not killed"
    display.say("", f"server: {server}, {kind}")
    display.say(
        "",
        f"{workers} worker processes of {CONCURRENCY} handlers; lease {LEASE:g} s, renewed every {RENEW_INTERVAL:g} s",
    )


async def _clean(display: Display, url: str, queue: str, client_id: str) -> None:
    try:
        await asyncio.to_thread(remove_keys, url, queue, client_id)
    except redis.RedisError as error:
        display.say("", f"the keys of the queue {queue!r} could not be removed: {error}")


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="streamfleet-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _ends_as_interrupts() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: all is taken away. Gives a list of those received."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGINT)

    before: dict[int, Any] = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts background commands with SIGINT ignored; the other two would come to nothing.
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complain(text: str, code: int) -> int:
    print(f"streamfleet demo: {text}", file=sys.stderr)
    return code
