"""Peak memory of recording and comparing a reference of a 152k vocabulary.

Run as ``python large_vocabulary_worker.py TOKENS FOLDER``; prints the peaks
above the process's memory before each phase, in bytes, as JSON.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from ewq.data.texts import Document, text_set
from ewq.data.windows import DEFINITIONS
from ewq.instruments.memory import ProcessMemory, release_free_memory
from ewq.tasks import divergence
from tests.tasks.numpy_model import NumpyModel

VOCABULARY = 152_064
# Over 32 MB a block, which the C library maps and unmaps: its heap stays out of the figures.
ROWS = 60


class WideModel(NumpyModel):
    """Random distributions, the same for the same window; blocks of 36 MB."""

    def __init__(self, context_length):
        super().__init__(context_length=context_length)
        self.info = replace(self.info, vocab_size=VOCABULARY)

    def logprobs(self, ids, start):
        generator = torch.Generator().manual_seed(len(ids))
        for begin in range(start, len(ids), ROWS):
            block = torch.rand((min(ROWS, len(ids) - begin), VOCABULARY), generator=generator)
            yield block.sub_(block.logsumexp(-1, keepdim=True))


def main(tokens, folder):
    model = WideModel(tokens + 1)
    texts = text_set(
        [Document("d", "1", "a" * (tokens // 2)), Document("d", "2", "b" * (tokens // 2))]
    )
    definition = DEFINITIONS["disjoint"].with_window(tokens + 1)
    memory = ProcessMemory()
    peaks = {}
    release_free_memory()
    before = memory.used_bytes()
    with memory.watch() as watch:
        reference = divergence.record_reference(model, texts, folder, definition)
    peaks["record"] = watch.peak_bytes - before
    peaks["reference_bytes"] = os.fstat(reference.rows.file.fileno()).st_size
    release_free_memory()
    before = memory.used_bytes()
    with memory.watch() as watch:
        result = divergence.run(model, reference)
    peaks["compare"] = watch.peak_bytes - before
    peaks["kld_mean"] = result.metrics["kld_mean"].value
    reference.close()
    sys.stdout.write(json.dumps(peaks))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
