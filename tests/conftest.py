"""What every test of the package shares: one folder for all its processes, and no user's home."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from ewq.files import cache_dir
from ewq.instruments.processor_wait import wait_without_spinning
from tests.session import VARIABLE

# Tiny models gain nothing from threads, and threads that wait must not keep a core busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
wait_without_spinning()

INSTALLED = ("models", "converter")
"""What the installation leaves in the user's cache and no test may change."""


def pytest_configure(config):
    """Give all processes of this session one folder, with the caches that tests may fill."""
    if VARIABLE in os.environ:
        # A worker of xdist: the pytests that its tests run are none.
        os.environ.pop("PYTEST_XDIST_WORKER", None)
        return
    session = Path(tempfile.mkdtemp(prefix="ewq-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(session, ignore_errors=True))
    for name in ("cache", "home"):
        (session / name).mkdir()
    for name in INSTALLED:
        installed = cache_dir(name)
        installed.mkdir(parents=True, exist_ok=True)
        (session / "cache" / name).symlink_to(installed.absolute())
    os.environ.update(
        {
            VARIABLE: str(session),
            "EWQ_CACHE": str(session / "cache"),
            "HF_HOME": str(session / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "HOME": str(session / "home"),
        }
    )


def pytest_xdist_auto_num_workers(config):
    """``-n auto``: a worker for each core that this process may use, within 2 GB of memory each."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, psutil.virtual_memory().available // 2_000_000_000))


@pytest.fixture(scope="session", autouse=True)
def warm_converter():
    """Conversions to GGUF that this process asks for fork one child that is warm already."""
    from ewq.gguf import convert
    from tests.gguf.warm_converter import WarmConverter

    child = convert.convert_child
    script = cache_dir("converter", f"llama.cpp-of-{convert.PACKAGE}-{convert.VERSION}")
    convert.convert_child = warm = WarmConverter(child, script / convert.SCRIPT)
    yield
    convert.convert_child = child
    warm.close()
