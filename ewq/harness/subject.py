"""The model under test with what every variant of it shares, and where it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ewq.checkpoint.dummy import PREFIX, dummy_checkpoint
from ewq.checkpoint.embedded import EMBEDDED_MODEL, embedded_model, fixture_path
from ewq.checkpoint.layout import check_original, find_layout
from ewq.checkpoint.loading import load_tokenizer, tokenizer_digest
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.errors import BackendUnavailable, CheckpointError
from ewq.fit.plans import Fitting
from ewq.fit.prepare import converted, importance_of, open_fitting
from ewq.fit.run import Aim, make_plan
from ewq.fit.targets import GGUF
from ewq.instruments.gpu import ALL, gpus_of
from ewq.planning.analysis import Analysis, analyze
from ewq.planning.plan import BITSANDBYTES, QuantizationPlan, check_plan, read_plan
from ewq.planning.sizes import Footprint, footprint_of
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.sensitivity.calibration import SEQUENCES, Calibrating
from ewq.variants import LLAMA_CPP, Fitted

TINY_MODEL = "tiny-llama"


@dataclass(frozen=True)
class Subject:
    """A checkpoint with its name for people; the rest is made on first use."""

    label: str
    source: str
    """Hub id or local folder, as transformers takes it."""
    progress: Progress = NO_PROGRESS
    is_dummy: bool = False
    """Random weights: only speed and memory mean anything."""
    calibrating: Calibrating = Calibrating()  # noqa: RUF009 (frozen)
    plans: dict[str, QuantizationPlan | None] = field(
        default_factory=dict, init=False, compare=False
    )
    """Of the variants by name, made once."""
    _fittings: dict[str, Fitting] = field(default_factory=dict, init=False, compare=False)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its headers."""
        return open_checkpoint(self.source, self.progress)

    @property
    def fingerprint(self) -> str:
        """``sha256:...`` of the checkpoint."""
        return self.checkpoint.fingerprint

    @cached_property
    def analysis(self) -> Analysis:
        """Statistics of every weight; cached on disk by fingerprint."""
        return analyze(self.checkpoint, progress=self.progress)

    @cached_property
    def footprint(self) -> Footprint:
        """Its bytes and parameters, by its headers."""
        return footprint_of(self.checkpoint, find_layout(self.checkpoint))

    @cached_property
    def tokenizer(self) -> Any:
        """The one tokenizer all variants share."""
        if self.checkpoint.is_gguf:
            takes = "--ewq-model takes the Hugging Face folder, whose tokenizer all variants share"
            advice = "name the .gguf file in --ewq-variants"
            raise CheckpointError(f"{self.label}: {takes}; {advice}")
        return load_tokenizer(self.checkpoint.path, self.label)

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's files."""
        return tokenizer_digest(self.checkpoint.path)

    def plan(self, source: float | Path) -> QuantizationPlan:
        """The plan of the factor rule, or the one in a file; a PlanError if that is of no use."""
        if not isinstance(source, Path):
            return self.analysis.plan(factor=source)
        plan = read_plan(source)
        check_plan(plan, self.checkpoint)
        return plan

    def fitted_plan(self, recipe: Fitted, engine: str) -> QuantizationPlan:
        """The plan of least expected divergence of a size; a PlanError if it cannot be reached."""
        native = engine == LLAMA_CPP
        fitting = self._fitting(GGUF if native else BITSANDBYTES)
        return make_plan(fitting, Aim(recipe.size_bytes, like=recipe.like), file_bytes=native)

    @property
    def imatrix(self) -> Path:
        """The importance matrix of the calibration text."""
        sensitivity = self._fitting(GGUF).sensitivity
        return importance_of(sensitivity, converted(self.checkpoint, self.progress))

    def _fitting(self, target: str) -> Fitting:
        if self.is_dummy:
            raise BackendUnavailable(f"{self.label} has random weights: there is nothing to fit")
        if target not in self._fittings:
            fitting = open_fitting(self.checkpoint, target, self.calibrating, self.progress)
            self._fittings[target] = fitting
        return self._fittings[target]


def find_subject(
    model: str, tier: str, device: str, progress: Progress, calibration: str = ""
) -> Subject:
    """The model that ``--ewq-model`` names: the embedded one, or the tiny one in the smoke tier.

    ``dummy:CONFIG`` is a shape with random weights, drawn on the (first) device. A CheckpointError
    where it cannot be found or read, is incomplete, or quantized already.
    """
    first, is_dummy, smoke = next(iter(gpus_of(device)), device), False, tier == "smoke"
    label = source = model
    if model.startswith(PREFIX):
        config = Path(model.removeprefix(PREFIX))
        source = str(dummy_checkpoint(config, first, progress))
        label, is_dummy = f"{config.stem} shape (random weights)", True
    elif not model and smoke:
        label, source = f"fixture {TINY_MODEL}", str(fixture_path(TINY_MODEL))
    elif not model:
        label, source = EMBEDDED_MODEL, str(embedded_model(progress))
    # In the smoke tier only the way is tested.
    sequences = 8 if smoke else SEQUENCES
    how = Calibrating(calibration or None, sequences=sequences, device=first)
    subject = Subject(label, source, progress, is_dummy, how)
    # What is no reference ends the run before anything is loaded.
    with step(progress, f"finding {label}", 1, "model"):
        check_original(subject.checkpoint)
    return subject


@dataclass(frozen=True)
class Placement:
    """Device, compute dtype and batching: the same for every variant of a run."""

    device: str
    dtype: str
    decode: str = "auto"
    batch_tokens: int = 8192
    """Of one batch: its composition moves half-precision results."""


def find_placement(device: str, dtype: str, decode: str, checkpoint: Checkpoint) -> Placement:
    """Resolve ``auto``: the checkpoint's 16-bit type on a GPU; float32, faster there, on a CPU."""
    found = find_device(device)
    if dtype == "auto":
        dtype = "float32" if found == "cpu" else checkpoint.storage_dtype
    return Placement(found, dtype, decode)


def find_device(asked: str) -> str:
    """The device that ``asked`` means here; a BackendUnavailable where it is not there."""
    if asked == "cpu":
        return asked
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [f"cuda:{index}" for index in range(gpus)]
    if asked in names or (asked == ALL and len(names) > 1):
        return asked
    if asked == "auto" or (names and asked in ("cuda", ALL)):
        return [*names, "cpu"][0]
    raise BackendUnavailable(f"--ewq-device {asked}: torch sees no such device; use cpu")
