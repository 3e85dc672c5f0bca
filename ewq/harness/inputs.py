"""What the harness gives a task: the variant's model, the run's data, the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ewq.data.mmlu import MmluData
    from ewq.data.reference_logprobs import Reference
    from ewq.data.texts import TextSet
    from ewq.data.windows import Definition
    from ewq.harness.bench import Bench
    from ewq.harness.handle import VariantHandle
    from ewq.instruments.load_watch import LoadReading
    from ewq.model import LanguageModel
    from ewq.progress import Progress
    from ewq.tasks.tiers import Tier


@dataclass(frozen=True)
class BenchInputs:
    """The inputs of one task on one variant (:class:`ewq.tasks.table.Inputs`)."""

    bench: Bench
    handle: VariantHandle

    @property
    def model(self) -> LanguageModel:
        """The variant's model, loaded on first use."""
        return self.handle.model

    @property
    def load_reading(self) -> LoadReading:
        """Seconds and memory that loading took."""
        return self.handle.load_reading

    @property
    def questions(self) -> MmluData:
        """The tier's MMLU questions."""
        return self.bench.data.mmlu

    @property
    def texts(self) -> TextSet:
        """The texts to score."""
        return self.bench.data.texts

    @property
    def definition(self) -> Definition:
        """How perplexity cuts the texts into windows."""
        return self.bench.data.definition

    @property
    def distributions(self) -> Reference:
        """The reference's log-probabilities, recorded now if the variant is the reference."""
        return self.bench.references.distributions(self.handle)

    @property
    def sizes(self) -> Tier:
        """How much the tier measures."""
        return self.bench.sizes

    @property
    def progress(self) -> Progress:
        """Where progress is shown."""
        return self.bench.progress
