import subprocess
import sys
from pathlib import Path

import pytest

from ewq.storage import environment
from tests.make_runs import GPU

CPU = {"device": "cpu", "cpu": "EPYC", "cores": 2, "torch": "2.13.0", "driver": None}

COMPARABLE = {
    "the same": (GPU, GPU, []),
    "another driver is no obstacle": (GPU, GPU | {"driver": "590"}, []),
    "another index of the same GPU": (GPU, GPU | {"device": "cuda:1"}, []),
    "another host around the same GPU": (GPU, GPU | {"cpu": "EPYC", "cores": 4}, []),
    "VRAM as another driver counts it": (GPU, GPU | {"vram_bytes": 84_500_000_000}, []),
    "another GPU": (GPU, GPU | {"gpu": "NVIDIA L4"}, ["another gpu: NVIDIA H100 80GB HBM3 and"]),
    "a slice of the same GPU": (GPU, GPU | {"vram_bytes": 10**10}, ["another amount of VRAM"]),
    "GPU and CPU": (GPU, CPU, ["measured on cuda and on cpu"]),
    "another CPU": (CPU, CPU | {"cpu": "Xeon"}, ["another cpu: EPYC and Xeon"]),
    "fewer cores": (CPU, CPU | {"cores": 1}, ["another cores: 2 and 1"]),
    "an environment that was not stored": (CPU, {}, ["measured on cpu and on unknown device"]),
}


@pytest.mark.parametrize(("a", "b", "expected"), COMPARABLE.values(), ids=COMPARABLE.keys())
def test_only_the_hardware_that_worked_decides_comparability(a, b, expected):
    reasons = environment.comparable(a, b)

    assert len(reasons) == len(expected)
    assert all(reason.startswith(start) for reason, start in zip(reasons, expected, strict=True))


def test_driver_and_library_versions_that_differ_are_listed():
    changed = GPU | {"driver": "590.2", "torch": "2.14.0"}

    assert environment.differences(GPU, changed) == [
        "driver: 580.1 -> 590.2",
        "torch: 2.13.0 -> 2.14.0",
    ]
    assert environment.differences(GPU, GPU) == []


def test_a_cpu_environment_names_everything_and_has_no_gpu():
    found = environment.describe("cpu")

    assert found["gpu"] is None
    assert found["driver"] is None
    assert found["cpu"]
    assert found["cores"] >= 1
    assert set(environment.LIBRARIES) <= set(found)
    assert found["ewq_code"].startswith("sha256:")


def test_an_absent_library_is_none(monkeypatch):
    monkeypatch.setattr(environment, "LIBRARIES", ("no-such-library",))

    assert environment.describe("cpu")["no-such-library"] is None


def test_describing_a_cpu_never_imports_torch_or_numpy():
    script = (
        "import sys; from ewq.storage.environment import describe; describe('cpu'); "
        "sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_code_version_follows_the_sources(tmp_path, monkeypatch):
    source = tmp_path / "module.py"
    source.write_text("a = 1")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    before = environment.code_version()
    source.write_text("a = 2")

    assert environment.code_version() != before


def test_the_code_version_covers_every_source_file(monkeypatch):
    import ewq

    read = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or original(path))
    environment.code_version()
    assert set(read) == set(Path(ewq.__file__).parent.rglob("*.py"))
