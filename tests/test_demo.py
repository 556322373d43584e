"""`streamfleet demo`: it ends with nothing lost and nothing left behind, and its account can fail."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from streamfleet_drivers.demo import run
from streamfleet_drivers.demo.display import PlainDisplay, make_display
from streamfleet_drivers.demo.journal import Journal, JournalReader, Noticed, Record, RunEnded, RunStarted
from streamfleet_drivers.demo.plan import Plan, make_plan
from streamfleet_drivers.demo.report import SUCCEEDED, Evidence, Report, account
from streamfleet_drivers.local_server import LocalServer
from streamfleet_protocol.notes import LeaseLost, Note, TaskClaimed
from tests.support.commands import Commands, processes_in
from tests.support.servers import connect, wait_until

# --- The demo itself --------------------------------------------------------------------------------------


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Runs commands whose temporary files go to the directory `temporary`; nothing is left running."""
    (tmp_path / "temporary").mkdir()
    found = Commands(tmp_path, {"TMPDIR": str(tmp_path / "temporary")})
    yield found
    found.close()


def left_behind(commands: Commands) -> list[str]:
    """Temporary files and processes of a demo that has ended."""
    files = [path.name for path in (commands.directory / "temporary").iterdir()]
    return files + [f"process {pid}" for pid in processes_in(commands.directory)]


def values(out: bytes) -> dict[str, str]:
    """The table at the demo's end."""
    names = "accepted|succeeded|retried|claimed from the dead|lost|run twice|time"
    return dict(re.findall(rf"^ *({names}) +([0-9,.]+)\b", out.decode(), re.MULTILINE))


def test_the_demo_loses_nothing(commands: Commands) -> None:
    result = commands.run("demo", "--tasks", "150", "--seed", "1")
    assert (result.code, result.err) == (0, "")
    table = values(result.out)
    assert table["accepted"] == table["succeeded"] == "150"
    assert table["lost"] == "0"
    assert table["retried"] == "12"
    assert int(table["claimed from the dead"]) >= 1
    out = result.out.decode()
    assert re.search(r"FAULT  worker-\d \(pid \d+\) is killed with SIGKILL, [1-8] handlers? at work", out)
    assert re.search(r"FAULT  the server \(pid \d+\) is killed with SIGKILL", out)
    assert "back from its append-only file" in out
    assert "PROBLEM" not in out
    assert left_behind(commands) == []


def test_the_demo_on_a_server_of_somebody_removes_its_keys(commands: Commands, valkey: LocalServer) -> None:
    connect(valkey).set("mine", "stays")
    pid = valkey.pid
    result = commands.run("demo", "--tasks", "60", "--workers", "2", "--url", valkey.url)
    assert (result.code, result.err) == (0, "")
    assert values(result.out)["lost"] == "0"
    assert result.out.decode().count("FAULT") == 1
    assert valkey.pid == pid
    assert connect(valkey).keys("*") == [b"mine"]
    assert left_behind(commands) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing(commands: Commands, number: signal.Signals, code: int) -> None:
    demo = commands.start("demo")
    wait_until(lambda: b"tasks done" in demo.out)
    demo.signal_terminal(number)
    result = demo.result()
    assert result.code == code
    assert result.err == "streamfleet demo: interrupted; nothing is left behind\n"
    assert left_behind(commands) == []


def test_a_killed_demo_leaves_nothing(commands: Commands) -> None:
    demo = commands.start("demo")
    wait_until(lambda: b"tasks done" in demo.out)
    demo.signal(signal.SIGKILL)
    demo.result()
    wait_until(lambda: left_behind(commands) == [])


def test_a_demo_that_is_not_done_in_time_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], valkey: LocalServer
) -> None:
    def hasty(seed: int, tasks: int, workers: int) -> Plan:
        plan = make_plan(seed, tasks, workers)
        return Plan(plan.seed, plan.orders, plan.fail_once, plan.victim, tasks, tasks, 0, time_limit=0.0)

    monkeypatch.setattr(run, "make_plan", hasty)
    assert run.run_demo(url=valkey.url, seed=1, tasks=100, workers=2) == 1
    out = capsys.readouterr().out
    assert "PROBLEM: it was given up after 0 s" in out


def test_a_seed_repeats_the_plan() -> None:
    assert make_plan(1, 300, 3) == make_plan(1, 300, 3)
    assert make_plan(1, 300, 3) != make_plan(2, 300, 3)
    plan = make_plan(1, 300, 3)
    assert sum(json.loads(order)["fails_first"] for order in plan.orders) == plan.fail_once == 25
    assert 0 < plan.kill_worker_at < plan.kill_server_at < 300


# --- The account ------------------------------------------------------------------------------------------


def runs(*tasks: str, at: float = 1.0, ok: bool = True, attempt: int = 1, entry: str = "{}-0") -> list[Record]:
    """Runs in a journal, each of a tenth of a second, one after the other."""
    records: list[Record] = []
    for number, task in enumerate(tasks):
        began = at + number / 10
        # Numbers of runs only have to differ within a journal.
        run_number = int(began * 1000)
        records.append(RunStarted(began, run_number, task, entry.format(task), attempt))
        records.append(RunEnded(began + 0.1, run_number, ok))
    return records


def noticed(at: float, note: Note) -> Noticed:
    """A note in a journal, written and read as in the demo."""
    return Noticed(at, type(note).__name__, dataclasses.asdict(note), str(note))


def claimed(at: float, task: str, owner: str) -> Noticed:
    """The entry of a task was claimed."""
    return noticed(at, TaskClaimed("demo", f"{task}-0", f"{owner}:abc", 2))


def judge(
    journals: Mapping[str, Sequence[Record]],
    *,
    answers: Mapping[str, str | None] | None = None,
    killed: Mapping[str, float] | None = None,
    data_loss_at: float | None = None,
) -> Report:
    """The account for three accepted tasks, of which the client was told that they succeeded."""
    told = {"a": SUCCEEDED, "b": SUCCEEDED, "c": SUCCEEDED} if answers is None else answers
    return account(Evidence(told, journals, killed or {}, data_loss_at))


def test_all_is_well() -> None:
    report = judge({"w1": runs("a", "b"), "w2": runs("c")})
    assert report.problems == []
    assert (report.accepted, report.succeeded, report.lost, report.ran_twice) == (3, 3, (), ())


def test_a_task_without_a_run_is_lost() -> None:
    report = judge({"w1": runs("a", "b")})
    assert report.lost == ("c",)
    assert report.succeeded == 2
    assert report.problems == ["1 accepted and never run to success: c"]


def test_a_task_whose_runs_all_failed_is_lost() -> None:
    report = judge({"w1": runs("a", "b"), "w2": runs("c", ok=False)})
    assert report.lost == ("c",)


def test_a_task_whose_only_run_was_cut_short_is_lost() -> None:
    started, _ = runs("c")
    report = judge({"w1": runs("a", "b"), "w2": [started]}, killed={"w2": 1.05})
    assert report.lost == ("c",)
    assert report.cut_short == 1


def test_a_handle_that_was_told_nothing_is_a_problem() -> None:
    report = judge({"w1": runs("a", "b", "c")}, answers={"a": SUCCEEDED, "b": SUCCEEDED, "c": None})
    assert report.lost == ()
    assert report.problems == ["1 accepted, and the client was never told of the end: c"]


def test_a_wrong_answer_is_a_problem() -> None:
    report = judge({"w1": runs("a", "b", "c")}, answers={"a": SUCCEEDED, "b": SUCCEEDED, "c": "task c failed"})
    assert report.problems == ["1 reported wrongly to the client: task c failed"]


def test_a_run_of_what_was_never_accepted_is_a_problem() -> None:
    report = judge({"w1": runs("a", "b", "c", "x")})
    assert report.problems == ["1 run without having been accepted: x"]


def test_a_retry_is_no_second_run() -> None:
    report = judge(
        {"w1": [*runs("a", "b"), *runs("c", at=2.0, ok=False)], "w2": runs("c", at=3.0, attempt=2, entry="retry")}
    )
    assert report.problems == []
    assert report.retried == 1
    assert report.ran_twice == ()


def test_a_second_run_without_a_reason_is_a_problem() -> None:
    report = judge({"w1": runs("a", "b", "c"), "w2": runs("a", at=3.0)})
    assert [case.why for case in report.ran_twice] == [None]
    assert report.problems == ["1 run twice without a reason: a"]


def test_a_second_run_in_the_same_worker_is_a_problem() -> None:
    report = judge({"w1": [*runs("a", "b", "c"), *runs("a", at=3.0)]})
    assert report.problems == ["1 run twice without a reason: a"]


def test_a_second_run_after_a_kill_and_a_claim_is_explained() -> None:
    journals = {"w1": runs("a"), "w2": [*runs("b", "c"), claimed(5.0, "a", "w1"), *runs("a", at=5.1)]}
    report = judge(journals, killed={"w1": 1.2})
    assert report.problems == []
    assert report.claimed == 1
    [case] = report.ran_twice
    assert case.why == "w1 was killed after its handler's end and before Redis knew; w2 claimed it"


def test_a_claim_over_a_third_worker_explains_as_well() -> None:
    journals = {
        "w1": runs("a"),
        "w2": [*runs("b", "c"), claimed(5.0, "a", "w1")],
        "w3": [claimed(9.5, "a", "w2"), *runs("a", at=9.6)],
    }
    assert judge(journals, killed={"w1": 1.2, "w2": 5.1}).problems == []


@pytest.mark.parametrize(
    ("records", "killed"),
    [
        # Nobody claimed it.
        (runs("a", at=5.1), {"w1": 1.2}),
        # Another entry was claimed.
        ([claimed(5.0, "b", "w1"), *runs("a", at=5.1)], {"w1": 1.2}),
        # It was claimed from another worker.
        ([claimed(5.0, "a", "w3"), *runs("a", at=5.1)], {"w1": 1.2}),
        # Its worker lives, and has noticed nothing.
        ([claimed(5.0, "a", "w1"), *runs("a", at=5.1)], {}),
        # Its worker had much time to tell Redis.
        ([claimed(9.0, "a", "w1"), *runs("a", at=9.1)], {"w1": 5.0}),
        # The run ended after its worker's death: the journals are wrong.
        ([claimed(5.0, "a", "w1"), *runs("a", at=5.1)], {"w1": 1.05}),
        # A copy of the task, under an entry of its own, is no claim.
        ([claimed(5.0, "a", "w1"), *runs("a", at=5.1, entry="copy")], {"w1": 1.2}),
    ],
)
def test_a_kill_does_not_explain_everything(records: Sequence[Record], killed: Mapping[str, float]) -> None:
    report = judge({"w1": runs("a"), "w2": [*runs("b", "c"), *records], "w3": []}, killed=killed)
    assert report.problems == ["1 run twice without a reason: a"]


def test_a_living_worker_that_lost_its_lease_explains() -> None:
    lost = noticed(6.0, LeaseLost("demo", "a", "another has it"))
    journals = {"w1": [*runs("a"), lost], "w2": [*runs("b", "c"), claimed(5.0, "a", "w1"), *runs("a", at=5.1)]}
    assert judge(journals).problems == []
    lost_another = noticed(6.0, LeaseLost("demo", "b", "another has it"))
    assert judge({**journals, "w1": [*runs("a"), lost_another]}).problems == ["1 run twice without a reason: a"]


def test_data_loss_explains_what_came_after_it() -> None:
    journals = {"w1": runs("a", "b", "c"), "w2": runs("a", at=5.0, entry="again")}
    assert judge(journals, data_loss_at=4.0).problems == []
    assert judge(journals, data_loss_at=6.0).problems == ["1 run twice without a reason: a"]


def test_the_table_shows_a_loss(capsys: pytest.CaptureFixture[str]) -> None:
    PlainDisplay(3).table(judge({"w1": runs("a"), "w2": runs("a", at=3.0)}), 12.0)
    out = capsys.readouterr().out
    assert re.search(r"lost +2  SEE BELOW", out)
    assert re.search(r"run twice +1  0 explained, 1 WITHOUT A REASON", out)


# --- The display ------------------------------------------------------------------------------------------


def test_without_rich_there_is_a_hint_and_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with make_display(3) as display:
        display.say("FAULT", "a thing was broken")
    out = capsys.readouterr().out
    assert "pip install 'streamfleet[cli]'" in out
    assert "FAULT  a thing was broken" in out


def test_a_terminal_gets_a_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with make_display(3) as display:
        display.say("FLEET", "[it] was mended")
        display.progress(2, 3)
    display.table(judge({"w1": runs("a", "b", "c")}), 12.0)
    out = capsys.readouterr().out
    assert "[it] was mended" in out
    assert "2/3" in out
    assert "claimed from the dead" in out


# --- Journals ---------------------------------------------------------------------------------------------


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    reader = JournalReader(path)
    assert reader.take_new() == []
    journal = Journal(path)
    first, second = runs("a")
    journal.write(first)
    assert reader.take_new() == [first]
    assert reader.open_runs() == 1
    journal.write(second)
    journal.note(LeaseLost("demo", "a", "another has it"))
    assert reader.take_new()[0] == second
    assert reader.open_runs() == 0
    note = reader.records[-1]
    assert isinstance(note, Noticed)
    assert (note.kind, note.details["task_id"]) == ("LeaseLost", "a")
    assert reader.take_new() == []


def test_a_line_that_is_not_complete_waits(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).write(runs("a")[0])
    line = path.read_bytes()
    path.write_bytes(line[:20])
    reader = JournalReader(path)
    assert reader.take_new() == []
    with path.open("ab") as file:
        os.write(file.fileno(), line[20:])
    assert reader.take_new() == [runs("a")[0]]
