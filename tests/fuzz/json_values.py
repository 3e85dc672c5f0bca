"""Mutations of JSON documents, as hypothesis draws them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("EWQ_FUZZ_EXAMPLES", "25"))
"""Per kind of input; a run outside CI takes 500."""
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="EWQ_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "two", "../x", "\x00", "nan", "é" * 40, 2**63, -1, 0, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every ``(container, key)`` of a document, deepest last."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(pairs):
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """The document with one to three entries replaced, taken away, added or swapped."""
    data = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(data))
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        how = draw(st.sampled_from(["replace", "remove", "add", "swap", "whole"]))
        if how == "replace":
            container[key] = draw(JSON)
        elif how == "remove":
            del container[key]
        elif how == "add" and isinstance(container, dict):
            container[draw(st.text(max_size=12))] = draw(JSON)
        elif how == "swap":
            other, its_key = draw(st.sampled_from(found))
            container[key] = copy.deepcopy(other[its_key])
        elif how == "whole" and draw(st.integers(0, 9)) == 0:
            return draw(JSON)
    return data


@st.composite
def as_text(draw: st.DrawFn, documents: st.SearchStrategy[Any]) -> bytes:
    """A document's text, sometimes cut short or with bytes changed."""
    import json

    raw = bytearray(json.dumps(draw(documents)).encode())
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "bytes"]))
    if damage == "cut":
        del raw[draw(st.integers(0, len(raw))) :]
    elif damage == "bytes" and raw:
        for _ in range(draw(st.integers(1, 4))):
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)
