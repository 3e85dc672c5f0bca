"""Options: one rule, sound values, and a round trip through JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ewq.errors import InputError, PlanError
from ewq.planning.plan import write_plan
from ewq.quantizer import EwqConfig
from tests.quantizer.models import plan_for, save


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return plan_for(save("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def double_plan(tmp_path_factory):
    return plan_for(save("llama", tmp_path_factory.mktemp("model")), target="nf4-double")


CONTRADICTIONS = {
    "no-rule": ({}, "exactly one of plan, factor, target_bpw, target_size_bytes; got none"),
    "two-rules": ({"factor": 0.65, "target_bpw": 6.0}, "got factor and target_bpw"),
    "bad-type": ({"factor": 1.0, "quant_type": "int4"}, "quant_type='int4'; there are: nf4, fp4"),
    "bad-block": ({"factor": 1.0, "block_size": 100}, "block_size=100"),
    "bad-dtype": ({"factor": 1.0, "compute_dtype": "int8"}, "compute_dtype='int8'"),
    "bad-double": ({"factor": 1.0, "double_quant": "yes"}, "double_quant='yes'"),
    "negative-threshold": ({"factor": 1.0, "int8_threshold": -1.0}, "int8_threshold=-1.0"),
    "nan-threshold": ({"factor": 1.0, "int8_threshold": math.nan}, "int8_threshold=nan"),
    "unknown-option": ({"factor": 1.0, "load_in_4bits": True}, "no option load_in_4bits"),
    "other-method": ({"factor": 1.0, "quant_method": "awq"}, "quant_method='awq'"),
}


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_options_that_contradict_each_other_are_one_clear_error(options, message):
    with pytest.raises(InputError, match=r"EwqConfig") as error:
        EwqConfig(**options)

    assert message in str(error.value)
    assert "\n" not in str(error.value)


WITH_PLAN = {
    "rule": ({"factor": 0.65}, "got plan and factor"),
    "scorer": ({"scorer": "softmax"}, "scorer belong to the analysis"),
    "double": ({"double_quant": True}, "plan counted sizes for nf4"),
}


@pytest.mark.parametrize(("options", "message"), WITH_PLAN.values(), ids=WITH_PLAN)
def test_what_a_plan_has_decided_cannot_be_given_again(plan, options, message):
    with pytest.raises(InputError, match=message):
        EwqConfig(plan=plan, **options)


def test_double_quantization_follows_the_plan_unless_given(plan, double_plan):
    assert not EwqConfig(plan=plan).options.double_quant
    assert EwqConfig(plan=double_plan).options.double_quant
    with pytest.raises(InputError, match="nf4-double"):
        EwqConfig(plan=double_plan, double_quant=False)


def test_a_plan_may_come_as_object_json_or_file(plan, tmp_path):
    path = write_plan(plan, tmp_path / "plan.json")

    for given in (plan, plan.to_json(), path, str(path)):
        assert EwqConfig(plan=given).plan.digest == plan.digest
    with pytest.raises(PlanError, match=r"missing\.json"):
        EwqConfig(plan=tmp_path / "missing.json")


def test_a_config_is_the_same_after_a_round_trip_through_json(plan):
    config = EwqConfig(plan=plan, quant_type="fp4", compute_dtype=torch.bfloat16, block_size=128)

    again = EwqConfig.from_dict(json.loads(config.to_json_string()))

    assert again.to_dict() == config.to_dict()
    assert again.options == config.options
    assert again.options.compute_dtype == "bfloat16"


def test_a_rule_survives_the_round_trip_too():
    config = EwqConfig(factor=0.5, scorer="softmax")

    assert EwqConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
