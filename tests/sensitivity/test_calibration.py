"""Calibration sequences: how many, of which length, from which texts."""

from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from ewq.checkpoint.embedded import fixture_path
from ewq.data.texts import Document, load_texts, text_set
from ewq.errors import InputError
from ewq.sensitivity.calibration import (
    Calibrating,
    calibration_texts,
    make_calibration,
    refuse_evaluation_text,
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(fixture_path("tiny-llama"))


@pytest.fixture(scope="module")
def texts():
    return load_texts(fixture_path("texts"))


def test_sequences_have_at_most_the_length_asked_for_and_begin_with_bos(tokenizer, texts):
    made = make_calibration(texts, tokenizer, Calibrating(sequences=12, tokens=64))
    lengths = [len(ids) for ids in made.sequences]
    assert max(lengths) == 64
    assert min(lengths) >= 32
    assert len(lengths) == 12
    assert {ids[0] for ids in made.sequences} == {tokenizer.bos_token_id}
    assert made.tokens == sum(lengths)


def test_domains_take_turns(tokenizer, texts):
    made = make_calibration(texts, tokenizer, Calibrating(sequences=6, tokens=64))
    decoded = [tokenizer.decode(ids[1:]) for ids in made.sequences]
    found = [
        next(d.domain for d in texts.documents if part[8:40] in d.text or part[40:72] in d.text)
        for part in decoded
    ]
    assert found == list(texts.domains)


def test_the_draw_and_the_digest_follow_the_seed(tokenizer, texts):
    def digest(seed):
        how = Calibrating(sequences=8, tokens=64, seed=seed)
        return make_calibration(texts, tokenizer, how).digest

    assert digest(0) == digest(0) != digest(1)
    assert digest(0).startswith("sha256:")


def test_a_text_too_short_is_refused_with_the_length_it_needs(tokenizer):
    short = text_set([Document("notes", "a.txt", "A few words only. " * 60)])
    with pytest.raises(InputError, match="at least 2048 tokens"):
        make_calibration(short, tokenizer, Calibrating(tokens=512))


def test_an_evaluation_text_among_the_calibration_texts_is_refused(texts):
    copied = text_set([Document("mine", "all.txt", "\n\n".join(d.text for d in texts.documents))])
    with pytest.raises(InputError, match="calibrate on other text"):
        refuse_evaluation_text(copied, texts)


def test_the_texts_carried_along_are_none_of_the_evaluation_texts(texts):
    carried = calibration_texts()
    refuse_evaluation_text(carried, texts)
    assert len(carried.domains) >= 4


def test_a_bos_spelt_out_is_not_put_in_twice(tokenizer, texts):
    spelt = [replace(one, text=tokenizer.bos_token + one.text) for one in texts.documents]
    plain = make_calibration(texts, tokenizer, Calibrating(tokens=64))
    assert make_calibration(text_set(spelt), tokenizer, Calibrating(tokens=64)) == plain
