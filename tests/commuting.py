"""Every op that an affine crosses or not, backward and forward: four tables of graphs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from folding import Array, constants, norm

#: What the rows below may name: weights of four channels and others, and the parameters of ops.
POOL = constants(
    w=(4, 3, 3, 3), v=(4, 3, 3, 3), w1=(1, 3, 3, 3), w2=(2, 3, 3, 3), w5=(5, 3, 3, 3), w16=(16, 3, 3, 3),
    slope=(4, 1, 1), k4=(4, 1, 1), k6=(6,), k12=(12,), k2=(2, 1, 1, 1, 1), m66=(6, 6), m44=(4, 4),
    g4=(4,), h4=(4,), g6=(6,), h6=(6,), g466=(4, 6, 6), h466=(4, 6, 6), g144=(144,),
) | {
    "i0": np.array([0]), "i1": np.array([1]), "i2": np.array([2]), "i3": np.array([3]), "i23": np.array([2, 3]),
    "minus1": np.array([-1]), "minus2": np.array([-2]), "far": np.array([-100]), "ten": np.array([10]),
    "rows": np.array([0, 0, 1, 2]), "order": np.array([3, -1, 0, 1]), "twice": np.array([3, 3, 0, -1]),
    "scalar1": np.array(1), "matrix": np.array([[0, 1], [2, 0]]), "halves": np.array([2, 2]), "thirds": np.array([3, 3]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads_c": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
    "doubled": np.array([1, 1, 2, 2], np.float32), "stretched": np.array([1, 1.2, 1, 1], np.float32),
    "halved": np.array([1, 1, 0.5, 0.5], np.float32), "exactly": np.array([2, 4, 36]),
    "same": np.array([1, 1, 1, 1], np.float32), "roi": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
    "tiles": np.array([1, 1, 2, 1]), "tiles_c": np.array([1, 2, 1, 1]), "to33": np.array([1, 4, 3, 3]),
    "to4": np.array([1, 4, 1, 1]), "to5d": np.array([2, 1, 4, 6, 6]), "s36": np.array([0, 4, 36]),
    "s66": np.array([0, 4, 6, 6]), "s144": np.array([0, -1]), "s361": np.array([0, 4, 36, 1]), "s8": np.array([0, 4, 8, 6]),
    "ratio": np.array(0.5, np.float32), "lengths4": np.array([1, 6, 3, 4]), "lengths6": np.array([1, 4, 3, 2, 4, 1]),
    "grid": np.random.default_rng(3).uniform(-1.3, 1.3, (2, 3, 5, 2)), "k5": np.arange(1.0, 6.0),
    "open144": np.array([-1, 144]), "m412": np.random.default_rng(4).normal(size=(4, 12)), "s431": np.array([0, 4, 3, 1]), "s134": np.array([0, 1, 3, 4]),
    "lines": np.array([-1, 36]), "togrid": np.array([0, 6, 12, 2]), "pair": np.array([2.0, 3.0]),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One graph.

    Attributes:
        op: the op that it is about.
        body: from the ops before it to the value ``c``, on which the batch norm is, or as far as ``y``.
        kind: of batch norm: ``positive`` scales, ``scale`` without a shift, ``uniform`` over the channels, equal in
            ``blocks`` or ``tiles`` of four channels, or any.
        shape: of ``c``, where the graph is run.
        reason: why it does not cross, if it does not.
        channels: how many the batch norm has.
        opset: operator set.
    """

    op: str
    body: str
    kind: str = "any"
    shape: str = "N,4,6,6"
    reason: str = ""
    channels: int = 4
    opset: int = 17

    def __str__(self) -> str:
        return f"{self.op}-{self.reason or self.kind}"

    def norm(self) -> dict[str, Array]:
        """The parameters of the batch norm."""
        found = norm(self.channels)
        if "positive" in self.kind:
            found["scale"] = np.abs(found["scale"])
        if "scale" in self.kind:
            found["bias"], found["mean"] = np.zeros(self.channels), np.zeros(self.channels)
        if "uniform" in self.kind:
            found = {name: np.full(self.channels, array[0]) for name, array in found.items()}
        if "blocks" in self.kind:
            found = {name: np.repeat(array[:4], self.channels // 4) for name, array in found.items()}
        if "tiles" in self.kind:
            found = {name: np.tile(array[:4], self.channels // 4) for name, array in found.items()}
        return found


def crossing(op: str, body: str, shape: str = "N,4,6,6", kind: str = "any", opset: int = 17) -> Row:
    channels = shape.split(",")[1]
    return Row(op, body, kind, shape, channels=int(channels), opset=opset)


def onward(op: str, body: str, shape: str = "N,4,6,6", kind: str = "any", opset: int = 17) -> Row:
    return Row(op, body, kind, shape, opset=opset)


def refusing(op: str, reason: str, body: str, kind: str = "any", channels: int = 4, opset: int = 17) -> Row:
    return Row(op, body, kind, reason=reason, channels=channels, opset=opset)


#: Bodies after ``d = Conv(x, w)`` and ``e = Conv(x, v)`` of shape (N, 4, 6, 6), before a batch norm of ``c``.
BACKWARD: list[Row] = [
    crossing("Abs", "c = Abs(d)", "N,4,6,6", "positive scale"),
    crossing("Add", "c = Add(d, e)"),
    crossing("Add", "q = GlobalAveragePool(e) c = Add(q, d)"),
    crossing("AveragePool", "c = AveragePool<kernel_shape=[3,3]>(d)", "N,4,4,4"),
    crossing("AveragePool", "c = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(d)"),
    crossing(
        "AveragePool", "c = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(d)", "N,4,6,6", "scale"
    ),
    crossing("Concat", "f = Conv(x, w5) c = Concat<axis=-3>(d, f)", "N,9,6,6"),
    crossing("Concat", "c = Concat<axis=3>(d, e)", "N,4,6,12"),
    crossing("DepthToSpace", "f = Conv(x, w16) c = DepthToSpace<blocksize=2>(f)", "N,4,12,12"),
    crossing("DepthToSpace", 'f = Conv(x, w16) c = DepthToSpace<blocksize=2, mode="CRD">(f)', "N,4,12,12"),
    crossing("Div", "g = Softplus(e) c = Div(d, g)", "N,4,6,6", "scale"),
    crossing("Dropout", "c = Dropout(d)"),
    crossing("Dropout", 'c = Dropout(d, "", "")'),
    crossing("Expand", "q = GlobalAveragePool(d) c = Expand(q, to33)", "N,4,3,3"),
    crossing("Expand", "f = Conv(x, w1) c = Expand(f, to4)", "N,4,6,6", "uniform"),
    crossing("Flatten", "c = Flatten(d)", "N,144", "blocks"),
    crossing("Gather", "c = Gather<axis=1>(d, order)", "N,4,6,6", "uniform"),
    crossing("Gather", "f = Conv(x, w16) c = Gather<axis=1>(f, order)"),
    crossing("Gather", "c = Gather<axis=-1>(d, scalar1)", "N,4,6"),
    crossing("Gather", "c = Gather<axis=2>(d, matrix)", "N,4,2,2,6"),
    crossing("Gather", "c = Gather<axis=3>(d, run)", "N,4,6,K"),
    crossing("GlobalAveragePool", "c = GlobalAveragePool(d)", "N,4,1,1"),
    crossing("GlobalMaxPool", "c = GlobalMaxPool(d)", "N,4,1,1", "positive"),
    crossing("GroupNormalization", "c = GroupNormalization<num_groups=2>(d, g4, h4)", opset=21),
    crossing("Identity", "c = Identity(d)"),
    crossing("InstanceNormalization", "c = InstanceNormalization(d, g4, h4)"),
    crossing("LayerNormalization", "f = GlobalAveragePool(d) q = Flatten(f) c = LayerNormalization(q, g4, h4)", "N,4"),
    crossing("LayerNormalization", "c = LayerNormalization<axis=1>(d, g466, h466)"),
    crossing("LayerNormalization", "c = LayerNormalization(d, g6)", kind="uniform scale"),
    crossing("LeakyRelu", "c = LeakyRelu<alpha=0.2>(d)", "N,4,6,6", "positive scale"),
    crossing(
        "MatMul",
        "f = Reshape(d, s36) q = Reshape(e, s36) r = Transpose<perm=[0,2,1]>(q) c = MatMul(f, r)",
        "N,4,4",
        "scale",
    ),
    crossing("MatMul", "f = Reshape(d, s36) c = MatMul(m44, f)", "N,4,36", "scale"),
    crossing("Max", "c = Max(d, e)", "N,4,6,6", "positive"),
    crossing("MaxPool", "c = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(d)", "N,4,6,6", "positive"),
    crossing("Mean", "f = Conv(x, v) c = Mean(d, e, f)"),
    crossing("Min", "c = Min(d, e)", "N,4,6,6", "positive"),
    crossing("Mul", "g = Sigmoid(e) c = Mul(d, g)", "N,4,6,6", "scale"),
    crossing("Mul", "q = GlobalAveragePool(e) g = Sigmoid(q) c = Mul(d, g)", "N,4,6,6", "scale"),
    crossing("PRelu", "c = PRelu(d, slope)", "N,4,6,6", "positive scale"),
    crossing("Pad", 'c = Pad<mode="edge">(d, pads)', "N,4,8,8"),
    crossing("Pad", 'c = Pad<mode="reflect">(d, pads)', "N,4,8,8"),
    crossing("Pad", 'c = Pad<mode="wrap">(d, pads)', "N,4,8,8", opset=19),
    crossing("Pad", "c = Pad(d, pads)", "N,4,8,8", "scale"),
    crossing("Pad", "c = Pad<pads=[0,0,1,1,0,0,1,1]>(d)", "N,4,8,8", "scale", opset=10),
    crossing("RMSNormalization", "f = Flatten(d) c = RMSNormalization(f, g144)", "N,144", "scale", opset=23),
    crossing("ReduceMax", "c = ReduceMax<axes=[2], keepdims=0>(d)", "N,4,6", "positive"),
    crossing("ReduceMean", "c = ReduceMean<axes=[2,3], keepdims=0>(d)", "N,4"),
    crossing("ReduceMean", "c = ReduceMean<axes=[-1]>(d)", "N,4,6,1"),
    crossing("ReduceMean", "c = ReduceMean(d, i23)", "N,4,1,1", opset=18),
    crossing("ReduceMin", "c = ReduceMin<axes=[-1]>(d)", "N,4,6,1", "positive"),
    crossing("ReduceSum", "c = ReduceSum(d, i23)", "N,4,1,1"),
    crossing("ReduceSum", "c = ReduceSum<axes=[3], keepdims=0>(d)", "N,4,6", opset=11),
    crossing("ReduceSum", "c = ReduceSum<noop_with_empty_axes=1>(d)"),
    crossing("Relu", "c = Relu(d)", "N,4,6,6", "positive scale"),
    crossing("Reshape", "c = Reshape(d, s36)", "N,4,36"),
    crossing("Reshape", "f = Reshape(d, s36) c = Reshape(f, s66)"),
    crossing("Reshape", "c = Reshape<allowzero=1>(d, exactly)", "2,4,36"),
    crossing("Reshape", "f = GlobalAveragePool(d) g = Flatten(f) q = MatMul(g, m412) c = Reshape(q, s431)", "2,4,3,1"),
    crossing(
        "Reshape",
        "f = GlobalAveragePool(d) g = Flatten(f) q = MatMul(g, m412) r = Reshape(q, s134) c = Transpose<perm=[0,3,1,2]>(r)",
        "2,4,1,3",
    ),
    crossing("Resize", 'c = Resize<mode="nearest">(d, "", doubled)', "N,4,12,12"),
    crossing("ReverseSequence", "c = ReverseSequence<time_axis=2, batch_axis=1>(d, lengths4)"),
    crossing("ReverseSequence", "c = ReverseSequence<time_axis=2, batch_axis=1>(d, lengths4)", opset=10),
    crossing("GridSample", 'c = GridSample<padding_mode="border">(d, grid)', "2,4,3,5"),
    crossing(
        "GridSample", 'c = GridSample<mode="bicubic", padding_mode="reflection", align_corners=1>(d, grid)', "2,4,3,5"
    ),
    crossing("GridSample", 'c = GridSample<mode="nearest">(d, grid)', "2,4,3,5", "scale"),
    crossing("GridSample", 'c = GridSample<mode="cubic">(d, grid)', "2,4,3,5", "scale", opset=20),
    crossing("Resize", 'c = Resize<mode="linear">(d, "", doubled)', "N,4,12,12"),
    crossing("Resize", 'c = Resize<mode="cubic">(d, "", doubled)', "N,4,12,12"),
    crossing(
        "Resize",
        'c = Resize<mode="linear", coordinate_transformation_mode="align_corners">(d, "", doubled)',
        "N,4,12,12",
    ),
    crossing("Resize", 'c = Resize<mode="cubic", exclude_outside=1>(d, "", doubled)', "N,4,12,12"),
    crossing("Resize", 'c = Resize<mode="linear", antialias=1>(d, "", halved)', "N,4,3,3", opset=18),
    crossing("Resize", 'c = Resize<mode="cubic", antialias=1>(d, "", halved)', "N,4,3,3", opset=18),
    crossing("Slice", "f = Conv(x, w16) c = Slice(f, i2, ten, i1, i2)"),
    crossing("Slice", "f = Conv(x, w16) c = Slice(f, minus2, far, i1, minus1)", "N,15,6,6"),
    crossing("Slice", "c = Slice(d, i2, ten, i3)", "N,4,6,4"),
    crossing("Slice", "c = Slice<starts=[1], ends=[5], axes=[2]>(d)", "N,4,4,6", opset=9),
    crossing("SpaceToDepth", "c = SpaceToDepth<blocksize=2>(d)", "N,16,3,3", "tiles"),
    crossing("Split", "c, r = Split<axis=1>(d, halves)", "N,2,6,6"),
    crossing("Split", "r, c = Split<axis=-3, split=[2,2]>(d)", "N,2,6,6", opset=12),
    crossing("Split", "r, c = Split<axis=1, num_outputs=2>(d)", "N,2,6,6", opset=18),
    crossing("Split", "f = Conv(x, w5) r, c = Split<axis=1, num_outputs=2>(f)", "N,2,6,6", opset=18),
    crossing("Squeeze", "q = GlobalAveragePool(d) c = Squeeze(q, i23)", "N,4"),
    crossing("Squeeze", "q = GlobalAveragePool(d) c = Squeeze<axes=[2,3]>(q)", "N,4", opset=11),
    crossing("Sub", "c = Sub(d, e)"),
    crossing("Sum", "f = Conv(x, v) c = Sum(d, e, f)"),
    crossing("Sum", "c = Sum(d)"),
    crossing("Tile", "c = Tile(d, tiles)", "N,4,12,6"),
    crossing("Tile", "c = Tile(d, tiles_c)", "N,8,6,6", "tiles"),
    crossing("Transpose", "f = Transpose<perm=[0,2,3,1]>(d) c = Transpose<perm=[0,3,1,2]>(f)"),
    crossing("Unsqueeze", "c = Unsqueeze(d, i2)", "N,4,1,6,6"),
    crossing("Unsqueeze", "c = Unsqueeze<axes=[4]>(d)", "N,4,6,6,1", opset=11),
    crossing("Upsample", "c = Upsample(d, doubled)", "N,4,12,12", opset=9),
    crossing(
        "Add",
        "p = AveragePool<kernel_shape=[2,2]>(d) q = AveragePool<kernel_shape=[2,2]>(e) r = Add(p, q) c = Identity(r)",
        "N,4,5,5",
    ),
]

#: Bodies after ``b``, a batch norm of (N, 4, 6, 6), before a linear op that reads ``c``.
FORWARD: list[Row] = [
    onward("Abs", "c = Abs(b)", "N,4,6,6", "positive scale"),
    onward("AveragePool", "c = AveragePool<kernel_shape=[3,3]>(b)", "N,4,4,4"),
    onward("Concat", "c = Concat<axis=1>(b, x)", "N,8,6,6"),
    onward("DepthToSpace", "c = DepthToSpace<blocksize=2>(b)", "N,1,12,12", "uniform"),
    onward("Div", "g = Softplus(x) c = Div(b, g)", "N,4,6,6", "scale"),
    onward("Dropout", "c = Dropout(b)"),
    onward("Expand", "q = GlobalAveragePool(b) c = Expand(q, to33)", "N,4,3,3"),
    onward("Flatten", "c = Flatten(b)", "N,144"),
    onward("Gather", "c = Gather<axis=1>(b, twice)"),
    onward("Gather", "c = Gather<axis=1>(b, scalar1)", "N,6,6"),
    onward("Gather", "c = Gather<axis=2>(b, scalar1)", "N,4,6"),
    onward("Gather", "c = Gather<axis=3>(b, run)", "N,4,6,K"),
    onward("GlobalAveragePool", "c = GlobalAveragePool(b)", "N,4,1,1"),
    onward("GlobalMaxPool", "c = GlobalMaxPool(b)", "N,4,1,1", "positive"),
    onward("Identity", "c = Identity(b)"),
    onward("LeakyRelu", "c = LeakyRelu(b)", "N,4,6,6", "positive scale"),
    onward("MatMul", "c = MatMul(b, x)", "N,4,6,6", "uniform scale"),
    onward("MatMul", "c = MatMul(m66, b)", "N,4,6,6", "uniform scale"),
    onward("MaxPool", "c = MaxPool<kernel_shape=[3,3]>(b)", "N,4,4,4", "positive"),
    onward("Mul", "g = Sigmoid(x) c = Mul(g, b)", "N,4,6,6", "scale"),
    onward("PRelu", "c = PRelu(b, slope)", "N,4,6,6", "positive scale"),
    onward("Pad", 'c = Pad<mode="edge">(b, pads)', "N,4,8,8"),
    onward("ReduceMax", "c = ReduceMax<axes=[2]>(b)", "N,4,1,6", "positive"),
    onward("ReduceMean", "c = ReduceMean<axes=[2,3], keepdims=0>(b)", "N,4"),
    onward("ReduceMin", "c = ReduceMin<axes=[3], keepdims=0>(b)", "N,4,6", "positive"),
    onward("ReduceSum", "c = ReduceSum(b, i23)", "N,4,1,1"),
    onward("ReduceSum", "c = ReduceSum<axes=[0,2], keepdims=0>(b)", "4,6", "uniform scale", 11),
    onward("Relu", "c = Relu(b)", "N,4,6,6", "positive scale"),
    onward("Reshape", "c = Reshape(b, s361)", "N,4,36,1"),
    onward("Reshape", "c = Reshape(b, s144)", "N,144"),
    onward("Reshape", "t = Transpose<perm=[0,2,3,1]>(b) c = Reshape(t, s144)", "N,144"),
    onward("Reshape", "c = Reshape(b, open144)", "M,144"),
    onward(
        "Resize",
        'h = Shape<start=0, end=2>(b) z = Concat<axis=0>(h, thirds) c = Resize<mode="linear">(b, "", "", z)',
        "N,4,3,3",
    ),
    onward("Resize", 'c = Resize<mode="linear">(b, "", doubled)', "N,4,12,12"),
    onward("ReverseSequence", "c = ReverseSequence<time_axis=3, batch_axis=2>(b, lengths6)"),
    onward("GridSample", 'c = GridSample<padding_mode="reflection">(b, grid)', "2,4,3,5"),
    onward("GridSample", "c = GridSample(b, grid)", "2,4,3,5", "scale"),
    onward("Slice", "c = Slice(b, i1, i3, i1)", "N,2,6,6"),
    onward("SpaceToDepth", "c = SpaceToDepth<blocksize=2>(b)", "N,16,3,3"),
    onward("Split", "c, r = Split<axis=1>(b, halves)", "N,2,6,6"),
    onward("Split", "c, r = Split<axis=3>(b, thirds)", "N,4,6,3"),
    onward("Split", "c, r = Split<axis=1, num_outputs=2>(b)", "N,2,6,6", opset=18),
    onward("Squeeze", "q = GlobalAveragePool(b) c = Squeeze(q, i23)", "N,4"),
    onward("Tile", "c = Tile(b, tiles_c)", "N,8,6,6"),
    onward("Tile", "c = Tile(b, tiles)", "N,4,12,6"),
    onward("Transpose", "f = Transpose<perm=[0,2,3,1]>(b) c = Transpose<perm=[0,3,1,2]>(f)"),
    onward("Unsqueeze", "c = Unsqueeze(b, i2)", "N,4,1,6,6"),
    onward("Upsample", "c = Upsample(b, doubled)", "N,4,12,12", opset=9),
]

#: The same bodies as in :data:`BACKWARD`, across which it cannot go.
BACKWARD_REFUSED: list[Row] = [
    refusing("Abs", "nonzero-shift", "c = Abs(d)", "positive"),
    refusing("Abs", "negative-scale", "c = Abs(d)", "scale"),
    refusing("Add", "other-consumer", "c = Add(d, d)"),
    refusing("Add", "broadcast-changes-shape", "f = Conv(x, w1) c = Add(d, f)"),
    refusing("Add", "graph-input", "c = Add(d, u)"),
    refusing("AveragePool", "padding", "c = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(d)"),
    refusing(
        "AveragePool", "padding", 'c = AveragePool<kernel_shape=[3,3], auto_pad="SAME_UPPER", count_include_pad=1>(d)'
    ),
    refusing(
        "AveragePool",
        "padding",
        "c = AveragePool<kernel_shape=[4,4], strides=[4,4], ceil_mode=1, count_include_pad=1>(d)",
    ),
    refusing("AveragePool", "axis-mismatch", "c = AveragePool<kernel_shape=[1,1]>(d) y = Mul(c, k6)"),
    refusing("Concat", "unknown-shape", "c = Concat<axis=1>(d, some)", channels=9),
    refusing("Concat", "other-consumer", "c = Concat<axis=2>(d, d)"),
    refusing("DepthToSpace", "axis-mismatch", "f = Conv(x, w16) c = DepthToSpace<blocksize=2>(f) y = Mul(c, k12)"),
    refusing("Div", "nonzero-shift", "g = Softplus(e) c = Div(d, g)"),
    refusing("Div", "producer-not-linear", "g = Softplus(e) c = Div(g, d)", "scale"),
    refusing("Dropout", "training-mode", "c = Dropout(d, ratio, flag)"),
    refusing("Expand", "axis-mismatch", "f = Conv(x, w1) c = Expand(f, to4)"),
    refusing("Expand", "axis-mismatch", "c = Expand(d, to5d) y = Mul(c, k2)"),
    refusing("Expand", "unknown-shape", "c = Expand(some, to4)"),
    refusing("Flatten", "axis-mismatch", "c = Flatten(d)", channels=144),
    refusing("Gather", "axis-mismatch", "c = Gather<axis=1>(d, rows)"),
    refusing("Gather", "unknown-shape", "c = Gather<axis=1>(d, run4)"),
    refusing("Gather", "axis-mismatch", "f = Transpose<perm=[0,2,1,3]>(d) c = Gather<axis=1>(f, matrix)", channels=2),
    refusing("GlobalMaxPool", "negative-scale", "c = GlobalMaxPool(d)"),
    refusing("GroupNormalization", "graph-input", "c = GroupNormalization<num_groups=2>(d, own4, h4)", opset=21),
    refusing("InstanceNormalization", "axis-mismatch", "c = InstanceNormalization(d, g4, h4) y = Mul(c, k6)"),
    refusing("LayerNormalization", "axis-mismatch", "c = LayerNormalization(d, g6, h6)"),
    refusing("LayerNormalization", "graph-input", "c = LayerNormalization<axis=1>(d, own, h466)"),
    refusing("LeakyRelu", "nonzero-shift", "c = LeakyRelu(d)"),
    refusing("MatMul", "nonzero-shift", "g = Tanh(e) c = MatMul(d, g)", "uniform"),
    refusing("MatMul", "unsupported-op", "g = Tanh(e) c = MatMul(d, g)", "uniform scale"),
    refusing("MatMul", "axis-mismatch", "g = Tanh(e) c = MatMul(d, g)", "scale"),
    refusing("Max", "negative-scale", "c = Max(d, e)"),
    refusing("Max", "broadcast-changes-shape", "f = Conv(x, w1) c = Max(d, f)", "positive"),
    refusing("MaxPool", "negative-scale", "c = MaxPool<kernel_shape=[3,3]>(d)"),
    refusing("Mean", "broadcast-changes-shape", "f = Conv(x, w1) c = Mean(d, f)"),
    refusing("Min", "negative-scale", "c = Min(d, e)"),
    refusing("Mul", "nonzero-shift", "g = Sigmoid(e) c = Mul(d, g)"),
    refusing("Mul", "other-consumer", "g = Sigmoid(d) c = Mul(d, g)", "scale"),
    refusing("PRelu", "nonzero-shift", "c = PRelu(d, slope)"),
    refusing("Pad", "padding", "c = Pad(d, pads)"),
    refusing("Pad", "padding", "c = Pad<pads=[0,0,1,1,0,0,1,1], value=2.0>(d)", "scale", opset=10),
    refusing("Pad", "axis-mismatch", 'f = Conv(x, w2) c = Pad<mode="edge">(f, pads_c)'),
    refusing("Pad", "unknown-shape", "c = Pad(d, pads, value)"),
    refusing("RMSNormalization", "axis-mismatch", "c = RMSNormalization(d, g6)", opset=23),
    refusing("ReduceMax", "negative-scale", "c = ReduceMax<axes=[2]>(d)"),
    refusing("ReduceMean", "axis-mismatch", "c = ReduceMean<axes=[1], keepdims=0>(d) y = Mul(c, k6)"),
    refusing("ReduceMin", "negative-scale", "c = ReduceMin<axes=[2]>(d)"),
    refusing("ReduceSum", "unknown-shape", "f = Conv(tall, w) c = ReduceSum(f, i2)"),
    refusing("Relu", "nonzero-shift", "c = Relu(d)"),
    refusing("Relu", "negative-scale", "c = Relu(d)", "scale"),
    refusing("Reshape", "axis-mismatch", "f = Concat<axis=1>(d, e) c = Reshape(f, s8)"),
    refusing(
        "Resize", "unsupported-op", 'c = Resize<coordinate_transformation_mode="tf_crop_and_resize">(d, roi, same)'
    ),
    refusing("Resize", "axis-mismatch", 'c = Resize<mode="linear">(d, "", stretched)'),
    refusing(
        "Resize",
        "axis-mismatch",
        "h = Shape<start=0, end=2>(d) z = Concat<axis=0>(h, thirds) "
        'c = Resize<mode="linear", keep_aspect_ratio_policy="not_larger">(d, "", "", z)',
        opset=18,
    ),
    refusing("ReverseSequence", "axis-mismatch", "c = ReverseSequence<time_axis=1, batch_axis=2>(d, lengths6)"),
    refusing("GridSample", "padding", "c = GridSample(d, grid)"),
    refusing("GridSample", "axis-mismatch", 'c = GridSample<padding_mode="border">(d, grid) y = Mul(c, k5)'),
    refusing("Slice", "unknown-shape", "c = Slice(d, run1, ten, i1)"),
    refusing("SpaceToDepth", "axis-mismatch", "c = SpaceToDepth<blocksize=2>(d)", channels=16),
    refusing("Split", "axis-mismatch", "c, r = Split<axis=3>(d, thirds)"),
    refusing("Squeeze", "unknown-shape", "c = Squeeze(loose, i0)"),
    refusing("Sub", "broadcast-changes-shape", "f = Conv(x, w1) c = Sub(f, d)"),
    refusing("Sum", "broadcast-changes-shape", "f = Conv(x, w1) c = Sum(f, d)"),
    refusing("Tile", "axis-mismatch", "c = Tile(d, tiles_c)", channels=8),
    refusing("Transpose", "axis-mismatch", "c = Transpose<perm=[0,3,2,1]>(d)", channels=6),
    refusing("Transpose", "unknown-shape", "c = Transpose(loose)"),
    refusing("Unsqueeze", "unknown-shape", "c = Unsqueeze(loose, i0)"),
    refusing("Upsample", "axis-mismatch", "c = Upsample(d, stretched)", opset=9),
]

#: The batch norm of ``a = Tanh(x)``, of shape (N, 4, 6, 6).
SITE = "b = BatchNormalization(a, scale, bias, mean, var)"

#: The same of an input whose rank is not known.
LOOSE = "b = BatchNormalization(loose, scale, bias, mean, var)"

#: Bodies after ``a``, with the affine in them, across which it cannot go.
FORWARD_REFUSED: list[Row] = [
    refusing("Abs", "nonzero-shift", f"{SITE} y = Abs(b)"),
    refusing("Add", "unsupported-op", f"{SITE} y = Add(b, x)"),
    refusing("AveragePool", "axis-mismatch", "b = Mul(a, k6) y = AveragePool<kernel_shape=[2,2]>(b)"),
    refusing("Concat", "axis-mismatch", f"{SITE} y = Concat<axis=2>(b, x)"),
    refusing("Concat", "unknown-shape", f"{SITE} y = Concat<axis=1>(b, some)"),
    refusing("DepthToSpace", "axis-mismatch", f"{SITE} y = DepthToSpace<blocksize=2>(b)"),
    refusing("Div", "unsupported-op", f"{SITE} y = Div(x, b)", "scale"),
    refusing("Div", "nonzero-shift", f"{SITE} y = Div(b, x)"),
    refusing("Dropout", "training-mode", f"{SITE} y = Dropout(b, ratio, flag)"),
    refusing("Expand", "unknown-shape", f"{LOOSE} y = Expand(b, to33)"),
    refusing("Flatten", "axis-mismatch", f"{SITE} y = Flatten<axis=2>(b)"),
    refusing("Gather", "unknown-shape", f"{SITE} y = Gather<axis=1>(b, run4)"),
    refusing("Gather", "axis-mismatch", f"{SITE} y = Gather<axis=1>(b, matrix)"),
    refusing("GlobalAveragePool", "axis-mismatch", "b = Mul(a, k6) y = GlobalAveragePool(b)"),
    refusing("GlobalMaxPool", "negative-scale", f"{SITE} y = GlobalMaxPool(b)"),
    refusing(
        "GroupNormalization", "unsupported-op", f"{SITE} y = GroupNormalization<num_groups=2>(b, g4, h4)", opset=21
    ),
    refusing("InstanceNormalization", "unsupported-op", f"{SITE} y = InstanceNormalization(b, g4, h4)"),
    refusing("LayerNormalization", "unsupported-op", f"{SITE} y = LayerNormalization(b, g6, h6)"),
    refusing("LeakyRelu", "nonzero-shift", f"{SITE} y = LeakyRelu(b)"),
    refusing("MatMul", "nonzero-shift", f"{SITE} y = MatMul(b, x)", "uniform"),
    refusing("MatMul", "axis-mismatch", "b = Mul(a, k6) y = MatMul(b, x)"),
    refusing("Max", "unsupported-op", f"{SITE} y = Max(b, x)"),
    refusing("MaxPool", "negative-scale", f"{SITE} y = MaxPool<kernel_shape=[2,2]>(b)"),
    refusing("Mean", "unsupported-op", f"{SITE} y = Mean(b, x)"),
    refusing("Min", "unsupported-op", f"{SITE} y = Min(b, x)"),
    refusing("Mul", "nonzero-shift", f"{SITE} y = Mul(b, x)"),
    refusing("PRelu", "nonzero-shift", f"{SITE} y = PRelu(b, slope)"),
    refusing("PRelu", "unsupported-op", "q = ReduceMean<axes=[0,2,3]>(a) b = Mul(q, k4) y = PRelu(x, b)"),
    refusing("Pad", "padding", f"{SITE} y = Pad(b, pads)"),
    refusing("RMSNormalization", "unsupported-op", f"{SITE} y = RMSNormalization(b, g6)", opset=23),
    refusing("ReduceMax", "negative-scale", f"{SITE} y = ReduceMax<axes=[2]>(b)"),
    refusing("ReverseSequence", "axis-mismatch", f"{SITE} y = ReverseSequence<time_axis=1, batch_axis=2>(b, lengths6)"),
    refusing("GridSample", "padding", f"{SITE} y = GridSample(b, grid)"),
    refusing("GridSample", "axis-mismatch", 'b = Mul(a, k6) y = GridSample<padding_mode="border">(b, grid)'),
    refusing("GridSample", "unsupported-op", "q = Reshape(a, togrid) b = Mul(q, pair) y = GridSample(u, b)"),
    refusing("ReduceMean", "axis-mismatch", f"{SITE} y = ReduceMean<axes=[1]>(b)"),
    refusing("ReduceMin", "negative-scale", f"{SITE} y = ReduceMin<axes=[2]>(b)"),
    refusing("ReduceSum", "axis-mismatch", f"{SITE} y = ReduceSum(b, i1)"),
    refusing("ReduceSum", "unknown-shape", f"{SITE} y = ReduceSum(b, i0)"),
    refusing("Relu", "nonzero-shift", f"{SITE} y = Relu(b)"),
    refusing("Reshape", "axis-mismatch", f"{SITE} y = Reshape(b, lines)"),
    refusing("Resize", "axis-mismatch", f'{SITE} y = Resize<mode="nearest">(b, "", stretched)'),
    refusing("Slice", "unknown-shape", f"{SITE} y = Slice(b, run1, ten, i1)"),
    refusing("SpaceToDepth", "axis-mismatch", "b = Mul(a, k6) y = SpaceToDepth<blocksize=2>(b)"),
    refusing("Split", "unknown-shape", f"{LOOSE} y, z = Split<axis=-1>(b, halves)"),
    refusing("Squeeze", "unknown-shape", f"{LOOSE} y = Squeeze(b, i0)"),
    refusing("Sub", "unsupported-op", f"{SITE} y = Sub(b, x)"),
    refusing("Sum", "unsupported-op", f"{SITE} y = Sum(b, x)"),
    refusing("Tile", "unknown-shape", f"{LOOSE} y = Tile(b, tiles_c)"),
    refusing("Transpose", "unknown-shape", f"{LOOSE} y = Transpose(b)"),
    refusing("Unsqueeze", "unknown-shape", f"{LOOSE} y = Unsqueeze(b, i0)"),
    refusing("Upsample", "axis-mismatch", f"{SITE} y = Upsample(b, stretched)", opset=9),
]
