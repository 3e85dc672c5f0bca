import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ewq.data.mmlu import LETTERS, MmluData, Question
from ewq.errors import InputError, MeasurementError
from ewq.tasks import mmlu
from ewq.tasks.mmlu_scores import unpack_logprobs
from tests.tasks.mmlu_fakes import HashModel, byte_tokenizer, make_data

PROMPT = """The following are multiple choice questions (with answers) about world religions.

Which river is holy?
A. Rhine
B. Ganges
C.  Po
D. Elbe
Answer: B

How many?
A. 1
B. 2
C. 3
D. 4
Answer: D

And now?
A. yes
B. no
C. maybe
D. never\x20
Answer:"""


@pytest.fixture(scope="module", params=[True, False], ids=["with BOS", "without BOS"])
def tokenizer(request):
    return byte_tokenizer(bos=request.param)


@pytest.fixture
def model(tokenizer):
    return HashModel(tokenizer)


def naive(model, data, shots):
    """One question at a time: encode the whole prompt with each letter, score its last token."""
    rows = []
    for q in data.test:
        context = mmlu.preamble(q.subject, data.dev[q.subject][:shots]) + mmlu.question_text(q)
        head = model.tokenizer.encode(context)
        tails = [model.tokenizer.encode(f"{context} {letter}")[len(head) :] for letter in LETTERS]
        rows.append([model.distribution(head)[tail[0]] for tail in tails])
    return np.array(rows)


def test_the_prompt_is_lm_evals_to_the_byte():
    examples = [
        Question(
            "world_religions", " Which river is holy?\n", ("Rhine", "Ganges", " Po", "Elbe"), 1
        ),
        Question("world_religions", "How many?", ("1", "2", "3", "4"), 3),
    ]
    asked = Question("world_religions", "And now? ", ("yes", "no", "maybe", "never "), 0)
    assert mmlu.preamble("world_religions", examples) + mmlu.question_text(asked) == PROMPT


@pytest.mark.parametrize("shots", [0, 1, 5])
def test_scores_equal_asking_one_by_one(model, shots):
    data = make_data()
    result = mmlu.run(model, data, shots=shots)
    logprobs = unpack_logprobs(result.side["logprobs"])
    np.testing.assert_allclose(logprobs, naive(model, data, shots), atol=1e-5)
    right = [row.argmax() == q.answer for row, q in zip(logprobs, data.test, strict=True)]
    assert result.metrics["accuracy"].value == pytest.approx(np.mean(right))


def test_bos_goes_in_front_once_or_never(model):
    mmlu.run(model, make_data(), shots=2)
    bos = model.tokenizer.bos_token_id
    wanted = model.tokenizer.encode("x")[0] == bos
    assert all((ids[0] == bos) == wanted and bos not in ids[1:] for ids in model.asked)


def test_items_are_letters_whose_case_says_right_or_wrong(model):
    data = make_data()
    result = mmlu.run(model, data)
    chosen = unpack_logprobs(result.side["logprobs"]).argmax(axis=1)
    assert [LETTERS.index(letter.upper()) for letter in result.items.column("answer")] == list(
        chosen
    )
    assert [letter.isupper() for letter in result.items.column("answer")] == [
        choice == question.answer for choice, question in zip(chosen, data.test, strict=True)
    ]


def test_the_result_survives_json_and_states_its_protocol(model):
    data = make_data()
    result = mmlu.run(model, data, shots=3)
    settings = json.loads(json.dumps(result.settings))
    assert settings["shots"] == 3
    assert settings["data"] == data.digest
    assert settings["subjects"] == [["world_religions", 7], ["anatomy", 5]]
    assert json.loads(json.dumps(result.side)) == result.side


def test_running_twice_gives_identical_items_and_logprobs(model):
    first, second = (mmlu.run(model, make_data()) for _ in range(2))
    assert (first.items, first.side) == (second.items, second.side)


def test_a_prompt_that_exceeds_the_context_names_question_and_lengths(tokenizer):
    model = HashModel(tokenizer, context_length=500)
    with pytest.raises(
        MeasurementError, match=r"world_religions question \d+: \d+ tokens exceed .* 500"
    ):
        mmlu.run(model, make_data())
    assert not model.asked


def test_a_letter_of_two_tokens_is_an_error():
    model = HashModel(byte_tokenizer(bos=False, merges=0))
    with pytest.raises(InputError, match="2 tokens of 'A'"):
        mmlu.run(model, make_data())
    assert not model.asked


def test_letters_that_are_the_same_token_are_an_error():
    """Four equal columns would be read as the answer A, always."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "is": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = HashModel(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    with pytest.raises(InputError, match="cannot tell A to D apart"):
        mmlu.run(model, make_data())


def test_too_few_examples_are_an_error(model):
    with pytest.raises(InputError, match="world_religions has 5 dev rows"):
        mmlu.run(model, make_data(), shots=6)


def test_no_questions_are_an_error(model):
    with pytest.raises(InputError, match="no MMLU question"):
        mmlu.run(model, MmluData((), {}, "nothing"))


def test_always_answering_one_letter_is_seen(tokenizer):
    result = mmlu.run(HashModel(tokenizer, favourite="C"), make_data())
    assert result.metrics["answered_C"].value == 1.0
    assert result.metrics["answered_A"].value == 0.0
    assert "chance" in result.doubts[0].text


class CountingProgress:
    def __init__(self):
        self.events = []

    def start(self, label, total, unit):
        self.events.append((total, unit))

    def advance(self, amount):
        self.events.append(amount)

    def finish(self):
        self.events.append("finished")


def test_progress_counts_questions(model):
    progress = CountingProgress()
    mmlu.run(model, make_data(), progress=progress)
    assert progress.events == [(12, "questions"), 7, 5, "finished"]
