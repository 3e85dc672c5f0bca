"""Leave out of the packages in a folder what the GPU machine has no use for.

``slim.py WHEELS [CUDA]``: models, documents and examples go from the sdist of llama-cpp-python;
with ``CUDA`` (130, say), all of bitsandbytes' libraries but the CPU's and this version's.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

NO_BUILD_NEEDS = re.compile(r"^[^/]+/(\.git|vendor/llama\.cpp/(models|docs|benches|media|tests))/")
LIBRARY = re.compile(r"libbitsandbytes_(\w+?)\.(so|dll|dylib)$")


def slim_sdist(path: Path, left_out: Callable[[str], bool]) -> None:
    """Write a ``.tar.gz`` again without some of its files."""
    small = path.with_suffix(".small")
    with tarfile.open(path) as source, tarfile.open(small, "w:gz") as target:
        for member in source:
            if not left_out(member.name):
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
    small.replace(path)


def slim_wheel(path: Path, left_out: Callable[[str], bool]) -> None:
    """Write a wheel again without some of its files, which its record then does not name."""
    small = path.with_suffix(".small")
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines(keepends=True)
                data = "".join(x for x in lines if not left_out(x.split(",")[0])).encode()
            if not left_out(item.filename):
                target.writestr(item, data)
    small.replace(path)


def other_cuda(version: str) -> Callable[[str], bool]:
    """Whether a file is bitsandbytes' library for something else."""

    def left_out(name: str) -> bool:
        found = LIBRARY.search(name)
        return bool(found) and found[1] not in ("cpu", f"cuda{version}")

    return left_out


def main(folder: Path, cuda: str = "") -> None:
    """Every package of which something can go."""
    for path in folder.glob("llama_cpp_python-*.tar.gz"):
        slim_sdist(path, lambda name: bool(NO_BUILD_NEEDS.search(name)))
    if cuda:
        for path in folder.glob("bitsandbytes-*.whl"):
            slim_wheel(path, other_cuda(cuda))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
