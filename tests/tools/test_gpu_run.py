"""The steps of ``tools/gpu/run.sh``, and how a call goes on after a cut; Python is a stand-in."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ewq.tasks.tiers import tier_sizes
from tests.make_runs import metric, record, stored_run

FOLDER = Path(__file__).parents[2] / "tools" / "gpu"
MEASUREMENTS = 3
RUNS = ["smoke", "shape", "shape-eager", "shape-gguf", "embedded"]
RUNS += ["agreement-gpu", "agreement-gpu-float32", "agreement-cpu"]
RUNS += ["embedded-fit", "shape-compile"]
STAND_IN = (
    f"#!{sys.executable} -SE\nMEASUREMENTS = {MEASUREMENTS}\n"
    + r"""
import json, os, signal, sys, time
words = sys.argv[1:]
def note(file, text):
    with open(os.environ["NOTES"] + "/" + file, "a") as stream:
        stream.write(text + "\n")
def option(name):
    return next(word.split("=", 1)[1] for word in words if word.startswith(name + "="))
def stop(*_):
    json.dump({"complete": False}, open(path, "w"))
    sys.exit(2)
note("calls", " ".join(words))
if "--run" in words:
    try:
        print("complete" if json.load(open(words[-1]))["complete"] else "failed")
    except (OSError, ValueError):
        print("missing")
elif words[:2] == ["-m", "pytest"]:
    path = option("--benchmark-json")
    name = os.path.basename(path).removesuffix(".json")
    signal.signal(signal.SIGINT, stop)
    open(path, "w").close()
    runs = option("--benchmark-storage").removeprefix("file://")
    journal, done = runs + "/journal.jsonl", []
    os.makedirs(runs, exist_ok=True)
    if "--ewq-resume" in words:
        if os.environ.get("OTHER_CODE"):
            sys.exit(4)
        done = open(journal).read().split()
    else:
        open(journal, "w").close()
    failing = os.environ.get("FAILING") == name
    for number in map(str, range(MEASUREMENTS - failing)):
        if number not in done:
            time.sleep(float(os.environ.get("STEP_S", "0")))
            note("measured", name + " " + number)
            with open(journal, "a") as stream:
                stream.write(number + "\n")
    json.dump({"complete": not failing}, open(path, "w"))
    os.remove(journal)
    sys.exit(1)
elif "--llama" in words:
    sys.exit(os.path.exists(os.environ["NOTES"] + "/unbuilt"))
elif words[:3] == ["-m", "pip", "wheel"]:
    time.sleep(0.5)
    note("measured", "wheel built")
elif words[0].endswith("ceilings.py"):
    json.dump({}, open(words[-1], "w"))
"""
)


class Machine:
    """A folder of wheels, a folder of results, and a Python that pretends."""

    def __init__(self, folder):
        self.folder, self.out, self.wheels = folder, folder / "out", folder / "wheels"
        self.wheels.mkdir()
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def start(self, *steps, **environment):
        (self.folder / "calls").write_text("")
        given = {"PYTHON": str(self.python), "NOTES": str(self.folder), "DEVICE": "cpu"}
        given["EWQ_CACHE"] = str(self.out / "work" / "cache")
        command = ["bash", FOLDER / "run.sh", self.wheels, self.out, *steps]
        return subprocess.Popen(
            command,
            env=os.environ | given | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def cut_off(self, process):
        """Kill everything at once; ``timeout`` has left the script's process group."""
        for each in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if os.getsid(each.pid) == process.pid:
                    each.kill()

    def run(self, *steps, **environment):
        process = self.start(*steps, **environment)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    @property
    def calls(self):
        return (self.folder / "calls").read_text().splitlines()

    @property
    def begun(self):
        """Runs that this call began, in order."""
        pytests = [call for call in self.calls if call.startswith("-m pytest")]
        return [
            call.split("--benchmark-json=")[1].split(".json")[0].split("/")[-1] for call in pytests
        ]

    @property
    def measured(self):
        path = self.folder / "measured"
        return Counter(path.read_text().splitlines() if path.exists() else ())

    def complete(self, name):
        path = self.out / f"{name}.json"
        return path.exists() and json.loads(path.read_text())["complete"]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_every_step_runs_once(machine):
    status, said = machine.run()

    assert status == 0, said
    assert said.endswith("finished\n")
    assert machine.begun == RUNS
    machine.run()
    assert machine.begun == []


@pytest.mark.parametrize("seed", [1, 2])
def test_calls_cut_at_random_moments_lose_nothing_and_call_nothing_done_that_is_not(machine, seed):
    rng, cuts = random.Random(seed), 4
    for _ in range(cuts):
        process = machine.start(STEP_S="0.05")
        time.sleep(rng.uniform(0.2, 3))
        machine.cut_off(process)
        said, _ = process.communicate()
        if "finished\n" in said.replace("not finished", ""):
            assert all(map(machine.complete, RUNS))
        for name in filter(machine.complete, RUNS):
            assert all(machine.measured[f"{name} {n}"] for n in range(MEASUREMENTS)), name

    status, said = machine.run()

    assert status == 0, said
    assert all(map(machine.complete, RUNS))
    expected = {f"{name} {n}" for name in RUNS for n in range(MEASUREMENTS)}
    assert set(machine.measured) == expected
    # Only what was under way when a call was cut is measured again.
    assert machine.measured.total() <= len(expected) + cuts


def test_a_run_of_which_something_failed_is_not_done_and_tried_again_after_the_rest(machine):
    status, said = machine.run(FAILING="shape")

    assert status == 1
    assert said.endswith("not finished: shape; call again to go on\n")
    assert machine.begun == RUNS
    machine.run("ceilings", "shape", "compile", FAILING="shape")
    assert machine.begun == ["shape"]
    status, _ = machine.run()
    assert status == 0
    assert machine.begun == ["shape"]


def test_a_run_that_was_interrupted_in_order_goes_on(machine):
    status, said = machine.run(
        "smoke", "shape", LIMIT_S="5", FINISH_S="0", LEAST_S="1", STEP_S="1.5"
    )

    assert status == 1
    assert said.endswith("shape; call again to go on\n")
    assert machine.measured.total() < 2 * MEASUREMENTS
    status, _ = machine.run("smoke", "shape")
    assert status == 0
    assert machine.measured.total() == 2 * MEASUREMENTS


def test_a_run_that_cannot_go_on_begins_anew(machine):
    process = machine.start("smoke", STEP_S="0.5")
    while not machine.measured:
        time.sleep(0.05)
    machine.cut_off(process)
    process.communicate()

    status, said = machine.run("smoke", OTHER_CODE="1")

    assert status == 0, said
    assert machine.begun == ["smoke", "smoke"]
    assert machine.measured["smoke 0"] == 2


def test_when_the_time_is_over_nothing_is_started(machine):
    status, said = machine.run("embedded", LIMIT_S="65")

    assert status == 1
    assert "not finished: embedded; call again to go on" in said
    assert machine.begun == []


def test_whatever_there_is_is_packed(machine):
    machine.run("smoke")

    with tarfile.open(machine.out / "results.tar.gz") as packed:
        names = set(packed.getnames())
    assert {"./smoke.json", "./smoke.log"} <= names
    assert not [name for name in names if name.startswith("./work")]


def test_two_calls_do_not_work_in_one_folder(machine):
    first = machine.start("smoke", STEP_S="4")
    while not machine.calls:
        time.sleep(0.05)
    status, said = machine.run("smoke")
    first.communicate()

    assert status == 1
    assert "an earlier call is still at work" in said


def test_cpu_and_gpu_are_compared_on_the_same_data(machine):
    """That comes with ewq, since there is no network, and in a tier of equal sizes on both."""
    machine.run("agreement", DEVICE="cuda")
    begun = [call.split() for call in machine.calls if call.startswith("-m pytest")]
    assert [words[words.index("--ewq-device") + 1] for words in begun] == ["cuda"] * 3
    assert begun[2][-2:] == ["--ewq-device", "cpu"]
    own = [[word for word in words if "=" not in word] for words in begun]
    assert own[1] == [*own[0], "--ewq-dtype", "float32"]
    assert own[2] == [*own[0], "--ewq-device", "cpu"]
    given = dict(zip(own[0], own[0][1:], strict=False))
    assert (given["--ewq-mmlu"], given["--ewq-texts"]) == ("fixtures/mmlu", "fixtures/texts")
    tier = given["--ewq-tier"]
    assert tier_sizes(tier, "cpu") == tier_sizes(tier, "cuda")


def test_what_an_earlier_call_left_half_done_is_removed(machine):
    leftover = machine.out / "work" / "cache" / "dummy" / ".qwen3-8b-1234"
    whole = leftover.with_name("qwen3-8b")
    for folder in (leftover, whole):
        folder.mkdir(parents=True)
    machine.run("ceilings")

    assert whole.exists()
    assert not leftover.exists()


@pytest.fixture
def disks(machine, tmp_path, monkeypatch):
    """What ``df`` says of the disk and of the memory, in GB; the memory is a folder here."""
    monkeypatch.setenv("SHM", str(tmp_path / "shm"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "df").write_text(
        f'#!/bin/sh\ncase "$*" in *{tmp_path / "shm"}*) echo $MEMORY ;; *) echo $DISK ;; esac\n'
    )
    (tmp_path / "bin" / "df").chmod(0o755)
    (tmp_path / "shm").mkdir()
    (machine.out / "work" / "cache" / "gguf").mkdir(parents=True)
    (machine.out / "work" / "cache" / "gguf" / "embedded.gguf").write_text("made before")
    return machine.out / "work" / "cache" / "gguf"


@pytest.mark.parametrize(
    ("disk", "memory", "moved"), [("50", "64", 1), ("50", "8", 0), ("90", "64", 0)]
)
def test_gguf_files_go_to_memory_where_the_disk_is_small(machine, disks, disk, memory, moved):
    status, said = machine.run("gguf", DEVICE="cuda", DISK=disk, MEMORY=memory)

    assert status == 0, said
    assert disks.is_symlink() == bool(moved)
    assert (disks / "embedded.gguf").read_text() == "made before"
    assert ("too little for all GGUF files" in said) == (memory == "8")


def test_a_restart_that_emptied_the_memory_does_no_harm(machine, disks, tmp_path):
    machine.run("gguf", DEVICE="cuda", DISK="50", MEMORY="64")
    shutil.rmtree(tmp_path / "shm" / "ewq-gguf")
    (machine.out / "shape-gguf.json").unlink()
    machine.run("gguf", DEVICE="cuda", DISK="50", MEMORY="64")
    assert disks.is_dir()


def test_the_reports_wait_for_a_build_that_is_under_way(machine):
    (machine.out / "work" / "llama").mkdir(parents=True)
    (machine.folder / "unbuilt").touch()
    status, said = machine.run("build", "eager", STEP_S="0.1")

    assert status == 0, said
    words = [call.split()[:3] for call in machine.calls]
    built = words.index(["-m", "pip", "wheel"])
    assert built < words.index(["-m", "pytest", "benchmarks/"])
    assert (machine.folder / "measured").read_text().splitlines()[0] == "wheel built"


def cut(wheel, *parts):
    for number, text in enumerate(parts):
        wheel.with_name(f"{wheel.name}.part-{number}-of-{len(parts)}").write_text(text)


def test_parts_of_a_wheel_are_joined(machine):
    wheel = machine.wheels / "large-1.0-py3-none-any.whl"
    cut(wheel, "one ", "two")
    status, said = machine.run("install")

    assert status == 0, said
    assert wheel.read_text() == "one two"
    assert any("pip install" in call and wheel.name in call for call in machine.calls)


def test_a_wheel_of_which_a_part_is_missing_is_not_joined(machine):
    wheel = machine.wheels / "large-1.0-py3-none-any.whl"
    cut(wheel, "one ", "two ", "three")
    wheel.with_name(f"{wheel.name}.part-1-of-3").unlink()
    status, said = machine.run("install")

    assert status == 1
    assert "large-1.0-py3-none-any.whl: 2 of 3 parts are here" in said
    assert not wheel.exists()


def test_an_unknown_step_is_named_with_the_known_ones(machine):
    status, said = machine.run("everything")

    assert status == 2
    assert "no step everything; install build ceilings" in said


def environment(*arguments):
    command = [sys.executable, FOLDER / "environment.py", "cpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_stored_run_says_how_far_it_got(tmp_path):
    records = [record("mmlu", "fp16", {"accuracy": metric(0.5)})]
    whole = stored_run(tmp_path, records)
    part = stored_run(tmp_path, records, number=2, session={"complete": False})

    assert environment("--run", whole) == "complete\n"
    assert environment("--run", part) == "failed\n"
    assert environment("--run", tmp_path / "none.json") == "missing\n"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("gpu_environment", FOLDER / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("whole", [True, False])
def test_a_toolkit_without_cublas_gets_that_of_pip(script, tmp_path, monkeypatch, capsys, whole):
    nvcc, pip = tmp_path / "cuda" / "bin" / "nvcc", tmp_path / "nvidia" / "cu13"
    for file in (nvcc, pip / "lib" / "libcublas.so.13", pip / "include" / "cublas_v2.h"):
        file.parent.mkdir(parents=True)
        file.touch()
    if whole:
        (tmp_path / "cuda" / "libcublas.so").touch()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(script.shutil, "which", lambda name: str(nvcc))

    assert script.toolkit("cuda", str(tmp_path / "links")) == 0

    said, link = capsys.readouterr().out, tmp_path / "links" / "libcublas.so"
    assert bool(said) is link.exists() is not whole
    if not whole:
        assert link.resolve().name == "libcublas.so.13"
        assert f"CMAKE_LIBRARY_PATH='{tmp_path / 'links'}'" in said
        assert f"-I{pip / 'include'}" in said


def test_a_process_without_torch_is_told_where_its_libraries_are():
    assert str(Path(torch.__file__).parent / "lib") in environment("--libraries").strip().split(":")
