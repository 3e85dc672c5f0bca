"""Tokenizers and models for the MMLU tasks, small enough to check by hand."""

from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ewq.data.mmlu import MmluData, Question
from ewq.errors import MeasurementError
from ewq.model import ModelInfo

BOS = "<s>"


def byte_tokenizer(*, bos, merges=200):
    """A byte-level BPE that has learnt `` A`` to `` D`` as tokens, unless ``merges`` is 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [f"Answer: {letter}\n\nThe following question about" for letter in "ABCD"] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=257 + merges,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


@dataclass
class HashModel:
    """Log-probabilities that depend on every token before; remembers what it was asked."""

    tokenizer: object
    context_length: int = 4096
    favourite: str | None = None
    """A letter that always wins."""
    asked: list = field(default_factory=list)

    def __post_init__(self):
        self.info = ModelInfo("fake", "cpu", "float32", self.context_length, 600, 1000, 16.0)

    def distribution(self, ids):
        self.asked.append(tuple(ids))
        if len(ids) > self.context_length:
            raise MeasurementError("the task should have noticed")
        seed = np.random.SeedSequence(list(ids))
        logits = np.random.default_rng(seed).normal(0, 2, self.info.vocab_size)
        if self.favourite:
            logits[self.tokenizer.convert_tokens_to_ids("Ġ" + self.favourite)] += 100
        return logits - np.log(np.exp(logits).sum())

    def last_logprobs(self, prefix, suffixes, columns):
        rows = [self.distribution([*prefix, *suffix])[list(columns)] for suffix in suffixes]
        return np.array(rows, dtype=np.float32)

    def token_logprobs(self, prefix, suffixes):
        return [
            np.array(
                [self.distribution([*prefix, *s[:t]])[s[t]] for t in range(len(s))], np.float32
            )
            for s in suffixes
        ]

    def continuation_scores(self, asked):
        return [[row[:, None] for row in self.token_logprobs(*each)] for each in asked]


def make_data(sizes=(("world_religions", 7), ("anatomy", 5))):
    def question(subject, i):
        text = f" {subject} question {i}, " + "which one " * (i % 4) + "is it? "
        return Question(subject, text, (f"one {i}", "two", " three", f"four and {i}"), i % 4)

    test = [question(subject, i) for subject, size in sizes for i in range(size)]
    dev = {subject: tuple(question(subject, 90 + i) for i in range(5)) for subject, _ in sizes}
    return MmluData(tuple(test), dev, "made up")
