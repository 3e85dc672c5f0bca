"""Divergence deep in a context, and on the reference's own answers."""

from contextlib import closing

import pytest
import torch

from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import fixture_path
from ewq.data.texts import Document, text_set
from ewq.errors import NotApplicable
from ewq.tasks import divergence
from ewq.tasks.divergence_at import ANSWER_TOKENS, PROMPTS, deep_windows, own_answers
from ewq.tasks.lm_eval import end_tokens
from tests.backends.tiny_models import NoTokenizer, naive_logprobs, save_tiny
from tests.tasks.numpy_model import ALPHABET, BOS, NumpyModel

TEXTS = text_set([Document("a", "1", "abc def " * 9), Document("b", "1", "it rained.")])


@pytest.fixture(scope="module")
def chatting():
    with closing(load_transformers(fixture_path("tiny-llama"))) as model:
        yield model


def test_all_texts_make_whole_windows_of_which_the_end_is_scored():
    windows = deep_windows(NumpyModel(), TEXTS, 33)
    assert [window.start for window in windows] == [17, 17]
    assert [window.scored for window in windows] == [16, 16]
    ids = [each for window in windows for each in window.ids[1:]]
    assert all(window.ids[0] == BOS for window in windows)
    assert "".join(ALPHABET[each] for each in ids) == ("abc def " * 9)[:64]
    # The second text follows a blank line and reaches the last of three windows.
    third = deep_windows(NumpyModel(adds_bos=False), TEXTS, 28)[-1].ids
    assert "".join(ALPHABET[each] for each in third) == ("abc def " * 9 + "\n\nit rained.")[56:84]


@pytest.mark.parametrize(
    ("depth", "message"),
    [(65, "depth of 65 tokens exceeds the model's context of 64"), (60, "84 tokens, not 2 times")],
)
def test_a_depth_that_cannot_be_had_is_one_line(depth, message):
    with pytest.raises(NotApplicable, match=message):
        deep_windows(NumpyModel(), TEXTS, depth)


def test_only_depth_is_compared_at_depth(tmp_path):
    """The first halves of the windows, which are not scored, may differ in the two models' past."""
    windows = deep_windows(NumpyModel(), TEXTS, 32)
    with closing(divergence.record_windows(NumpyModel(), {}, windows, tmp_path)) as reference:
        result = divergence.run(NumpyModel(noise=0.3), reference, "divergence_at-32")
    assert result.task == "divergence_at-32"
    assert result.metrics["kld_mean"].n == sum(window.scored for window in windows) == 32
    assert result.metrics["kld_mean"].value > 0.01


def test_answers_are_in_the_models_own_words_and_only_they_are_scored(chatting, tmp_path):
    windows = own_answers(chatting)
    assert windows == own_answers(chatting)
    assert [window.document for window in windows] == list(range(len(PROMPTS)))
    ends = end_tokens(chatting.tokenizer)
    for window, prompt in zip(windows, PROMPTS.values(), strict=True):
        asked, answer = window.ids[: window.start], window.ids[window.start :]
        text = chatting.tokenizer.decode(asked)
        assert prompt in text
        assert text == chatting.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        assert len(answer) == ANSWER_TOKENS or answer[-1] in ends
        assert not ends & set(answer[:-1])
    assert len({window.ids[window.start :] for window in windows}) == len(windows)
    with closing(divergence.record_windows(chatting, {}, windows, tmp_path)) as reference:
        metrics = divergence.run(chatting, reference).metrics
    assert abs(metrics["kld_mean"].value) < 1e-6
    assert metrics["kld_mean"].n == sum(window.scored for window in windows)
    assert metrics["kld_mean"].freedom == len(PROMPTS) - 1


def test_without_a_template_or_samples_there_are_no_answers(chatting, monkeypatch):
    with pytest.raises(NotApplicable, match="no samples drawn by numpy"):
        own_answers(NumpyModel())
    monkeypatch.setattr(chatting.tokenizer, "chat_template", None)
    with pytest.raises(NotApplicable, match="no chat template"):
        own_answers(chatting)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_samples_are_drawn_from_the_models_distributions(tmp_path, architecture):
    folder = save_tiny(architecture, tmp_path)
    with closing(load_transformers(folder, tokenizer=NoTokenizer())) as model:
        found = model.sample([5, 9, 11], 20, (), seed=3)
        ended = model.sample([5, 9, 11], 20, {found[4]}, seed=3)
    source, ids = torch.Generator().manual_seed(3), [5, 9, 11]
    for _ in range(20):
        row = torch.from_numpy(naive_logprobs(folder, ids)[-1]).exp()
        ids.append(int(torch.multinomial(row, 1, generator=source)))
    assert found == ids[3:]
    assert ended == found[: found.index(found[4]) + 1]
