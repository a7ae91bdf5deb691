"""Networks that are trained with branches: one convolution a block computes the same, in torch and after folding."""

from __future__ import annotations

import pytest
import torch
from reparameterized import BLOCKS, NETWORKS, block_of, network_of
from torch import nn

from bnfold.models.reparameterization import Reparameterizable, reparameterized
from bnfold.models.repvit import RepViT
from bnfold.models.stages import plan_stages


def assert_equal_in_torch(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """``network`` and its merged copy compute the same in float64; the copy."""
    x = torch.randn(3, *shape, dtype=torch.float64)
    merged = reparameterized(network)
    with torch.inference_mode():
        expected, actual = network(x), merged(x)
    assert actual.shape == expected.shape
    assert torch.max(torch.abs(actual - expected)) <= 1e-10 * torch.max(torch.abs(expected))
    return merged


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_network_computes_the_same_in_torch(name: str) -> None:
    network, shape = network_of(name)
    merged = assert_equal_in_torch(network, shape)
    assert not any(isinstance(module, Reparameterizable) for module in merged.modules())
    norms = [name for name, module in merged.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms == []


@pytest.mark.parametrize("name", BLOCKS)
def test_merged_block_is_one_layer_that_computes_the_same_in_torch(name: str) -> None:
    block, shape = block_of(name)
    merged = assert_equal_in_torch(block, shape)
    assert isinstance(merged, nn.Conv2d | nn.Linear)


def test_what_is_merged_is_a_copy_and_the_network_stays_as_it_is() -> None:
    network, _ = network_of("RepVGG")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    merged = reparameterized(network)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_merged_weights_are_rounded_to_the_type_of_the_network() -> None:
    network, shape = network_of("DBB")
    exact = reparameterized(network.float())
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}
    x = torch.randn(2, *shape)
    with torch.inference_mode():
        torch.testing.assert_close(exact(x), network(x), rtol=1e-3, atol=1e-3)


def test_every_other_repvit_block_weighs_its_channels_but_not_the_last_of_a_stage() -> None:
    letters = {"RepVGGDW": "d", "SqueezeExcitation": "s", "ChannelMixer": "m ", "NormedConv": "c"}
    network = RepViT(widths=(4, 6), blocks=(3, 6))
    plan = "".join(letters[type(module).__name__] for module in network.blocks)
    assert plan.split() == ["dsm", "dm", "dm", "ccm", "dsm", "dm", "dsm", "dm", "dm"]


@pytest.mark.parametrize(("widths", "blocks", "strides"), [((), 1, None), ((4, 8), (1,), None), ((4, 8), 1, (1, 2, 2))])
def test_stages_that_do_not_match_are_refused(
    widths: tuple[int, ...], blocks: int | tuple[int, ...], strides: tuple[int, ...] | None
) -> None:
    with pytest.raises(ValueError, match="one number for each"):
        plan_stages(3, widths, blocks, strides)
