import pytest

from ewq.checkpoint.embedded import fixture_path
from tests.gguf.models import require_converter, require_gguf, save_deep


@pytest.fixture(scope="session")
def gguf_cache(tmp_path_factory):
    require_converter()
    return tmp_path_factory.mktemp("gguf-cache")


@pytest.fixture(scope="session")
def tiny_file(gguf_cache):
    """The trained tiny Llama as an F16 GGUF."""
    from ewq.gguf import cached_gguf

    return cached_gguf(fixture_path("tiny-llama"), "F16", gguf_cache)


@pytest.fixture(scope="session")
def deep(tmp_path_factory):
    """Folder of the twelve-block model."""
    require_gguf()
    return save_deep(tmp_path_factory.mktemp("deep"))


@pytest.fixture(scope="session")
def deep_base(deep, gguf_cache):
    """The twelve-block model as converted, in bfloat16."""
    from ewq.gguf import cached_gguf

    return cached_gguf(deep, "BF16", gguf_cache)
