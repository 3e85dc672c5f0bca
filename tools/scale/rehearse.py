"""Do runs on Ray survive dead workers, drivers and nodes, and are cards given out alone?

    python tools/scale/rehearse.py [--kills 20] [--json FILE] [kills] [node] [cards]

`kills` runs the smoke tier's quality tasks with two workers and sends SIGKILL at random moments, to
a worker or to the driver, which is resumed. `node` takes a node from a cluster of three in the
middle of a run of fake models. `cards` has a cluster of fake cards.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "gating")]

from runs import CLOCKED, finished  # noqa: E402

from ewq.storage.journal import JOURNAL  # noqa: E402
from tests.harness.fakes import write_project  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "workers.md"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
QUALITY = ("-k", "not throughput and not memory")
CARDS = r"""
import json, os
from pathlib import Path
import ray
from ewq.harness import fleet
from tests.harness.fakes import load_fake

SIZES = {"fp16": 1.3e9}
fleet.gpus_of = lambda device: ["cuda:0"]
fleet.free_memory = lambda device: (1_000_000_000, 1_000_000_000)
fleet.weights_bytes = lambda variant, *rest: int(SIZES.get(variant.name, 2e8))

def load(variant, subject, placement):
    own, log = sorted(ray.get_gpu_ids()), Path("cards.txt")
    before = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    others = [
        name
        for name, cards, pid in before
        if {*own} & {*cards} and pid != os.getpid() and Path(f"/proc/{pid}").exists()
    ]
    with log.open("a") as file:
        file.write(json.dumps([variant.name, own, os.getpid()]) + "\n")
    assert not others, f"{variant.name} shares a card with {others}"
    return load_fake(variant, subject, placement)
"""


def run(folder, storage, *arguments, benchmarks="benchmarks/", environment=ENVIRONMENT):
    """A process of pytest in ``folder``, started."""
    command = [sys.executable, "-m", "pytest", benchmarks, "--ewq-tier", "smoke", "-q"]
    command += [f"--benchmark-storage={storage}", "--benchmark-autosave", *arguments]
    command += ["-W", "default::pytest_benchmark.logger.PytestBenchmarkWarning"]
    return subprocess.Popen(
        [*command, "-p", "ewq.pytest_plugin", "-p", "no:cacheprovider"],
        cwd=folder, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def records(storage):
    """``variant/task`` -> record of the newest stored run, where clocks do not count."""
    document = json.loads(sorted(Path(storage).glob("*/*.json"))[-1].read_text())
    found = [each["extra_info"]["ewq"] for each in document["benchmarks"]]
    return {
        f"{each['variant']}/{each['task']}": None if each["task"] in CLOCKED else each
        for each in found
    }


def kill_worker(driver):
    """Of the driver's Ray; whether one was there."""
    with suppress(psutil.Error):
        below = psutil.Process(driver.pid).children(recursive=True)
        workers = [each for each in below if "ray::Worker" in " ".join(each.cmdline())]
        if workers:
            random.choice(workers).send_signal(signal.SIGKILL)
            return True
    return False


def kills(folder, count, variants, fakes):
    """Rows of what came of each kill."""
    select, start = ("--ewq-variants", variants, *QUALITY), partial(run, ROOT)
    if fakes:
        start = partial(run, fake_project(folder / "project"), environment=of_fakes(folder))
    alone = start(folder / "alone", *select)
    output, _ = alone.communicate()
    if alone.returncode:
        sys.exit(output)
    expected, begun_s = records(folder / "alone"), time.monotonic()
    select += ("--ewq-workers", "2")
    whole = start(folder / "whole", *select)
    whole.communicate()
    duration_s, rows = time.monotonic() - begun_s, []
    while len(rows) < count:
        storage = folder / f"killed-{len(rows)}-{time.time():.0f}"
        victim, moment_s = random.choice(["worker", "driver"]), random.uniform(0, duration_s)
        process, begun_s = start(storage, *select), time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=moment_s)
            continue
        if victim == "worker":
            while process.poll() is None and not (there := kill_worker(process)):
                time.sleep(0.2)
            moment_s = time.monotonic() - begun_s
            output, _ = process.communicate()
            if not there:
                continue
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kept = (storage / JOURNAL).is_file()
            process = start(storage, *select, *(["--ewq-resume"] if kept else []))
            output, _ = process.communicate()
        good = process.returncode == 0 and records(storage) == expected
        once = good and finished(storage) == dict.fromkeys(expected, 1)
        rows.append((victim, f"{moment_s:.1f}", process.returncode, good, once))
        print(*rows[-1], flush=True)  # noqa: T201
        if not once:
            print(output[-3000:], flush=True)  # noqa: T201
    return rows, duration_s


def fake_project(folder):
    """A project of fake models."""
    folder.mkdir()
    write_project(folder, **{"*": {"step_s": 0.05}, "ewq-0.5": {"noise": 0.3, "step_s": 0.05}})
    return folder


def of_fakes(folder):
    """Variables of its processes."""
    path = f"{ROOT}{os.pathsep}{folder}"
    return ENVIRONMENT | {"PYTHONPATH": path, "EWQ_CACHE": str(folder / "cache")}


def fake_run(folder, cluster, during, *arguments, conftest=""):
    """Output of a run of fakes on a cluster; ``during`` is called with the process."""
    fake_project(folder)
    if conftest:
        (folder / "cards.py").write_text(CARDS)
        text = (
            (folder / "conftest.py")
            .read_text()
            .replace(
                "from tests.harness.fakes import FakeSubject, load_fake",
                "from tests.harness.fakes import FakeSubject\nfrom cards import load as load_fake",
            )
        )
        (folder / "conftest.py").write_text(text)
    address = {} if cluster is None else {"RAY_ADDRESS": cluster.address}
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "EWQ_CACHE": str(folder / "cache")}
    process = run(folder, folder / "storage", *arguments, environment=ENVIRONMENT | address | path)
    during(process)
    output, _ = process.communicate()
    return process.returncode, output


VARIANTS = ("--ewq-variants", "fp16,ewq-0.5,ewq-0.65,ewq-0.8,ewq-1.0")


def node(folder):
    """Rows of a run whose cluster loses a node, beside one without workers."""
    from ray.cluster_utils import Cluster

    code, output = fake_run(folder / "alone", None, lambda process: None, *VARIANTS)
    if code:
        sys.exit(output)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    journal = folder / "cluster" / "storage" / JOURNAL

    def lose(process):
        while process.poll() is None and measured(journal) < 4:
            time.sleep(0.2)
        cluster.remove_node(nodes[0], allow_graceful=False)

    try:
        code, output = fake_run(
            folder / "cluster", cluster, lose, *VARIANTS, "--ewq-workers", "auto"
        )
    finally:
        cluster.shutdown()
    alone = records(folder / "alone" / "storage")
    same = code == 0 and records(folder / "cluster" / "storage") == alone
    once = same and finished(folder / "cluster" / "storage") == dict.fromkeys(alone, 1)
    if not once:
        print(output[-4000:])  # noqa: T201
    return [("node of three", "after 4 measurements", code, same, once)]


def measured(journal):
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as at,
    ):
        return at.execute("SELECT count(*) FROM events WHERE kind = 'finished'").fetchone()[0]
    return 0


def cards(folder):
    """What each variant was loaded on; the run fails where a card ever has two."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    cluster.add_node(num_cpus=4, num_gpus=3)
    cluster.wait_for_nodes()
    try:
        code, output = fake_run(
            folder / "cards", cluster, lambda process: None, *VARIANTS, *QUALITY,
            "--ewq-workers", "auto", conftest="cards",
        )  # fmt: skip
    finally:
        cluster.shutdown()
    if code:
        sys.exit(output)
    used = {}
    for line in (folder / "cards" / "cards.txt").read_text().splitlines():
        name, given, _ = json.loads(line)
        used.setdefault(name, []).append(given)
    return used


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["kills", "node", "cards"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--variants", default="fp16,ewq-0.65,bnb-nf4")
    parser.add_argument("--fakes", action="store_true", help="kill runs of fake models")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", type=Path, default=Path("workers.json"))
    options = parser.parse_args()
    random.seed(options.seed)
    seen = {}
    with tempfile.TemporaryDirectory() as scratch:
        if "kills" in options.what:
            rows, duration_s = kills(Path(scratch), options.kills, options.variants, options.fakes)
            seen["kills"] = {"rows": rows, "duration_s": duration_s}
        if "node" in options.what:
            seen["node"] = node(Path(scratch))
        if "cards" in options.what:
            seen["cards"] = cards(Path(scratch))
    options.json.write_text(json.dumps(seen, indent=1))
    print(json.dumps(seen))  # noqa: T201


if __name__ == "__main__":
    main()
