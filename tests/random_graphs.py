"""Random graphs of linear, affine, commuting and blocking ops, with forks, joins, shared weights and odd shapes.

hypothesis draws only which steps there are, each with the seed of its own random numbers: so a failing graph shrinks by
whole steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import random_joins as j
import random_steps as s
from graph_builder import Builder, Step
from hypothesis import strategies as st

#: From the first with today's BatchNormalization on; those between change the form of some op that folding reads.
OPSETS = (7, 8, 9, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 24)

LINEAR: list[Step] = [
    s.conv,
    s.conv,
    s.conv,
    s.transposed_conv,
    s.matmul,
    s.matmul,
    s.gemm,
    s.normalization,
    s.recurrent,
    s.recurrent,
    j.left_matmul,
]
AFFINE: list[Step] = [s.batch_norm, s.batch_norm, s.batch_norm, s.binary, s.binary, s.scale, s.tokens]
CROSSED: list[Step] = [
    *[s.unary] * 4,
    *[s.reshape, s.pool] * 3,
    *[s.transpose, s.reduce, s.blocks, j.join, j.branches, j.constant_join] * 2,
    *[s.prelu, s.pad, s.slice_, s.gather, s.embedding, s.split, s.resize, s.expand, s.tile, s.idle],
    *[j.concat, j.constant_concat, j.product, j.gate],
]
BLOCKING: list[Step] = [j.block, j.branch]


def behind(b: Builder) -> None:
    """An affine that might go back into a linear op."""
    along_a_chain(b, [LINEAR, *[CROSSED] * b.one(0, 1, 1, 1, 2, 3), AFFINE])


def ahead(b: Builder) -> None:
    """An affine that might go forward into a linear op."""
    along_a_chain(b, [BLOCKING, AFFINE, *[CROSSED] * b.one(0, 1, 1, 1, 2, 3), LINEAR])


def residual(b: Builder) -> None:
    """An affine behind an activation, summed with what might make room for it, which something else may read too."""
    b.loyalty, before = 97, b.loyalty
    x = b.pick()
    b.tensors.append(x)
    b.one(j.linear, j.linear, s.batch_norm, s.scale)(b)
    if b.chance(30):
        b.one(s.unary, s.idle, s.prelu, j.join)(b)
    other = b.tensors[-1]
    if b.chance(60):
        b.one(j.linear, s.conv, s.matmul)(b)
    elif b.chance(80):
        b.tensors.append(x)
    j.block(b)
    b.one(s.batch_norm, s.batch_norm, s.scale, s.binary)(b)
    if b.tensors[-1].shape == other.shape:
        pair = [b.tensors[-1], other]
        b.add(b.one("Add", "Add", "Sub", "Sum"), pair if b.chance(50) else pair[::-1])
    if b.chance(40):
        b.one(*CROSSED)(b)
    b.one(j.linear, *LINEAR)(b)
    b.loyalty = before


def along_a_chain(b: Builder, kinds: Sequence[Sequence[Step]]) -> None:
    b.loyalty, before = 97, b.loyalty
    for steps in kinds:
        b.one(*steps)(b)
    b.loyalty = before


STEPS: list[Step] = [*[behind, ahead] * 10, *[residual] * 6, *LINEAR, *AFFINE, *CROSSED]


@dataclass(frozen=True)
class Recipe:
    """All that decides a graph: the steps, each with the seed of its random numbers."""

    seed: int
    opset: int
    dynamic: bool
    steps: tuple[tuple[Step, int], ...]

    def __repr__(self) -> str:
        steps = ", ".join(f"({step.__name__}, {seed})" for step, seed in self.steps)
        return f"Recipe({self.seed}, {self.opset}, {self.dynamic}, ({steps},))"

    def model(self) -> ir.Model:
        """The model in double; all loose ends and some of the inner values are its outputs."""
        b = Builder(np.random.default_rng(self.seed), self.opset, self.dynamic)
        for step, seed in self.steps:
            b.random = np.random.default_rng(seed)
            step(b)
        if len(b.tensors) == 1:
            b.add("Tanh", [b.tensors[0]])
        made = {tensor.value: tensor for tensor in b.tensors if tensor.value.producer() is not None}
        for value, tensor in made.items():
            if not value.uses() or b.chance(4):
                value.shape = ir.Shape(b.declared(tensor.shape))
                b.graph.outputs.append(value)
        return ir.Model(b.graph, ir_version=8)


_SEEDS = st.integers(0, 2**20)

#: Recipes of graphs of some five to twenty nodes.
recipes = st.builds(
    Recipe,
    _SEEDS,
    st.sampled_from(OPSETS),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(STEPS), _SEEDS), min_size=3, max_size=7).map(tuple),
)


def graphs_of_one_scope() -> st.SearchStrategy[ir.Model]:
    """The models of those recipes that use no If."""
    return recipes.map(Recipe.model).filter(lambda model: all(node.op_type != "If" for node in model.graph))
