"""Whether a GGUF file that somebody names can be used: it loads, and it is of the model under test.

llama.cpp's assertions end the process, so a child loads the file and computes two tokens first. A
file of another model would be scored on this model's token ids: finite numbers without a meaning.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ewq.checkpoint.gguf_header import GgufHeader, read_header
from ewq.errors import BackendUnavailable, CheckpointError, EwqError
from ewq.files import content_key, read_cached, write_cached

TIMEOUT_S = 900
ASSERTION = "GGML_ASSERT"
TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
NORMAL = 1
"""Type of a token that stands for text; converters rename others, and invent padding."""
MOST_PADDING = 256
"""Rows of the embedding that converters add or drop to reach a round number."""
MOST_RENAMED = 0.01
"""Share of normal tokens that another converter may spell otherwise."""
CACHE = "probes"


def llama_cpp_version() -> str:
    """Of the library that is installed; a BackendUnavailable where none is."""
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        raise BackendUnavailable("llama.cpp is not installed: pip install 'ewq[gguf]'") from None


def probe_file(path: Path) -> None:
    """Load ``path`` in a child, once while it and llama.cpp stay; CheckpointError if that fails."""
    found = path.stat()
    file = (str(path.resolve()), found.st_size, found.st_mtime_ns)
    key = content_key(*file, llama_cpp_version())
    if read_cached(CACHE, key):
        return
    # A CUDA context would take memory and time, and the file loads the same without one.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    status, said = run_child(
        _command(path), heard=lambda _: False, environment=environment, most_s=TIMEOUT_S
    )
    if status:
        why = why_ended(status, said)
        aborted = f"{path}: llama.cpp aborts on this file ({why}), or takes over {TIMEOUT_S} s"
        raise CheckpointError(aborted if status < 0 else why)
    write_cached(CACHE, key, file)


def _command(path: Path) -> list[str]:
    return [sys.executable, "-m", "ewq.gguf.probe", str(path)]


def run_child(
    command: Sequence[str],
    heard: Callable[[str], object],
    given: str = "",
    environment: Mapping[str, str] | None = None,
    most_s: float = threading.TIMEOUT_MAX,
) -> tuple[int, str]:
    """Run a child to its end; its exit status, and all that it said but the lines ``heard`` takes.

    ``given`` is its standard input, and there is no other. After ``most_s`` it is killed.
    """
    pipe, merged = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(
        command,
        env=environment,
        stdin=pipe,
        stdout=pipe,
        stderr=merged,
        text=True,
        errors="replace",
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        watch = threading.Timer(most_s, child.kill)
        watch.start()
        try:
            child.stdin.write(given)
            child.stdin.close()
            said = [line for line in child.stdout if not heard(line)]
        except BaseException:
            child.kill()
            raise
        finally:
            watch.cancel()
    return child.returncode, "".join(said)


def why_ended(status: int, stderr: str) -> str:
    """Why a child failed: the assertion or the signal that ended it, else its last line."""
    lines = stderr.strip().splitlines() or ["no reason given"]
    if status >= 0:
        return lines[-1]
    asserted = (line[line.index(ASSERTION) :] for line in lines if ASSERTION in line)
    return next(asserted, signal.Signals(-status).name)


@dataclass(frozen=True)
class Shape:
    """What a checkpoint's header and a GGUF header both tell."""

    blocks: int
    width: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.blocks} blocks of width {self.width} and {self.vocabulary} tokens"


def shape_of_config(config: Mapping[str, Any], blocks: int) -> Shape:
    """The shape of a Hugging Face checkpoint with so many blocks, by its ``config.json``."""
    text = config.get("text_config") or config
    width = text.get("hidden_size") or text.get("n_embd") or 0
    return Shape(blocks, width, text.get("vocab_size") or 0)


def require_same_model(path: Path, ours: Shape, tokenizer: Any, label: str) -> None:
    """Refuse a file without the shape and tokens of ``label``, by a CheckpointError."""
    header = read_header(path)
    theirs = _shape_of(header)
    differing, compared = _differing_tokens(header.metadata, tokenizer)
    same = (ours.blocks, ours.width) == (theirs.blocks, theirs.width)
    if not same or abs(ours.vocabulary - theirs.vocabulary) >= MOST_PADDING:
        why = f"has {theirs}, {label} has {ours}"
    elif differing > MOST_RENAMED * compared:
        why = f"spells {differing} of {compared} tokens otherwise than {label}"
    else:
        return
    raise CheckpointError(f"{path} {why}: not a file of this model; give its own with --ewq-model")


def _shape_of(header: GgufHeader) -> Shape:
    kind, metadata = header.architecture, header.metadata
    embedding = next((t.shape for t in header.tensors if t.name == "token_embd.weight"), (0, 0))
    blocks, width = metadata.get(f"{kind}.block_count", 0), metadata.get(f"{kind}.embedding_length")
    return Shape(blocks, width or 0, embedding[0])


def _differing_tokens(metadata: Mapping[str, Any], tokenizer: Any) -> tuple[int, int]:
    """Normal tokens spelled otherwise, and how many were compared; ``(0, 0)`` without a list."""
    tokens, types = metadata.get(TOKENS), metadata.get(TOKEN_TYPES)
    if not isinstance(tokens, list) or not isinstance(types, list):
        return 0, 0
    normal = [id for id, kind in enumerate(types[: len(tokens)]) if kind == NORMAL]
    ours = tokenizer.convert_ids_to_tokens(normal)
    differing = sum(tokens[id] != token for id, token in zip(normal, ours, strict=True))
    return differing, len(normal)


def main(path: Path) -> None:
    """The child's work: load, compute two tokens, check that they are numbers."""
    import numpy as np

    from ewq.gguf.llama_native import NativeModel, stretch

    native = NativeModel(path)
    native.prepare(32)
    for logits in native.decode(stretch([0, native.vocab_size - 1], 0, 0, 0)):
        if not np.isfinite(logits).all():
            raise CheckpointError(f"{path}: its logits are not finite; the weights are damaged")
    native.close()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except EwqError as error:
        sys.exit(str(error))
