"""``python -m ewq.gguf``: fetch llama.cpp's converter now, so that exports need no network."""

import sys

from ewq.errors import EwqError
from ewq.gguf.converter import find_converter

try:
    find_converter()
except EwqError as error:
    sys.exit(f"ewq: {error}")
