import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.files import cache_dir
from tests.gguf.models import require_converter, require_gguf, save_deep, shared_gguf
from tests.session import made_once


@pytest.fixture(scope="session")
def gguf_cache():
    require_converter()
    return cache_dir("gguf")


@pytest.fixture(scope="session")
def tiny_file():
    """The trained tiny Llama as an F16 GGUF."""
    return shared_gguf(fixture_path("tiny-llama"), "F16")


@pytest.fixture(scope="session")
def deep():
    """Folder of the twelve-block model."""
    require_gguf()
    return made_once("deep", save_deep)


@pytest.fixture(scope="session")
def deep_base(deep):
    """The twelve-block model as converted, in bfloat16."""
    return shared_gguf(deep, "BF16")
