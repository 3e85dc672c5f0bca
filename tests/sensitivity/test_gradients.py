"""Second moments of inputs against hooks on the modules themselves."""

import pytest
import torch

from ewq.sensitivity.gradients import SecondMoments
from tests.architectures import build

SEQUENCES = [[5, 9, 21, 33, 7, 2], [11, 4, 44, 60]]


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"]),
        ("gpt2", ["attn.c_attn", "mlp.c_proj"]),
    ],
)
def test_means_are_those_of_the_modules_inputs(architecture, names):
    model = build(architecture).eval()
    layers = "transformer.h" if architecture == "gpt2" else "model.layers"
    modules = [f"{layers}.1.{name}" for name in names]
    moments = SecondMoments(model, [f"{module}.weight" for module in modules])
    expected = {}

    def add(name, inputs):
        flat = inputs.reshape(-1, inputs.shape[-1]).double()
        expected[name] = expected.get(name, 0) + flat.T @ flat / sum(map(len, SEQUENCES))

    for module in modules:
        model.get_submodule(module).register_forward_pre_hook(
            lambda _, inputs, name=module: add(name, inputs[0].detach())
        )
    for ids in SEQUENCES:
        moments.add(ids)
    found = moments.means()
    assert found.keys() == {f"{module}.weight" for module in modules}
    for module in modules:
        torch.testing.assert_close(
            torch.from_numpy(found[f"{module}.weight"]), expected[module].float()
        )
    if architecture == "llama":
        # Query and key read the same.
        assert found[f"{modules[0]}.weight"] is found[f"{modules[1]}.weight"]
