"""Names of variants: what they stand for, and which are refused."""

from pathlib import Path

import pytest

from ewq.errors import InputError
from ewq.report.rows import (
    FITTED,
    FOLDER,
    GGUF_FITTED,
    GGUF_PLANNED,
    GGUF_UNIFORM,
    OTHER,
    PLANNED,
    UNIFORM,
    UNQUANTIZED,
    variant_kind,
)
from ewq.variants import (
    Fitted,
    GgufFile,
    GgufType,
    HfFolder,
    Planned,
    Variant,
    default_names,
    engine_of,
    find_variant,
    in_run_order,
    is_fit_name,
    table_place,
)


@pytest.fixture
def plan_file(tmp_path) -> Path:
    path = tmp_path / "6bpw.json"
    path.write_text("{}")
    return path


def test_factors_are_spelled_one_way():
    assert find_variant("ewq-1") == find_variant("ewq-1.0")
    assert find_variant("gguf-ewq-0.650").name == "gguf-ewq-0.65"
    assert find_variant("ewq-0.5").recipe == Planned(0.5)


def test_every_default_name_is_a_variant_of_that_name():
    names = default_names(["1.0", "0.65"])
    assert [find_variant(name).name for name in names] == list(names)


def test_the_reference_comes_first_and_the_rest_as_given():
    variants = [find_variant(name) for name in ("bnb-nf4", "fp16", "ewq-1.0")]
    assert [v.name for v in in_run_order(variants)] == ["fp16", "bnb-nf4", "ewq-1.0"]


def test_a_plan_file_is_a_variant_in_both_engines(plan_file):
    plain, gguf = find_variant(str(plan_file)), find_variant(f"gguf:{plan_file}")
    assert (plain.name, plain.recipe) == ("ewq-6bpw", Planned(plan_file))
    assert (gguf.name, gguf.recipe) == ("gguf-ewq-6bpw", Planned(plan_file))


def test_an_ending_in_capitals_is_a_plan_file(plan_file):
    path = plan_file.rename(plan_file.with_suffix(".JSON"))
    assert find_variant(str(path)).name == "ewq-6bpw"


def test_a_plan_file_may_be_called_ewq_itself(tmp_path):
    (tmp_path / "ewq-small.json").write_text("{}")
    assert find_variant(str(tmp_path / "ewq-small.json")).name == "ewq-small"


@pytest.mark.parametrize("stem", ["0.65", "two words", "a[1]", "ewq-1.0"])
def test_a_plan_file_whose_name_cannot_be_a_variants_is_refused(tmp_path, stem):
    (tmp_path / f"{stem}.json").write_text("{}")
    with pytest.raises(InputError, match="rename the file"):
        find_variant(str(tmp_path / f"{stem}.json"))


@pytest.mark.parametrize("name", ["absent.gguf", "absent.json", "gguf:absent.json"])
def test_a_missing_file_is_named(name):
    with pytest.raises(InputError, match=f"{name}.*no such file"):
        find_variant(name)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("gguf-fit-q4_k_m", Fitted(like="Q4_K_M")),
        ("gguf-fit-q6_k", Fitted(like="Q6_K")),
        ("gguf-fit-1.5gib", Fitted(3 * 2**29)),
        ("fit-90mb", Fitted(90_000_000)),
        ("gguf-q4_k_m-imatrix", GgufType("Q4_K_M", imatrix=True)),
    ],
)
def test_a_fitted_plan_is_named_by_its_size(name, recipe):
    assert find_variant(name) == Variant(name, recipe)


@pytest.mark.parametrize("name", ["fit-q4_k_m", "fit-big"])
def test_a_size_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="invalid size"):
        find_variant(name)


@pytest.mark.parametrize("name", ["fp17", "ewq-", "ewq-x", "ewq-0,65", "gguf-q9", "FP16", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(InputError, match=r"known: fp16, .*ewq-FACTOR, .*PLAN\.json"):
        find_variant(name)


def test_a_gguf_file_is_named_by_its_file(tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"")
    variant = find_variant(str(tmp_path / "other.gguf"))
    assert variant.name == "other.gguf"
    assert isinstance(variant.recipe, GgufFile)


@pytest.mark.parametrize(
    ("given", "name", "source"),
    [
        ("hf:folders/Some AWQ/", "hf-Some-AWQ", "folders/Some AWQ"),
        ("hf:owner/name-4bit", "hf-name-4bit", "owner/name-4bit"),
    ],
)
def test_a_model_folder_is_named_by_its_last_part(given, name, source):
    assert find_variant(given) == Variant(name, HfFolder(source))


@pytest.mark.parametrize("name", ["hf:", "hf:..", "hf:some.gguf"])
def test_what_names_no_folder_is_refused(name):
    with pytest.raises(InputError, match="give hf:FOLDER or hf:OWNER/NAME"):
        find_variant(name)


@pytest.mark.parametrize(
    ("name", "engine", "kind"),
    [
        ("fp16", "transformers", UNQUANTIZED),
        ("gguf-f16", "llama.cpp", UNQUANTIZED),
        ("ewq-0.65", "transformers", PLANNED),
        ("ewq-6bpw", "transformers", PLANNED),
        ("gguf-ewq-0.65", "llama.cpp", GGUF_PLANNED),
        ("gguf-ewq-6bpw", "llama.cpp", GGUF_PLANNED),
        ("bnb-nf4", "transformers", UNIFORM),
        ("gguf-q4_k_m", "llama.cpp", GGUF_UNIFORM),
        ("gguf-q4_k_m-imatrix", "llama.cpp", GGUF_UNIFORM),
        ("gguf-fit-q4_k_m", "llama.cpp", GGUF_FITTED),
        ("fit-90mb", "transformers", FITTED),
        ("other.gguf", "llama.cpp", OTHER),
        ("hf-some-awq", "transformers", FOLDER),
        ("of-a-later-version", "transformers", OTHER),
    ],
)
def test_engine_and_kind_of_a_stored_name_need_no_file(name, engine, kind):
    assert engine_of(name) == engine
    assert variant_kind(name) is kind


@pytest.mark.parametrize("name", ["gguf-q8_0", "gguf-ewq-0.65", "gguf-fit-q4_k_m"])
def test_a_cache_type_is_part_of_the_name_and_of_nothing_else(name):
    plain, cached = find_variant(name), find_variant(f"{name}+kv-q4_0")
    assert (cached.name, cached.cache, cached.recipe) == (f"{name}+kv-q4_0", "q4_0", plain.recipe)
    assert engine_of(cached.name) == "llama.cpp"
    assert table_place(cached.name) == table_place(name)
    assert is_fit_name(cached.name) == is_fit_name(name)
    assert variant_kind(cached.name) is OTHER
    assert find_variant(f"{name}+kv-f16") == plain


def test_a_given_file_takes_a_cache_type(tmp_path):
    (tmp_path / "own.gguf").touch()
    found = find_variant(f"{tmp_path}/own.gguf+kv-q8_0")
    assert (found.name, found.cache) == ("own.gguf+kv-q8_0", "q8_0")
    assert engine_of(found.name) == "llama.cpp"


@pytest.mark.parametrize(
    ("name", "said"),
    [("ewq-0.65+kv-q8_0", "only GGUF variants"), ("gguf-q8_0+kv-q9", "unknown variant")],
)
def test_a_cache_type_that_cannot_be_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        find_variant(name)


def test_gguf_types_keep_llama_cpps_spelling():
    assert find_variant("gguf-q4_k_m").recipe == GgufType("Q4_K_M")
