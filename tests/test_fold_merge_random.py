"""Random branches that meet in random sums, of all kinds that may and may not merge: the same function in float64.

``BNFOLD_GRAPHS=20000 pytest tests/test_fold_merge_random.py`` runs the deep profile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from folding import folded, ops
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GRAPHS = int(os.environ.get("BNFOLD_GRAPHS", "100"))


@dataclass
class Branches:
    """Grows branches of one value: ``spatial`` axes of ``lengths``, or rows of a matrix where there are none."""

    draw: st.DrawFn
    random: np.random.Generator
    channels: int
    lengths: tuple[int, ...]
    dynamic: bool
    graph: ir.Graph = field(init=False)
    source: ir.Value = field(init=False)
    stored: list[ir.Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        dims = ["N", self.channels, *(["H", "W"][: len(self.lengths)] if self.dynamic else self.lengths)]
        self.source = ir.val("x", ir.DataType.DOUBLE, dims)
        self.graph = ir.Graph([self.source], [], nodes=[], opset_imports={"": 17}, name="branches")

    def constant(self, *shape: int) -> ir.Value:
        for value in self.stored:
            assert value.const_value is not None
            if tuple(value.const_value.shape.numpy()) == shape and self.draw(st.integers(0, 3)) == 0:
                return value
        name = f"c{len(self.stored)}"
        array = np.abs(self.random.normal(size=shape)) + 0.3
        value = ir.val(name, const_value=ir.tensor(array * self.random.choice([-1, 1], shape), name=name))
        self.graph.register_initializer(value)
        self.stored.append(value)
        return value

    def positive(self, *shape: int) -> ir.Value:
        name = f"p{len(self.graph.initializers)}"
        value = ir.val(name, const_value=ir.tensor(np.abs(self.random.normal(size=shape)) + 0.1, name=name))
        self.graph.register_initializer(value)
        return value

    def add(self, op_type: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)  # type: ignore[arg-type]
        node.name = f"n{len(self.graph)}"
        node.outputs[0].name = f"v{len(self.graph)}"
        node.outputs[0].dtype = ir.DataType.DOUBLE
        self.graph.append(node)
        return node.outputs[0]

    def convolution(self, value: ir.Value, geometry: dict[str, object], inner: int, out: int) -> ir.Value:
        group = self.draw(st.sampled_from([g for g in (1, 1, 2, inner) if inner % g == 0 and out % g == 0]))
        sizes = geometry["kernel_shape"]
        assert isinstance(sizes, list)
        inputs = [value, self.constant(out, inner // group, *sizes)]
        if self.draw(st.booleans()):
            inputs.append(self.constant(out))
        return self.add("Conv", inputs, group=group, **geometry)

    def window(self, strides: list[int]) -> dict[str, object]:
        """A kernel whose output is as long as that of any other with these strides."""
        sizes, dilations, pads = [], [], ([], [])  # type: ignore[var-annotated]
        for _ in strides:
            size = self.draw(st.sampled_from([1, 1, 2, 3, 3]))
            dilation = self.draw(st.sampled_from([1, 1, 2])) if size > 1 else 1
            total = dilation * (size - 1)
            begin = self.draw(st.integers(0, total))
            sizes.append(size)
            dilations.append(dilation)
            pads[0].append(begin)
            pads[1].append(total - begin)
        return {"kernel_shape": sizes, "dilations": dilations, "pads": [*pads[0], *pads[1]], "strides": strides}

    def affine(self, value: ir.Value) -> ir.Value:
        kind = self.draw(st.sampled_from(["BatchNormalization", "Mul", "Add", "Identity", "Neg", "scalar"]))
        if kind == "BatchNormalization":
            parameters = [self.constant(self.channels) for _ in range(3)] + [self.positive(self.channels)]
            return self.add(kind, [value, *parameters])
        if kind in ("Identity", "Neg"):
            return self.add(kind, [value])
        shape = () if kind == "scalar" else (self.channels, *([1] * len(self.lengths)))
        return self.add("Mul" if kind == "scalar" else kind, [value, self.constant(*shape)])

    def branch(self, strides: list[int]) -> ir.Value:
        value, n = self.source, len(strides)
        unit: dict[str, object] = {"kernel_shape": [1] * n, "pads": [0] * (2 * n), "strides": [1] * n}
        kinds = ["conv", "conv", "conv", "row", "row", "pool", "pointwise first", "blocked"]
        kind = self.draw(st.sampled_from(kinds + ["identity"] * 3 if max(strides) == 1 else kinds))
        if kind == "identity":
            for _ in range(self.draw(st.integers(0, 2))):
                value = self.affine(value)
            return value
        if kind == "pool":
            value = self.affine(value) if self.draw(st.booleans()) else value
            include = self.draw(st.integers(0, 3)) > 0
            window = {k: v for k, v in self.window(strides).items() if k != "dilations"}
            sizes = window["kernel_shape"]
            assert isinstance(sizes, list)
            begins = [self.draw(st.integers(0, size - 1)) for size in sizes]
            window["pads"] = [*begins, *(size - 1 - begin for size, begin in zip(sizes, begins, strict=True))]
            return self.add("AveragePool", [value], count_include_pad=int(include), **window)
        if kind == "pointwise first":
            middle = self.draw(st.sampled_from([2, 4, 8]))
            window = self.window(strides)
            if self.draw(st.booleans()):
                unit["pads"], window["pads"] = window["pads"], unit["pads"]
            value = self.convolution(value, unit, self.channels, middle)
            value = self.convolution(value, window, middle, self.channels)
        elif kind == "row":
            middle = self.draw(st.sampled_from([2, 4, 8]))
            value = self.convolution(value, self.window(strides), self.channels, middle)
            value = self.convolution(value, unit, middle, self.channels)
        else:
            value = self.convolution(value, self.window(strides), self.channels, self.channels)
        if kind == "blocked":
            value = self.add("Relu", [value])
        return self.affine(value) if self.draw(st.booleans()) else value

    def dense(self) -> ir.Value:
        value = self.source
        for _ in range(self.draw(st.integers(0, 2))):
            square = [value, self.constant(self.channels, self.channels)]
            if self.draw(st.booleans()):
                value = self.add("Gemm", [*square, self.constant(self.channels)], alpha=0.5, beta=2.0, transB=1)
            else:
                value = self.add("MatMul", square)
            value = self.affine(value) if self.draw(st.booleans()) else value
        return value

    def total(self, summands: list[ir.Value]) -> ir.Value:
        """Any tree of Add, Sub and Sum."""
        left = list(summands)
        while len(left) > 1:
            if len(left) > 2 and self.draw(st.integers(0, 3)) == 0:
                left = [self.add("Sum", left[:3]), *left[3:]]
                continue
            first = left.pop(self.draw(st.integers(0, len(left) - 1)))
            second = left.pop(self.draw(st.integers(0, len(left) - 1)))
            left.append(self.add(self.draw(st.sampled_from(["Add", "Add", "Sub"])), [first, second]))
        return left[0]


@st.composite
def sums(draw: st.DrawFn) -> ir.Model:
    spatial = draw(st.sampled_from([0, 1, 2, 2]))
    dynamic = draw(st.booleans())
    lengths = tuple(2 if dynamic else draw(st.integers(3, 6)) for _ in range(spatial))
    branches = Branches(draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))), 4, lengths, dynamic)
    strides = [draw(st.sampled_from([1, 1, 2])) for _ in range(spatial)]
    summands = [branches.branch(strides) if spatial else branches.dense() for _ in range(draw(st.integers(2, 5)))]
    result = branches.total(summands)
    if draw(st.booleans()):
        result = branches.affine(result)
    if result is branches.source or draw(st.booleans()):
        result = branches.add("Relu", [result])
    outputs = [result, *(v for v in summands if v is not branches.source and draw(st.integers(0, 9)) == 0)]
    for value in dict.fromkeys(outputs):
        value.shape = ir.Shape([f"{value.name}_{axis}" if axis != 1 else 4 for axis in range(2 + spatial)])
        branches.graph.outputs.append(value)
    return ir.Model(branches.graph, ir_version=8)


@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=list(HealthCheck))
@given(sums())
def test_merged_equals_original_in_float64(model: ir.Model) -> None:
    after, report = folded(model, tolerance=1e-9)
    assert sum(ops(after).values()) <= sum(ops(model).values())
    for merge in report.merges:
        assert merge.refusal is not None or merge.work_after <= merge.work_before
