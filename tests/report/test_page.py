"""What each kind of run is shown as, in every format, without a browser."""

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from ewq.errors import InputError
from ewq.report import rows
from ewq.report.document import Bullets, Page, Paragraph, Plot, Point, Section, Table, csv_text
from ewq.report.formats import FORMATS, to_html, to_markdown
from ewq.report.sections import make_page
from ewq.storage.runs import read_run
from tests.make_runs import stored_run
from tests.report.cases import CASES, HOSTILE
from tests.report.example_runs import TASKS, VARIANTS, write_example

DRAWING = files("ewq.report").joinpath("assets", "draw.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Case -> its page."""
    return {
        case: make_page([read_run(path) for path in make(tmp_path_factory.mktemp("runs"))])
        for case, make in CASES.items()
    }


def plots(page):
    return [part for section in page.sections for part in section.parts if isinstance(part, Plot)]


class Reader(HTMLParser):
    """Collects tags, attributes and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._raw = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._raw = False

    def handle_data(self, data):
        if not self._raw:
            self.texts.append(data)


@pytest.mark.parametrize(
    ("case", "names"),
    {
        "twelve variants": [
            "quality-kld", "quality-perplexity", "quality-mmlu", "speed", "blocks-1",
        ],
        "one variant": ["quality-kld", "quality-perplexity", "quality-mmlu", "speed"],
        "no reference": [
            "quality-kld", "quality-perplexity", "quality-mmlu", "speed", "blocks-1",
        ],
        "missing tasks": ["speed", "blocks-1"],
        "partial": ["quality-perplexity"],
        "letters at chance": ["quality-mmlu-cloze", "quality-mmlu", "blocks-1"],
    }.items(),
)  # fmt: skip
def test_a_run_is_drawn_as_far_as_it_was_measured(pages, case, names):
    assert [plot.name for plot in plots(pages[case])] == names


@pytest.mark.parametrize("case", CASES)
def test_plots_are_valid_and_each_has_a_table_with_something_in_it(pages, case):
    names = [plot.name for plot in plots(pages[case])]
    assert len(set(names)) == len(names)
    for plot in plots(pages[case]):
        assert f"    {plot.figure['kind']}(plot)" in DRAWING
        assert all(isinstance(axis, str) for axis in plot.figure["axes"])
        assert plot.table.rows
        assert plot.caption
        assert all(len(row) == len(plot.table.headings) for row in plot.table.rows)


@pytest.mark.parametrize(
    "kind", [each for each in vars(rows).values() if isinstance(each, rows.VariantKind)]
)
def test_every_kind_of_variant_has_a_colour_and_a_mark(kind):
    assert f'"{kind.label}": [' in DRAWING


def test_every_variant_is_in_every_table_that_compares_variants(pages):
    for plot in plots(pages["twelve variants"]):
        if plot.name.startswith(("quality", "speed")):
            assert {row[0] for row in plot.table.rows} == set(VARIANTS)


@pytest.mark.parametrize("case", CASES)
def test_html_holds_no_element_or_handler_that_data_brought(pages, case):
    read = Reader(FORMATS["html"](pages[case]))
    assert not {"img", "iframe", "object"} & set(read.tags)
    assert [name for name, _ in read.attributes if name.startswith("on")] == []
    assert [v for name, v in read.attributes if name == "src"] == []
    links = [value for name, value in read.attributes if name == "href"]
    assert [link for link in links if link != "data:," and not link.startswith("#")] == []


def test_html_runs_two_scripts_and_its_policy_names_their_digests(pages):
    text = FORMATS["html"](pages["hostile"])
    executable = text.count("<script>")
    assert executable == 2
    policy = text.split('Content-Security-Policy" content="', 1)[1].split('"', 1)[0]
    assert policy.count("sha256-") == executable
    assert "unsafe-inline'; img" in policy.split("style-src")[1]
    assert "unsafe" not in policy.split("style-src")[0]


def test_hostile_text_is_shown_as_text(pages):
    shown = "".join(Reader(FORMATS["html"](pages["hostile"])).texts)
    visible = HOSTILE.translate(dict.fromkeys((0, 0x202E, 0xD800), "�"))
    assert visible in shown


def drawn_with(figure):
    plot = Plot("p", "P", "c", Table(("a",), ()), figure)
    return to_html(Page("t", "", (Section("s", "S", (plot,)),)))


def test_data_of_a_plot_cannot_end_its_element_and_reads_back():
    data = {"<!--": "</script><script>", "&": ["\u2028", 1.5, None]}
    embedded = drawn_with(data).split('id="p-data">')[1].split("</script>")[0]
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == data


def test_a_plot_of_what_is_no_json_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        drawn_with({"y": [float("nan")]})


def test_html_text_is_escaped_and_printable():
    text = "<b a=\"1\" c='2'>&amp;\x00 5 ±1 %"
    html = to_html(Page("t", "", (Section("s", "S", (Paragraph(text),)),)))
    assert "&lt;b a=&#34;1&#34; c=&#39;2&#39;&gt;&amp;amp;\ufffd 5 ±1 %" in html


def test_markdown_has_no_html_no_mentions_and_whole_tables(pages):
    text = FORMATS["md"](pages["hostile"])
    outside = "".join(text.split("```")[::2])
    for ours in ("<details><summary>", "</summary>", "</details>"):
        outside = outside.replace(ours, "")
    assert "<" not in outside
    text.encode("utf-8")
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert rows
    assert all(line.endswith("|") for line in rows)


def test_json_is_one_document_with_answers_metrics_and_plans(pages):
    data = json.loads(FORMATS["json"](pages["twelve variants"]))
    assert data["schema"] == 1
    assert [row["variant"] for row in data["variants"]] == list(VARIANTS)
    planned = next(row for row in data["variants"] if row["variant"] == "ewq-0.65")
    assert planned["tasks"]["perplexity"]["metrics"]["ln_ppl_ratio"]["stderr"] > 0
    assert planned["tasks"]["memory"]["plan_blocks"]["rule"]["factor"] == 0.65
    assert "items" not in planned["tasks"]["mmlu"]
    assert data["pareto_fronts"]["kld"][0] == "gguf-q4_k_m"
    assert data["answers"][0]["need"] == "Near-lossless"


def test_partial_run_says_so_and_names_what_is_missing(pages):
    text, missing = FORMATS["md"](pages["partial"]), 2 * len(TASKS) - 2
    assert (
        f"This run is partial: {missing} of {missing + 2} selected benchmarks have no result"
        in text
    )
    assert "ewq-0.65 mmlu: out of memory &lt;b&gt;" in text


def test_history_joins_comparable_runs_and_says_which_are_left_out(pages, tmp_path):
    text = FORMATS["md"](pages["history"])
    assert "perplexity over runs" in text
    assert "throughput decode\\_tokens\\_per\\_s over runs" in text
    other = write_example(tmp_path, ("fp16",), number=1, machine={"device": "cpu", "cpu": "Z"})
    newest = write_example(tmp_path, ("fp16",), number=2, day=2)
    text = FORMATS["md"](make_page([read_run(newest), read_run(other)]))
    assert "0001 (aaaaaaaaaa): measured on cpu and on cuda" in text
    assert "| 0001 (aaaaaaaaaa) | 2026-01-01 |" not in text


def test_letters_at_chance_are_marked_and_the_cloze_form_stands_in(pages):
    text = FORMATS["md"](pages["letters at chance"])
    assert "No better than guessing: differences mean nothing." in text
    assert "shown to stay within 3 points of FP16's MMLU." in text
    assert (
        "**Small loss:** **gguf-q8\\_0** (0.145 GB, 46 % smaller than FP16): MMLU (cloze)" in text
    )
    assert "| Variant | VRAM GB | Bits/w | MMLU cloze % | Δ points | Verdict |" in text


def test_uniform_plans_have_no_column(tmp_path):
    def uniform(record):
        rule = {"kind": "uniform", "precision": "8bit"}
        plan = {**record.side["plan"], "rule": rule, "thresholds": {}}
        return replace(record, side={"plan": plan}) if record.variant == "ewq-1.0" else record

    path = write_example(tmp_path, ("ewq-1.0", "ewq-0.5"), ("memory",), change=uniform)
    (plot,) = plots(make_page([read_run(path)]))
    assert plot.table.headings == ("Block", "Entropy", "ewq-0.5")


def test_run_without_records_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nothing to report"):
        make_page([read_run(stored_run(tmp_path, []))])


def test_markdown_keeps_the_blank_after_a_variant_that_begins_a_sentence(pages):
    text = FORMATS["md"](pages["twelve variants"])
    assert "- **Near-lossless:** **gguf-ewq-0.65** (" in text
    assert "**Smallest:** **gguf-q4\\_k\\_m** (" in text


@pytest.mark.parametrize(
    ("point", "line"),
    [
        (
            Point("none of 3 pairs", lead="Plan or uniform"),
            "- **Plan or uniform:** none of 3 pairs",
        ),
        (Point(" is small", lead="Size", name="a_b"), r"- **Size:** **a\_b** is small"),
        (Point(": out of memory", name="fp16"), "- **fp16**: out of memory"),
        (Point("plain"), "- plain"),
        (Point("open", lead="L", open_question=True), "- (undecided) **L:** open"),
    ],
)
def test_a_points_words_stand_apart_in_markdown(point, line):
    section = Section("s", "S", (Bullets((point,)),))
    assert line in to_markdown(Page("T", "", (section,))).splitlines()


def test_the_page_begins_with_the_picture_then_the_sentences_then_the_table(pages):
    text = FORMATS["html"](pages["twelve variants"])
    places = [text.index(mark) for mark in ('id="quality-kld"', 'class="points"', "Bits/w")]
    assert text.index("<main>") < places[0]
    assert places[0] < places[1] < places[2]


def test_csv_has_a_line_for_each_metric_and_no_formula(pages):
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](pages["twelve variants"]))))
    (row,) = (r for r in rows if (r["variant"], r["metric"]) == ("gguf-q8_0", "kld_mean"))
    assert (float(row["value"]), float(row["stderr"])) == (0.0011, pytest.approx(0.00005))
    assert (row["n"], row["unit"], row["verdict"]) == ("4096", "nats", "pass")
    assert csv_text("=HYPERLINK(1)") == "'=HYPERLINK(1)"
