"""Known defects that have no counterpart here, each with the reason. They are listed so that none is forgotten."""

from __future__ import annotations

NOT_HERE: tuple[tuple[str, str], ...] = (
    (
        "finding 2.2",
        "the outbox of verdicts exists only in a cluster; the single-server core tells a negative outcome inside the "
        "fenced transaction",
    ),
    (
        "finding 2.4, the age from sending to answer",
        "with a lease of four intervals or more, which the settings demand, the search found no difference",
    ),
    (
        "finding 2.3, an ending sent again without a new WATCH",
        "what is mine is renewed right before an ending asks, so that none takes it over before the repetition; for "
        "renewals the same defect is the mutant aborted-renewal-sent-again",
    ),
    ("go b", "XAUTOCLAIM is never used; its endless retry without a pause is the mutant no-back-off"),
    ("go i", "commands over several slots exist only in a cluster, which these machines do not speak yet"),
    ("go N7", "no channel to send on after a close: a closed machine answers with Rejected"),
    ("go N15", "no goroutine that a close could leave behind: the core starts nothing"),
    ("go N19", "a missing option is an error of Python; what a call after the close gets is tested with the machines"),
    (
        "go N20",
        "names that collide are refused where keys are built, before anything runs; tests/protocol/test_keys.py",
    ),
    ("go N21", "waiting on a handle is the drivers' part; tests/drivers/test_tasks.py"),
    ("go N22", "the order of fields changes no behaviour; tests/protocol/test_wire.py holds it to the byte"),
    ("go N23", "a machine is one thread's; there is nothing to race with"),
)
"""(source, why)."""
