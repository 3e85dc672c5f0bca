"""A writer of small GGUF files, byte by byte, so that tests can break them anywhere."""

import struct


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def string_pair(key, value):
    return pair(key, 8, text(value))


def number_pair(key, value):
    return pair(key, 4, struct.pack("<I", value))


def tensor(name, shape, kind, offset):
    dims = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


ARCHITECTURE = string_pair("general.architecture", "llama")
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12


def gguf_bytes(
    pairs=(ARCHITECTURE,),
    tensors=(("a", (32,), F32, 0), ("b", (64, 2), Q8_0, 128)),
    data=b"\0" * (128 + 136),
    magic=b"GGUF",
    version=3,
    tensor_count=None,
    pair_count=None,
    alignment=32,
):
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head += b"".join(pairs) + b"".join(tensor(*each) for each in tensors)
    return head + b"\0" * (-len(head) % alignment) + data
