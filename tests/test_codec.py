from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ewq.codec import CodecError, decode, encode
from ewq.measurement import Json


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Wheel:
    spokes: int
    size: float
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Car:
    name: str
    wheels: tuple[Wheel, ...]
    range: tuple[float, float]
    spare: Wheel | None
    by_owner: Mapping[str, Wheel]
    extra: Json
    limits: tuple[float, float] | None = None
    sold: bool = False


WHEELS = st.builds(
    Wheel, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(Colour)
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
PAIRS = st.tuples(NUMBERS, NUMBERS)
CARS = st.builds(
    Car,
    st.text(),
    st.lists(WHEELS).map(tuple),
    PAIRS,
    st.none() | WHEELS,
    st.dictionaries(st.text(), WHEELS),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.none() | PAIRS,
    st.booleans(),
)


@given(car=CARS)
def test_what_is_encoded_is_decoded_equal(car: Car):
    assert decode(Car, json.loads(json.dumps(encode(car), allow_nan=False))) == car


def test_nan_is_null_and_is_not_read_back():
    stored = encode(Wheel(3, math.nan))

    assert stored == {"spokes": 3, "size": None, "colour": "red"}
    with pytest.raises(CodecError, match="size: expected a number, found None"):
        decode(Wheel, stored)


def test_defaults_may_be_missing_and_whole_numbers_are_numbers():
    assert decode(Wheel, {"spokes": 3, "size": 2}) == Wheel(3, 2.0)


WRONG = {
    "lacks": ({"size": 1.0}, r"it lacks keys: spokes"),
    "unknown": ({"spokes": 1, "size": 1.0, "weight": 2}, r"it has unknown keys: weight"),
    "text": ({"spokes": "1", "size": 1.0}, r"spokes: expected a whole number, found '1'"),
    "true for a number": ({"spokes": True, "size": 1.0}, r"spokes: expected a whole number"),
    "a fraction": ({"spokes": 1.5, "size": 1.0}, r"spokes: expected a whole number, found 1\.5"),
    "infinity": ({"spokes": 1, "size": math.inf}, r"size: expected a number, found inf"),
    "an enum": ({"spokes": 1, "size": 1, "colour": "mud"}, r"colour: expected one of red, blue"),
    "a list": ([], r"it: expected keys and values, found \[\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_json_is_refused_by_key(case: str):
    data, message = WRONG[case]
    with pytest.raises(CodecError, match=message):
        decode(Wheel, data)


NESTED = {
    "wheels": ([{"spokes": 1}], r"car\.wheels\[0\] lacks keys: size"),
    "range": ([1.0], r"car\.range: expected 2 entries"),
    "spare": (7, r"car\.spare: expected keys and values, found 7"),
    "by_owner": ({"me": None}, r"car\.by_owner\.me: expected keys and values"),
    "sold": (0, r"car\.sold: expected true or false, found 0"),
    "name": ({"a": "x" * 999}, r"car\.name: expected text, found \{'a': 'x{50}.*…$"),
}


@pytest.mark.parametrize("key", NESTED)
def test_an_error_inside_names_the_way_to_it(key: str):
    value, message = NESTED[key]
    sound = encode(Car("a", (), (1.0, 2.0), None, {}, None))
    with pytest.raises(CodecError, match=message):
        decode(Car, {**sound, key: value}, "car")
