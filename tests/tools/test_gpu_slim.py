"""What is left out of packages for the GPU machine, and that the rest still installs."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu" / "slim.py"
METADATA = b"Metadata-Version: 2.1\nName: bitsandbytes\nVersion: 1\n"
WHEEL = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
LIBRARIES = ["libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so", "libbitsandbytes_cuda128.so"]


def slim(folder, *arguments):
    subprocess.run([sys.executable, SCRIPT, folder, *arguments], check=True)


def test_the_sdist_keeps_what_a_build_needs(tmp_path):
    root = tmp_path / "llama_cpp_python-1"
    names = ["pyproject.toml", "vendor/llama.cpp/src/models/llama.cpp", ".git/modules/pack"]
    names += ["vendor/llama.cpp/models/vocab.gguf", "vendor/llama.cpp/docs/ops/all.md"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    path = tmp_path / "llama_cpp_python-1.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        packed.add(root, root.name)

    slim(tmp_path)

    with tarfile.open(path) as packed:
        files = [member.name for member in packed if member.isfile()]
        kept = packed.extractfile(f"{root.name}/pyproject.toml").read()
    assert sorted(files) == sorted(f"{root.name}/{name}" for name in names[:2])
    assert kept == b"pyproject.toml"


def test_the_wheel_keeps_the_libraries_that_are_used_and_installs(tmp_path):
    path = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    files = {f"bitsandbytes/{name}": b"" for name in LIBRARIES} | {
        "bitsandbytes/__init__.py": b"",
        "bitsandbytes-1.dist-info/METADATA": METADATA,
        "bitsandbytes-1.dist-info/WHEEL": WHEEL,
    }
    record = "".join(f"{name},,\n" for name in [*files, "bitsandbytes-1.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**files, "bitsandbytes-1.dist-info/RECORD": record.encode()}.items():
            wheel.writestr(name, data)

    slim(tmp_path, "130")

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", tmp_path / "site", path], check=True, capture_output=True)
    installed = {file.name for file in (tmp_path / "site" / "bitsandbytes").glob("*.so")}
    assert installed == set(LIBRARIES[:2])
