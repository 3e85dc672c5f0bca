from pathlib import Path

import pytest

from ewq.errors import InputError
from ewq.gating.thresholds import BUILT_IN, Limit, Test, Tolerance, load_thresholds
from ewq.variants import default_names

VARIANTS = default_names(["1.0", "0.65"])
SHIPPED = Path(__file__).parent.parent.parent / "benchmarks" / "thresholds.toml"


def load(tmp_path, text):
    path = tmp_path / "thresholds.toml"
    path.write_text(text)
    return load_thresholds(path, VARIANTS)


DESIGN = """
[default.mmlu]
accuracy_delta = {min = -0.01, test = "noninferiority", alpha = 0.05}
[variant."gguf-q4_k_m".perplexity]
ln_ppl_ratio = {max = 0.08}
"""


def test_reads_the_example_of_the_contract(tmp_path):
    thresholds = load(tmp_path, DESIGN)

    assert thresholds.for_("ewq-0.65", "mmlu") == {
        "accuracy_delta": Limit(min=-0.01, test=Test.NONINFERIORITY, alpha=0.05)
    }
    assert thresholds.for_("gguf-q4_k_m", "perplexity") == {"ln_ppl_ratio": Limit(max=0.08)}
    assert thresholds.for_("ewq-0.65", "perplexity") == {}


def test_a_variant_replaces_the_default_metric_by_metric(tmp_path):
    thresholds = load(
        tmp_path,
        """
        [default.divergence]
        kld_mean = {max = 0.1}
        top1_agreement = {min = 0.9}
        [variant.bnb-nf4.divergence]
        kld_mean = {max = 0.3}
        """,
    )

    assert thresholds.for_("bnb-nf4", "divergence") == {
        "kld_mean": Limit(max=0.3),
        "top1_agreement": Limit(min=0.9),
    }
    assert thresholds.for_("ewq-1.0", "divergence")["kld_mean"] == Limit(max=0.1)


def test_a_task_of_lm_eval_has_its_own_limits_beside_those_of_the_family(tmp_path):
    text = """
    [default.lm_eval]
    "delta/acc" = {min = -0.02, test = "mcnemar"}
    [default.lm_eval-arc_easy]
    "delta/acc" = {min = -0.01, test = "mcnemar"}
    "exact_match/strict-match" = {min = 0.3}
    [tolerance.lm_eval-arc_easy]
    acc = {absolute = 0.02}
    """
    thresholds = load(tmp_path, text)
    limits = thresholds.for_("bnb-nf4", "lm_eval-arc_easy")
    assert limits["delta/acc"] == Limit(min=-0.01, test=Test.MCNEMAR)
    assert limits["exact_match/strict-match"] == Limit(min=0.3)
    assert thresholds.for_("bnb-nf4", "lm_eval-piqa")["delta/acc"].min == -0.02
    assert thresholds.for_("fp16", "lm_eval-piqa") == {}
    assert thresholds.tolerances_for("lm_eval-arc_easy", "cpu")["acc"] == Tolerance(absolute=0.02)


def test_the_reference_has_no_limits_on_figures_relative_to_itself(tmp_path):
    text = "[default.mmlu]\naccuracy_delta = {min = -0.01}\naccuracy = {min = 0.3}"

    assert load(tmp_path, text).for_("fp16", "mmlu") == {"accuracy": Limit(min=0.3)}


def test_tolerances_of_the_file_override_the_built_in_ones(tmp_path):
    tolerances = load(
        tmp_path, "[tolerance.throughput]\ndecode_tokens_per_s = {relative = 0.3}"
    ).tolerances_for("throughput", "cuda:0")

    assert tolerances["decode_tokens_per_s"] == Tolerance(relative=0.3)
    assert tolerances["ttft_s"] == BUILT_IN.tolerances_for("throughput", "cuda:0")["ttft_s"]


@pytest.mark.parametrize(
    ("text", "device", "relative"),
    [
        ("", "cuda:0", 0.1),
        ("", "cpu", 0.5),
        ("[tolerance.throughput]\ndecode_ratio = {relative = 0.3}", "cpu", 0.3),
        ("[cpu.tolerance.throughput]\ndecode_ratio = {relative = 0.7}", "cpu", 0.7),
        ("[cpu.tolerance.throughput]\ndecode_ratio = {relative = 0.7}", "cuda:0", 0.1),
    ],
)
def test_clocks_of_a_cpu_have_tolerances_of_their_own(tmp_path, text, device, relative):
    found = load(tmp_path, text).tolerances_for("throughput", device)

    assert found["decode_ratio"] == Tolerance(relative=relative)


@pytest.mark.parametrize(
    ("tolerance", "allowed"),
    [
        (Tolerance(relative=0.1), 5.0),
        (Tolerance(absolute=2.0), 2.0),
        (Tolerance(relative=0.1, absolute=7.0), 7.0),
        (Tolerance(relative=0.1, absolute=1.0), 5.0),
    ],
    ids=["relative", "absolute", "larger absolute", "larger relative"],
)
def test_the_larger_tolerance_counts(tolerance, allowed):
    assert tolerance.allowed(-50.0) == pytest.approx(allowed)


ERRORS = {
    "not TOML": ("[default", "at line 1|at end of document"),
    "unknown top-level table": ("[defaults.mmlu]\n", "unknown keys: defaults"),
    "top level is no table": ("default = 3", "default: expected keys and values"),
    "unknown task": ("[default.mmul]\n", r"default\.mmul: unknown; known: divergence"),
    "unknown metric": (
        "[default.mmlu]\naccuracy_dleta = {min = 0}",
        "accuracy_dleta: unknown metric",
    ),
    "metric of another task": ("[default.mmlu]\nkld_mean = {max = 1}", "unknown metric of task"),
    "unknown key": ("[default.mmlu]\naccuracy = {mim = 0}", "accuracy has unknown keys: mim"),
    "unknown test": (
        '[default.mmlu]\naccuracy = {min = 0, test = "t"}',
        r"test: expected one of bound, noninferiority, mcnemar, found 't'",
    ),
    "unknown variant": ("[variant.gguf-q9.mmlu]\n", "unknown variant 'gguf-q9'"),
    "no bounds": ("[default.mmlu]\naccuracy = {}", "needs min or max"),
    "crossed bounds": ("[default.mmlu]\naccuracy = {min = 1, max = 0}", "min 1 is above max 0"),
    "limit is a string": (
        '[default.mmlu]\naccuracy = {min = "0"}',
        r"accuracy\.min: expected a number, found '0'",
    ),
    "limit is a truth value": ("[default.mmlu]\naccuracy = {min = true}", "expected a number"),
    "limit is NaN": ("[default.mmlu]\naccuracy = {min = nan}", "expected a number"),
    "alpha of nothing": ("[default.mmlu]\naccuracy = {min = 0, alpha = 0}", "between 0 and 1"),
    "alpha of everything": (
        "[tolerance.mmlu]\naccuracy = {absolute = 0, alpha = 1}",
        "alpha must",
    ),
    "alpha out of range": ("[default.mmlu]\naccuracy = {min = 0, alpha = 5}", "between 0 and 1"),
    "mcnemar without flips": (
        '[default.perplexity]\nln_ppl_ratio = {max = 0, test = "mcnemar"}',
        "mcnemar applies only to a min of accuracy_delta",
    ),
    "tolerance without size": ("[tolerance.mmlu]\naccuracy = {}", "needs relative or absolute"),
    "negative tolerance": ("[tolerance.mmlu]\naccuracy = {relative = -1}", "not be negative"),
    "unknown tolerance key": ("[tolerance.mmlu]\naccuracy = {max = 1}", "unknown keys: max"),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_anything_unknown_is_an_error_that_names_file_and_place(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as raised:
        load(tmp_path, text)
    assert "thresholds.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot read thresholds"):
        load_thresholds(tmp_path / "none.toml", VARIANTS)


def test_any_factor_and_the_runs_own_files_are_known_variants(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text(
        '[variant."ewq-0.7".mmlu]\n[variant."gguf-ewq-2".mmlu]\n[variant."my.gguf".mmlu]\n'
        "[variant.hf-some-awq.mmlu]\n"
    )
    assert set(load_thresholds(path, ["my.gguf"]).variant) == {
        *("ewq-0.7", "gguf-ewq-2", "my.gguf", "hf-some-awq")
    }


def test_the_shipped_thresholds_are_valid_and_gate_every_quality_task():
    thresholds = load_thresholds(SHIPPED, VARIANTS)

    for task in ("mmlu", "mmlu_cloze", "perplexity", "divergence"):
        assert all(thresholds.for_(v, task) for v in VARIANTS if v != "fp16"), task
        assert thresholds.for_("fp16", task) == {}


def test_a_tolerance_of_nothing_is_one(tmp_path):
    read = load(tmp_path, "[tolerance.mmlu]\naccuracy = {absolute = 0}")
    assert read.tolerances_for("mmlu", "cpu")["accuracy"] == Tolerance(absolute=0.0)
