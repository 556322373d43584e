"""The tree of exceptions, and what they say."""

from __future__ import annotations

import pytest

from streamfleet_protocol import errors

USAGE = (errors.InvalidOption, errors.InvalidQueueName, errors.UnknownQueue, errors.NoQueues)
OTHERS = (errors.QueueFull, errors.Closed, errors.ServerRefused, errors.DecodeError, errors.TaskError)
ENDS = (errors.TaskFailed, errors.TaskExpired, errors.TaskCanceled, errors.OutcomeUnknown)


def test_the_tree() -> None:
    assert issubclass(errors.UsageError, errors.StreamfleetError)
    assert issubclass(errors.UsageError, ValueError)
    assert all(issubclass(kind, errors.UsageError) for kind in USAGE)
    assert all(issubclass(kind, errors.StreamfleetError) for kind in OTHERS)
    assert not any(issubclass(kind, errors.UsageError) for kind in OTHERS)
    assert all(issubclass(kind, errors.TaskError) for kind in ENDS)
    for kind in (errors.InvariantBroken, errors.Retry, errors.Reject):
        assert not issubclass(kind, errors.StreamfleetError)


def test_task_errors_name_their_task() -> None:
    failed = errors.TaskFailed("t1", "ValueError: no")
    assert (failed.task_id, failed.reason) == ("t1", "ValueError: no")
    assert str(failed) == "task t1 failed: ValueError: no"
    assert str(errors.TaskExpired("t1", True)) == "task t1 expired"
    unconfirmed = errors.TaskExpired("t1", False)
    assert not unconfirmed.confirmed
    assert "a handler may have run" in str(unconfirmed)
    assert str(errors.TaskCanceled("t1", "why")) == "task t1 was canceled: why"
    assert str(errors.OutcomeUnknown("t1", "why")) == "the outcome of task t1 is unknown: why"


def test_what_handlers_raise() -> None:
    assert errors.Retry().delay is None
    assert str(errors.Retry()) == "the handler asked for a retry"
    assert (errors.Retry(2.5, "busy").delay, errors.Retry(2.5, "busy").reason) == (2.5, "busy")
    assert errors.Reject("bad").reason == str(errors.Reject("bad")) == "bad"


def test_server_refused() -> None:
    refused = errors.ServerRefused("NOPERM", "NOPERM no", "Give it.")
    assert (refused.code, refused.text, str(refused)) == ("NOPERM", "NOPERM no", "NOPERM no. Give it.")
    assert str(errors.ServerRefused("ERR", "ERR no")) == "ERR no"


def test_check_names_the_rule_and_the_details() -> None:
    errors.check(True, "never seen")
    with pytest.raises(errors.InvariantBroken, match=r"the rule: \(1, 'x'\)"):
        errors.check(False, "the rule", 1, "x")
    with pytest.raises(errors.InvariantBroken, match=r"^the rule$"):
        errors.check(False, "the rule")


def test_lists_of_names() -> None:
    assert errors.one_of(("a",)) == "'a'"
    assert errors.one_of(("a", "b")) == "'a' or 'b'"
    assert errors.one_of(("a", "b", "c")) == "'a', 'b' or 'c'"


def test_how_many_tasks_were_accepted() -> None:
    assert errors.QueueFull("full").accepted == 0
