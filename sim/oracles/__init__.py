"""What must hold, as code: one oracle for each part of the guarantees, each with its own name.

An oracle counts its checks: how often it really compared something. One that never does proves nothing.
"""

from .registry import ORACLES, Oracles

__all__ = ["ORACLES", "Oracles"]
