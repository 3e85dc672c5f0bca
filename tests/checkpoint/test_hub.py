from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ewq.checkpoint.hub import resolve
from ewq.errors import CheckpointError

WRONG = {
    "no/such/folder": "no such folder or file",
    "missing.gguf": "no such folder or file",
    "owner/missing.gguf": "no such folder or file",
    "justaname": "no such folder or file",
    "./missing": "no such folder or file",
    "a--b/c": "no such folder or file",
}


@pytest.mark.parametrize("model", WRONG)
def test_what_is_not_there_is_said(model: str):
    with pytest.raises(CheckpointError, match=WRONG[model]):
        resolve(model)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")

    with pytest.raises(CheckpointError, match=r"not \.gguf"):
        resolve(str(path))


def hub_cache(tmp_path: Path, *names: str) -> Path:
    """A cache as huggingface_hub lays it out, with one snapshot of owner/model."""
    repo = tmp_path / "hub" / "models--owner--model"
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abc")
    for name in names:
        (snapshot / name).write_text("{}")
    return snapshot


OFFLINE = """
import sys
from ewq.errors import CheckpointError
from ewq.checkpoint.hub import resolve
try:
    print(resolve(sys.argv[1]))
except CheckpointError as error:
    print("refused:", error)
"""


def offline(tmp_path: Path, model: str) -> str:
    """What ``resolve`` says in a process that is offline, with its own cache."""
    environment = {
        "PATH": "/usr/bin",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, model], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_cached_hub_model_needs_no_network(tmp_path: Path):
    snapshot = hub_cache(tmp_path, "config.json", "model.safetensors")

    assert offline(tmp_path, "owner/model") == str(snapshot)


@pytest.mark.parametrize("names", [(), ("config.json",)], ids=["nothing", "config only"])
def test_offline_without_the_weights_is_one_line(names: tuple[str, ...], tmp_path: Path):
    if names:
        hub_cache(tmp_path, *names)

    said = offline(tmp_path, "owner/model")

    assert said.startswith("refused: owner/model is not in the Hugging Face cache")
    assert "\n" not in said
