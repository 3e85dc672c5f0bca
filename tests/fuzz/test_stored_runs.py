"""Stored runs with something changed in them: a right result or one line, never a traceback."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ewq.errors import EwqError
from ewq.gating.compare import NEWEST, Wanted, compare_runs, find_baseline
from ewq.measurement import Items
from ewq.report.comparison import FORMATS as COMPARISON_FORMATS
from ewq.report.formats import FORMATS
from ewq.report.sections import make_page
from ewq.storage.runs import read_run
from tests.fuzz.json_values import as_text, fuzzed, mutated
from tests.make_runs import metric, mmlu, record, stored_run

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "run_schema1.json"


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


@dataclass(frozen=True)
class Hidden:
    """A whole run is too long for hypothesis to print."""

    value: bytes = field(repr=False)


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
@fuzzed
@given(data=st.data())
def test_a_changed_run_is_read_or_refused_in_one_line(folder, schema, data):
    path = whole_run(folder)
    if schema == 1:
        path.write_text(GOLDEN.read_text())
    original = read_run(path)
    path.write_bytes(data.draw(as_text(mutated(json.loads(path.read_text()))).map(Hidden)).value)
    try:
        use(path, original)
        told = ""
    except EwqError as error:
        told = str(error)
        event("refused")
    assert "\n" not in told
