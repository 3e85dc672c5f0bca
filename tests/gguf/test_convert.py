from pathlib import Path

import pytest

from ewq.checkpoint.gguf_header import read_header
from ewq.errors import BackendUnavailable, CheckpointError, InputError
from ewq.gguf import convert
from ewq.gguf.convert import UNKNOWN_TOKENIZER_NOTE, convert_folder
from ewq.gguf.export import export_gguf
from ewq.gguf.recipe import make_recipe
from tests.gguf.models import require_converter
from tools.odd_folders import make_odd


def test_a_named_script_is_used(tmp_path, monkeypatch):
    script = tmp_path / "mine.py"
    script.touch()
    monkeypatch.setenv(convert.VARIABLE, str(script))
    assert convert.find_converter() == script


def test_a_named_script_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv(convert.VARIABLE, str(tmp_path / "absent.py"))
    with pytest.raises(InputError, match=r"convert_hf_to_gguf\.py"):
        convert.find_converter()


def test_offline_and_absent_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.delenv(convert.VARIABLE, raising=False)
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="EWQ_GGUF_CONVERTER") as caught:
        convert.find_converter()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.py"))


def test_a_model_the_converter_does_not_know_is_one_line(tmp_path):
    require_converter()
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"]}')
    with pytest.raises(CheckpointError, match="cannot convert") as caught:
        convert_folder(tmp_path, tmp_path / "out.gguf", "F16")
    assert "\n" not in str(caught.value)


def test_tokenizer_and_context_travel(tiny_file):
    metadata = read_header(tiny_file).metadata
    assert metadata["llama.context_length"] == 2048
    assert len(metadata["tokenizer.ggml.tokens"]) == 1024
    assert metadata["tokenizer.ggml.bos_token_id"] == 0


def test_the_converters_own_bar_becomes_progress(tmp_path):
    require_converter()
    told = []

    class Told:
        def start(self, label, total, unit):
            told.append((label, total, unit))

        def advance(self, amount):
            told.append(amount)

        def finish(self):
            told.append("finished")

    model = Path(__file__).parent.parent.parent / "fixtures" / "tiny-llama"
    notes = convert_folder(model, tmp_path / "out.gguf", "F16", progress=Told())
    assert notes == (UNKNOWN_TOKENIZER_NOTE,)
    assert told[0] == ("converting to GGUF", 100, "%")
    assert sum(told[1:-1]) == 100
    assert told[-1] == "finished"


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("tokenizer is a pointer", "tokenizer.json is a Git LFS pointer"),
        ("tokenizer cut short", "tokenizer.json is not JSON, or cut short"),
        ("tokenizer of an unknown kind", "transformers cannot read tokenizer.json"),
        ("no tokenizer", "the folder has no tokenizer files"),
        ("more tokens than rows", "token id 1023 is beyond the model's 600 tokens"),
        ("an empty tensor", "mlp.up_proj.weight has no values at all"),
    ],
)
def test_what_is_wrong_with_the_folder_is_said_instead_of_the_converters_words(
    tmp_path, odd, reason
):
    require_converter()
    folder, out = make_odd(odd, tmp_path), tmp_path / "out.gguf"
    with pytest.raises(InputError) as caught:
        export_gguf(folder, out, make_recipe("F16"))
    assert reason in str(caught.value)
    assert not out.exists()
