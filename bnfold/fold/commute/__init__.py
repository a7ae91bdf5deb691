"""How an affine passes through an op that has no weights to absorb it: one rule an op, in one table.

A rule answers two questions about an op ``f``, for an affine ``a``:

* *backward*: which affines on the inputs give ``a ∘ f = f ∘ (a₀, a₁, …)``?
* *forward*: which affines on the outputs give ``f(…, a(xᵢ), …) = (b₀, b₁, …) ∘ f``?

The answer is an affine for each input (output) concerned, its axis remapped by proof from shapes, or a refusal. Rules
read shapes, attributes and constants; they never see or edit the graph. To add one, write a subclass of
:class:`~bnfold.fold.commute.rule.Rule` in the module of its family and name it in :data:`RULES`;
``tests/test_fold_commute.py`` holds the table of its cases.
"""

from __future__ import annotations

from collections.abc import Mapping

from bnfold.fold.commute.contraction import Contraction
from bnfold.fold.commute.joins import Alike, Concatenation, Product, Sum
from bnfold.fold.commute.layout import PassThrough, Permute, Relayout
from bnfold.fold.commute.normalization import Normalization
from bnfold.fold.commute.pointwise import PositivelyHomogeneous
from bnfold.fold.commute.pooling import Pool, Reduction
from bnfold.fold.commute.resampling import Padding, Resampling, Reversal, Sampling
from bnfold.fold.commute.rule import OpView, Rule
from bnfold.fold.commute.selection import Blocks, Expansion, Gathering, Slicing, Splitting, Tiling

__all__ = ["RULES", "OpView", "Rule"]

#: The rule of each op that an affine may cross.
RULES: Mapping[str, Rule] = {
    "Abs": PositivelyHomogeneous(),
    "Add": Sum(),
    "AveragePool": Pool(),
    "Concat": Concatenation(),
    "DepthToSpace": Blocks(),
    "Div": Product(),
    "Dropout": PassThrough(),
    "Expand": Expansion(),
    "Flatten": Relayout(),
    "Gather": Gathering(),
    "GlobalAveragePool": Pool(),
    "GlobalMaxPool": Pool(),
    "GridSample": Sampling(),
    "GroupNormalization": Normalization(),
    "Identity": PassThrough(),
    "InstanceNormalization": Normalization(),
    "LayerNormalization": Normalization(),
    "LeakyRelu": PositivelyHomogeneous(),
    "MatMul": Contraction(),  # where neither side is the weight of a linear op
    "Max": Alike(),
    "MaxPool": Pool(),
    "Mean": Alike(),
    "Min": Alike(),
    "Mul": Product(),
    "PRelu": PositivelyHomogeneous(),
    "Pad": Padding(),
    "RMSNormalization": Normalization(),
    "ReduceMax": Reduction(),
    "ReduceMean": Reduction(),
    "ReduceMin": Reduction(),
    "ReduceSum": Reduction(),
    "Relu": PositivelyHomogeneous(),
    "Reshape": Relayout(),
    "Resize": Resampling(),
    "ReverseSequence": Reversal(),
    "Slice": Slicing(),
    "SpaceToDepth": Blocks(),
    "Split": Splitting(),
    "Squeeze": Relayout(),
    "Sub": Sum(),
    "Sum": Sum(),
    "Tile": Tiling(),
    "Transpose": Permute(),
    "Unsqueeze": Relayout(),
    "Upsample": Resampling(),
}
