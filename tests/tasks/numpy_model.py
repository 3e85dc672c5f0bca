"""A deterministic language model in NumPy, small enough to check by a naive loop."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ewq.errors import MeasurementError
from ewq.model import Generation, ModelInfo

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,'ăâêôơưđéè\n=0123456"
BOS = len(ALPHABET)
VOCABULARY = 50


class CharTokenizer:
    """One token per character; unknown characters are an error. BOS is optional."""

    is_fast = True

    def __init__(self, adds_bos: bool):
        self.adds_bos = adds_bos
        self.bos_token_id = BOS if adds_bos else None

    def encode(self, text, add_special_tokens=True, **_):
        ids = [ALPHABET.index(character) for character in text]
        return [BOS, *ids] if self.adds_bos and add_special_tokens else ids

    def __call__(self, text, add_special_tokens=True, **_):
        return {
            "input_ids": self.encode(text, add_special_tokens),
            "offset_mapping": [(i, i + 1) for i in range(len(text))],
        }

    def decode(self, ids, **_):
        return "".join(ALPHABET[i] if i < len(ALPHABET) else "?" for i in ids)


@dataclass
class NumpyModel:
    """Logits depend on the last token, the one before it, and the whole past."""

    seed: int = 0
    noise: float = 0.0
    context_length: int = 64
    adds_bos: bool = True
    vocab_size: int = VOCABULARY

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        size = (VOCABULARY, self.vocab_size)
        self._last, self._before, self._past = (rng.normal(0, 1.0, size) for _ in range(3))
        self._last = self._last + np.random.default_rng(99).normal(0, self.noise, size)
        self.tokenizer = CharTokenizer(self.adds_bos)
        self.calls = []
        self.info = ModelInfo(
            "numpy", "cpu", "float64", self.context_length, self.vocab_size, 1000, 16.0
        )

    def with_noise(self, noise):
        return replace(self, noise=noise)

    def distribution(self, past):
        """Log-probabilities of the next token after ``past``, in float64."""
        if not 1 <= len(past) <= self.context_length:
            raise MeasurementError(f"sequence of {len(past)}, context {self.context_length}")
        logits = self._last[past[-1]] + self._past[list(past)].mean(0)
        if len(past) > 1:
            logits = logits + self._before[past[-2]]
        return logits - np.log(np.exp(logits).sum())

    def token_logprobs(self, prefix, suffixes):
        assert len(prefix) >= 1
        self.calls.append((tuple(prefix), [tuple(suffix) for suffix in suffixes]))
        results = []
        for suffix in suffixes:
            ids = [*prefix, *suffix]
            if len(ids) > self.context_length:
                raise MeasurementError(f"sequence of {len(ids)}, context {self.context_length}")
            scored = range(len(prefix), len(ids))
            results.append(np.float32([self.distribution(ids[:i])[ids[i]] for i in scored]))
        return results

    def logprobs(self, ids, start):
        for begin in range(start, len(ids), 7):
            rows = [self.distribution(ids[:i]) for i in range(begin, min(begin + 7, len(ids)))]
            yield torch.tensor(np.array(rows), dtype=torch.float32)

    def generate(self, prompts, new_tokens):
        rows = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(new_tokens):
                ids.append(int(self.distribution(ids)[:40].argmax()))
            rows.append(tuple(ids[len(prompt) :]))
        return Generation(tuple(rows), 0.25, (0.125,) * (new_tokens - 1))

    def synchronize(self):
        pass

    def close(self):
        pass
