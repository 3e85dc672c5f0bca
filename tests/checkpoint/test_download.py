"""Downloading from a hub on this machine: what arrives, what is told, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.fake_hub import COMMIT, fake_hub

FILES = {"config.json": b"{}", "model.safetensors": bytes(3_000_000), "pytorch_model.bin": b"no"}
CODE = """
import json, sys
from ewq.checkpoint.hub import resolve
from ewq.errors import CheckpointError

class Told:
    def __init__(self):
        self.steps = []
    def start(self, label, total, unit):
        self.steps.append([label, total, unit])
    def advance(self, amount):
        pass
    def finish(self):
        self.steps.append("finished")

told = Told()
try:
    found = str(resolve(sys.argv[1], told))
except CheckpointError as error:
    found = f"refused: {error}"
print(json.dumps({"found": found, "steps": told.steps}))
"""


def resolved(hub: str, home: Path, model: str) -> dict:
    """What ``resolve`` finds and tells in a process whose hub and cache these are."""
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, model], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Fetching" not in done.stderr, "a bar in a pipe"
    return json.loads(done.stdout)


def test_what_is_missing_is_downloaded_once_and_told(tmp_path: Path):
    with fake_hub(FILES) as hub:
        first = resolved(hub, tmp_path, "owner/model")
        again = resolved(hub, tmp_path, "owner/model")

    folder = Path(first["found"])
    assert folder.name == COMMIT
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert first["steps"] == [["downloading owner/model", 1, "model"], "finished"]
    assert again == {"found": str(folder), "steps": []}


def test_an_interrupted_download_asks_for_the_rest_only(tmp_path: Path):
    with fake_hub(FILES) as hub:
        folder = Path(resolved(hub, tmp_path, "owner/model")["found"])
        (folder / "config.json").resolve().unlink()
        (folder / "config.json").unlink()
        rest = resolved(hub, tmp_path, "owner/model")

    assert rest["found"] == str(folder)
    assert (folder / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("owner/other", "the hub has no model owner/other"),
        ("owner/model", "owner/model has no safetensors on the hub"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(model: str, reason: str, tmp_path: Path):
    with fake_hub({"config.json": b"{}", "pytorch_model.bin": b"no"}) as hub:
        said = resolved(hub, tmp_path, model)["found"]

    assert said.startswith(f"refused: {reason}")
    assert "\n" not in said


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path):
    with fake_hub(FILES) as hub:
        pass
    said = resolved(hub, tmp_path, "owner/model")["found"]

    assert said.startswith("refused: owner/model is not in the Hugging Face cache")
    assert "\n" not in said


def test_a_connection_that_breaks_is_one_line_and_whole_files_stay(tmp_path: Path):
    files = {"config.json": b"{}", "model.safetensors": bytes(200_000)}
    with fake_hub(files, cut="model.safetensors") as hub:
        said = resolved(hub, tmp_path, "owner/model")["found"]
    with fake_hub(files) as hub:
        again = resolved(hub, tmp_path, "owner/model")

    assert said.startswith("refused: cannot get all of owner/model (")
    assert "\n" not in said
    assert (Path(again["found"]) / "model.safetensors").read_bytes() == files["model.safetensors"]
