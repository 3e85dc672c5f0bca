"""The questions and texts of a run, loaded when the first task asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.checkpoint.embedded import fixture_path
from ewq.harness.options import Options
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.tasks.table import Data, find_task
from ewq.tasks.tiers import Tier

if TYPE_CHECKING:
    from ewq.data.mmlu import MmluData
    from ewq.data.texts import TextSet
    from ewq.data.windows import Definition

MMLU_SEED = 1234


@dataclass(frozen=True)
class RunData:
    """What the options name, else what the tier uses by itself."""

    options: Options
    sizes: Tier
    progress: Progress = NO_PROGRESS

    @cached_property
    def mmlu(self) -> MmluData:
        """The questions of this tier."""
        from ewq.data.mmlu import load_mmlu

        with step(self.progress, "reading MMLU questions", 1, "data set"):
            data = load_mmlu(self.options.mmlu or self._default("mmlu"))
        wanted = self.sizes.mmlu_questions
        if wanted is None or wanted >= len(data.test):
            return data
        return data.subset(wanted, MMLU_SEED)

    @cached_property
    def texts(self) -> TextSet:
        """The texts to score; tasks take as many tokens per domain as the tier allows."""
        from ewq.data.texts import load_texts

        with step(self.progress, "reading texts", 1, "data set"):
            return load_texts(self.options.texts or self._default("texts"))

    @property
    def definition(self) -> Definition:
        """WikiText-2 as the quantization papers score it, other texts document by document."""
        from ewq.data.windows import DEFINITIONS

        return DEFINITIONS["papers" if self.texts.domains == ("wikitext2",) else "disjoint"]

    def digest(self, task: str) -> str:
        """Of the data that a task reads; empty for tasks that make their own."""
        data = find_task(task).data
        if data is Data.QUESTIONS:
            return self.mmlu.digest
        return self.texts.digest if data is Data.TEXTS else ""

    def _default(self, name: str) -> str | Path:
        """The published data set in the full tier, else what ewq carries with it."""
        return "hub" if self.options.tier == "full" else fixture_path(name)
