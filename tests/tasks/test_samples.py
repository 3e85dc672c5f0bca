import json
from dataclasses import replace

import pytest

from ewq.errors import MeasurementError
from ewq.measurement import Items
from ewq.tasks import samples
from tests.tasks.numpy_model import BOS, NumpyModel

PROMPTS = {"greeting": "hello", "farewell": "so long"}


def run(model=None, new_tokens=8, prompts=PROMPTS):
    return samples.run(model or NumpyModel(), new_tokens=new_tokens, prompts=prompts)


def with_tokens(**tokens):
    result = run(new_tokens=4)
    return replace(result, items=Items({"prompt": list(tokens), "tokens": list(tokens.values())}))


def test_the_fixed_prompts_cover_what_readers_want_to_see():
    assert len(samples.PROMPTS) == 8
    assert {"code", "maths", "summary", "translation", "vietnamese"} <= set(samples.PROMPTS)


def test_texts_are_kept_for_reading():
    result = run()
    assert [sample["name"] for sample in result.side["samples"]] == list(PROMPTS)
    sample = result.side["samples"][0]
    assert sample["prompt"] == "hello"
    assert sample["text"] == NumpyModel().tokenizer.decode(result.items.column("tokens")[0])
    assert Items.from_json(json.loads(json.dumps(result.items.to_json()))) == result.items


@pytest.mark.parametrize("adds_bos", [True, False], ids=["bos", "no bos"])
def test_continuations_are_greedy_and_start_as_the_tokenizer_says(adds_bos):
    model = NumpyModel(adds_bos=adds_bos)
    ids = ([BOS] if adds_bos else []) + model.tokenizer.encode("hello", add_special_tokens=False)
    expected = list(model.generate([ids], 8).tokens[0])
    assert run(model).items.column("tokens")[0] == expected


def test_agreement_counts_equal_positions():
    base = with_tokens(greeting=[1, 2, 3, 4], farewell=[5, 6, 7, 8])
    new = with_tokens(greeting=[1, 2, 9, 4], farewell=[9, 6, 7, 8])
    metrics = samples.pair(new, base)
    assert metrics["samples_token_agreement"].value == pytest.approx(6 / 8)
    assert metrics["samples_common_tokens"].value == pytest.approx((2 + 0) / 2)
    # Both prompts agree in 3 of 4: no reason to be certain.
    assert metrics["samples_token_agreement"].stderr == pytest.approx((0.75 * 0.25 / 7) ** 0.5)


def test_a_model_agrees_with_itself():
    metrics = samples.pair(run(), run())
    assert metrics["samples_token_agreement"].value == 1.0
    assert metrics["samples_common_tokens"].value == 8
    assert metrics["samples_token_agreement"].stderr > 0


def test_other_prompts_cannot_be_paired():
    with pytest.raises(MeasurementError, match="new_tokens is 8 here, 4 there"):
        samples.pair(run(), run(new_tokens=4))


def test_a_prompt_too_long_for_the_context_is_named():
    with pytest.raises(MeasurementError, match="prompt 'greeting' and 8 new tokens: 14 tokens"):
        run(NumpyModel(context_length=10))
