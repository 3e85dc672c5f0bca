"""Opening checkpoints: what is read, and one clear line for each thing that is wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ewq.checkpoint.opening import open_checkpoint
from ewq.checkpoint.tensors import map_bytes
from ewq.errors import CheckpointError
from tests.architectures import build

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def write_model(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_read_as_safetensors_reads_them(dtype: torch.dtype, tmp_path: Path):
    tensor = (torch.randn(3, 5) * 4).to(dtype)
    checkpoint = open_checkpoint(write_model(tmp_path, {"a": torch.zeros(3), "b": tensor}))

    loaded = checkpoint.load("b")

    assert (loaded.dtype, loaded.shape) == (dtype, tensor.shape)
    assert torch.equal(loaded.view(torch.uint8), tensor.view(torch.uint8))
    info = checkpoint.tensors["b"]
    assert (info.shape, info.numel, info.nbytes) == ((3, 5), 15, 15 * dtype.itemsize)


def test_sharded_and_single_files_hold_the_same(tmp_path: Path):
    model = build("llama")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")

    assert (len(one.files), len(many.files) > 3) == (1, True)
    assert one.architecture == "LlamaForCausalLM"
    assert set(one.tensors) == set(many.tensors) == set(load_file(one.files[0]))
    assert all(torch.equal(one.load(name), many.load(name)) for name in one.tensors)
    assert one.fingerprint == many.fingerprint


def test_a_part_of_a_tensor_can_be_mapped_alone(tmp_path: Path):
    values = torch.arange(5000, dtype=torch.int32)
    checkpoint = open_checkpoint(write_model(tmp_path, {"a": torch.zeros(7), "b": values}))

    part = map_bytes(checkpoint.tensors["b"], first=4 * 1100, count=4 * 10)

    assert part.view(np.int32).tolist() == list(range(1100, 1110))


def test_writing_to_a_loaded_tensor_leaves_the_file_alone(tmp_path: Path):
    checkpoint = open_checkpoint(write_model(tmp_path, {"a": torch.zeros(4)}))

    checkpoint.load("a").fill_(7)

    assert torch.equal(checkpoint.load("a"), torch.zeros(4))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def lie_about_shape(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(16)
    (folder / "model.safetensors").write_bytes(data)


def header_of_nonsense(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"spam")


def header_without_entries(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 9) + b'{"a": 17}')


def header_of_a_list(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]")


def write_index(folder: Path, weight_map: object, **others: object) -> None:
    index = {"metadata": {}, "weight_map": weight_map, **others}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_index(folder, {"a": "model-00001-of-00002.safetensors"})


def index_of_a_foreign_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    write_index(folder, {"a": "part.safetensors", "zz": "part.safetensors"})


def index_without_metadata(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    write_index(folder, {"a": "part.safetensors"}, metadata=None)


def index_beside_a_single_file(folder: Path) -> None:
    save_file({"a": torch.ones(4)}, folder / "model-00001-of-00001.safetensors")
    write_index(folder, {"a": "model-00001-of-00001.safetensors"})


def shard_beside_a_single_file(folder: Path) -> None:
    save_file({"a": torch.ones(4)}, folder / "model-00001-of-00002.safetensors")


def pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (folder / "model.safetensors").write_text(text)


def pointer_for_a_config(folder: Path) -> None:
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def weights_chosen_by_the_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "best.safetensors"
    (folder / "config.json").write_text(json.dumps(config))


def index_without_a_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def index_outside_the_folder(folder: Path) -> None:
    write_index(folder, {"a": "../elsewhere.safetensors"})


def index_of_no_file(folder: Path) -> None:
    write_index(folder, {"a": ""})


def index_of_a_name_of_two_lines(folder: Path) -> None:
    write_index(folder, {"a\nb": None})


def index_that_names_too_little(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, folder / "part.safetensors")
    write_index(folder, {"a": "part.safetensors"})


def index_of_numbers(folder: Path) -> None:
    write_index(folder, {"a": 7})


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def architectures_no_list(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": {"a": 1}}')


DAMAGE = {
    truncate: r"model\.safetensors is truncated .*not fully covered\); download it again",
    cut_header: r"is truncated or not safetensors .*; download it again",
    empty: r"is truncated or not safetensors .*; download it again",
    lie_about_shape: r"not safetensors \(invalid shape, data type, or offset",
    header_of_nonsense: r"model\.safetensors is .*not safetensors \(invalid JSON in header",
    header_without_entries: r"not safetensors \(invalid JSON in header: invalid type: integer",
    header_of_a_list: r"not safetensors \(invalid JSON in header: invalid type: sequence",
    index_of_a_missing_shard: r"names model-00001-of-00002\.safetensors, which is missing",
    index_of_a_foreign_shard: r"only one of .*index\.json and its shards has zz \(1 such",
    index_without_metadata: r'has no metadata; add "metadata": \{\}',
    index_of_a_name_of_two_lines: r"places a b in None, which is outside the folder",
    index_of_no_file: r"places a in , which is outside the folder",
    index_that_names_too_little: r"only one of .* and its shards has b \(1 such tensors\)",
    index_of_numbers: r"places a in 7, which is outside the folder",
    index_beside_a_single_file: (
        r"two sets of weights: model\.safetensors does not belong with model-00001-of-00001"
    ),
    shard_beside_a_single_file: (
        r"two sets of weights: model-00001-of-00002\.safetensors does not belong with model\.saf"
    ),
    pointer: r"model\.safetensors is a Git LFS pointer; download the file itself",
    pointer_for_a_config: r"config\.json is a Git LFS pointer",
    adapter: r"is an adapter; merge it",
    weights_chosen_by_the_config: r"drop transformers_weights",
    index_without_a_map: r"has no weight_map",
    index_outside_the_folder: r"elsewhere\.safetensors.*outside",
    only_pickle: r"has neither model\.safetensors nor .* may run code: save_pretrained",
    no_weights: r"has neither model\.safetensors nor",
    no_config: r"has no config\.json",
    architectures_no_list: r"architectures in .*config\.json is not a list",
    broken_config: r"cannot read .*config\.json",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_said_in_one_line(damage, tmp_path: Path):
    folder = write_model(tmp_path, {"a": torch.zeros(4)})
    damage(folder)

    with pytest.raises(CheckpointError, match=DAMAGE[damage]) as caught:
        open_checkpoint(folder)

    assert "\n" not in str(caught.value)


def test_a_file_cut_after_opening_is_an_error(tmp_path: Path):
    checkpoint = open_checkpoint(write_model(tmp_path, {"a": torch.zeros(10_000)}))
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"a from .*model"):
        checkpoint.load("a")
    with pytest.raises(CheckpointError, match=r"a from .*model"):
        _ = checkpoint.fingerprint


def test_an_unknown_tensor_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no tensor 'b'"):
        open_checkpoint(write_model(tmp_path, {"a": torch.zeros(1)})).load("b")


@pytest.mark.parametrize("name", ["part.safetensors", "model.safetensors"])
def test_shards_may_have_any_name(name: str, tmp_path: Path):
    write_model(tmp_path, {"a": torch.ones(4)})
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    write_index(tmp_path, {"a": name})

    assert open_checkpoint(tmp_path).load("a").sum() == 4
