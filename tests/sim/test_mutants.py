"""The mutants: each is put in place and taken out again without a trace, none is forgotten, and some are killed."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

from sim.mutants import MUTANTS, NOT_HERE, Edit, Mutant, MutantError, apply
from sim.mutants.matrix import Kill, Matrix, hunt, matrix, rotating
from sim.plan import Act, FaultPlan, Plan, ProcessPlan, TaskPlan
from sim.run import run
from sim.swarm import make_plan
from sim.trace import Trace
from sim.verdict import Failure, Verdict, Violation
from streamfleet_protocol import ServerMachine, machine, replies, settings, timing
from streamfleet_protocol.server import lifecycle, reclaim, tasks
from streamfleet_protocol.server.lifecycle import Happening, TaskState

SOURCE = re.compile(r"finding [0-9]+(\.[0-9][a-e]?)?|go ([a-o]|N[0-9]+)|style M[0-9]|design 4\.[0-9]+|contract [0-9]\Z")

REQUIRED = (
    *(f"finding {number}" for number in range(1, 21)),
    # Those of the second search that a search found; where one has several holes a mutant stands for each.
    *("finding 2.1", "finding 2.1a", "finding 2.1b", "finding 2.1c", "finding 2.2", "finding 2.3", "finding 2.3b"),
    *("finding 2.4", "finding 2.4a", "finding 2.4b", "finding 2.4c", "finding 2.4d", "finding 2.4e", "finding 2.5"),
    *(f"design 4.{number}" for number in range(1, 14)),
    *(f"go {letter}" for letter in "abcdefghijklmno"),
    *(f"go N{number}" for number in range(1, 24)),
    *(f"style M{number}" for number in range(1, 10)),
)


def state() -> dict[str, object]:
    """All that a mutant may touch in the live program: code and defaults of every function, and every constant."""
    found: dict[str, object] = {}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "streamfleet_protocol":
            found.update(describe(name, vars(module), module.__name__))
    return found


def describe(path: str, names: Any, owner: str) -> Iterator[tuple[str, object]]:
    for name, value in list(names.items()):
        inner = f"{path}.{name}"
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if isinstance(function, FunctionType):
            yield inner, (function.__code__, function.__defaults__, repr(function.__kwdefaults__))
        elif isinstance(value, type) and value.__module__ == owner and not path.startswith(f"{owner}.{name}."):
            yield inner, value
            yield from describe(inner, vars(value), owner)
        elif isinstance(value, int | str | bytes | tuple | frozenset):
            yield inner, value
        elif isinstance(value, dict) and not name.startswith("__"):
            yield inner, dict(value)


@pytest.mark.parametrize("name", MUTANTS)
def test_it_is_put_in_place_and_taken_out_again(name: str) -> None:
    """It fits, it changes something, no class is exchanged, and afterwards all is as before."""
    before = state()
    with apply(MUTANTS[name]):
        during = state()
    assert state() == before
    changed = {path for path in during if during[path] != before.get(path)}
    assert changed
    assert not [path for path in changed if isinstance(during[path], type)]


@pytest.mark.parametrize("name", MUTANTS)
def test_it_says_where_it_comes_from(name: str) -> None:
    mutant = MUTANTS[name]
    assert mutant.name == name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name)
    assert all(SOURCE.fullmatch(source) for source in mutant.sources), mutant.source
    assert mutant.rule.endswith(".")


def test_no_known_defect_is_forgotten() -> None:
    named = {source for mutant in MUTANTS.values() for source in mutant.sources}
    excused = {source for source, _ in NOT_HERE}
    assert [source for source in REQUIRED if source not in named | excused] == []
    assert named & excused == set()
    assert len(excused) == len(NOT_HERE)


def test_mutants_can_be_sent_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(tuple(MUTANTS.values()))) == tuple(MUTANTS.values())


# The machinery.


def mutant(*edits: Edit) -> Mutant:
    return Mutant("a-mutant", "design 4.1", "For a test.", edits)


def refuses(*edits: Edit, because: str) -> None:
    before = state()
    with pytest.raises(MutantError, match=because), apply(mutant(*edits)):
        pass
    assert state() == before


def test_an_edit_that_does_not_fit_is_refused() -> None:
    refuses(Edit("timing", "no such text", "x"), because="fits 0 times")
    refuses(Edit("timing", "self.attempts", "self.tries"), because="fits [0-9]+ times")
    refuses(Edit("timing", "self.attempts += 1", "self.attempts += 1"), because="changes nothing")
    refuses(Edit("timing", "        self.attempts += 1", "        self.attempts += "), because="cannot be executed")
    refuses(
        Edit("timing", "        self.attempts += 1\n", "        # Count.\n        self.attempts += 1\n"),
        because="nothing is changed but the layout",
    )


def test_the_first_edit_is_undone_where_the_second_does_not_fit() -> None:
    refuses(
        Edit("timing", "        self.attempts += 1\n", "        self.attempts += 2\n"),
        Edit("replies", "no such text", "x"),
        because="fits 0 times",
    )


def test_what_cannot_be_exchanged_in_place_is_refused() -> None:
    refuses(Edit("timing", "class Backoff:\n", "class Backoff(Entropy):\n"), because="head of class")
    refuses(Edit("timing", "class Backoff:\n", "class Pause:\n"), because="is taken out")
    refuses(Edit("replies", '    WAIT = "wait"\n', '    WAIT = "hold"\n'), because="WAIT is changed")
    refuses(Edit("server.tasks", "    @property\n    def room", "    def room"), because="decorators of room")


def test_the_live_program_must_be_what_the_source_says() -> None:
    edit = Edit("timing", "        self.attempts += 1\n", "        self.attempts += 2\n")
    with (
        apply(mutant(edit)),
        pytest.raises(MutantError, match="is not what its source says"),
        apply(mutant(edit)),
    ):
        pass


def test_methods_properties_and_new_functions() -> None:
    edits = (
        Edit("timing", "        self.attempts += 1\n", "        self.count()\n"),
        Edit(
            "timing",
            "    def succeeded(self)",
            "    def count(self) -> None:\n        self.attempts += 7\n\n    def succeeded(self)",
        ),
        Edit("replies", '        return self.text.split(" ", 1)[0]\n', '        return self.text.split(" ", 1)[-1]\n'),
    )
    backoff = timing.Backoff(10, 20)
    with apply(mutant(*edits)):
        backoff.failed(0, timing.Entropy(1))
        assert replies.ErrorReply("A B").code == "B"
    assert backoff.attempts == 7
    assert not hasattr(backoff, "count")
    assert replies.ErrorReply("A B").code == "A"


def test_defaults_of_functions_and_of_dataclass_fields() -> None:
    edits = (
        Edit("settings", "    lease_ms: int = 60_000\n", "    lease_ms: int = 80_000\n"),
        Edit("server.tasks", "but: Collection[int] = ()", "but: Collection[int] = (0,)"),
        Edit("server.tasks", "doubtful: bool = False) -> HeldTask", "doubtful: bool = True) -> HeldTask"),
    )
    queues = (settings.QueueSettings("q"),)
    next_held: Any = tasks.Tasks.next_held
    with apply(mutant(*edits)):
        assert settings.ServerSettings(queues, "w:1", 1).lease_ms == 80_000
        assert (next_held.__defaults__, next_held.__kwdefaults__) == (((0,),), {"doubtful": True})
    assert settings.ServerSettings(queues, "w:1", 1).lease_ms == 60_000
    assert (next_held.__defaults__, next_held.__kwdefaults__) == (((),), {"doubtful": False})


def test_constants_are_exchanged_wherever_they_were_imported() -> None:
    edit = Edit("timing", "NEVER = 2**62\n", "NEVER = 2**61\n")
    users = (timing, machine, reclaim)
    with apply(mutant(edit)):
        assert [vars(user)["NEVER"] for user in users] == [2**61] * 3
    assert [vars(user)["NEVER"] for user in users] == [2**62] * 3
    edit = Edit("replies", '_WAIT = frozenset({"LOADING", ', "_WAIT = frozenset({")
    with apply(mutant(edit)):
        assert replies.remedy_for(replies.ErrorReply("LOADING x")) is replies.Remedy.WAIT
        assert "LOADING" not in replies._WAIT
    assert "LOADING" in replies._WAIT


def test_tables_are_exchanged_in_place_with_members_of_the_live_classes() -> None:
    edits = (
        Edit("server.lifecycle", "    (_S.LOST, _H.FAILURE): _S.GONE,\n", "    (_S.LOST, _H.FAILURE): _S.HELD,\n"),
        Edit("server.lifecycle", "WITH_HANDLER = frozenset({_S.RUNNING, ", "WITH_HANDLER = frozenset({"),
    )
    pair = (TaskState.LOST, Happening.FAILURE)
    table = lifecycle.TRANSITIONS
    before = dict(table)
    assert vars(tasks)["TRANSITIONS"] is table
    with apply(mutant(*edits)):
        assert lifecycle.TRANSITIONS is table
        assert table[pair] is TaskState.HELD
        assert TaskState.RUNNING not in vars(tasks)["WITH_HANDLER"]
    assert before == table
    assert TaskState.RUNNING in vars(tasks)["WITH_HANDLER"]


def test_machines_of_before_go_on_with_the_defect_and_lose_it() -> None:
    queues = (settings.QueueSettings("q"),)
    server = ServerMachine(settings.ServerSettings(queues, "w:1", 1))
    entry_ids = [b"1-1"]
    server.reclaim.sights[0].dead = entry_ids
    assert server.reclaim._claimable(0) == entry_ids
    with apply(MUTANTS["never-claims"]):
        assert server.reclaim._claimable(0) == []
        assert isinstance(ServerMachine.restore(server.snapshot()), ServerMachine)
    assert server.reclaim._claimable(0) == entry_ids


def test_lines_of_a_mutant_are_told_from_those_of_the_source() -> None:
    with apply(MUTANTS["no-back-off"]):
        code: CodeType = timing.Backoff.failed.__code__
        assert "no-back-off" in code.co_filename


# The matrix.


def a_run(plan: Plan, *, trace: Trace | None = None, without: frozenset[str] = frozenset()) -> Verdict:
    """A run in which seed 4 and above show a back-off that is none, and seed 3 is red by itself."""
    backoff = timing.Backoff(10, 20)
    spins = backoff.failed(0, timing.Entropy(1)) == 0
    red = (spins and plan.seed >= 4) or plan.seed == 3
    return Verdict(plan.seed, Violation("busy loop", Failure.LIVENESS, 0, "it spins") if red else None)


def test_a_hunt_ends_with_the_first_seed_that_only_the_mutant_fails() -> None:
    kill = hunt(MUTANTS["no-back-off"], range(1, 10), make_plan, a_run)
    assert kill == Kill(4, "busy loop", Failure.LIVENESS, 4, "it spins")
    assert hunt(MUTANTS["no-back-off"], range(1, 4), make_plan, a_run) is None
    assert hunt(MUTANTS["never-claims"], range(1, 10), make_plan, a_run) is None


def test_a_matrix_lists_who_was_killed_and_who_lives() -> None:
    some = [MUTANTS[name] for name in ("no-back-off", "never-claims")]
    told: list[str] = []
    found = matrix(
        some, range(-20, 10), jobs=0, make_plan=make_plan, run=a_run, tell=lambda done, words: told.append(words)
    )
    assert found.kills == {"no-back-off": Kill(4, "busy loop", Failure.LIVENESS, 25, "it spins")}
    assert found.living == ["never-claims"]
    assert found.exit_code == 1
    assert "LIVES after 30 seeds: never-claims" in found.table()
    assert len(told) == 2
    assert Matrix((), range(1)).exit_code == 0


def test_a_part_of_the_mutants_depends_on_the_token_alone() -> None:
    names = list(MUTANTS)
    chosen = rotating(names, "a", 10)
    assert len(chosen) == 10
    assert chosen == sorted(chosen, key=names.index)
    assert chosen == rotating(names, "a", 10)
    assert chosen != rotating(names, "b", 10)
    assert set().union(*(rotating(names, str(token), 20) for token in range(100))) == set(names)
    assert rotating(names, "a", 1000) == names


# End to end, with plans that aim at the defect.

WORKER = {
    **{"lease_ms": 6_000, "renew_interval_ms": 1_500, "command_timeout_ms": 500, "connect_timeout_ms": 1_000},
    **{"block_ms": 3_000, "read_margin_ms": 300, "backoff_most_ms": 1_000, "prefetch": 0, "sweep_interval_ms": 4_000},
    **{"silence_ms": 36_000, "collect_interval_ms": 3_000, "consumer_silence_ms": 24_000},
    **{"producer_silence_ms": 48_000},
}
CLIENT = {
    **{"heartbeat_ms": 1_000, "retention_ms": 10_000, "command_timeout_ms": 400, "connect_timeout_ms": 300},
    **{"block_ms": 1_000, "read_margin_ms": 300, "backoff_most_ms": 1_000, "reconnect_audit_ms": 1_000},
    **{"audit_interval_ms": 20_000, "audit_grace_ms": 500, "deadline_wait_ms": 1_000},
    **{"silence_ms": 40_000, "producer_silence_ms": 60_000, "collect_interval_ms": 3_000},
}


def aimed(at_ms: int, *faults: FaultPlan) -> Plan:
    """A plan with one task, two workers, and these faults."""
    return Plan(
        seed=1,
        version="valkey9",
        queues=("q1",),
        latency_ms=1,
        jitter_ms=0,
        split_percent=0,
        workers=(ProcessPlan("w1"), ProcessPlan("w2")),
        clients=(ProcessPlan("c1"),),
        tasks=(TaskPlan("t1", at_ms, "c1", "q1", False, (Act("succeed", 1),)),),
        faults=faults,
        calm_at_ms=20_000,
        client_settings=CLIENT,
        worker_settings=WORKER,
    )


def cut(process: str, at_ms: int, purpose: str, form: str) -> FaultPlan:
    lane = "read" if purpose == "intake.on_read" else "command"
    return FaultPlan(f"{form} {process}", "cut", at_ms, process, purpose=purpose, values={"form": form, "lane": lane})


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("connection-key-set-only-once", aimed(1_000, cut("c1", 900, "outbox.on_batch", "late"))),
        ("unanswered-batch-taken-for-applied", aimed(1_000, cut("c1", 900, "outbox.on_batch", "before"))),
        ("unanswered-settlement-taken-for-done", aimed(1_000, cut("w1", 900, "settlement.on_plain", "before"))),
        (
            "never-adopts",
            aimed(4_000, *(cut(name, 2_000, "intake.on_read", "lost") for name in ("w1", "w2"))),
        ),
    ],
)
def test_a_plan_that_aims_at_a_defect_kills_it(name: str, plan: Plan) -> None:
    plan.check()
    kill = hunt(MUTANTS[name], [plan.seed], lambda seed: plan, run)
    assert kill is not None
    assert kill.failure in (Failure.SAFETY, Failure.LIVENESS)
