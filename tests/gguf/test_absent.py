"""Without the ``gguf`` extra: one line that names the install command."""

import sys

import pytest

from ewq.checkpoint import gguf_header
from ewq.errors import BackendUnavailable
from ewq.gguf.cache import cached_gguf
from ewq.gguf.recipe import make_recipe


@pytest.fixture
def no_extra(monkeypatch):
    for name in ("gguf", "llama_cpp"):
        monkeypatch.setitem(sys.modules, name, None)
    gguf_header.ggml_types.cache_clear()
    yield
    gguf_header.ggml_types.cache_clear()


def export(folder):
    make_recipe("Q8_0", None)


def variant(folder):
    cached_gguf(folder, make_recipe("Q8_0"), folder)


def load(folder):
    from ewq.backends.llama_cpp import load_llama_cpp

    load_llama_cpp(folder / "any.gguf", None)


@pytest.mark.parametrize("call", [export, variant, load])
def test_the_install_command_is_named(no_extra, tmp_path, call):
    with pytest.raises(BackendUnavailable, match=r"pip install 'ewq\[gguf\]'") as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
