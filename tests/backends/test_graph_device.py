"""Recording on the model's own GPU, and leaving the recorder's stream whatever happens."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ewq.backends.decoders import GraphDecoder


class Gpus:
    """Stands in for ``torch.cuda``: what is current, and where things were made."""

    def __init__(self):
        self.current = 0
        self.streams = ["default"]
        self.made = []
        self.graphs = []

    @contextmanager
    def device(self, device):
        before, self.current = self.current, torch.device(device).index
        try:
            yield
        finally:
            self.current = before

    def Stream(self):  # noqa: N802
        self.made.append(self.current)
        return SimpleNamespace(wait_stream=lambda _: None, name=f"side {len(self.made)}")

    def current_stream(self):
        return SimpleNamespace(wait_stream=lambda _: None)

    @contextmanager
    def stream(self, stream):
        before = list(self.streams)
        self.streams.append(stream.name)
        try:
            yield
        finally:
            self.streams = before

    def CUDAGraph(self):  # noqa: N802
        graph = SimpleNamespace(made=self.current, replayed=[], resets=0)
        graph.replay = lambda: graph.replayed.append(self.current)

        def reset():
            graph.resets += 1

        graph.reset = reset
        self.graphs.append(graph)
        return graph

    @contextmanager
    def graph(self, graph, stream=None):
        """As torch's: where the capture fails its own stream is never left."""
        self.streams.append("capture")
        yield
        self.streams.pop()


@pytest.fixture
def gpus(monkeypatch):
    fake = Gpus()
    for name in ("device", "Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


@pytest.fixture
def decoder(gpus):
    made = object.__new__(GraphDecoder)
    made._model = SimpleNamespace(device=torch.device("cuda:1"))
    return made


def test_work_apart_runs_on_the_models_gpu(decoder, gpus):
    assert decoder._apart(lambda: gpus.current) == 1
    assert gpus.made == [1]
    assert gpus.current == 0


def test_recording_and_replay_are_the_models_gpus(decoder, gpus):
    replay, result = decoder._captured(lambda: gpus.current)
    assert result == 1
    replay()
    [graph] = gpus.graphs
    assert (graph.made, graph.replayed, graph.resets) == (1, [1], 0)
    assert gpus.current == 0


def test_a_failed_recording_leaves_no_stream_and_no_memory(decoder, gpus):
    def refuse():
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        decoder._captured(refuse)
    assert gpus.streams == ["default"]
    assert gpus.graphs[0].resets == 1
    assert gpus.current == 0
