import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ewq.data.texts import Document, text_set
from ewq.data.windows import DEFINITIONS, make_windows
from ewq.errors import MeasurementError
from ewq.measurement import Items
from ewq.tasks import perplexity
from tests.tasks.numpy_model import ALPHABET, BOS, NumpyModel

TEXTS = text_set(
    [
        Document("prose", "1", "it was a dark night, and the rain fell.\nnobody came"),
        Document("prose", "2", "the end of it all."),
        Document("viet", "1", "trơi đê, ăn cơm chưa\nâm " * 2),
    ]
)
WINDOW = 16
BOTH = pytest.mark.parametrize("adds_bos", [True, False], ids=["bos", "no bos"])


def encode(text):
    return [ALPHABET.index(character) for character in text]


def naive_disjoint(documents, bos):
    """Each document by itself; every window starts with BOS if there is one."""
    for text in documents:
        ids = encode(text)
        step = WINDOW - len(bos)
        for begin in range(0, len(ids), step):
            chunk = bos + ids[begin : begin + step]
            for position in range(1, len(chunk)):
                yield chunk[:position], chunk[position]


def naive_papers(documents, bos):
    """Everything joined by blank lines, whole windows only, no first tokens."""
    ids = bos + encode("\n\n".join(documents))
    for begin in range(0, len(ids) - WINDOW + 1, WINDOW):
        for position in range(begin + 1, begin + WINDOW):
            yield ids[begin:position], ids[position]


NAIVE = {
    "disjoint": naive_disjoint,
    "papers": naive_papers,
}


def naive_nll(model, name, domain):
    bos = [BOS] if model.adds_bos else []
    pairs = list(NAIVE[name]([each.text for each in TEXTS.of(domain)], bos))
    return [-model.distribution(past)[token] for past, token in pairs]


def test_every_definition_has_a_naive_counterpart():
    assert set(NAIVE) == set(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
@BOTH
def test_perplexity_agrees_with_a_naive_loop(name, adds_bos):
    model = NumpyModel(adds_bos=adds_bos)
    result = perplexity.run(model, TEXTS, DEFINITIONS[name].with_window(WINDOW))
    everything = []
    for domain in TEXTS.domains:
        nll = naive_nll(model, name, domain)
        everything += nll
        metric = result.metrics[f"perplexity/{domain}"]
        assert metric.n == len(nll)
        assert metric.value == pytest.approx(math.exp(np.mean(nll)), rel=1e-6, abs=1e-4)
    whole = result.metrics["perplexity"]
    assert whole.value == pytest.approx(math.exp(np.mean(everything)), rel=1e-6, abs=1e-4)


def test_bits_per_byte_divide_by_the_texts_bytes():
    model = NumpyModel()
    result = perplexity.run(model, TEXTS, DEFINITIONS["disjoint"].with_window(WINDOW))
    for domain in TEXTS.domains:
        size = sum(len(each.text.encode()) for each in TEXTS.of(domain))
        expected = sum(naive_nll(model, "disjoint", domain)) / size / math.log(2)
        assert result.metrics[f"bits_per_byte/{domain}"].value == pytest.approx(expected, rel=1e-6)


def test_settings_tell_definitions_apart():
    model = NumpyModel()
    settings = [
        perplexity.run(model, TEXTS, DEFINITIONS[name].with_window(WINDOW)).settings
        for name in DEFINITIONS
    ]
    assert all(a != b for a, b in itertools.combinations(settings, 2))
    assert settings[0]["data"] == TEXTS.digest
    assert settings[0]["bos_added"] is True


def test_results_are_repeatable_and_plain_json():
    definition = DEFINITIONS["disjoint"].with_window(WINDOW)
    first = perplexity.run(NumpyModel(), TEXTS, definition)
    assert perplexity.run(NumpyModel(), TEXTS, definition) == first
    assert Items.from_json(json.loads(json.dumps(first.items.to_json()))) == first.items
    window = {name: column[0] for name, column in first.items.columns.items()}
    assert window.pop("nll") > 0
    assert window == {"domain": "prose", "tokens": 15, "bytes": 15, "document": 0}


def test_windows_are_run_one_by_one_whichever_are_known():
    model, definition = NumpyModel(), DEFINITIONS["disjoint"].with_window(WINDOW)
    whole = perplexity.run(model, TEXTS, definition)
    windows = make_windows(TEXTS, model.tokenizer, definition)
    assert [len(suffixes) for _, suffixes in model.calls] == [1] * len(windows)
    model.calls.clear()
    known = dict(zip(windows[::2], whole.items.column("nll")[::2], strict=True))
    assert perplexity.run(model, TEXTS, definition, known=known) == whole
    assert [(*p, *s[0]) for p, s in model.calls] == [window.ids for window in windows[1::2]]


def test_errors_are_clustered_by_document_where_there_are_enough():
    # Six documents that differ among themselves, each of four equal windows.
    documents = [Document("d", str(i), letter * 60) for i, letter in enumerate("abcdef")]
    definition = DEFINITIONS["disjoint"].with_window(WINDOW)
    many = perplexity.run(NumpyModel(), text_set(documents), definition).metrics["perplexity"]
    joined = [replace(each, name="1") for each in documents[:3]]
    few = perplexity.run(NumpyModel(), text_set(joined), definition).metrics["perplexity"]
    # Per document the spread is that of 6 values, per window that of 12.
    nll = [-NumpyModel().distribution([BOS, i])[i] for i in range(6)]
    assert many.stderr / many.value > np.std(nll, ddof=1) / math.sqrt(24)
    assert few.stderr is not None


def test_a_short_context_is_a_smaller_window_and_said():
    result = perplexity.run(NumpyModel(context_length=16), TEXTS, DEFINITIONS["disjoint"])
    assert result.settings["window"] == 16
    assert "context of 16 tokens is shorter than the 2048" in result.notes[0]


def test_a_broken_model_is_an_error_not_a_figure():
    class Broken(NumpyModel):
        def token_logprobs(self, prefix, suffixes):
            return [np.full(len(suffix), np.nan, dtype=np.float32) for suffix in suffixes]

    with pytest.raises(MeasurementError, match=r"document 0 \(prose\).*broken"):
        perplexity.run(Broken(), TEXTS, DEFINITIONS["disjoint"].with_window(WINDOW))


def test_pair_gives_the_ratio_with_a_much_smaller_error():
    definition = DEFINITIONS["disjoint"].with_window(WINDOW)
    base = perplexity.run(NumpyModel(), TEXTS, definition)
    new = perplexity.run(NumpyModel(noise=0.05), TEXTS, definition)
    paired = perplexity.pair(new, base)
    assert set(paired) == {"ln_ppl_ratio", "ln_ppl_ratio/prose", "ln_ppl_ratio/viet"}
    ratio = paired["ln_ppl_ratio"]
    both = [each.metrics["perplexity"] for each in (new, base)]
    assert ratio.value == pytest.approx(math.log(both[0].value / both[1].value), abs=1e-9)
    separate = math.hypot(*(metric.stderr / metric.value for metric in both))
    assert 0 < ratio.stderr < separate / 5


def test_a_model_against_itself_has_ratio_zero():
    result = perplexity.run(NumpyModel(), TEXTS, DEFINITIONS["papers"].with_window(WINDOW))
    paired = perplexity.pair(result, result)
    assert {(metric.value, metric.stderr) for metric in paired.values()} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("texts", "name", "message"),
    [
        pytest.param(TEXTS, "papers", "definition is 'disjoint' here, 'papers", id="definition"),
        pytest.param(text_set(TEXTS.documents[:1]), "disjoint", "data is 'sha256:", id="texts"),
    ],
)
def test_different_measurements_cannot_be_paired(texts, name, message):
    result = perplexity.run(NumpyModel(), TEXTS, DEFINITIONS["disjoint"].with_window(WINDOW))
    other = perplexity.run(NumpyModel(), texts, DEFINITIONS[name].with_window(WINDOW))
    with pytest.raises(MeasurementError, match=message):
        perplexity.pair(result, other)
