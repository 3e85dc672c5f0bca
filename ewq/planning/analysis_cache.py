"""Analyses kept on disk, by the checkpoint's content and its files' sizes and times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq.atomic import write_text
from ewq.cache_dir import cache_dir
from ewq.checkpoint.opening import Checkpoint
from ewq.entropy.statistics import WeightStatistics
from ewq.errors import CheckpointError, EwqError

VERSION = 1
"""Raised whenever a statistic changes its meaning."""


@dataclass(frozen=True)
class AnalysisCache:
    """One checkpoint's place in the cache."""

    path: Path
    key: str

    @classmethod
    def for_checkpoint(cls, checkpoint: Checkpoint) -> AnalysisCache:
        """The place of a checkpoint as it is on disk now.

        Raises:
            CheckpointError: one of its files has vanished.
        """
        digest = hashlib.sha256(f"{VERSION} {checkpoint.fingerprint}".encode())
        for file in checkpoint.files:
            try:
                facts = file.stat()
            except OSError as error:
                raise CheckpointError(f"cannot read {file}: {error}") from error
            digest.update(f"\0{file.name} {facts.st_size} {facts.st_mtime_ns}".encode())
        key = digest.hexdigest()
        return cls(cache_dir("analyses", f"{key[:32]}.json"), key)

    def read(self, names: Sequence[str]) -> dict[str, WeightStatistics] | None:
        """Statistics of exactly these weights; ``None`` where there are none, or damaged ones."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            return self._parse(data, names)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def _parse(self, data: Any, names: Sequence[str]) -> dict[str, WeightStatistics] | None:  # noqa: ANN401
        if data["key"] != self.key or data["digest"] != _digest(data["statistics"]):
            return None
        return {name: WeightStatistics(**data["statistics"][name]) for name in names}

    def write(self, statistics: Mapping[str, WeightStatistics]) -> None:
        """Keep an analysis; where the cache cannot be written it is simply not kept."""
        plain = {name: of.to_json() for name, of in statistics.items()}
        entry = {"key": self.key, "digest": _digest(plain), "statistics": plain}
        try:
            write_text(self.path, json.dumps(entry))
        except EwqError:
            return


def _digest(statistics: object) -> str:
    text = json.dumps(statistics, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
