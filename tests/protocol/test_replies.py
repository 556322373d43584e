"""Errors are classified in one place; raw replies become one of four outcomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_protocol.errors import ServerRefused
from streamfleet_protocol.replies import (
    Aborted,
    ErrorReply,
    Ok,
    RawReply,
    Refused,
    Remedy,
    Unknown,
    first_error,
    plain_outcome,
    refusal,
    remedy_for,
    transaction_outcome,
)

WAIT, RECONNECT, NEW_GROUP, RAISE = Remedy.WAIT, Remedy.RECONNECT, Remedy.NEW_GROUP, Remedy.RAISE


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        # Each reply of redis-facts, section 7, in the servers' own words.
        ("LOADING Redis is loading the dataset in memory", WAIT),
        ("READONLY You can't write against a read only replica.", RECONNECT),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", RECONNECT),
        ("CLUSTERDOWN The cluster is down", WAIT),
        ("CLUSTERDOWN Hash slot not served", WAIT),
        ("TRYAGAIN Multiple keys request during rehashing of slot", WAIT),
        ("MOVED 3999 127.0.0.1:6381", RECONNECT),
        ("ASK 3999 127.0.0.1:6381", RECONNECT),
        ("CROSSSLOT Keys in request don't hash to the same slot", RAISE),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", WAIT),
        ("OOM command not allowed when used memory > 'maxmemory'.", WAIT),
        ("NOREPLICAS Not enough good replicas to write.", WAIT),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", WAIT),
        ("NOAUTH Authentication required.", RAISE),
        ("WRONGPASS invalid username-password pair or user is disabled.", RAISE),
        ("NOPERM User worker has no permissions to run the 'xadd' command", RAISE),
        ("NOPERM No permissions to access a key", RAISE),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", RAISE),
        ("NOGROUP No such key 'streamfleet:x' or consumer group 'streamfleet-server'", NEW_GROUP),
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", RECONNECT),
        ("UNBLOCKED the stream key no longer exists", RECONNECT),
        ("ERR max number of clients reached", RECONNECT),
        ("CONNECTION Connection closed by server.", RECONNECT),
        ("TIMEOUT waited too long for an answer", RECONNECT),
        # Further ones that waiting does not cure.
        ("ERR unknown command 'XADD', with args beginning with: 'a'", RAISE),
        ("ERR unknown command `XADD`, with args beginning with: ", RAISE),
        ("ERR unknown subcommand 'CREATECONSUMER'. Try XGROUP HELP.", RAISE),
        ("ERR wrong number of arguments for 'xadd' command", RAISE),
        ("ERR syntax error", RAISE),
        ("ERR DB index is out of range", RAISE),
        ("ERR invalid DB index", RAISE),
        ("NOPROTO unsupported protocol version", RAISE),
        ("TLS certificate verify failed", RAISE),
        ("CONFIGURATION no such scheme", RAISE),
        # What nobody knows is waited out, and so is what only looks like the above.
        ("ERR something that no one has ever seen", WAIT),
        ("EXECABORT Transaction discarded because of previous errors.", WAIT),
        ("PROXY backend gone", WAIT),
        ("SOMETHING unknown command", WAIT),
        ("", WAIT),
    ],
)
def test_classes_of_errors(text: str, remedy: Remedy) -> None:
    assert remedy_for(ErrorReply(text)) is remedy


@given(st.text(max_size=40))
def test_any_error_has_a_class(text: str) -> None:
    error = ErrorReply(text)
    assert remedy_for(error) in Remedy
    assert text.startswith(error.code)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("NOAUTH Authentication required.", "user name and password"),
        ("NOPERM no", "permission"),
        ("WRONGTYPE no", "another program"),
        ("ERR unknown command 'X'", ""),
    ],
)
def test_a_refusal_says_what_to_do(text: str, advice: str) -> None:
    exception = refusal(ErrorReply(text))
    assert isinstance(exception, ServerRefused)
    assert exception.code == text.split()[0]
    assert exception.text == text
    assert str(exception).startswith(text)
    assert advice in str(exception)


OOM = ErrorReply("OOM no room")
EXECABORT = ErrorReply("EXECABORT Transaction discarded because of previous errors.")


def test_plain_outcomes() -> None:
    assert plain_outcome([b"OK", 1, None]) == Ok([b"OK", 1, None])
    assert plain_outcome([b"OK", OOM, EXECABORT]) == Refused(OOM, [b"OK", OOM, EXECABORT])


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([b"OK", b"QUEUED", b"QUEUED", [1, b"2-0"]], Ok([1, b"2-0"])),
        ([b"OK", b"QUEUED", b"QUEUED", (1, b"2-0")], Ok((1, b"2-0"))),
        ([b"OK", []], Ok([])),
        # EXEC is not all-or-nothing: the element is for the one who asked to look at.
        ([b"OK", b"QUEUED", b"QUEUED", [OOM, 1]], Ok([OOM, 1])),
        ([b"OK", b"QUEUED", None], Aborted()),
        # EXECABORT only repeats.
        ([b"OK", OOM, b"QUEUED", EXECABORT], Refused(OOM)),
        ([b"OK", b"QUEUED", ErrorReply("EXECABORT Transaction discarded because of: OOM no room")], Refused(OOM)),
        ([b"OK", b"QUEUED", EXECABORT], Refused(EXECABORT)),
        ([b"OK", b"QUEUED", ErrorReply("READONLY no")], Refused(ErrorReply("READONLY no"))),
        # No server answers so: nothing can be concluded.
        ([b"OK", b"QUEUED", b"OK"], Unknown()),
        ([b"OK", b"QUEUED", 1], Unknown()),
        ([b"OK", b"QUEUED", []], Unknown()),
        ([b"OK", b"QUEUED", [1, 2]], Unknown()),
    ],
)
def test_outcomes_of_transactions(replies: list[RawReply], expected: object) -> None:
    assert transaction_outcome(replies) == expected


def test_first_error() -> None:
    assert first_error([b"x", None, OOM, EXECABORT]) == OOM
    assert first_error([b"x", [OOM]]) is None
