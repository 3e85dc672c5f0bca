"""What a run measures, with what and where: what must be equal wherever figures meet.

Resuming, gating against a baseline and pairing with a stored reference ask the same question, and
this is the only place that answers it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ewq.storage.environment import LIBRARIES, comparable, hardware

DATA = " data"
"""Ends the settings that are digests of a task's data: ``mmlu data``."""
_CODE = ("ewq_code", *LIBRARIES)


@dataclass(frozen=True)
class RunIdentity:
    """Known as a whole before anything is measured."""

    fingerprint: str
    """``sha256:...`` of the checkpoint."""
    settings: Mapping[str, Any]
    """Tier, sizes, tokenizer, placement, and the digest of each task's data; plain JSON."""
    environment: Mapping[str, Any]
    """``machine_info["ewq"]``: see :func:`ewq.storage.environment.describe`."""

    def differences(self, later: RunIdentity) -> list[str]:
        """Why figures of the two must not be compared; empty where they may be.

        Settings count where both know them: runs stored by an older ewq know less.
        """
        reasons = comparable(self.environment, later.environment)
        if self.fingerprint != later.fingerprint:
            reasons.append("measured another model")
        return reasons + changed_settings(self.settings, later.settings)

    def code_differences(self, later: RunIdentity) -> list[str]:
        """What besides forbids that figures of one stand in for the other's: code and libraries."""
        before, now = self.environment, later.environment
        return [
            f"{key} was {before.get(key)}, is {now.get(key)}"
            for key in _CODE
            if before.get(key) != now.get(key)
        ]

    def key(self, task: str) -> str:
        """A digest that is equal only where results of ``task`` may stand in for each other."""
        own = {
            name: value
            for name, value in self.settings.items()
            if not name.endswith(DATA) or name == task + DATA
        }
        code = {key: self.environment.get(key) for key in _CODE}
        whole = [task, self.fingerprint, own, hardware(self.environment), code]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences in what both know."""
    changed = [key for key, value in now.items() if key in before and before[key] != value]
    if "tier" in changed:
        # Its sizes go with it.
        changed = [key for key in changed if key != "sizes"]
    return [f"setting {key} was {before[key]!r}, is {now[key]!r}" for key in changed]
