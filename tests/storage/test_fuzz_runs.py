"""Stored runs with something changed in them: a right result or one line, never a traceback."""

import copy
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from ewq.errors import EwqError
from ewq.gating.baseline import NEWEST, Wanted, find_baseline
from ewq.gating.compare import compare_runs
from ewq.measurement import Items
from ewq.report.comparison import FORMATS as COMPARISON_FORMATS
from ewq.report.formats import FORMATS
from ewq.report.page import make_page
from ewq.storage.runs import read_run
from tests.make_runs import metric, mmlu, record, stored_run

EXAMPLES = int(os.environ.get("EWQ_FUZZ_EXAMPLES", "25"))
GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "run_schema1.json"
VALUES = [
    *(None, True, False, -3, 0, 1, 10**400, 1e308, -1.5, "", "fp16", "ewq-0.65", "cpu", "\x00"),
    *("é" * 99, "nan", "{x}", [], [[]], [1, "a"], {}, {"value": 1}, {"": None}),
]


def whole_run(folder):
    windows = Items(
        {
            "domain": ["law", "code"],
            "nll": [1.5, 2.5],
            "tokens": [9, 8],
            "bytes": [30, 31],
            "document": ["a", "b"],
        }
    )
    figures = {"perplexity": metric(9.0, stderr=0.1, better=False, unit="ratio")}
    sizes = {"weights_bytes": metric(10**6, better=False, unit="bytes", n=1)}
    records = [mmlu("AbCd", "fp16"), mmlu("AbcD")]
    for variant in ("fp16", "ewq-0.65"):
        records.append(record("perplexity", variant, figures, items=windows))
        records.append(record("memory", variant, sizes))
    return stored_run(folder, records)


def places(node, path=()):
    """The path of every value in a document."""
    found = [path] if path else []
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in entries:
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
        else:
            found.append((*path, key))
    return found


def change(document, rng):
    """Replace or drop one or two values, anywhere; says what was done."""
    done = []
    for _ in range(rng.randint(1, 2)):
        *parents, last = rng.choice(places(document))
        node = document
        for key in parents:
            node = node[key]
        value = rng.choice(VALUES)
        if rng.random() < 0.3 and isinstance(node, dict):
            del node[last]
            value = "dropped"
        else:
            node[last] = copy.deepcopy(value)
        done.append(([*parents, last], value))
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def use(path, original):
    """Everything that reads stored runs."""
    run = read_run(path)
    wanted = Wanted(original.identity, tuple(original.records))
    find_baseline(NEWEST, path.parent.parent, wanted, path.parent)
    for before, after in ((original, run), (run, original)):
        comparison = compare_runs(before, after)
        COMPARISON_FORMATS["md"](comparison)
        COMPARISON_FORMATS["json"](comparison)
    page = make_page([run])
    FORMATS["md"](page)
    FORMATS["json"](page)
    FORMATS["csv"](page)


@pytest.mark.parametrize("schema", [1, 2])
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_changed_run_is_read_or_refused_in_one_line(folder, schema, seed):
    path = whole_run(folder)
    if schema == 1:
        path.write_text(GOLDEN.read_text())
    original, document = read_run(path), json.loads(path.read_text())
    note(change(document, random.Random(seed)))
    path.write_text(json.dumps(document))
    try:
        use(path, original)
        told = ""
    except EwqError as error:
        told = str(error)
    assert "\n" not in told
