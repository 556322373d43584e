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
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    text = f"{value & ~(0x3 << 62) | 0x2 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def seed() -> int:
    """64 random bits."""
    return secrets.randbits(64)


def consumer_name(server_id: str) -> str:
    """A consumer's name: two processes with one server id, or one that was restarted, must not share a lease."""
    return f"{server_id}:{secrets.token_hex(6)}"


def host_name() -> str:
    """A server id for people who give none."""
    return socket.gethostname() or "worker"
