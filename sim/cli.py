"""`python -m sim`: run a seed, soak many, replay and shrink a failure, compare runs, try the mutants.

The exit code is the class of the failure; of several the most severe, in the order crash, safety, nondeterminism,
liveness.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from . import campaign, report
from .determinism import Attempt, compare_everywhere
from .engine import MakePlan, RunPlan, real_make_plan, real_run
from .plan import Plan, PlanError
from .progress import progress
from .shrink import BUDGET, NothingToShrink, Progress, shrink
from .trace import Trace
from .verdict import Failure, Verdict

EXIT_USAGE = 64
"""No class of failure: wrong arguments, or a file that cannot be read."""
EXIT_INTERRUPTED = 130

KEEP = Path("sim-failures")
_SEED_BITS = 32

_DESCRIPTION = "The protocol's machines against a model of Redis, in virtual time, with faults, all from one seed."
_EXITS = """\
exit codes: 0 all is well; 1 crash (a machine raised, or the simulator is at fault); 2 safety (a guarantee was broken);
3 liveness (something did not happen in time); 4 nondeterminism (one plan, two traces); 64 wrong arguments, or a file
that cannot be read; 130 interrupted. Of several failures the most severe counts: 1, 2, 4, 3.
"""
_EPILOG = f"""\
examples:
  python -m sim run --seed 7                       one run
  python -m sim soak --seeds 0..1000 --shrink      many, with a small plan for each failure
  python -m sim soak --seeds commit:500            seeds that every commit has of its own
  python -m sim replay sim-failures/seed-7.json    a failure again

{_EXITS}"""
_RUN_EPILOG = f"""\
examples:
  python -m sim run --seed 7
  python -m sim run --seed 7 --trace trace.txt     each event, one a line; the same to the byte each time
  python -m sim run --seed 7 --plan plan.json      what the seed stands for; `replay` runs it

{_EXITS}"""
_SOAK_EPILOG = f"""\
examples:
  python -m sim soak --seeds 0..1000
  python -m sim soak --seeds 0..1000 --shrink --keep failures --stop-after 3
  python -m sim soak --seeds commit:500            500 seeds drawn from the hash of HEAD
  python -m sim soak --seeds commit:500 --token X  from the text X instead

Every 20th run is made twice, in processes with different hash seeds, and must give the same trace. After 100 seeds and
more, an oracle that had nothing to check and a fault that never struck are failures of the simulator (exit code 1).

{_EXITS}"""
_REPLAY_EPILOG = f"""\
examples:
  python -m sim replay tests/corpus/lost-reply.json
  python -m sim replay sim-failures/seed-7-shrunk.json --trace trace.txt

{_EXITS}"""
_SHRINK_EPILOG = f"""\
examples:
  python -m sim shrink sim-failures/seed-7.json    writes sim-failures/seed-7-shrunk.json
  python -m sim shrink plan.json --out small.json --runs 2000

The small plan fails with the same oracle. The exit code is the class of that failure, as for `run`.

{_EXITS}"""
_REPEAT_EPILOG = f"""\
examples:
  python -m sim repeat --seed 7
  python -m sim repeat --file plan.json

The plan is run twice here, then in other processes with other values of PYTHONHASHSEED, then on each other Python from
3.11 on that is found on the PATH or in pyenv, or is named in STREAMFLEET_PYTHONS (separated as in PATH).

{_EXITS}"""

_MUTANTS_EPILOG = f"""\
examples:
  python -m sim mutants
  python -m sim mutants --only never-claims --seeds 1..500
  python -m sim mutants --without "G3 duplicates"  what does nothing else see?

A mutant is the protocol with one known defect. It is killed by the first seed that fails with it and passes without.

exit codes: 0 all are killed; 1 some live; {EXIT_USAGE} wrong arguments, or a mutant that does not fit the source.
"""


@dataclass(frozen=True, slots=True)
class _Tools:
    """The world, or a test's stand-ins; None: the real one."""

    run: RunPlan | None = None
    make_plan: MakePlan | None = None


class _UsageError(Exception):
    """What the command line asks for cannot be done."""


class _Parser(argparse.ArgumentParser):
    """Errors leave with an exit code that is no class of failure."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry `{self.prog} --help`.\n")


def main(
    arguments: Sequence[str] | None = None, *, run: RunPlan | None = None, make_plan: MakePlan | None = None
) -> int:
    """Carry out a command line (by default the process's own); the exit code."""
    options = build_parser().parse_args(arguments)
    options.tools = _Tools(run, make_plan)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (_UsageError, PlanError, OSError) as error:
        print(f"python -m sim: {error}", file=sys.stderr)
        return EXIT_USAGE


# The grammar.


def build_parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    parser = _Parser("python -m sim", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_FORMAT)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = _add(commands, "run", _run, "run one seed", _RUN_EPILOG)
    command.add_argument("--seed", type=_seed, required=True, metavar="N", help="what the whole run comes from")
    command.add_argument("--plan", type=Path, metavar="FILE", help="write the seed's plan there, as a replay file")
    _add_output(command)

    command = _add(commands, "soak", _soak, "run many seeds, in several processes", _SOAK_EPILOG)
    _add_seeds(command, required=True)
    command.add_argument("--shrink", action="store_true", help="shrink the first two failures of each oracle")
    command.add_argument(
        "--keep", type=Path, default=KEEP, metavar="DIR", help=f"write the plans of red seeds there (default: {KEEP})"
    )
    command.add_argument(
        "--stop-after", type=_positive, default=0, metavar="N", help="end after so many red seeds (default: never)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress")

    command = _add(commands, "replay", _replay, "run a replay file", _REPLAY_EPILOG)
    command.add_argument("file", type=Path, metavar="FILE", help="a plan, as `run --plan` and `soak` write it")
    _add_output(command)

    command = _add(commands, "shrink", _shrink, "make a failing plan small", _SHRINK_EPILOG)
    command.add_argument("file", type=Path, metavar="FILE", help="a plan that fails")
    command.add_argument("--out", type=Path, metavar="FILE", help="where to (default: FILE with -shrunk in its name)")
    command.add_argument(
        "--runs", type=_positive, default=BUDGET, metavar="N", help=f"run at most so many plans (default: {BUDGET})"
    )
    command.add_argument("--quiet", action="store_true", help="no progress")

    command = _add(commands, "repeat", _repeat, "compare runs of one plan, event by event", _REPEAT_EPILOG)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=_seed, metavar="N", help="the plan of this seed")
    what.add_argument("--file", type=Path, metavar="FILE", help="the plan in this file")

    command = _add(commands, "mutants", _mutants, "does the simulator see known defects?", _MUTANTS_EPILOG)
    command.add_argument("--only", action="append", metavar="NAME", help="this mutant (may be given several times)")
    command.add_argument(
        "--without", action="append", default=[], metavar="ORACLE", help="switch an oracle off (several times, too)"
    )
    _add_seeds(command, required=False)
    command.add_argument("--quiet", action="store_true", help="no progress")
    return parser


_FORMAT = argparse.RawDescriptionHelpFormatter


def _add(commands: Any, name: str, function: Any, summary: str, epilog: str) -> argparse.ArgumentParser:
    described = f"{summary[0].upper()}{summary[1:]}."
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=described, epilog=epilog, formatter_class=_FORMAT
    )
    command.set_defaults(command=function)
    return command


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--trace", type=Path, metavar="FILE", help="write each event there, one a line")
    command.add_argument("--quiet", action="store_true", help="say only what is wrong")


def _add_seeds(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--seeds",
        type=_seeds,
        required=required,
        metavar="A..B",
        help="from A up to B, without B; or commit:COUNT, so many drawn from the hash of HEAD",
    )
    command.add_argument("--token", default="", metavar="TEXT", help="with commit:COUNT: draw the seeds from this text")
    command.add_argument("--jobs", type=_jobs, default=2, metavar="N", help="processes (default: 2; 0: in this one)")


def _seed(text: str) -> int:
    return _number(text, 0, "a seed is a whole number from 0 on")


def _positive(text: str) -> int:
    return _number(text, 1, "a whole number from 1 on is needed")


def _jobs(text: str) -> int:
    return _number(text, 0, "a whole number from 0 on is needed")


def _number(text: str, least: int, needed: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: {needed}")
    return int(text)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """So many seeds, drawn from a text that is not yet known."""

    count: int


def _seeds(text: str) -> range | _Drawn:
    first, dots, end = text.partition("..")
    if dots and first.isdecimal() and end.isdecimal() and int(first) < int(end):
        return range(int(first), int(end))
    word, colon, count = text.partition(":")
    if colon and word == "commit" and count.isdecimal() and int(count):
        return _Drawn(int(count))
    raise argparse.ArgumentTypeError(f"{text!r}: it must be A..B with A below B, or commit:COUNT")


def draw_seeds(count: int, token: str) -> list[int]:
    """So many seeds from a text."""
    hashes = (hashlib.sha256(f"{token}/{at}".encode()).digest() for at in range(count))
    return [int.from_bytes(found[: _SEED_BITS // 8], "big") for found in hashes]


# The commands.


def _run(options: argparse.Namespace) -> int:
    plan = (options.tools.make_plan or real_make_plan())(options.seed)
    if options.plan is not None:
        campaign.write_plan(options.plan, plan)
    verdict = _run_told(options, plan, f"python -m sim run --seed {options.seed}")
    return _failure(verdict)


def _replay(options: argparse.Namespace) -> int:
    plan = Plan.read(options.file)
    verdict = _run_told(options, plan, f"python -m sim replay {options.file}")
    found = verdict.violation.oracle if verdict.violation else ""
    if found == plan.oracle:
        print(f"as recorded: {found}" if found else "as recorded: green")
    else:
        print(f"recorded is {plan.oracle or 'no failure'}; now it is {found or 'green'}")
    return _failure(verdict)


def _run_told(options: argparse.Namespace, plan: Plan, command: str) -> Verdict:
    """Run a plan, with a trace where it is wanted, and tell what came of it."""
    start = monotonic()
    with _trace_into(options.trace) as trace:
        verdict: Verdict = (
            campaign.judge_for(plan.oracle, options.tools.run)(plan)
            if trace is None
            else ((options.tools.run or real_run())(plan, trace=trace))
        )
    seconds = monotonic() - start
    if not options.quiet:
        _tell([f"seed {plan.seed}, {report.environment()}", "", *report.run_lines(verdict, seconds)])
    if trace is not None and not options.quiet:
        _tell([f"{len(trace):,} events in {options.trace}, SHA-256 {trace.digest()}"])
    _tell(report.failure_lines(plan.seed, verdict, command))
    return verdict


@contextlib.contextmanager
def _trace_into(path: Path | None) -> Iterator[Trace | None]:
    if path is None:
        yield None
        return
    with path.open("w", encoding="utf-8", newline="\n") as file:
        yield Trace(file)


def _soak(options: argparse.Namespace) -> int:
    seeds = _chosen(options)
    tools = options.tools
    with progress("seeds", len(seeds), quiet=options.quiet) as tell:
        result = campaign.soak(
            seeds,
            options.jobs,
            run=tools.run,
            make_plan=tools.make_plan,
            stop_after=options.stop_after,
            progress=lambda soak: tell(soak.totals.seeds, _words(soak)),
        )
    if result.red:
        with progress("shrunk", len(result.red), quiet=options.quiet) as tell:
            campaign.keep(
                result,
                options.keep,
                shrinking=options.shrink,
                run=tools.run,
                make_plan=tools.make_plan,
                progress=lambda done, wanted: tell(done, f"of {wanted} plans"),
            )
    oracles, kinds = _catalogues()
    _tell(report.soak_lines(result, oracles=oracles, kinds=kinds, keep=options.keep))
    if result.failure:
        return int(result.failure)
    if result.stopped == campaign.INTERRUPTED:
        return EXIT_INTERRUPTED
    return int(Failure.CRASH if report.missing(result, oracles=oracles, kinds=kinds) else Failure.NONE)


def _chosen(options: argparse.Namespace) -> Sequence[int]:
    if not isinstance(options.seeds, _Drawn):
        chosen: range = options.seeds
        return chosen
    token = options.token or report.head()
    if not token:
        raise _UsageError("commit:COUNT needs a commit, and git knows none here; give a text with --token")
    return draw_seeds(options.seeds.count, token)


def _words(soak: campaign.Soak) -> str:
    hours = f"{soak.totals.virtual_ms / 3_600_000:,.1f} h"
    return f"{hours}, {soak.red_count} red" if soak.red_count else hours


def _catalogues() -> tuple[Iterable[str], Iterable[str]]:
    """Names of all oracles and of all kinds of faults."""
    from .faults import CATALOGUE
    from .oracles import ORACLES

    return list(ORACLES), list(CATALOGUE)


def _shrink(options: argparse.Namespace) -> int:
    plan = Plan.read(options.file)
    out = options.out or options.file.with_name(f"{options.file.stem}-shrunk.json")
    with progress("runs", options.runs, quiet=options.quiet) as tell:

        def show(now: Progress) -> None:
            tell(now.runs, str(now.sizes))

        try:
            run = campaign.judge_for(plan.oracle, options.tools.run)
            shrunk = shrink(plan, run=run, budget=options.runs, progress=show)
        except NothingToShrink:
            raise _UsageError(f"{options.file} does not fail: there is nothing to shrink") from None
    if shrunk.violation.oracle != plan.oracle and plan.oracle:
        print(f"recorded is {plan.oracle}; it fails with {shrunk.violation.oracle} now, and was shrunk for that")
    campaign.write_plan(out, campaign.marked(shrunk.plan, shrunk.violation))
    print(f"shrunk {shrunk}")
    _tell(report.failure_lines(plan.seed, Verdict(plan.seed, shrunk.violation), f"python -m sim replay {out}"))
    return int(shrunk.violation.failure)


def _repeat(options: argparse.Namespace) -> int:
    if options.file is not None:
        plan = Plan.read(options.file)
    else:
        plan = (options.tools.make_plan or real_make_plan())(options.seed)

    def tell(attempt: Attempt) -> None:
        print(f"{attempt.digest or attempt.error}  {attempt}", flush=True)

    found = compare_everywhere(plan, run=options.tools.run, progress=tell)
    print(f"{found.here}  here, twice, {report.environment()}")
    _tell(found.differences)
    print("all traces are equal" if not found.differences else "NOT EQUAL")
    return int(Failure.NONDETERMINISM if found.differences else Failure.NONE)


def _mutants(options: argparse.Namespace) -> int:
    # The mutants' edits are read here, which no other command needs.
    from .mutants import MUTANTS, MutantError, apply
    from .mutants.matrix import SEEDS, matrix
    from .oracles import ORACLES

    _known(options.only or (), MUTANTS, "mutant")
    _known(options.without, ORACLES, "oracle")
    chosen = [mutant for mutant in MUTANTS.values() if options.only is None or mutant.name in options.only]
    try:
        # One that cannot be put in place would end its process, and pass for killed.
        for mutant in chosen:
            with apply(mutant):
                pass
    except MutantError as error:
        raise _UsageError(str(error)) from None
    with progress("mutants", len(chosen), quiet=options.quiet) as tell:
        found = matrix(
            chosen,
            SEEDS if options.seeds is None else _chosen(options),
            jobs=options.jobs,
            make_plan=options.tools.make_plan,
            run=options.tools.run,
            without=frozenset(options.without),
            tell=tell,
        )
    print(found.table())
    return found.exit_code


def _known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise _UsageError(f"there is no {what} {name!r}; known are: {', '.join(known)}")


def _failure(verdict: Verdict) -> int:
    return int(verdict.violation.failure if verdict.violation else Failure.NONE)


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)
