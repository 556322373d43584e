"""`python -m sim`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sim import cli, report
from sim.cli import EXIT_USAGE, build_parser, draw_seeds, main
from sim.mutants import MUTANTS, Edit, Mutant
from sim.plan import Plan
from sim.progress import progress
from tests.sim import toy
from tests.sim.test_determinism import PROGRAM, Drifting

ROOT = Path(__file__).parent.parent.parent


def sim(*arguments: str | Path, run: object = toy.run) -> int:
    """A command line in the toy's world."""
    return main([str(argument) for argument in arguments], run=run, make_plan=toy.make_plan)  # type: ignore[arg-type]


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """The replay file of a red seed."""
    path = tmp_path / "seed-3.json"
    path.write_text(replace(toy.make_plan(3), oracle="toy", note="Found in a test.").dump())
    return path


# run


def test_run_tells_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("run", "--seed", "4") == 0
    out = capsys.readouterr().out
    assert out.startswith("seed 4, ")
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in out
    assert "1 min 40.000 s in " in out
    assert "50 steps" in out
    assert "39 struck" in out
    assert "RED" not in out


def test_run_tells_what_is_wrong_and_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("run", "--seed", "3", "--quiet") == 2
    assert capsys.readouterr().out.splitlines() == [
        "RED  seed 3: toy (safety) at 1 min 1.234 s",
        "     t7 was lost",
        "     in f3",
        "     again: python -m sim run --seed 3",
    ]


@pytest.mark.parametrize(("seed", "code"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_the_exit_code_is_the_class_of_the_failure(seed: int, code: int) -> None:
    assert sim("run", "--seed", str(seed), "--quiet", run=toy.run_by_class) == code


def test_run_writes_the_trace_and_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, plan = tmp_path / "trace.txt", tmp_path / "new" / "plan.json"
    assert sim("run", "--seed", "4", "--trace", trace, "--plan", plan) == 0
    digest = toy.digest_of(toy.make_plan(4))
    assert hashlib.sha256(trace.read_bytes()).hexdigest() == digest
    assert f"61 events in {trace}, SHA-256 {digest}" in capsys.readouterr().out
    assert Plan.read(plan) == toy.make_plan(4)


# replay


def test_replay_says_that_it_fails_as_recorded(red: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("replay", red) == 2
    out = capsys.readouterr().out
    assert f"again: python -m sim replay {red}" in out
    assert out.splitlines()[-1] == "as recorded: toy"


@pytest.mark.parametrize(
    ("seed", "oracle", "code", "text"),
    [
        (3, "another", 2, "recorded is another; now it is toy"),
        (3, "", 2, "recorded is no failure; now it is toy"),
        (4, "toy", 0, "recorded is toy; now it is green"),
        (4, "", 0, "as recorded: green"),
    ],
)
def test_replay_says_what_is_not_as_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int, oracle: str, code: int, text: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(replace(toy.make_plan(seed), oracle=oracle).dump())
    assert sim("replay", path, "--quiet") == code
    assert capsys.readouterr().out.splitlines()[-1] == text


def test_replay_of_nondeterminism_runs_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(replace(toy.make_plan(4), oracle="determinism").dump())
    assert sim("replay", path, run=Drifting()) == 4
    assert capsys.readouterr().out.splitlines()[-1] == "as recorded: determinism"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "this is not JSON"),
        ("[]", "an object is needed"),
        ('{"format": 99}', "its format is 99"),
        ('{"format": 1}', "the plan has no seed"),
        (toy.make_plan(3).dump().replace('"freeze"', '"frost"', 1), "its kind is 'frost'"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("command", ["replay", "shrink"])
def test_a_damaged_replay_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str | None, complaint: str
) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    assert sim(command, path) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith(f"python -m sim: {path}: ")
    assert complaint in line


# shrink


def test_shrink_writes_a_small_plan(red: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("shrink", red) == 2
    small = Plan.read(red.with_name("seed-3-shrunk.json"))
    assert (len(small.tasks), len(small.faults), small.oracle, small.note) == (1, 1, "toy", "Found in a test.")
    out = capsys.readouterr().out
    assert "from 40 faults, 60 tasks" in out
    assert f"again: python -m sim replay {red.with_name('seed-3-shrunk.json')}" in out


def test_shrink_keeps_to_its_budget(red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("shrink", red, "--out", tmp_path / "out.json", "--runs", "5") == 2
    assert "in 5 runs" in capsys.readouterr().out
    assert len(Plan.read(tmp_path / "out.json").faults) > 1


def test_shrink_tells_where_another_oracle_is_red_now(red: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red.write_text(replace(toy.make_plan(3), oracle="old").dump())
    assert sim("shrink", red, "--quiet") == 2
    assert "recorded is old; it fails with toy now" in capsys.readouterr().out
    assert Plan.read(red.with_name("seed-3-shrunk.json")).oracle == "toy"


def test_there_is_nothing_to_shrink_where_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(toy.make_plan(4).dump())
    assert sim("shrink", path) == EXIT_USAGE
    assert f"{path} does not fail" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [path]


# soak


def test_soak_keeps_and_shrinks_what_is_red(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("soak", "--seeds", "0..20", "--jobs", "0", "--shrink", "--keep", tmp_path / "kept") == 2
    out = capsys.readouterr().out
    assert "20 seeds: 2 RED (toy 2)" in out
    assert "python -m sim run --seed 13" in out
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "seed-13-shrunk.json",
        "seed-13.json",
        "seed-3-shrunk.json",
        "seed-3.json",
    ]


def test_a_green_soak_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("soak", "--seeds", "4..9", "--jobs", "2", "--keep", tmp_path / "kept") == 0
    assert "5 seeds: all green" in capsys.readouterr().out
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(("seeds", "code"), [("1..4", 1), ("2..4", 2), ("3..4", 3), ("0..1", 0)])
def test_the_exit_code_of_a_soak_is_its_most_severe_failure(tmp_path: Path, seeds: str, code: int) -> None:
    assert sim("soak", "--seeds", seeds, "--jobs", "0", "--keep", tmp_path, "--quiet", run=toy.run_by_class) == code


def test_soak_can_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("soak", "--seeds", "0..99", "--jobs", "0", "--keep", tmp_path, "--stop-after", "1") == 2
    assert "of 99 (stopped after 1 red): 1 RED" in capsys.readouterr().out


def test_a_long_soak_that_left_something_out_is_the_simulator_s_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    green = [seed for seed in range(150) if seed % toy.RED_EVERY != 3]
    assert len(green) > report.ALL_ORACLES_AFTER
    code = main(
        ["soak", "--seeds", "0..101", "--jobs", "0", "--keep", str(tmp_path)],
        run=toy.run,
        make_plan=lambda seed: toy.make_plan(green[seed]),
    )
    assert code == 1
    out = capsys.readouterr().out
    assert "101 seeds: all green" in out
    # The toy has no oracle of the real world, and of its faults only one.
    assert "these oracles nothing to check: G1 delivery" in out
    assert "these faults never struck: kill" in out


def test_an_interrupted_soak_tells_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    def run(plan: Plan, **_: object) -> object:
        if plan.seed == 2:
            raise KeyboardInterrupt
        return toy.run(plan)

    assert sim("soak", "--seeds", "0..9", "--jobs", "0", run=run) == cli.EXIT_INTERRUPTED
    assert "2 seeds of 9 (interrupted): all green" in capsys.readouterr().out


def test_an_interrupted_run() -> None:
    def run(plan: Plan, **_: object) -> object:
        raise KeyboardInterrupt

    assert sim("run", "--seed", "1", run=run) == cli.EXIT_INTERRUPTED


def test_seeds_can_be_drawn_from_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[int] = []

    def run(plan: Plan, **_: object) -> object:
        ran.append(plan.seed)
        return toy.run(replace(plan, faults=()))

    command = ("soak", "--seeds", "commit:5", "--jobs", "0", "--keep", tmp_path, "--token")
    assert sim(*command, "abc", run=run) == 0
    # The first is repeated.
    assert set(ran) == set(draw_seeds(5, "abc"))
    assert len(ran) == 6


def test_drawn_seeds_are_stable_and_differ() -> None:
    drawn = draw_seeds(1_000, "abc")
    assert drawn[0] == int.from_bytes(hashlib.sha256(b"abc/0").digest()[:4], "big")
    assert len(set(drawn)) == 1_000
    assert drawn[:10] == draw_seeds(10, "abc")
    assert not set(drawn) & set(draw_seeds(1_000, "abd"))


def test_seeds_of_a_commit_need_a_commit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "head", lambda: "")
    assert sim("soak", "--seeds", "commit:5") == EXIT_USAGE
    assert "--token" in capsys.readouterr().err


def test_seeds_of_a_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "head", lambda: "abc")
    ran: list[int] = []

    def run(plan: Plan, **_: object) -> object:
        ran.append(plan.seed)
        return toy.run(replace(plan, faults=()))

    assert sim("soak", "--seeds", "commit:3", "--jobs", "0", "--keep", tmp_path, run=run) == 0
    assert set(ran) == set(draw_seeds(3, "abc"))


# repeat


def test_repeat_compares_with_other_processes(
    monkeypatch: pytest.MonkeyPatch, red: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "compare_everywhere", with_program("run"))
    assert sim("repeat", "--file", red) == 0
    out = capsys.readouterr().out
    digest = toy.digest_of(toy.make_plan(3))
    # Here, and in the other process.
    assert out.count(digest) == 2
    assert out.splitlines()[-1] == "all traces are equal"


def test_repeat_tells_a_difference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "compare_everywhere", with_program("run_with_hashes"))
    assert sim("repeat", "--seed", "4", run=toy.run_with_hashes) == 4
    out = capsys.readouterr().out
    assert "parts from this process at event 0" in out
    assert out.splitlines()[-1] == "NOT EQUAL"


def with_program(name: str) -> object:
    """`compare_everywhere` whose other process is the toy's."""
    from functools import partial

    from sim.determinism import compare_everywhere

    return partial(compare_everywhere, pythons=(), hash_seeds=("1",), program=("-c", PROGRAM.format(run=name)))


# mutants


def test_mutants_are_hunted(capsys: pytest.CaptureFixture[str]) -> None:
    """In the toy's world no mutant changes anything, and a red seed counts only where the protocol itself passes it."""
    first, second, *_ = MUTANTS
    command = ("mutants", "--jobs", "0", "--seeds", "3..5", "--only", first, "--only", second)
    assert sim(*command) == 1
    out = capsys.readouterr().out
    assert "0 of 2 mutants killed" in out
    assert f"LIVES after 2 seeds: {first}" in out


def test_a_mutant_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def run(plan: Plan, **options: object) -> object:
        # With the mutant first, then without.
        calls.append(plan.seed)
        assert options == {"without": frozenset({"calm"})}
        return toy.run(plan) if len(calls) == 1 else toy.run(toy.make_plan(4))

    name = next(iter(MUTANTS))
    assert sim("mutants", "--jobs", "0", "--seeds", "3..9", "--only", name, "--without", "calm", run=run) == 0
    assert "1 of 1 mutants killed" in capsys.readouterr().out
    assert calls == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("--only", "x"), "no mutant 'x'"), (("--without", "x"), "no oracle 'x'; known are: G1 delivery")],
)
def test_unknown_mutants_and_oracles(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sim("mutants", *arguments) == EXIT_USAGE
    assert complaint in capsys.readouterr().err


def test_a_mutant_that_does_not_fit_is_no_killed_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = Edit("keys", "no such text", "another")
    monkeypatch.setitem(MUTANTS, "stale", Mutant("stale", "finding 1", "none", (edit,)))
    assert sim("mutants", "--only", "stale", "--jobs", "0") == EXIT_USAGE
    assert "stale: an edit of keys fits 0 times" in capsys.readouterr().err


# The grammar.


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "required: COMMAND"),
        (("walk",), "invalid choice: 'walk'"),
        (("run",), "--seed"),
        (("run", "--seed", "-1"), "a seed is a whole number from 0 on"),
        (("run", "--seed", "x"), "'x': a seed is a whole number"),
        (("soak",), "--seeds"),
        (("soak", "--seeds", "5"), "'5': it must be A..B"),
        (("soak", "--seeds", "5..5"), "'5..5': it must be A..B"),
        (("soak", "--seeds", "commit:0"), "commit:COUNT"),
        (("soak", "--seeds", "tag:5"), "commit:COUNT"),
        (("soak", "--seeds", "0..5", "--jobs", "two"), "'two'"),
        (("soak", "--seeds", "0..5", "--stop-after", "0"), "'0': a whole number from 1 on"),
        (("replay",), "FILE"),
        (("repeat",), "--seed"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sim(*arguments)
    assert ended.value.code == EXIT_USAGE
    lines = capsys.readouterr().err.splitlines()
    assert complaint in lines[0]
    assert "--help" in lines[1]


@pytest.mark.parametrize("command", ["run", "soak", "replay", "shrink", "repeat", "mutants"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"python -m sim {command} " in out
    assert "exit codes: 0" in out
    assert max(map(len, out.splitlines())) <= 120


def test_a_trace_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sim("run", "--seed", "1", "--trace", tmp_path / "no" / "trace.txt") == EXIT_USAGE
    assert "No such file" in capsys.readouterr().err


# Progress.


def test_progress_in_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sim.progress.PLAIN_EVERY_S", 0.0)
    with progress("seeds", 5_000) as tell:
        tell(1_234, "1 red")
    assert capsys.readouterr().out == "     0 s  seeds: 1,234 of 5,000, 1 red\n"


def test_no_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.progress.PLAIN_EVERY_S", 0.0)
    with progress("seeds", 5, quiet=True) as tell:
        tell(1, "")
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    with progress("seeds", 40) as tell:
        tell(7, "one red")
    out = capsys.readouterr().out
    assert "seeds" in out
    assert "7/40" in out
    assert "one red" in out


def test_lines_where_rich_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr("sim.progress.PLAIN_EVERY_S", 0.0)
    with progress("seeds", 40) as tell:
        tell(7, "one red")
    assert "seeds: 7 of 40" in capsys.readouterr().out


# The real world, as a person runs it.


def real_sim(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sim", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_the_real_world(tmp_path: Path) -> None:
    ended = real_sim("run", "--seed", "42", "--plan", "plan.json", "--trace", "one.txt", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ended = real_sim("replay", "plan.json", "--trace", "other.txt", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "as recorded: green"
    one = (tmp_path / "one.txt").read_bytes()
    assert one == (tmp_path / "other.txt").read_bytes()
    assert one.count(b"\n") > 100


def test_the_real_world_in_processes(tmp_path: Path) -> None:
    ended = real_sim("soak", "--seeds", "10..13", "--jobs", "2", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 seeds: all green" in ended.stdout
    assert "1 of 1 repeated runs gave the same trace" in ended.stdout
