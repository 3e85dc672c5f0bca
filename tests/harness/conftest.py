"""A project of fakes to run the plugin on."""

import importlib

import pytest
import rich.console
import rich.table  # noqa: F401 (see below)
import scipy.stats  # noqa: F401 (see below)
import transformers.modeling_utils  # noqa: F401 (see below)

from tests.harness.fakes import REPOSITORY, write_project

# Runs inside this process drop what they imported. NumPy and torch cannot be imported twice, and
# what rich compares by class must not come from two imports.
for name in ("gates", "baseline", "compare"):
    importlib.import_module(f"ewq.gating.{name}")
for name in ("harness.measuring", "harness.session", "stats"):
    importlib.import_module(f"ewq.{name}")
for name in ("mmlu", "mmlu_cloze", "perplexity", "divergence", "throughput", "memory", "samples"):
    importlib.import_module(f"ewq.tasks.{name}")


@pytest.fixture
def project(pytester, monkeypatch, tmp_path_factory):
    """A pytester folder with fake variants; caches are its own."""
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    write_project(pytester.path)
    return pytester


@pytest.fixture
def bench(project):
    """Run the fake project's benchmarks: ``bench("-k", "fp16")``."""

    def run(*arguments, **options):
        fixed = ("-p", "ewq.pytest_plugin", "benchmarks", "--ewq-tier", "smoke")
        runner = project.runpytest_subprocess if options.get("subprocess") else project.runpytest
        return runner(*fixed, "-p", "no:cacheprovider", *arguments)

    return run
