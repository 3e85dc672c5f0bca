"""Model folders as people really have them: odd, damaged, half downloaded or misnamed.

Each starts from the same sound folder, a small Llama in bfloat16 made of a fixture's first blocks,
and is changed in one way. ``REFUSED`` says what ``ewq plan`` answers; a folder that is not named
there gets a plan. ``tools/robustness.py`` tries them all with every command.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FIXTURE = Path(__file__).parent.parent / "fixtures" / "tiny-llama"
BLOCKS = 2
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STRAY = "model-00001-of-9.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP_PROJ = "model.layers.1.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
Change = Callable[[Path], object]


def sound(folder: Path) -> None:
    """The folder that all others are made from."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(FIXTURE / name, folder)
    config = json.loads((FIXTURE / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": BLOCKS, "dtype": "bfloat16"}
    write_json(folder / "config.json", config)
    stored = load_file(FIXTURE / SINGLE)
    kept = {f"model.layers.{index}." for index in range(BLOCKS)}
    tensors = {
        name: tensor.bfloat16()
        for name, tensor in stored.items()
        if ".layers." not in name or name.startswith(tuple(kept))
    }
    write_tensors(folder, tensors)


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def change_json(path: Path, **entries: object) -> None:
    """Set keys of a JSON object; those of ``None`` are taken away."""
    data = {**json.loads(path.read_text(encoding="utf-8")), **entries}
    write_json(path, {key: value for key, value in data.items() if value is not None})


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], name: str = SINGLE) -> None:
    plain = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(plain, folder / name, metadata={"format": "pt"})


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    write_tensors(folder, tensors)


def config(**entries: object) -> Change:
    return lambda folder: change_json(folder / "config.json", **entries)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    return lambda folder: change_tensors(folder, change)


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def cast(dtype: torch.dtype, only: str = "") -> Change:
    def change(held: dict[str, torch.Tensor]) -> None:
        held.update({name: held[name].to(dtype) for name in held if only in name})

    return tensors(change)


def put(name: str, value: float) -> Change:
    return tensors(lambda held: held[name].view(-1).__setitem__(7, value))


def drop(part: str) -> Change:
    def change(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if part in name]:
            del held[name]

    return tensors(change)


def head(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return tensors(lambda held: held.__setitem__(HEAD, change(held[EMBEDDING])))


def sharded(folder: Path, names: str = "model-{:05d}-of-00002.safetensors") -> dict[str, str]:
    """The same tensors in two files and an index, instead of one file."""
    stored = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    weight_map = {}
    for number, keys in enumerate((list(stored)[::2], list(stored)[1::2]), start=1):
        file = names.format(number)
        write_tensors(folder, {key: stored[key] for key in keys}, file)
        weight_map |= dict.fromkeys(keys, file)
    write_json(folder / INDEX, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    return weight_map


def shards(**changes: object) -> Change:
    """Two shards with changes to their index."""
    return both(sharded, lambda folder: change_json(folder / INDEX, **changes))


def leftover_single(folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder / "kept")
    sharded(folder)
    (folder / "kept").rename(folder / SINGLE)


def index_of_a_lost_tensor(folder: Path) -> None:
    change_json(
        folder / INDEX,
        weight_map={**sharded(folder), "lost.weight": next(iter(sharded_files(folder)))},
    )


def sharded_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


def truncated(name: str, share: float = 0.6) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def rename(name: str, other: str) -> Change:
    return lambda folder: (folder / name).rename(folder / other)


def unknown_pre_tokenizer(folder: Path) -> None:
    change_json(folder / "tokenizer.json", pre_tokenizer={"type": "Telepathy"})


def code(*files: str, auto: Mapping[str, str], type_name: str | None = None) -> Change:
    """Python code beside the model, named in a config; it would leave a mark where it runs."""

    def change(folder: Path) -> None:
        mark = folder.parent / "code-ran"
        (folder / "modeling_odd.py").write_text(
            f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8"
        )
        for file in files:
            change_json(folder / file, auto_map=auto)
        if type_name:
            change_json(folder / "config.json", model_type=type_name)

    return change


def more_tokens_than_rows(folder: Path) -> None:
    """The tokenizer knows 1,024 tokens, the model 600: texts use ids beyond the embedding."""
    change_tensors(
        folder, lambda held: held.update({name: held[name][:600] for name in (EMBEDDING, HEAD)})
    )
    change_json(folder / "config.json", vocab_size=600)


def rows_of_36(folder: Path) -> None:
    """Rows that neither 256 nor 32 divides."""

    def narrow(held: dict[str, torch.Tensor]) -> None:
        for name in held:
            if "mlp.down" in name:
                held[name] = held[name][:, :36]
            elif "mlp." in name:
                held[name] = held[name][:36]

    change_tensors(folder, narrow)
    change_json(folder / "config.json", intermediate_size=36)


def adapter(folder: Path) -> None:
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "someone/base"})


def templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")


GEMMA = {
    "model_type": "gemma",
    "architectures": ["GemmaForCausalLM"],
    "tie_word_embeddings": None,
}
NO_CODE = {"AutoConfig": "modeling_odd.Config", "AutoModelForCausalLM": "modeling_odd.Model"}
TOKENIZER_CODE = {"AutoTokenizer": ["modeling_odd.Slow", "modeling_odd.Fast"]}
QUANTIZED = {"quant_method": "gptq", "bits": 4, "group_size": 128}

ODD: dict[str, Change] = {
    "sound": lambda folder: None,
    "two shards": sharded,
    "float32": both(cast(torch.float32), config(dtype="float32")),
    "float16": both(cast(torch.float16), config(dtype="float16")),
    "float32 norms": cast(torch.float32, only="norm"),
    "config says float32": config(dtype="float32"),
    "config names no dtype": config(dtype=None),
    "old name of dtype": config(dtype=None, torch_dtype="bfloat16"),
    "tied, head stored too": both(config(tie_word_embeddings=True), head(torch.clone)),
    "tied, another head stored": config(tie_word_embeddings=True),
    "tied, no head stored": both(config(tie_word_embeddings=True), drop("lm_head")),
    "not tied, no head stored": drop("lm_head"),
    "tied by default, head stored": both(config(**GEMMA), head(torch.clone)),
    "tied by default, another head": config(**GEMMA),
    "no embedding": drop("embed_tokens"),
    "one file beside shards": leftover_single,
    "a stray shard": lambda folder: shutil.copy(folder / SINGLE, folder / STRAY),
    "index without metadata": shards(metadata=None),
    "index without a map": shards(weight_map=None),
    "index with numbers": shards(weight_map={EMBEDDING: 1}),
    "index out of the folder": shards(weight_map={EMBEDDING: "../x.safetensors"}),
    "index of a lost tensor": index_of_a_lost_tensor,
    "shards of another name": lambda folder: sharded(folder, "part{}.safetensors"),
    "a shard is missing": both(sharded, remove("model-00002-of-00002.safetensors")),
    "weights chosen by the config": both(
        rename(SINGLE, "best.safetensors"), config(transformers_weights="best.safetensors")
    ),
    "weights cut short": truncated(SINGLE),
    "header cut short": truncated(SINGLE, 0.001),
    "weights are a pointer": text(SINGLE, POINTER),
    "config is a pointer": text("config.json", POINTER),
    "only pickles": rename(SINGLE, "pytorch_model.bin"),
    "no weights": remove(SINGLE),
    "an adapter": both(adapter, remove(SINGLE)),
    "no config": remove("config.json"),
    "config is a list": text("config.json", "[]"),
    "config cut short": truncated("config.json"),
    "config with a byte order mark": lambda folder: (folder / "config.json").write_bytes(
        b"\xef\xbb\xbf" + (folder / "config.json").read_bytes()
    ),
    "unknown model type": config(model_type="sphinx"),
    "model type is missing": config(model_type=None),
    "architectures are missing": config(architectures=None),
    "more blocks in the config": config(num_hidden_layers=3),
    "fewer blocks in the config": config(num_hidden_layers=1),
    "block count is a word": config(num_hidden_layers="two"),
    "another width in the config": config(hidden_size=128),
    "more heads than the width": config(num_attention_heads=7),
    "no heads": config(num_attention_heads=0),
    "another vocabulary in the config": config(vocab_size=2048),
    "a block lacks a tensor": drop(UP_PROJ),
    "NaN": put(UP_PROJ, float("nan")),
    "infinity in a weight": put(UP_PROJ, float("inf")),
    "infinity in the embedding": put(EMBEDDING, float("inf")),
    "beyond float16": put(UP_PROJ, 99_840.0),
    "an empty tensor": tensors(lambda held: held.__setitem__(UP_PROJ, torch.zeros(0, 64))),
    "integers": cast(torch.int8, only=UP_PROJ),
    "quantized by GPTQ": config(quantization_config=QUANTIZED),
    "quantization config is a word": config(quantization_config="int8"),
    "rows of 36 values": rows_of_36,
    "code of its own": code("config.json", auto=NO_CODE),
    "code of its own only": code("config.json", auto=NO_CODE, type_name="sphinx"),
    "tokenizer with code": code("tokenizer_config.json", auto=TOKENIZER_CODE),
    "tokenizer of an unknown class": lambda folder: change_json(
        folder / "tokenizer_config.json", tokenizer_class="SphinxTokenizer"
    ),
    "no tokenizer": both(remove("tokenizer.json"), remove("tokenizer_config.json")),
    "tokenizer is a pointer": text("tokenizer.json", POINTER),
    "tokenizer cut short": truncated("tokenizer.json"),
    "tokenizer of an unknown kind": unknown_pre_tokenizer,
    "more tokens than rows": more_tokens_than_rows,
    "generation config not to be saved": lambda folder: change_json(
        folder / "generation_config.json", do_sample=False, temperature=0.3
    ),
    "generation config cut short": truncated("generation_config.json"),
    "a folder of templates": templates,
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}
"""What is odd about the folder -> how a sound one becomes it."""

NAMES = {
    "blank and accent": "mödel ü 模型",
    "a long name": "m" * 247,
    "starts with a dash": "-model",
}
"""Sound folders of odd names."""

REFUSED = {
    "not tied, no head stored": "stores no output head",
    "no embedding": "stores no token embedding",
    "one file beside shards": "holds two sets of weights: model.safetensors",
    "a stray shard": f"holds two sets of weights: {STRAY}",
    "index without metadata": 'has no metadata; add "metadata"',
    "index without a map": "has no weight_map",
    "index with numbers": "in 1, which is outside the folder",
    "index out of the folder": "which is outside the folder",
    "index of a lost tensor": "its shards has lost.weight (1 such tensors)",
    "weights chosen by the config": "drop transformers_weights, name the file model.safetensors",
    "a shard is missing": "model-00002-of-00002.safetensors, which is missing; download it",
    "weights cut short": "model.safetensors is truncated",
    "header cut short": "model.safetensors is truncated or not safetensors",
    "weights are a pointer": "model.safetensors is a Git LFS pointer",
    "config is a pointer": "config.json is a Git LFS pointer",
    "only pickles": "has neither model.safetensors nor",
    "no weights": "has neither model.safetensors nor",
    "an adapter": "is an adapter; merge it into its model",
    "no config": "has no config.json",
    "config is a list": "config.json is not a JSON object",
    "config cut short": "config.json",
    "config with a byte order mark": "config.json",
    "unknown model type": "has model_type 'sphinx', whose blocks ewq does not know",
    "model type is missing": "has model_type '(none)'",
    "more blocks in the config": "has no block 2 of 3",
    "block count is a word": "num_hidden_layers in its config.json is 'two'",
    "another width in the config": "its config.json says 1024 tokens of width 128",
    "another vocabulary in the config": "its config.json says 2048 tokens of width 64",
    "a block lacks a tensor": "is incomplete: block 1 lacks mlp.up_proj.weight",
    "NaN": f"{UP_PROJ} of",
    "infinity in a weight": f"{UP_PROJ} of",
    "an empty tensor": "has no values at all",
    "integers": f"{UP_PROJ} is stored as I8, not as floating point",
    "code of its own only": "has model_type 'sphinx'",
    "empty folder": "has no config.json",
}
"""What ``ewq plan`` answers to the folders that it refuses."""


def make_odd(name: str, parent: Path) -> Path:
    """The folder that is odd in this way, inside ``parent``."""
    folder = parent / NAMES.get(name, "model")
    sound(folder)
    ODD.get(name, lambda path: None)(folder)
    return folder
