"""Seeded damage to a GGUF file: flipped header bytes, absurd numbers, truncations, swapped ends."""

import random
import struct

KINDS = ("flip", "absurd", "truncate", "zero", "splice", "type")


def mutate(data, header_bytes, seed):
    """``(kind, damaged copy)``; the same for the same seed."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    return kind, _MUTATIONS[kind](bytearray(data), header_bytes, rng)


def _flip(data, header, rng):
    for _ in range(rng.choice([1, 1, 4, 16])):
        data[rng.randrange(4, header)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _absurd(data, header, rng):
    at = rng.randrange(4, header - 8)
    value = rng.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
    data[at : at + 8] = struct.pack("<Q", value)
    return bytes(data)


def _truncate(data, header, rng):
    end = rng.choice([rng.randrange(header), rng.randrange(len(data)), len(data) - 1])
    return bytes(data[:end])


def _zero(data, header, rng):
    at = rng.randrange(4, header - 32)
    length = rng.randrange(1, 32)
    data[at : at + length] = bytes(length)
    return bytes(data)


def _splice(data, header, rng):
    at, source = rng.randrange(24, header - 64), rng.randrange(24, header - 64)
    data[at : at + 48] = data[source : source + 48]
    return bytes(data)


def _type(data, header, rng):
    """Damage near the end of the header, where tensors' shapes, types and offsets are."""
    at = rng.randrange(header * 9 // 10, header - 4)
    data[at : at + 4] = struct.pack("<I", rng.randrange(64))
    return bytes(data)


_MUTATIONS = {
    "flip": _flip,
    "absurd": _absurd,
    "truncate": _truncate,
    "zero": _zero,
    "splice": _splice,
    "type": _type,
}
