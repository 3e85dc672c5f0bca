import struct

import pytest

from ewq.checkpoint.gguf_header import nominal_bytes, read_header
from ewq.checkpoint.opening import open_checkpoint
from ewq.errors import CheckpointError
from tests.gguf.models import require_gguf
from tests.gguf.writer import (
    ARCHITECTURE,
    F32,
    Q4_K,
    gguf_bytes,
    number_pair,
    pair,
    string_pair,
    text,
)

HUGE = 2**63


@pytest.fixture
def write(tmp_path):
    require_gguf()

    def write(data):
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def test_a_sound_header_is_read(write):
    header = read_header(write(gguf_bytes()))
    assert header.architecture == "llama"
    assert [(t.name, t.shape, t.dtype, t.nbytes) for t in header.tensors] == [
        ("a", (32,), "F32", 128),
        ("b", (2, 64), "Q8_0", 136),
    ]
    assert (header.weights_bytes, header.parameters) == (264, 160)


def test_arrays_are_kept_whole(write):
    words = struct.pack("<IQ", 8, 100) + text("word") * 100
    numbers = struct.pack("<IQ3I", 4, 3, 7, 8, 9)
    many = struct.pack("<IQ", 5, 70) + b"\0" * 280
    pairs = (ARCHITECTURE, pair("w", 9, words), pair("n", 9, numbers), pair("m", 9, many))
    metadata = read_header(write(gguf_bytes(pairs))).metadata
    assert metadata["w"] == ["word"] * 100
    assert metadata["n"] == [7, 8, 9]
    assert metadata["m"] == [0] * 70


def test_tokens_may_be_any_bytes(write):
    words = struct.pack("<IQ", 8, 1) + text(b"\xff\xfe")
    header = read_header(write(gguf_bytes((ARCHITECTURE, pair("w", 9, words)))))
    assert len(header.metadata["w"]) == 1


def nested(depth):
    payload = struct.pack("<IQ", 4, 0)
    for _ in range(depth):
        payload = struct.pack("<IQ", 9, 1) + payload
    return pair("deep", 9, payload)


BROKEN = {
    "no file bytes": (b"", "too few"),
    "another format": (gguf_bytes(magic=b"PK\x03\x04"), "not a GGUF file"),
    "big-endian": (gguf_bytes(version=0x03000000), "little-endian"),
    "future version": (gguf_bytes(version=9), "GGUF version 9"),
    "absurd tensor count": (gguf_bytes(tensor_count=HUGE), "more than its bytes can hold"),
    "absurd pair count": (gguf_bytes(pair_count=HUGE), "more than its bytes can hold"),
    "one pair too many": (gguf_bytes(pair_count=2), "tensor name of 0 bytes"),
    "no tensors": (gguf_bytes(tensors=(), data=b"\0" * 64), "no tensors"),
    "key twice": (gguf_bytes((ARCHITECTURE, ARCHITECTURE)), "twice"),
    "string past the end": (
        gguf_bytes((pair("general.architecture", 8, struct.pack("<Q", HUGE)),)),
        "more than its bytes can hold",
    ),
    "array past the end": (
        gguf_bytes((ARCHITECTURE, pair("a", 9, struct.pack("<IQ", 4, HUGE)))),
        "more than its bytes can hold",
    ),
    "unknown value type": (gguf_bytes((ARCHITECTURE, pair("a", 77, b""))), "unknown type 77"),
    "an array of arrays": (gguf_bytes((ARCHITECTURE, nested(1))), "unknown type 9"),
    "odd alignment": (
        gguf_bytes((ARCHITECTURE, number_pair("general.alignment", 24))),
        "no power of two",
    ),
    "zero alignment": (
        gguf_bytes((ARCHITECTURE, number_pair("general.alignment", 0))),
        "no power of two",
    ),
    "part of a split": (gguf_bytes((ARCHITECTURE, number_pair("split.count", 2))), "split model"),
    "split count is text": (gguf_bytes((ARCHITECTURE, string_pair("split.count", "x"))), "split"),
    "five dimensions": (gguf_bytes(tensors=(("a", (1,) * 5, F32, 0),)), "5 dimensions"),
    "no dimensions": (gguf_bytes(tensors=(("a", (), F32, 0),)), "0 dimensions"),
    "dimension of zero": (gguf_bytes(tensors=(("a", (32, 0), F32, 0),)), "impossible shape"),
    "overflowing shape": (
        gguf_bytes(tensors=(("a", (2**32, 2**32), F32, 0),)),
        "impossible shape",
    ),
    "unknown tensor type": (gguf_bytes(tensors=(("a", (32,), 999, 0),)), "unknown type 999"),
    "rows not divisible": (gguf_bytes(tensors=(("a", (32,), Q4_K, 0),)), "not a multiple of 256"),
    "tensor twice": (
        gguf_bytes(tensors=(("a", (32,), F32, 0), ("a", (32,), F32, 128))),
        "two tensors",
    ),
    "long name": (gguf_bytes(tensors=(("n" * 64, (32,), F32, 0),)), "tensor name of 64 bytes"),
    "overlapping tensors": (
        gguf_bytes(tensors=(("a", (32,), F32, 0), ("b", (32,), F32, 64))),
        "places tensor b",
    ),
    "offset past the end": (gguf_bytes(tensors=(("a", (32,), F32, HUGE),)), "places tensor a"),
    "data missing": (gguf_bytes(data=b"\0" * 100), "is truncated"),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_header_is_refused_with_a_reason(write, data, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_header(write(data))
    assert "\n" not in str(caught.value)
    assert "model.gguf" in str(caught.value)


@pytest.mark.parametrize("pair", [number_pair("x", 1), number_pair("general.architecture", 1)])
def test_a_file_without_an_architecture_is_no_model(write, pair):
    path = write(gguf_bytes((pair,)))

    assert read_header(path).tensors, "an importance matrix has none either"
    with pytest.raises(CheckpointError, match=r"model\.gguf: names no general\.architecture"):
        open_checkpoint(path)


def test_every_truncation_is_refused(write):
    whole = gguf_bytes()
    for length in range(len(whole)):
        with pytest.raises(CheckpointError):
            read_header(write(whole[:length]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.gguf"):
        read_header(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    ("type_name", "numel", "nbytes"),
    [("F16", 100, 200), ("Q8_0", 64, 68), ("Q4_K", 256, 144), ("Q4_K", 128, 72)],
)
def test_nominal_bytes(type_name, numel, nbytes):
    require_gguf()
    assert nominal_bytes(type_name, numel) == nbytes
