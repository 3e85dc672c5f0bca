"""Which tensors of a GGUF file hold a weight that transformers calls by another name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ewq.checkpoint.gguf_header import GgufHeader
from ewq.errors import BackendUnavailable, PlanError

NAMED = 3
"""How many offending names an error shows."""
NESTED = ("language_model.",)
"""Parts that vision models put in front of their text model, and GGUF does not have."""
STACKED = {"gate_up_proj": ("gate_proj", "up_proj")}
"""Parameters that transformers stacks and GGUF keeps apart (experts)."""


def tensors_of_weights(
    header: GgufHeader, weights: Collection[str]
) -> Mapping[str, tuple[str, ...]]:
    """GGUF tensor names for every weight of a plan, by gguf-py's own table.

    Args:
        header: of the file the plan is applied to.
        weights: names as in transformers' state dict, or the file's own names.

    Raises:
        PlanError: a weight that the file has no tensor for; the first few are named.
    """
    lookup = _Lookup(header)
    found = {weight: lookup.tensors(weight) for weight in weights}
    missing = [weight for weight, tensors in found.items() if not tensors]
    if missing:
        raise PlanError(
            f"{header.path.name} ({header.architecture}) has no tensor for {len(missing)} weights "
            f"of the plan: {', '.join(missing[:NAMED])}"
        )
    return found


class _Lookup:
    def __init__(self, header: GgufHeader) -> None:
        try:
            import gguf
        except ImportError as error:
            raise BackendUnavailable("exporting GGUF needs: pip install 'ewq[gguf]'") from error
        self._present = {tensor.name for tensor in header.tensors}
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        if header.architecture not in kinds:
            raise PlanError(f"gguf-py knows no architecture {header.architecture!r}; update gguf")
        blocks = header.metadata.get(f"{header.architecture}.block_count")
        if not isinstance(blocks, int):
            raise PlanError(f"{header.path.name} does not say how many blocks it has")
        self._map = gguf.get_tensor_name_map(kinds[header.architecture], blocks)

    def tensors(self, weight: str) -> tuple[str, ...]:
        """The file's tensors for one weight; empty where there is none."""
        if weight in self._present:
            return (weight,)
        for part in NESTED:
            weight = weight.replace(part, "")
        return self._single(weight) or self._unstacked(weight)

    def _single(self, weight: str) -> tuple[str, ...]:
        name = self._map.get_name(weight, try_suffixes=(".weight", ".bias"))
        # Expert stacks carry no suffix in transformers and ".weight" in GGUF.
        return next(((n,) for n in (name, f"{name}.weight") if n in self._present), ())

    def _unstacked(self, weight: str) -> tuple[str, ...]:
        for stacked, parts in STACKED.items():
            if stacked in weight:
                names = [self._single(weight.replace(stacked, part)) for part in parts]
                return tuple(name for found in names for name in found) if all(names) else ()
        return ()
