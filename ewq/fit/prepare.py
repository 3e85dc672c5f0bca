"""From a model to a :class:`~ewq.fit.plans.Fitting`: sensitivity, target and costs, each cached."""

from dataclasses import replace
from pathlib import Path

from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.loading import load_tokenizer
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.errors import check_known
from ewq.files import cache_dir, content_key, read_cached, write_cached
from ewq.fit.costs import ROWS_DRAWN, measure_costs
from ewq.fit.plans import Fitting
from ewq.fit.targets import GGUF, INT8, NF4, Target, bitsandbytes_target, gguf_target
from ewq.model import check_vocabulary
from ewq.planning.plan import BITSANDBYTES
from ewq.progress import NO_PROGRESS, Progress
from ewq.sensitivity.calibration import (
    Calibrating,
    Calibration,
    calibration_texts,
    make_calibration,
    random_calibration,
)
from ewq.sensitivity.measure import Sensitivity, check_trained, measure_sensitivity

TARGETS = (GGUF, BITSANDBYTES)
COSTS_VERSION = 2
"""Raised whenever a cost changes its meaning."""


def calibrate(checkpoint: Checkpoint, how: Calibrating) -> Calibration:
    """The token sequences of a model, once it is certain that they can be run.

    An InputError of no such text or one too short, a CheckpointError of a model that is no original
    or whose tokenizer is unusable or another model's.
    """
    check_trained(checkpoint)
    config = checkpoint.text_config
    length = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(length, int):
        how = replace(how, tokens=min(how.tokens, length))
    if how.data_free:
        return random_calibration(config["vocab_size"], how)
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.model)
    made = make_calibration(calibration_texts(how.source), tokenizer, how)
    if isinstance(rows := config.get("vocab_size"), int):
        check_vocabulary(rows, *made.sequences)
    return made


def open_fitting(
    model: str | Path | Checkpoint,
    target: str,
    how: Calibrating,
    progress: Progress = NO_PROGRESS,
    *,
    calibration: Calibration | None = None,
    rows_drawn: int = ROWS_DRAWN,
) -> Fitting:
    """Measure and cost a model for ``gguf`` or ``bitsandbytes`` (or one of its formats).

    ``calibration`` are sequences instead of the text of ``how``. An EwqError of a model that cannot
    be loaded, measured or converted.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, progress)
    engine = BITSANDBYTES if target.startswith(NF4) else target
    check_known(engine, TARGETS, "target")
    calibration = calibration or calibrate(checkpoint, how)
    # What cannot be converted is better told before the long pass.
    base = converted(checkpoint, progress) if engine == GGUF else None
    sensitivity = measure_sensitivity(checkpoint, calibration, how, progress)
    if how.data_free:
        sensitivity = sensitivity.flattened()
    if base is None:
        made = bitsandbytes_target(checkpoint, sensitivity)
    else:
        made = gguf_target(checkpoint, base, sensitivity)
    costs = _costs(made, sensitivity, how, rows_drawn, progress)
    scorer = "higgs" if how.data_free else "fisher"
    return Fitting(checkpoint, find_layout(checkpoint), made, sensitivity, costs, scorer)


def converted(checkpoint: Checkpoint, progress: Progress = NO_PROGRESS) -> Path:
    """The model as an unquantized GGUF file, made once."""
    from ewq.gguf.cache import cached_gguf
    from ewq.gguf.export import base_type
    from ewq.gguf.recipe import TypeRecipe

    recipe = TypeRecipe(base_type(checkpoint))
    return cached_gguf(checkpoint.path, recipe, cache_dir("gguf"), progress=progress)


def _costs(
    target: Target,
    sensitivity: Sensitivity,
    how: Calibrating,
    rows_drawn: int,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    types = {tensor.name: list(tensor.types) for tensor in target.tensors}
    key = content_key(
        *(COSTS_VERSION, sensitivity.fingerprint, sensitivity.calibration, sensitivity.sequences),
        *(how.seed, how.device == "cpu", how.data_free, rows_drawn, target.name, types),
    )
    kept = read_cached("costs", key) if how.cache else None
    if isinstance(kept, dict):
        return kept
    costs = measure_costs(
        target.tensors, sensitivity, target.rounded, rows_drawn=rows_drawn, progress=progress
    )
    for tensor in target.tensors:
        if INT8 in tensor.types:
            costs[tensor.name][INT8] += sensitivity.input_rounding_cost(tensor.matrix.name)
    if how.cache:
        write_cached("costs", key, costs)
    return costs


def importance_of(sensitivity: Sensitivity, base: Path) -> Path:
    """The importance matrix of a converted file's tensors, kept by content."""
    key = content_key(sensitivity.fingerprint, sensitivity.calibration, base.name)
    path = cache_dir("imatrix", f"{key[:32]}.gguf")
    return path if path.is_file() else write_importance(sensitivity, base, path)


def write_importance(sensitivity: Sensitivity, base: Path, out: Path) -> Path:
    """The importance matrix of the tensors of ``base``, written to ``out`` (else an EwqError)."""
    from ewq.checkpoint.gguf_header import read_header
    from ewq.gguf.imatrix import write_imatrix
    from ewq.gguf.recipe import TensorNames

    names = TensorNames(read_header(base))
    matrices = {
        tensor: matrix
        for weight, matrix in sensitivity.matrices.items()
        if not matrix.is_lookup
        for tensor in names.of_weight(weight)
    }
    return write_imatrix(
        out,
        {name: matrix.importance() * matrix.tokens[:, None] for name, matrix in matrices.items()},
        {name: matrix.tokens for name, matrix in matrices.items()},
        source=sensitivity.calibration,
        sequences=sensitivity.sequences,
        sequence_tokens=sensitivity.tokens // sensitivity.sequences,
    )
