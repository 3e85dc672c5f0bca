import numpy as np
import pytest

from ewq.data.mmlu import LETTERS, Question
from ewq.errors import MeasurementError
from ewq.tasks import mmlu_cloze
from ewq.tasks.mmlu_scores import unpack_logprobs
from tests.tasks.mmlu_fakes import HashModel, byte_tokenizer, make_data


@pytest.fixture(params=[True, False], ids=["with BOS", "without BOS"])
def model(request):
    return HashModel(byte_tokenizer(bos=request.param))


def naive(model, question):
    """Encode context and choice together, sum what lies after the context, token by token."""
    head = model.tokenizer.encode(mmlu_cloze.prompt(question))
    sums = []
    for choice in question.choices:
        whole = model.tokenizer.encode(f"{mmlu_cloze.prompt(question)} {choice}")
        positions = range(len(head), len(whole))
        sums.append(sum(model.distribution(whole[:t])[whole[t]] for t in positions))
    return sums


def test_the_prompt_is_lm_evals_to_the_byte():
    question = Question("world_religions", " Which one?\n", ("a", "b", "c", "d"), 0)
    assert mmlu_cloze.prompt(question) == (
        "The following are questions (with answers) about world religions.\n\n"
        "Question: Which one?\nAnswer:"
    )


def test_scores_equal_summing_token_by_token(model):
    data = make_data()
    result = mmlu_cloze.run(model, data)
    expected = np.array([naive(model, question) for question in data.test])
    np.testing.assert_allclose(
        unpack_logprobs(result.side["logprobs"]), expected, rtol=1e-5, atol=1e-4
    )


def test_answers_are_normalised_by_the_characters_of_the_choice(model):
    data = make_data()
    result = mmlu_cloze.run(model, data)
    sums = unpack_logprobs(result.side["logprobs"])
    lengths = [[len(choice) for choice in q.choices] for q in data.test]
    best = (sums / np.array(lengths)).argmax(axis=1)
    assert [LETTERS.index(letter.upper()) for letter in result.items.column("answer")] == list(best)
    assert result.settings["normalization"] == "characters"


def test_byte_tokenizers_need_no_single_letter_token():
    result = mmlu_cloze.run(HashModel(byte_tokenizer(bos=False, merges=0)), make_data())
    assert len(result.items) == 12


def test_a_question_that_exceeds_the_context_is_named_with_its_lengths():
    model = HashModel(byte_tokenizer(bos=True), context_length=60)
    with pytest.raises(MeasurementError, match=r"world_religions \(question 1 .*\d+ tokens.*60"):
        mmlu_cloze.run(model, make_data())


def test_two_runs_pair_without_a_difference(model):
    results = [mmlu_cloze.run(model, make_data()) for _ in range(2)]
    assert results[0].items == results[1].items
    assert mmlu_cloze.pair(*results)["flips"].value == 0
