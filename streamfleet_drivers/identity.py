"""What belongs to one process: its clock, its random numbers, its names."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable


def _choose_clock() -> Callable[[], int]:
    """CLOCK_BOOTTIME, which goes on while the machine sleeps, where there is one: a lease goes on as well."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    if boot_time is None:
        return time.monotonic_ns
    return lambda: time.clock_gettime_ns(boot_time)


_nanoseconds = _choose_clock()


def now_ms() -> int:
    """The own clock in whole ms, from any origin; it never goes back."""
    return _nanoseconds() // 1_000_000


def uuid7() -> str:
    """A fresh UUID of version 7 (RFC 9562, section 5.7): 48 bits of Unix ms, then random bits."""
    bits = os.urandom(10).hex()
    time_ms = f"{time.time_ns() // 1_000_000:012x}"
    return f"{time_ms[:8]}-{time_ms[8:]}-7{bits[:3]}-{_VARIANT[bits[3]]}{bits[4:7]}-{bits[7:19]}"


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""The two upper bits of this digit are 1 and 0."""


def seed() -> int:
    """64 random bits."""
    return secrets.randbits(64)


def consumer_name(server_id: str) -> str:
    """A consumer's name: two processes with one server id, or one that was restarted, must not share a lease."""
    return f"{server_id}:{secrets.token_hex(6)}"


def host_name() -> str:
    """A server id for people who give none."""
    return socket.gethostname() or "worker"
