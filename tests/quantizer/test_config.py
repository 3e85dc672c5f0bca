"""Options: sound values, and a round trip through JSON."""

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
    "bad-type": ({"quant_type": "int4"}, "quant_type='int4'; there are: nf4, fp4"),
    "bad-block": ({"block_size": 100}, "block_size=100"),
    "bad-dtype": ({"compute_dtype": "int8"}, "compute_dtype='int8'"),
    "bad-double": ({"double_quant": "yes"}, "double_quant=yes"),
    "negative-threshold": ({"int8_threshold": -1.0}, "int8_threshold=-1.0"),
    "nan-threshold": ({"int8_threshold": math.nan}, "int8_threshold=nan"),
    "unknown-option": ({"load_in_4bits": True}, "no option load_in_4bits"),
    "other-method": ({"quant_method": "awq"}, "quant_method='awq'"),
}


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_options_that_make_no_sense_are_one_clear_error(plan, options, message):
    with pytest.raises(InputError, match=r"EwqConfig") as error:
        EwqConfig(plan, **options)

    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_double_quantization_follows_the_plan_unless_given(plan, double_plan):
    assert not EwqConfig(plan=plan).options.double_quant
    assert EwqConfig(plan=double_plan).options.double_quant
    for counted, wanted in ((plan, True), (double_plan, False)):
        with pytest.raises(InputError, match=f"with a plan for {counted.target}:"):
            EwqConfig(plan=counted, double_quant=wanted)


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
