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
    """The control plane: policies and erasure, and all that OBSERVE opens."""

    def opens(self, needed: Permission) -> bool:
        """Whether who has this permission may call what needs `needed`."""
        return self is needed or (self is Permission.ADMIN and needed is Permission.OBSERVE)
