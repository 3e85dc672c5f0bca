"""``ewq doctor`` and ``ewq cache``: what is here, and what is kept."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from ewq import files
from ewq.cli.doctor import EXTRAS, REQUIRED
from ewq.errors import BackendUnavailable
from ewq.files import CACHES, cache_dir, caches_made
from ewq.storage import environment
from tests.test_gpu_gate import ROOT


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def keep(kind, nbytes):
    path = cache_dir(kind, "folder", "file")
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(nbytes))


def test_the_doctor_says_what_is_there_and_where(ewq):
    said = ewq("doctor")
    assert said.code == 0
    for heading in ("installed", "missing", "GPU", "data", "caches", "disk"):
        assert re.search(rf"^{heading}\b", said.out, re.MULTILINE)
    assert "torch 2" in said.out
    assert str(cache_dir()) in said.out
    assert json.loads(ewq("doctor", "--json").out).keys() >= {"installed", "GPU"}


@pytest.mark.parametrize(("name", "extra"), [("llama-cpp-python", "[gguf]"), ("torch", "")])
def test_what_is_missing_has_a_command(ewq, monkeypatch, name, extra):
    real = environment.package_version
    monkeypatch.setattr(environment, "package_version", lambda n: None if n == name else real(n))
    found = json.loads(ewq("doctor", "--json").out)
    assert any(f"{name}, for" in s and f"pip install 'ewq{extra}'" in s for s in found["missing"])
    assert f"{name} " not in found["installed"][1].replace("llama-cpp-python ", "", extra == "")


def test_a_converter_that_is_not_there_is_told_with_its_size(ewq):
    assert any(
        "python -m ewq.gguf.convert" in s
        for s in json.loads(ewq("doctor", "--json").out)["missing"]
    )


@pytest.mark.parametrize(
    ("cuda", "variable", "why"),
    [
        (None, None, "is built for CPUs"),
        ("13.0", None, "sees no GPU; is the driver there?"),
        ("13.0", "", "sees no GPU; CUDA_VISIBLE_DEVICES is ''"),
    ],
)
def test_why_there_is_no_gpu(ewq, monkeypatch, cuda, variable, why):
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert why in json.loads(ewq("doctor", "--json").out)["GPU"][0]


@pytest.mark.parametrize(
    ("llama", "said"),
    [(None, "usable by llama.cpp too"), ("no GPU support", "not for llama.cpp: no GPU support")],
)
def test_a_gpu_is_told_with_what_can_use_it(ewq, monkeypatch, llama, said):
    def check(device):
        if llama:
            raise BackendUnavailable(llama)

    card = {"gpu": "NVIDIA H100", "vram_bytes": 85_000_000_000, "driver": "570", "cuda": "13.0"}
    real = environment.describe
    monkeypatch.setattr(
        environment, "describe", lambda on: real("cpu") | (card if on != "cpu" else {})
    )
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("ewq.gguf.llama_native.check_device", check)
    [line] = json.loads(ewq("doctor", "--json").out)["GPU"]
    assert line == f"NVIDIA H100, 85.000 GB, driver 570, CUDA 13.0; {said}"


def test_every_package_named_is_one_that_the_project_depends_on():
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{name}>=' in text for name in (*REQUIRED, *EXTRAS))


def test_the_cache_is_listed_the_largest_first(ewq):
    keep("analyses", 1_000_000)
    keep("gguf", 3_000_000)
    lines = ewq("cache").out.splitlines()
    assert lines[0] == f"{cache_dir()}: 4.000 MB"
    assert [line.split()[:3] for line in lines[1:]] == [
        ["gguf", "3.000", "MB"],
        ["analyses", "1.000", "MB"],
    ]
    document = json.loads(ewq("cache", "--json").out)
    assert document["bytes"] == {"gguf": 3_000_000, "analyses": 1_000_000}


def test_cleaning_removes_the_kinds_named_and_nothing_else(ewq):
    for kind in ("analyses", "gguf", "imatrix"):
        keep(kind, 1_000_000)
    foreign = cache_dir() / "mine.txt"
    foreign.write_text("not ewq's")
    assert "removed 1.000 MB: gguf" in ewq("cache", "clean", "gguf").out
    assert {path.name for path in cache_dir().iterdir()} == {"analyses", "imatrix", "mine.txt"}
    assert json.loads(ewq("cache", "clean", "--json").out)["removed"].keys() == {
        "analyses",
        "imatrix",
    }
    assert [path.name for path in cache_dir().iterdir()] == ["mine.txt"]
    assert "nothing there" in ewq("cache", "clean").out


def test_a_linked_cache_loses_the_link_and_not_what_it_points_to(ewq, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    cache_dir().mkdir()
    cache_dir("models").symlink_to(tmp_path / "elsewhere")
    ewq("cache", "clean", "models")
    assert not cache_dir("models").exists()
    assert (tmp_path / "elsewhere" / "file").exists()


@pytest.mark.parametrize(
    "arguments", [("clean", "no-such"), ("list", "gguf"), ("clean", "../outside"), ("burn",)]
)
def test_what_cannot_be_cleaned_is_one_line(ewq, arguments):
    keep("gguf", 10)
    said = ewq("cache", *arguments)
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert cache_dir("gguf").exists()


def test_a_cache_is_told_of_when_it_is_first_made_and_large():
    assert caches_made([]) == ""
    keep("analyses", 10)
    assert caches_made([]) == ""
    keep("gguf", 20_000_000)
    assert caches_made(["analyses"]) == (
        f"kept 20 MB in {cache_dir()} (gguf): `ewq cache` lists it, `ewq cache clean` removes it"
    )
    assert caches_made(["analyses", "gguf"]) == ""


def test_a_command_says_so_on_stderr_once(ewq, monkeypatch):
    # The package has the command under the name of its module.
    doctor = sys.modules["ewq.cli.doctor"]
    monkeypatch.setattr(doctor, "_gpu", lambda: keep("gguf", 20_000_000) or "none")
    assert ewq("doctor", "--json").err == f"ewq: {caches_made([])}\n"
    monkeypatch.setattr(doctor, "_gpu", lambda: "none")
    assert ewq("doctor").err == ""


def test_every_kind_that_the_code_caches_is_known():
    sources = [path.read_text() for path in (Path(files.__file__).parent).rglob("*.py")]
    used = re.findall(r'(?:cache_dir|read_cached|write_cached)\("([\w-]+)"', "\n".join(sources))
    constants = re.findall(r'^CACHE = "([\w-]+)"', "\n".join(sources), re.MULTILINE)
    assert {*used, *constants} == set(CACHES)
