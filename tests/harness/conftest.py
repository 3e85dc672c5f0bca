"""A project of fakes to run the plugin on."""

import functools
import gc
import importlib

import cpuinfo
import pytest

from ewq.instruments.processor_wait import ProcessorWait
from tests.harness.fakes import REPOSITORY, write_project
from tests.harness.warm_pytest import WarmPytest

# Runs inside this process drop what they imported. NumPy and torch cannot be imported twice, what
# rich compares by class must not come from two imports, and the rest takes a second each time.
LASTING = ["rich.console", "rich.table", "scipy.stats", "hypothesis", "tokenizers"]
LASTING += ["transformers.modeling_utils", "transformers.models.auto.tokenization_auto"]
LASTING += ["transformers.tokenization_utils_tokenizers", "ewq.stats"]
LASTING += [f"ewq.gating.{name}" for name in ("gates", "compare")]
LASTING += [f"ewq.harness.{name}" for name in ("measuring", "session")]
LASTING += ["ewq.instruments.processor_wait"]
LASTING += [f"ewq.tasks.{task}" for task in ("mmlu", "mmlu_cloze", "perplexity", "divergence")]
LASTING += [f"ewq.tasks.{task}" for task in ("throughput", "memory", "samples", "divergence_at")]
for name in LASTING:
    importlib.import_module(name)


cpu_info = functools.cache(cpuinfo.get_cpu_info)
"""Asking the processor takes a process of its own."""


@pytest.fixture
def project(pytester, monkeypatch, tmp_path_factory):
    """A pytester folder with fake variants; caches are its own."""
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(cpuinfo, "get_cpu_info", cpu_info)
    # Each run in this process would set the same million objects aside again.
    gc.freeze()
    monkeypatch.setattr(gc, "unfreeze", lambda: None)
    # Nothing that a test expects may hang on what else the machine does.
    monkeypatch.setattr(ProcessorWait, "share", 0.0)
    write_project(pytester.path)
    return pytester


@pytest.fixture
def bench(project, monkeypatch):
    """Run the fake project's benchmarks: ``bench("-k", "fp16")``.

    In this process, in a new one (``subprocess=True``) or in one that is warm (``"forked"``).
    """

    def run(*arguments, **options):
        fixed = ["-p", "ewq.pytest_plugin", "benchmarks", "--ewq-tier", "smoke"]
        if not options.get("save"):
            fixed.append("--ewq-no-save")
        if options.get("subprocess") == "forked":
            monkeypatch.setattr(project, "popen", WarmPytest)
        runner = project.runpytest_subprocess if options.get("subprocess") else project.runpytest
        return runner(*fixed, "-p", "no:cacheprovider", *arguments)

    return run
