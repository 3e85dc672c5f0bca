"""Child process: run llama.cpp's converter, whichever version, in its own import path.

The converter asks transformers to run code that comes with a model (``trust_remote_code=True``);
here transformers is kept from it, whoever asks. Called as ``python -P convert_child.py SCRIPT
ARGUMENTS...``; it must not import ewq, whose environment has another ``gguf``.
"""

import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

WITHOUT = "EWQ_CONVERT_WITHOUT"
UNKNOWN_TOKENIZER = "ewq: unknown pre-tokenizer"
"""Printed when the converter does not recognise the tokenizer's splitting rule."""
CODE_REFUSED = "it needs Python code that comes with the model, which ewq never runs"


def main(script: Path, arguments: list[str]) -> None:
    """Load the script as a module, allow unknown pre-tokenizers, and run its ``main``."""
    # One stream, in which the last line says why it ends.
    sys.stdout = sys.stderr
    forbid_code_of_models()
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *arguments]
    module = import_module(script.stem)
    base = import_module("conversion.base")
    allow_unknown_tokenizers(base.TextModel)
    base.ModelBase.load_hparams = staticmethod(with_older_keys(base.ModelBase.load_hparams))
    if without := os.environ.get(WITHOUT):
        leave_out(base.ModelBase, without.split(","))
    module.main()


def forbid_code_of_models() -> None:
    """Let transformers load what its own classes can, and refuse what only a model's code can.

    Must come before anything imports transformers' auto classes, which copy these names.
    """
    from transformers import dynamic_module_utils

    def refuse(*_: object, **__: object) -> None:
        raise ValueError(CODE_REFUSED)

    def resolve(
        trust_remote_code: object,
        model_name: object,
        has_local_code: bool,
        has_remote_code: bool,
        *_: object,
        **__: object,
    ) -> bool:
        if has_remote_code and not has_local_code:
            refuse()
        return False

    dynamic_module_utils.resolve_trust_remote_code = resolve
    for name in ("get_class_from_dynamic_module", "get_class_in_module", "get_cached_module_file"):
        setattr(dynamic_module_utils, name, refuse)


def with_older_keys(load: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The loader of a config, with keys the converter reads and transformers 5 names otherwise:
    those of GPT-2, Pythia, Falcon and MiniMax."""

    def complete(folder: Path, *options: Any, **named: Any) -> dict[str, Any]:
        config = load(folder, *options, **named)
        published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        share = (config.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0)
        older = {
            "n_ctx": config.get("n_positions"),
            "rotary_pct": share,
            "rotary_dim": int(share * (config.get("head_dim") or 0)),
        }
        kept = {name: published.get(name, value) for name, value in older.items() if value}
        one_head = config.get("multi_query") and not config.get("new_decoder_architecture", True)
        return {**kept, **config, **({"num_kv_heads": 1} if one_head else {})}

    return complete


def allow_unknown_tokenizers(model: Any) -> None:
    """Write a plain vocabulary where the converter would give up on the tokenizer.

    An unrecognised splitting rule is named ``default``; a missing SentencePiece file is replaced
    by ``tokenizer.json``. Measurements depend on neither.
    """
    name_rule: Callable[..., str] = model.get_vocab_base_pre
    prepare: Callable[..., None] = model.prepare_metadata

    def tolerant_name(self: Any, tokenizer: Any) -> str:
        try:
            return name_rule(self, tokenizer)
        except NotImplementedError:
            sys.stderr.write(UNKNOWN_TOKENIZER + "\n")
            return "default"

    def tolerant_prepare(self: Any, **options: Any) -> None:
        set_vocab = self.set_vocab

        def attempt() -> None:
            try:
                set_vocab()
            except (FileNotFoundError, ValueError) as error:
                if "tokenizer.model" not in str(error):
                    raise
                self._set_vocab_gpt2()

        self.set_vocab = attempt
        prepare(self, **options)

    model.get_vocab_base_pre = tolerant_name
    model.prepare_metadata = tolerant_prepare


def leave_out(model: Any, names: Collection[str]) -> None:
    """Skip stored tensors that no loaded model holds, such as a copy of the embedding."""
    every: Callable[..., Iterator[tuple[str, Any]]] = model.get_tensors

    def some(self: Any) -> Iterator[tuple[str, Any]]:
        return (pair for pair in every(self) if pair[0] not in names)

    model.get_tensors = some


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
