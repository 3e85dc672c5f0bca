import pytest

from ewq.errors import InputError
from ewq.gguf.recipe import TypeRecipe, make_recipe, parse_types
from ewq.variants import Precision


def test_types_are_parsed_and_may_be_partial():
    assert parse_types("8bit=q6_k, raw=BF16") == {
        Precision.EIGHT_BIT: "Q6_K",
        Precision.RAW: "BF16",
    }
    assert parse_types("") == {}


@pytest.mark.parametrize("text", ["Q8_0", "16bit=F16", "raw=", "raw"])
def test_malformed_types_are_refused(text):
    with pytest.raises(InputError, match="expected raw=F16"):
        parse_types(text)


def test_a_type_alone_is_a_recipe():
    assert make_recipe("q4_k_m") == TypeRecipe("Q4_K_M")


@pytest.mark.parametrize(
    ("type_name", "types", "reason"),
    [
        (None, None, "exactly one"),
        ("Q8_0", {Precision.RAW: "F16"}, "--types needs --plan"),
    ],
)
def test_contradictions_are_refused(type_name, types, reason):
    with pytest.raises(InputError, match=reason):
        make_recipe(type_name, None, types)
