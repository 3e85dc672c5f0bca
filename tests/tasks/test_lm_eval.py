"""Tasks of lm-evaluation-harness over our engines, against its own ``hf`` backend."""

import math
import statistics

import pytest
import yaml
from transformers import AutoTokenizer

from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import fixture_path
from ewq.errors import InputError, MeasurementError
from tests.gguf.models import shared_gguf
from tests.tasks.lm_eval_tasks import THINGS, choices, write_task

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

FOLDER = fixture_path("tiny-llama")
LONG = "The bridge over the river was closed. Buses take a detour until the spring. " * 60
TEXTS = ["Once upon a time there was a small village by the sea.", "", "Paris is in France.", LONG]
KINDS = {
    "multiple_choice": choices(),
    "loglikelihood": [
        {"text": t, "answer": a} for t, a in (("Once upon a", "time"), ("One, two,", "three"))
    ],
    "loglikelihood_rolling": [{"text": text} for text in TEXTS if text],
    "generate_until": [{"text": f"The colour of {thing} is", "answer": "red"} for thing in THINGS],
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module", params=["transformers", "llama.cpp"])
def model(request):
    if request.param == "transformers":
        loaded = load_transformers(FOLDER)
    else:
        from ewq.backends.llama_cpp import load_llama_cpp

        file = shared_gguf(FOLDER, "F16")
        tokenizer = AutoTokenizer.from_pretrained(FOLDER)
        loaded = load_llama_cpp(file, tokenizer, threads=1, cache_type="F32")
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def theirs():
    from lm_eval.models.huggingface import HFLM

    # The weights of the file, rounded to 16 bits as ours are.
    loaded = load_transformers(FOLDER)
    return HFLM(pretrained=loaded._loaded, tokenizer=loaded.tokenizer, batch_size=1)


def reference(theirs, file):
    """lm-eval's own samples and results."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        theirs,
        tasks=[str(file)],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )


def by_document(result, metric):
    columns = [result.items.column(name) for name in ("metric", "document", "value")]
    return {
        document: value for name, document, value in zip(*columns, strict=True) if name == metric
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_document_has_the_result_of_the_hf_backend(tmp_path, model, theirs, kind):
    from ewq.data.lm_eval import load_documents
    from ewq.tasks.lm_eval import run

    file = write_task(tmp_path, kind, KINDS[kind])
    result, expected = run(model, load_documents(str(file))), reference(theirs, file)
    for metric, found in result.metrics.items():
        # llama.cpp rounds weights to float16, and perplexity is exponential.
        rel = 1e-5 if model.info.engine == "transformers" else 5e-3
        assert found.value == pytest.approx(expected["results"]["own"][f"{metric},none"], rel=rel)
        assert found.n == len(KINDS[kind])
    samples = expected["samples"]["own"]
    for metric in ("acc", "acc_norm", "exact_match"):
        if metric in result.metrics:
            assert by_document(result, metric) == {
                f"own/{sample['doc_id']}": float(sample[metric]) for sample in samples
            }
    assert result.side["responses"] == [
        [f"own/{sample['doc_id']}", "none", *sample["filtered_resps"]]
        for sample in samples
        if kind == "generate_until"
    ]
    stderr = expected["results"]["own"].get("acc_stderr,none")
    assert stderr in ("N/A", None) or result.metrics["acc"].stderr == pytest.approx(stderr)


def fresh(tmp_path, kind="generate_until", documents=None, **config):
    from ewq.data.lm_eval import load_documents

    return load_documents(str(write_task(tmp_path, kind, documents or KINDS[kind], **config)))


def test_a_generation_that_stops_early_writes_no_more_than_it_needs(tmp_path, monkeypatch):
    from ewq.tasks.lm_eval import run

    model, asked = load_transformers(FOLDER), []
    generate = model.generate

    def watched(prompts, new_tokens, stop=None):
        made = generate(prompts, new_tokens, stop)
        asked.append(len(made.tokens[0]))
        return made

    monkeypatch.setattr(model, "generate", watched)
    stops = {"generation_kwargs": {"until": [" the", " a", "?"], "max_gen_toks": 60}}
    result = run(model, fresh(tmp_path, **stops))
    assert max(asked) < 60
    assert len(asked) < len(THINGS), "several at a time"
    assert not any(
        stop in text for *_, text in result.side["responses"] for stop in (" the", " a", "?")
    )


def test_sampling_is_refused(tmp_path):
    from ewq.tasks.lm_eval import run

    documents = fresh(
        tmp_path, generation_kwargs={"until": [], "do_sample": True, "temperature": 1.0}
    )
    with pytest.raises(InputError, match="asks for sampling: ewq only decodes greedily"):
        run(load_transformers(FOLDER), documents)


def test_texts_beyond_the_context_lose_their_beginning_and_are_counted(tmp_path, theirs):
    from ewq.tasks.lm_eval import run

    long = [{**each, "text": LONG * 2 + each["text"]} for each in choices(THINGS[:2])]
    file = write_task(tmp_path, "multiple_choice", long)
    model = load_transformers(FOLDER)
    assert len(model.tokenizer.encode(long[0]["text"])) > model.info.context_length
    result = run(model, fresh(tmp_path, "multiple_choice", long))
    expected = reference(theirs, file)["results"]["own"]
    assert result.metrics["brier_score"].value == pytest.approx(
        expected["brier_score,none"], rel=1e-5
    )
    assert result.settings["cut_to"] == model.info.context_length
    assert result.notes == ("8 texts exceed the context and lost their beginning, as in lm-eval",)
    with pytest.raises(MeasurementError, match="no room for its prompt"):
        run(model, fresh(tmp_path, generation_kwargs={"max_gen_toks": model.info.context_length}))


def test_a_tier_draws_the_same_documents_each_time(tmp_path):
    from ewq.tasks.lm_eval import run

    documents, model = fresh(tmp_path, "multiple_choice"), load_transformers(FOLDER)
    some, again, every = (run(model, documents, most=most) for most in (3, 3, None))
    assert some.items == again.items
    assert some.settings["documents"] == 3
    drawn, whole = by_document(some, "acc"), by_document(every, "acc")
    assert len(drawn) == 3
    assert drawn.items() <= whole.items()
    assert list(drawn) != list(whole)[:3]


def result_of(**values):
    """A result whose documents have these values of metrics."""
    from ewq.measurement import Items, Metric, TaskResult

    rows = [(m, f"own/{i}", "own", v) for m, own in values.items() for i, v in enumerate(own)]
    columns = zip(*rows, strict=True)
    names = ("metric", "document", "cluster", "value")
    metrics = {
        m: Metric(sum(own) / len(own), "fraction", m == "acc", len(own), 0.1)
        for m, own in values.items()
    }
    return TaskResult(
        "lm_eval-own", {}, metrics, Items(dict(zip(names, map(list, columns), strict=True)))
    )


def test_variants_are_paired_document_by_document():
    from ewq.tasks.lm_eval import pair

    base = result_of(acc=[1.0, 1.0, 1.0, 0.0, 0.0, 1.0], brier=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    new = result_of(acc=[0.0, 0.0, 1.0, 1.0, 0.0, 0.0], brier=[0.2, 0.4, 0.3, 0.5, 0.6, 0.9])
    found = pair(new, base)
    assert found["flips/acc"].value == pytest.approx(4 / 6)
    assert found["delta/acc"].value == pytest.approx(-2 / 6)
    assert found["mcnemar_p/acc"].value == pytest.approx(2 * (1 + 4) / 16)
    delta, differences = found["delta/brier"], [0.1, 0.2, 0.0, 0.1, 0.1, 0.3]
    assert delta.value == pytest.approx(0.8 / 6)
    assert delta.stderr == pytest.approx(statistics.stdev(differences) / math.sqrt(6))
    assert delta.interval[0] < delta.value < delta.interval[1]
    assert delta.higher_is_better is False
    assert "flips/brier" not in found
    same = pair(base, base)["delta/acc"]
    assert (same.value, same.stderr) == (0.0, pytest.approx(1 / 6))


def test_other_documents_or_prompts_are_not_paired(tmp_path):
    from ewq.tasks.lm_eval import pair, run

    model = load_transformers(FOLDER)
    one = run(model, fresh(tmp_path, "multiple_choice"))
    other = run(model, fresh(tmp_path, "multiple_choice", choices(THINGS[::-1]), name="own"))
    with pytest.raises(MeasurementError, match="not comparable: prompts"):
        pair(other, one)


def test_a_metric_that_is_no_mean_has_the_jackknife_s_error():
    from lm_eval.api.metrics import mean, weighted_perplexity

    from ewq.tasks.lm_eval import jackknife

    values = [(-20.0, 10), (-35.0, 12), (-8.0, 5), (-50.0, 21)]
    left_out = [math.exp((113 + nll) / (48 - words)) for nll, words in values]
    whole, parts, blocks = jackknife(values, weighted_perplexity, mean)
    assert whole == pytest.approx(math.exp(113 / 48))
    assert parts == pytest.approx([4 * whole - 3 * each for each in left_out])
    assert blocks == ["0", "1", "2", "3"]
    assert jackknife([1.0, 0.0, 1], mean, mean) == (pytest.approx(2 / 3), [1.0, 0.0, 1.0], [])


def test_many_documents_are_left_out_in_blocks():
    from lm_eval.api.metrics import mean, weighted_perplexity

    from ewq.tasks.lm_eval import jackknife

    values = [(-20.0 - i % 7, 10 + i % 5) for i in range(1000)]
    whole, parts, blocks = jackknife(values, weighted_perplexity, mean)
    assert len(parts) == 1000
    assert len(set(blocks)) == 200
    rest = weighted_perplexity(values[5:])
    assert parts[:5] == pytest.approx([200 * whole - 199 * rest] * 5)


def test_a_group_is_one_task_over_the_documents_of_all(tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    from ewq.data import lm_eval
    from ewq.tasks.lm_eval import run

    for name, things in (("one", THINGS[:3]), ("two", THINGS)):
        write_task(tmp_path, "multiple_choice", choices(things), name)
    group = {"group": "both", "task": ["one", "two"]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    monkeypatch.setattr(lm_eval, "_manager", lambda with_its_own: manager)
    result = run(load_transformers(FOLDER), lm_eval.load_documents("both"))
    assert result.metrics["acc"].n == 11
    assert result.settings["versions"] == {"one": "2.0", "two": "2.0"}
    assert {"one", "two"} <= {*result.items.column("cluster")}
    assert result.items.column("document")[2:4] == ["one/2", "two/0"]
