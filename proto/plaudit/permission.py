"""What a caller may do; who may do it is said in the callers file (callers.py)."""

from __future__ import annotations

from enum import Enum


class Permission(Enum):
    """Each rpc needs one."""

    CHAT = "chat"
    FEEDBACK = "feedback"
    OBSERVE = "observe"
    """To see how the loop goes: LoopService, and nothing that anybody said."""
    ADMIN = "admin"
    """The control plane: policies and erasure."""
