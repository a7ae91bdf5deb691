"""Networks that are trained with branches, exported with all of them: folding gives torch's own merged network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from folding import Array, folded, listing, ops
from reparameterized import BLOCKS, NETWORKS, block_of, network_of
from torch import nn

from bnfold.exporting import ExportOptions
from bnfold.exporting.cleaning import clean_model
from bnfold.exporting.conversion import to_onnx
from bnfold.exporting.source import Network
from bnfold.models.reparameterization import reparameterized


def exported(module: nn.Module, shape: tuple[int, ...], *, clean: bool = False) -> ir.Model:
    """What torch's exporter writes of a module for samples of a shape, every batch norm and branch in it."""
    model, _ = to_onnx(Network("network", module, shape, {}), ExportOptions(opset=18))
    if clean:
        clean_model(model)
    return model


def linear_ops(model: ir.Model) -> list[tuple[str, Mapping[str, Any], Array, Array]]:
    """Each Conv and Gemm in the order of the graph: op type, attributes, weight and bias (zeros if absent)."""
    found = []
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        weight, bias = (node.inputs[index] if index < len(node.inputs) else None for index in (1, 2))
        assert weight is not None
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        if node.attributes.get_int("transB", 0):
            array = array.T
        outputs = array.shape[1] if node.op_type == "Gemm" else array.shape[0]
        shift = np.zeros(outputs)
        if bias is not None:
            assert bias.const_value is not None
            shift = bias.const_value.numpy()
        found.append((node.op_type, geometry(node), array, shift))
    return found


def geometry(node: ir.Node) -> Mapping[str, Any]:
    """The attributes that a convolution goes by, with the defaults of the specification."""
    if node.op_type != "Conv":
        return {}
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    assert given.pop("auto_pad", "NOTSET") == "NOTSET"
    given.pop("kernel_shape", None)
    defaults = {"group": 1, "strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}
    return defaults | {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def assert_same_constants(model: ir.Model, reference: ir.Model) -> None:
    """The same linear ops in the same order, with constants that differ by rounding in float64 only."""
    mine, theirs = linear_ops(model), linear_ops(reference)
    assert [op[:2] for op in mine] == [op[:2] for op in theirs], listing(model)
    for (_, _, weight, bias), (_, _, expected_weight, expected_bias) in zip(mine, theirs, strict=True):
        for actual, expected in ((weight, expected_weight), (bias, expected_bias)):
            assert actual.shape == expected.shape
            assert np.max(np.abs(actual - expected)) <= 1e-12 * np.max(np.abs(expected))


def marked(names: Collection[str], quick: Collection[str]) -> list[Any]:
    """The names of a table; those that are not quick are for the slow profile."""
    assert set(quick) <= set(names)
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


QUICK_BLOCKS = (
    "RepVGG, groups and stride", "MobileOne, depthwise", "MobileOne, pointwise and skip", "ACBlock, groups",
    "DBB, stride", "DBB, depthwise", "RepVGGDW", "two heads",
)  # fmt: skip


@pytest.mark.parametrize("name", marked(BLOCKS, QUICK_BLOCKS))
def test_folded_block_is_the_one_layer_that_torch_makes_of_it(name: str) -> None:
    block, shape = block_of(name)
    after, report = folded(exported(block, shape))
    assert ops(after) == ops(exported(reparameterized(block), shape, clean=True)), listing(after)
    assert_same_constants(after, exported(reparameterized(block), shape, clean=True))
    assert {record.fate for record in report.batch_norms} <= {"folded", "merged"}


@pytest.mark.parametrize("name", marked(NETWORKS, ("RepVGG, groups", "MobileOne", "RepViT, two heads")))
def test_folded_network_is_the_one_that_torch_merges(name: str) -> None:
    network, shape = network_of(name)
    merged = reparameterized(network)
    reference, _ = folded(exported(merged, shape))
    after, report = folded(exported(network, shape))
    assert ops(after) == ops(reference), f"{listing(after)}\n\n{listing(reference)}"
    assert ops(after)["Conv"] == sum(isinstance(module, nn.Conv2d) for module in merged.modules())
    assert_same_constants(after, reference)
    assert {record.fate for record in report.batch_norms} <= {"folded", "merged"}


def test_cleaned_export_folds_as_the_raw_one_does() -> None:
    network, shape = network_of("RepVGG")
    raw, _ = folded(exported(network, shape))
    clean, _ = folded(exported(network, shape, clean=True))
    assert set(ops(clean)) == {"Conv", "Relu", "ReduceMean", "Gemm"}
    assert_same_constants(clean, raw)
