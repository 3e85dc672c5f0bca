from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig

from ewq.checkpoint.families import FAMILY_OF, TIED_BY_DEFAULT
from ewq.checkpoint.layout import EMBEDDINGS, HEADS, find_layout
from ewq.checkpoint.opening import open_checkpoint
from ewq.errors import CheckpointError
from ewq.planning.analysis import analyze
from ewq.planning.sizes import footprint_of
from ewq.variants import Precision
from tests.architectures import ARCHITECTURES, build, linear_weights


@pytest.fixture(scope="module", params=ARCHITECTURES)
def built(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A model of an architecture, and a folder with its checkpoint as one file and as shards."""
    model, folder = build(request.param), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "many", max_shard_size="40KB")
    return model, folder


@pytest.mark.parametrize("shards", ["one", "many"])
def test_recognises_what_transformers_calls_linear(built, shards: str):
    model, folder = built
    assert (folder / shards / "model.safetensors").exists() == (shards == "one")

    layout = find_layout(open_checkpoint(folder / shards))

    expected = linear_weights(model)
    assert set(layout.weights) == set(expected)
    assert {weight: layout.details[weight].numel for weight in expected} == {
        weight: tensor.numel() for weight, tensor in expected.items()
    }


def test_blocks_are_the_decoder_layers_in_order(built):
    model, folder = built

    blocks = find_layout(open_checkpoint(folder / "one")).blocks

    assert [block.index for block in blocks] == [0, 1]
    for block in blocks:
        assert isinstance(model.get_submodule(block.name), torch.nn.Module)
        assert all(weight.startswith(f"{block.name}.") for weight in block.weights)


def test_every_known_model_type_is_tested():
    tested = {getattr(transformers, of).model_type for of, _ in ARCHITECTURES.values()}

    assert tested == set(FAMILY_OF)


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    build(name, dtype).save_pretrained(folder)
    return folder / "model.safetensors"


def test_a_checkpoint_of_the_bare_model_gets_the_names_of_the_whole(tmp_path: Path):
    path = saved("gpt2", tmp_path)
    tensors = {name.removeprefix("transformer."): of for name, of in load_file(path).items()}
    save_file(tensors, path)

    weights = find_layout(open_checkpoint(tmp_path)).weights

    assert weights[0].startswith("transformer.h.0.")


def test_unknown_model_type_is_refused_by_name(tmp_path: Path):
    saved("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mamba9"}))

    with pytest.raises(CheckpointError, match=r"mamba9.*known: .*llama"):
        find_layout(open_checkpoint(tmp_path))


def test_a_matrix_that_no_rule_explains_is_refused(tmp_path: Path):
    path = saved("llama", tmp_path)
    extra = {"model.layers.0.self_attn.z_proj.weight": torch.zeros(4, 4)}
    save_file({**load_file(path), **extra}, path)

    with pytest.raises(CheckpointError, match=r"1 matrices.*z_proj"):
        find_layout(open_checkpoint(tmp_path))


def test_a_missing_block_is_refused(tmp_path: Path):
    path = saved("llama", tmp_path)
    kept = {name: of for name, of in load_file(path).items() if ".layers.0." not in name}
    save_file(kept, path)

    with pytest.raises(CheckpointError, match="no block 0"):
        find_layout(open_checkpoint(tmp_path))


def test_missing_last_blocks_are_refused(tmp_path: Path):
    path = saved("llama", tmp_path)
    kept = {name: of for name, of in load_file(path).items() if ".layers.1." not in name}
    save_file(kept, path)

    with pytest.raises(CheckpointError, match="has no block 1 of 2"):
        find_layout(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"num_hidden_layers": "two"}, "num_hidden_layers in its config.json is 'two'"),
        ({"text_config": [1]}, "text_config in its config.json is no object"),
    ],
    ids=["count", "text"],
)
def test_a_config_that_makes_no_sense_is_refused(entry: dict, message: str, tmp_path: Path):
    build("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **entry}))

    with pytest.raises(CheckpointError, match=message):
        find_layout(open_checkpoint(tmp_path))


def test_layers_beyond_those_of_the_config_are_not_part_of_the_model(tmp_path: Path):
    """DeepSeek-V3 ships a layer for multi-token prediction that is not loaded."""
    path = saved("llama", tmp_path)
    one = footprint_of(open_checkpoint(tmp_path), find_layout(open_checkpoint(tmp_path)))
    extra = {
        "model.layers.2.eh_proj.weight": torch.zeros(8, 8),
        "model.layers.2.mlp.up_proj.weight": torch.zeros(8, 8),
    }
    save_file({**load_file(path), **extra}, path)
    checkpoint = open_checkpoint(tmp_path)

    layout = find_layout(checkpoint)

    assert len(layout.blocks) == 2
    assert footprint_of(checkpoint, layout).numel == one.numel


def test_a_file_without_blocks_is_refused(tmp_path: Path):
    path = saved("llama", tmp_path)
    save_file({"lm_head.weight": torch.zeros(4, 4)}, path)

    with pytest.raises(CheckpointError, match="no decoder blocks"):
        find_layout(open_checkpoint(tmp_path))


def test_experts_already_stacked_in_the_file_are_one_weight(tmp_path: Path):
    path = saved("mixtral", tmp_path)
    stacked = {
        f"model.layers.{index}.mlp.experts.{part}": torch.zeros(4, 64, 32)
        for index in range(2)
        for part in ("gate_up_proj", "down_proj")
    }
    kept = {name: of for name, of in load_file(path).items() if ".experts." not in name}
    save_file({**kept, **stacked}, path)

    details = find_layout(open_checkpoint(tmp_path)).details

    weight = details["model.layers.1.mlp.experts.gate_up_proj"]
    assert (weight.expert, weight.numel, weight.sources) == (True, 4 * 64 * 32, (weight.name,))


def changed_config(folder: Path, **entries: object) -> None:
    """Entries of ``None`` are taken away."""
    config = {**json.loads((folder / "config.json").read_text()), **entries}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def loaded_bytes(folder: Path) -> int:
    """What transformers holds after loading, in 16 bits."""
    config = AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model = model_class.from_pretrained(folder, dtype=torch.bfloat16)
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("key", [True, False, None], ids=["tied", "untied", "no key"])
@pytest.mark.parametrize("head", ["equal", "other", "none"])
@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "gpt-neox", "gemma3-multimodal"])
def test_a_head_counts_where_transformers_holds_one(
    name: str, head: str, key: bool | None, tmp_path: Path
):
    """Tied by the config or by the architecture's default, stored or not, equal or not."""
    path = saved(name, tmp_path, torch.bfloat16)
    changed_config(tmp_path, tie_word_embeddings=key)
    model_type = json.loads((tmp_path / "config.json").read_text())["model_type"]
    tensors = load_file(path)
    embedding = next(of for name, of in tensors.items() if name.endswith(EMBEDDINGS))
    tensors = {name: of for name, of in tensors.items() if not name.endswith(HEADS)}
    stored = "embed_out.weight" if name == "gpt-neox" else "lm_head.weight"
    if head != "none":
        tensors[stored] = embedding + 1 if head == "other" else embedding.clone()
    save_file(tensors, path, metadata={"format": "pt"})

    if head == "none" and not (model_type in TIED_BY_DEFAULT if key is None else key):
        with pytest.raises(CheckpointError, match="stores no output head"):
            find_layout(open_checkpoint(tmp_path))
    else:
        raw = analyze(tmp_path, cache=False).uniform_plan(Precision.RAW)
        assert raw.size_bytes == loaded_bytes(tmp_path)


def test_defaults_of_tying_are_those_of_transformers():
    tied = {kind for kind in FAMILY_OF if CONFIG_MAPPING[kind]().tie_word_embeddings}

    assert tied == TIED_BY_DEFAULT


def test_a_folder_without_an_embedding_is_refused(tmp_path: Path):
    path = saved("llama", tmp_path)
    tensors = load_file(path)
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"stores no token embedding.*incomplete"):
        find_layout(open_checkpoint(tmp_path))


@pytest.mark.parametrize(("name", "part"), [("llama", "mlp.up_proj"), ("mixtral", "experts.3.w2")])
def test_a_block_that_lacks_a_tensor_of_the_others_is_named(name: str, part: str, tmp_path: Path):
    path = saved(name, tmp_path)
    kept = {
        key: of
        for key, of in load_file(path).items()
        if f".1.{part}" not in key.replace("block_sparse_moe.", "")
    }
    save_file(kept, path)

    with pytest.raises(CheckpointError, match=rf"incomplete: block 1 lacks .*{part}\.weight"):
        find_layout(open_checkpoint(tmp_path))
