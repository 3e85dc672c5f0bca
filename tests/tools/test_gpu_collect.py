"""``tools/gpu/collect.sh`` asks for every package once; pip is a stand-in."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu" / "collect.sh"


@pytest.fixture
def collect(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\n')
    (tmp_path / "wheels").mkdir()
    python.chmod(0o755)

    def run(*names, **environment):
        calls = tmp_path / "calls"
        calls.write_text("")
        given = {"PYTHON": str(python), "CALLS": str(calls)}
        command = ["bash", SCRIPT, tmp_path / "wheels", *names]
        subprocess.run(command, env=os.environ | given | environment, check=True)
        return calls.read_text().splitlines()

    return run


def asked(calls):
    """What pip is asked to download, by name."""
    given = [call.split("--dest")[1].split()[1:] for call in calls if "pip download" in call]
    plain = [" ".join(words).replace("--no-binary llama-cpp-python", "") for words in given]
    found = [word for each in plain for word in each.split() if not word.startswith("-")]
    return [(word.partition("==")[0].lower().replace("_", "-"), word) for word in found]


def test_no_package_is_fetched_in_two_versions(collect):
    versions = {}
    for name, requirement in asked(collect()):
        versions.setdefault(name, set()).add(requirement.lower().replace("_", "-"))
    assert {"packaging", "scikit-build-core", "numpy", "bitsandbytes"} <= versions.keys()
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_what_the_gpu_machine_has_is_not_fetched(collect):
    names = dict(asked(collect()))
    assert not {"torch", "mypy", "ruff"} & names.keys()
    # Without it pytest refuses the project's settings.
    assert "pytest-timeout" in names
    assert {"numpy", "pytest"} & dict(asked(collect("numpy"))).keys() == {"numpy"}


def test_wheels_are_those_of_the_gpu_machines_python(collect):
    calls = [call for call in collect(FOR_PYTHON="3.12") if "pip download" in call]
    of_another = [call for call in calls if "--python-version 3.12" in call]
    assert all("--only-binary :all:" in call for call in of_another)
    # Sources are for every Python.
    [sources] = [call for call in calls if call not in of_another]
    assert "--no-binary llama-cpp-python" in sources


def test_what_one_transfer_cannot_carry_is_cut_into_pieces(collect, tmp_path):
    wheels, content = tmp_path / "wheels", os.urandom(2_500_000)
    (wheels / "large.whl").write_bytes(content)
    (wheels / "small.whl").write_bytes(b"small")
    collect("numpy", PIECE_MB="1")
    pieces = [folder for folder in wheels.iterdir() if folder.is_dir()]
    assert all(sum(f.stat().st_size for f in each.iterdir()) <= 1_000_000 for each in pieces)
    files = {file.name: file.read_bytes() for each in pieces for file in each.iterdir()}
    parts = [files.pop(f"large.whl.part-{number}-of-3") for number in range(3)]
    assert b"".join(parts) == content
    assert files == {"small.whl": b"small"}
    assert [each.name for each in wheels.iterdir() if each.is_file()] == []
