import json
import math
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ewq.data.texts import Document, text_set
from ewq.data.windows import DEFINITIONS, SHORT, make_windows
from ewq.errors import MeasurementError
from ewq.measurement import Items
from ewq.tasks import divergence, perplexity
from tests.tasks.numpy_model import NumpyModel

TEXTS = text_set(
    [
        Document("prose", "1", "it was a dark night, and the rain fell.\nnobody came"),
        Document("prose", "2", "the end of it all."),
        Document("viet", "1", "trơi đê, ăn cơm chưa\nâm " * 2),
    ]
)
DEFINITION = DEFINITIONS["disjoint"].with_window(16)


@pytest.fixture
def reference(tmp_path):
    with closing(record(NumpyModel(), tmp_path)) as recorded:
        yield recorded


def record(model, folder, texts=TEXTS, definition=DEFINITION):
    return divergence.record_reference(model, texts, folder, definition)


def naive(base, new):
    """KLD, equality of the top, delta p and nll change per token, by a plain loop in float64."""
    for window in make_windows(TEXTS, base.tokenizer, DEFINITION):
        for position in range(window.start, len(window.ids)):
            past, token = window.ids[:position], window.ids[position]
            p, q = base.distribution(past), new.distribution(past)
            kld = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            yield (
                kld,
                p.argmax() == q.argmax(),
                math.exp(q[token]) - math.exp(p[token]),
                p[token] - q[token],
            )


def distributions(model):
    for window in make_windows(TEXTS, model.tokenizer, DEFINITION):
        for position in range(window.start, len(window.ids)):
            yield model.distribution(window.ids[:position])


def test_a_model_does_not_diverge_from_itself(reference):
    metrics = divergence.run(NumpyModel(), reference).metrics
    assert abs(metrics["kld_mean"].value) < 1e-6
    assert metrics["kld_p99"].value < 1e-6
    assert metrics["top1_agreement"].value == 1.0
    assert metrics["rms_delta_p"].value < 1e-6
    assert metrics["ln_ppl_ratio"].value == pytest.approx(0.0, abs=1e-6)


def test_divergence_agrees_with_a_naive_loop(reference):
    base, new = NumpyModel(), NumpyModel(noise=0.3)
    result = divergence.run(new, reference)
    kld, same, delta_p, change = map(np.array, zip(*naive(base, new), strict=True))
    expected = {
        "kld_mean": kld.mean(),
        "kld_p50": np.percentile(kld, 50),
        "kld_p99": np.percentile(kld, 99),
        "kld_p999": np.percentile(kld, 99.9),
        "top1_agreement": same.mean(),
        "rms_delta_p": np.sqrt((delta_p**2).mean()),
        "ln_ppl_ratio": change.mean(),
    }
    measured = {key: result.metrics[key].value for key in expected}
    assert measured == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert result.metrics["kld_mean"].n == len(kld)
    assert result.side["kld_max"] == pytest.approx(kld.max(), rel=1e-4)
    percentile = result.side["delta_p_percentiles"]["p5"]
    assert percentile == pytest.approx(np.percentile(delta_p, 5), abs=1e-6)


def test_agreement_is_told_by_how_sure_the_reference_is(reference):
    base, new = NumpyModel(), NumpyModel(noise=1.0)
    metrics = divergence.run(new, reference).metrics
    same = np.array([row[1] for row in naive(base, new)])
    sure = np.array([math.exp(p.max()) for p in distributions(base)])
    ranges = {"below_50": sure < 0.5, "50_to_90": (sure >= 0.5) & (sure < 0.9)}
    for name, chosen in ranges.items():
        metric = metrics[f"top1_agreement/{name}"]
        assert metric.n == chosen.sum() > 2
        assert metric.value == pytest.approx(same[chosen].mean())
        assert metric.stderr > 0
    assert "top1_agreement/from_90" not in metrics  # This model is never so sure.
    assert not (sure >= 0.9).any()


def test_divergence_is_from_the_reference_not_towards_it(reference, tmp_path):
    forward = divergence.run(NumpyModel(noise=0.8), reference)
    with closing(record(NumpyModel(noise=0.8), tmp_path)) as noisy:
        backward = divergence.run(NumpyModel(), noisy)
    values = [result.metrics["kld_mean"].value for result in (forward, backward)]
    assert abs(values[0] - values[1]) > 1e-4
    p, q = NumpyModel(), NumpyModel(noise=0.8)
    assert values[0] == pytest.approx(np.mean([row[0] for row in naive(p, q)]), rel=1e-4)


def test_ln_ratio_is_that_of_perplexity_on_the_same_windows(reference):
    new = NumpyModel(noise=0.1)
    diverged = divergence.run(new, reference).metrics["ln_ppl_ratio"]
    runs = [perplexity.run(model, TEXTS, DEFINITION) for model in (new, NumpyModel())]
    paired = perplexity.pair(*runs)["ln_ppl_ratio"]
    assert diverged.value == pytest.approx(paired.value, abs=1e-6)
    assert diverged.stderr == pytest.approx(paired.stderr, rel=1e-3)


def test_what_divergence_ran_perplexity_need_not_run_again(reference):
    model, known = NumpyModel(noise=0.1), {}
    alone = perplexity.run(model, TEXTS, DEFINITION)
    divergence.run(model, reference, window_nll=known)
    assert len(known) == len(alone.items)
    model.calls.clear()
    after = perplexity.run(model, TEXTS, DEFINITION, known=known)
    assert model.calls == []
    # The scale of what is known is nats, as that of what is run.
    nll = [result.items.column("nll") for result in (after, alone)]
    assert nll[0] == pytest.approx(nll[1], abs=2e-5)
    assert after.settings == alone.settings


def test_items_add_up_to_the_metrics(reference):
    result = divergence.run(NumpyModel(noise=0.2), reference)
    assert Items.from_json(json.loads(json.dumps(result.items.to_json()))) == result.items
    tokens = sum(result.items.column("tokens"))
    assert sum(result.items.column("kld")) / tokens == pytest.approx(
        result.metrics["kld_mean"].value, abs=1e-8
    )
    assert sum(result.items.column("same_top")) / tokens == result.metrics["top1_agreement"].value


def test_a_token_the_reference_excludes_adds_nothing(reference, tmp_path):
    class Excluding(NumpyModel):
        def logprobs(self, ids, start):
            for block in super().logprobs(ids, start):
                block[:, 49] = -math.inf
                yield block

    before = divergence.run(NumpyModel(), reference).metrics["kld_mean"]
    with closing(record(Excluding(), tmp_path)) as excluding:
        after = divergence.run(Excluding(), excluding).metrics["kld_mean"]
    assert (before.value, after.value) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_probability_zero_where_the_reference_has_some_is_an_error(reference):
    class Certain(NumpyModel):
        def logprobs(self, ids, start):
            for block in super().logprobs(ids, start):
                block[:, 3] = -math.inf
                yield block

    with pytest.raises(MeasurementError, match="tokens have no finite divergence"):
        divergence.run(Certain(), reference)


def test_a_smaller_vocabulary_is_an_error(reference):
    with pytest.raises(MeasurementError, match="vocabularies of 49 and 50 tokens"):
        divergence.run(NumpyModel(vocab_size=49), reference)


def test_a_short_context_is_a_smaller_window_and_said(tmp_path):
    small = NumpyModel(context_length=16)
    with closing(record(small, tmp_path, definition=SHORT)) as recorded:
        result = divergence.run(small, recorded)
    assert result.settings["window"] == 16
    assert "context of 16 tokens is shorter than the 512" in result.notes[0]


def test_errors_know_how_many_documents_they_rest_on(tmp_path):
    documents = [Document("d", str(i), letter * 60) for i, letter in enumerate("abcdef")]
    texts = text_set(documents)
    with closing(record(NumpyModel(), tmp_path, texts)) as recorded:
        metrics = divergence.run(NumpyModel(noise=0.2), recorded).metrics
    for name in ("kld_mean", "top1_agreement", "rms_delta_p", "ln_ppl_ratio"):
        assert metrics[name].freedom == 5


def peak_growth_bytes(tokens, folder):
    worker = Path(__file__).with_name("large_vocabulary_worker.py")
    command = [sys.executable, str(worker), str(tokens), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's peak of resident memory")
def test_peak_memory_does_not_grow_with_the_number_of_tokens(tmp_path):
    small = peak_growth_bytes(120, tmp_path)
    large = peak_growth_bytes(480, tmp_path)
    assert large["reference_bytes"] == 480 * 152_064 * 4  # 292 MB, four times the small one's
    assert large["kld_mean"] < 1e-6
    for phase in ("record", "compare"):
        assert large[phase] < small[phase] + 200e6
        assert large[phase] < 500e6
