"""Every way of decoding gives the same tokens, and what is not supported says so."""

import logging

import pytest
import torch

from ewq.backends import decoders, norms
from ewq.backends.decoders import (
    CompiledDecoder,
    DecoderUnsupported,
    GraphDecoder,
    StaticDecoder,
)
from ewq.backends.transformers import load_transformers
from ewq.errors import InputError
from ewq.planning.analysis import analyze
from ewq.quantizer import EwqConfig
from ewq.variants import Precision
from tests.backends.tiny_models import ARCHITECTURES, NoTokenizer, naive_greedy, save_tiny

PROMPTS = [[5, 9, 33, 7, 60, 41, 8, 3, 17], [4, 90, 12, 55, 6, 71, 30, 22, 19]]
NEW_TOKENS = 12


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def folder(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def traced(monkeypatch):
    """Compile by tracing alone: the same graphs, without the minutes of a C++ compiler."""

    class Traced(CompiledDecoder):
        def __init__(self, model):
            super().__init__(model, backend="eager")

    monkeypatch.setitem(decoders.DECODERS, "compile", Traced)


@pytest.fixture
def graphs(monkeypatch):
    """A replay computes again on the memory that was recorded; counts recordings."""
    recorded = []

    class Replayed(GraphDecoder):
        def _require_one_gpu(self):
            pass

        def _apart(self, work):
            return work()

        def _captured(self, work):
            # Capturing computes nothing: the result is there after the first replay.
            best = torch.full((2 if not recorded else 1, 1), -1)
            recorded.append(best)
            return lambda: best.copy_(work()), best

    monkeypatch.setitem(decoders.DECODERS, "graph", Replayed)
    return recorded


def load(folder, mode):
    return load_transformers(folder, tokenizer=NoTokenizer(), decode_mode=mode)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("mode", ["eager", "static", "compile"])
def test_every_mode_decodes_the_same_tokens(folder, mode):
    model = load(folder, mode)
    expected = tuple(naive_greedy(folder, prompt, NEW_TOKENS) for prompt in PROMPTS)
    # Twice, since a cache or a graph is reused; then another shape.
    for _ in range(2):
        assert model.generate(PROMPTS, NEW_TOKENS).tokens == expected
    shorter = model.generate([PROMPTS[0][:4]], 5)
    assert shorter.tokens == (naive_greedy(folder, PROMPTS[0][:4], 5),)
    assert model.decode_mode == mode
    assert model.notes == ()
    model.close()


def test_a_recorded_step_decodes_the_same_tokens(folder, graphs):
    model = load(folder, "graph")
    expected = tuple(naive_greedy(folder, prompt, NEW_TOKENS) for prompt in PROMPTS)
    # Shapes by turns, as a benchmark of several batch sizes has them.
    for _ in range(2):
        assert model.generate(PROMPTS, NEW_TOKENS).tokens == expected
        assert model.generate(PROMPTS[:1], NEW_TOKENS).tokens == expected[:1]
    if model.decode_mode == "graph":
        assert len(graphs) == 2, "one recording a shape"
        assert model.notes == ()
    else:
        assert "sliding windows" in model.notes[0]
    model.close()


@pytest.mark.parametrize("mode", ["graph", "compile"])
@pytest.mark.usefixtures("traced")
def test_int8_modules_decode_the_same_tokens_in_every_way(llama, graphs, mode):
    config = EwqConfig(plan=analyze(llama, cache=False).uniform_plan(Precision.EIGHT_BIT))
    eager, fast = (
        load_transformers(
            llama, tokenizer=NoTokenizer(), decode_mode=way, quantization_config=config
        )
        for way in ("eager", mode)
    )
    for _ in range(2):
        assert fast.generate(PROMPTS, 6).tokens == eager.generate(PROMPTS, 6).tokens
    assert fast.decode_mode == mode
    assert fast.notes == ()


def test_a_recorded_step_has_fused_norms_and_a_prompt_has_not(llama, graphs, monkeypatch):
    lengths = []
    plain = norms.rms_norm

    def count(x, *arguments):
        # Norms are tried on a vector first.
        lengths.append(x.shape[-2] if x.dim() > 1 else 0)
        return plain(x, *arguments)

    monkeypatch.setattr(norms, "rms_norm", count)
    model = load(llama, "graph")
    lengths.clear()
    model.generate(PROMPTS, 3)
    assert set(lengths) == {1}
    assert "forward" not in vars(model._model.model.norm)


def test_a_graph_needs_a_gpu_and_says_so(llama):
    model = load(llama, "graph")
    model.generate(PROMPTS, 3)
    assert model.decode_mode == "static"
    assert "CUDA graphs need the model on one GPU, it is on cpu" in model.notes[0]


def test_what_cannot_be_recorded_falls_back_with_a_note(llama, graphs, monkeypatch):
    def refuse(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(decoders.DECODERS["graph"], "_captured", refuse)
    model = load(llama, "graph")
    expected = load(llama, "eager").generate(PROMPTS, 5).tokens
    assert model.generate(PROMPTS, 5).tokens == expected
    assert model.decode_mode == "static"
    assert "not permitted when stream is capturing); using static" in model.notes[0]


def test_out_of_memory_while_recording_is_no_reason_to_fall_back(llama, graphs, monkeypatch):
    def refuse(self, work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoders.DECODERS["graph"], "_captured", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        load(llama, "graph").generate(PROMPTS, 5)


@pytest.mark.usefixtures("traced")
def test_shapes_by_turns_keep_their_caches(llama):
    model = load(llama, "compile")
    for _ in range(3):
        model.generate(PROMPTS, 4)
        model.generate(PROMPTS[:1], 4)
    assert len(model._decoding.decoder._caches) == 2
    assert model.notes == ()


def test_one_compilation_serves_all_steps_of_a_shape(llama, monkeypatch):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = load(llama, "compile")
    model._decoding.decoder = CompiledDecoder(model._model, backend=count)
    for _ in range(2):
        model.generate(PROMPTS, NEW_TOKENS)
    assert len(graphs) == 1
    model.close()


def test_what_does_not_compile_falls_back_with_a_note(llama, caplog):
    def refuse(graph, inputs):
        raise RuntimeError("no kernel for this card")

    model = load(llama, "compile")
    model._decoding.decoder = CompiledDecoder(model._model, backend=refuse)
    with caplog.at_level(logging.WARNING):
        tokens = model.generate(PROMPTS, NEW_TOKENS).tokens
    assert tokens == load(llama, "eager").generate(PROMPTS, NEW_TOKENS).tokens
    assert model.decode_mode == "static"
    note, _ = model.notes
    assert "compile is not supported" in note
    assert "no kernel for this card" in note
    assert "using graph" in note
    assert note in caplog.text


def test_past_the_recompilation_limit_nothing_runs_uncompiled_in_silence(llama):
    model = load(llama, "compile")
    model._decoding.decoder = CompiledDecoder(model._model, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        for length in (3, 4, 5):
            model.generate([PROMPTS[0][:length]], 3)
    assert model.decode_mode == "static"
    assert "compile is not supported" in model.notes[0]
    model.close()


def test_caches_of_no_fixed_size_fall_back_to_eager(llama, monkeypatch):
    def refuse(self, rows, length):
        raise DecoderUnsupported("its cache cannot have a fixed size")

    monkeypatch.setattr(StaticDecoder, "begin", refuse)
    model = load(llama, "compile")
    model.generate(PROMPTS, 2)
    assert model.decode_mode == "eager"
    assert len(model.notes) == 3


def test_auto_is_eager_on_a_cpu(llama):
    assert load(llama, "auto").decode_mode == "eager"


def test_an_unknown_mode_is_named_with_the_known_ones(llama):
    with pytest.raises(InputError, match=r"warp.*auto, eager, static, graph, compile"):
        load(llama, "warp")
