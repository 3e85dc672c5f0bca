"""Processes of pytest forked from one that has imported the heavy libraries already.

A run of the fake project then costs a second of the processor instead of six. Each run is a process
of its own all the same, which may be killed, crash or be interrupted.
"""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["accelerate", "hypothesis", "scipy.stats.mstats", "torch._dynamo", "torch._inductor.utils"]
HEAVY += ["transformers.modeling_utils", "ewq.gating.compare", "tests.harness.fakes"]
HEAVY += [f"ewq.harness.{name}" for name in ("measuring", "terminal")]
HEAVY += [f"ewq.tasks.{task}" for task in ("mmlu", "mmlu_cloze", "perplexity", "divergence")]
HEAVY += [f"ewq.tasks.{task}" for task in ("throughput", "memory", "samples")]
REWRITTEN = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""The warm process has imported what pytest would like to rewrite."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([*HEAVY, __name__])


class WarmPytest:
    """What ``subprocess.Popen([sys.executable, "-mpytest", ...])`` gives, as far as tests ask."""

    stdin = None

    def __init__(self, command, stdout, stderr, cwd=None, **_):
        python, module, *arguments = command
        assert (python, module) == (sys.executable, "-mpytest")
        streams = (stdout.name, stderr.name)
        asked = ([*arguments, *REWRITTEN], str(cwd or Path.cwd()), dict(os.environ), streams)
        self._process = context.Process(target=run, args=asked)
        self._process.start()

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("pytest", timeout)
        return self._process.exitcode

    def kill(self):
        self._process.kill()


def run(arguments, folder, environment, streams):
    """In the fork: what ``python -m pytest`` does in ``folder``."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, folder)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.exit(int(pytest.main(arguments)))
