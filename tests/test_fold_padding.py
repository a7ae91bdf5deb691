"""A Pad with zeros goes where all that read it can pad themselves, and stays where one cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from folding import constants, folded, model_of, norm, ops, used

import bnfold
from bnfold.fold import fold

ARRAYS = constants(w=(4, 3, 3, 3), v=(5, 3, 1, 1), u=(3, 1, 3, 3), ct=(3, 4, 2, 2), k=(3, 1, 1)) | {
    "frame": np.array([0, 0, 1, 2, 0, 0, 0, 3]), "spatial": np.array([1, 2, 0, 3]), "last2": np.array([-2, 3]),
    "one": np.array([2, 1]), "width": np.array([3]),
    "deep": np.array([0, 1, 0, 0, 0, 1, 0, 0]), "cut": np.array([0, 0, 1, -1, 0, 0, 0, 0]), "wide": np.array([0, 0, 3, 3, 0, 0, 3, 3]),
    "nought": np.array(0.0), "half": np.array(0.5), "all": np.array([0, 1, 2, 3]),
}  # fmt: skip

#: Nodes before, what is left of them, and the operator set.
GOES = [
    ("into a conv", "p = Pad(x, frame) y = Conv(p, w)", {"Conv": 1}, 17),
    ("into a conv that pads", "p = Pad(x, frame) y = Conv<pads=[1,0,2,1]>(p, w)", {"Conv": 1}, 17),
    ("into a conv that strides and dilates", "p = Pad(x, frame) y = Conv<strides=[2,1], dilations=[1,2]>(p, w)", {"Conv": 1}, 17),
    ("into a depthwise conv", "p = Pad(x, frame) y = Conv<group=3>(p, u)", {"Conv": 1}, 17),
    ("into a conv of one pixel", "p = Pad(x, frame) y = Conv(p, v)", {"Conv": 1}, 17),
    ("into a conv that is told not to pad", 'p = Pad(x, frame) y = Conv<auto_pad="VALID">(p, w)', {"Conv": 1}, 17),
    ("into all that read it", "p = Pad(x, frame) a = Conv(p, w) b = Conv<strides=[2,2]>(p, w) c = Flatten(a) d = Flatten(b) y = Concat<axis=1>(c, d)", {"Conv": 2, "Flatten": 2, "Concat": 1}, 17),
    ("of a zero that is given", "p = Pad(x, frame, nought) y = Conv(p, w)", {"Conv": 1}, 17),
    ("of some axes", "p = Pad(x, spatial, nought, last2) y = Conv(p, w)", {"Conv": 1}, 18),
    ("of one axis", "p = Pad(x, one, nought, width) y = Conv(p, w)", {"Conv": 1}, 18),
    ("of a list of all axes", "p = Pad(x, frame, nought, all) y = Conv(p, w)", {"Conv": 1}, 18),
    ("as it was until 10", "p = Pad<pads=[0,0,1,2,0,0,0,3]>(x) y = Conv(p, w)", {"Conv": 1}, 9),
    ("into an average", "p = Pad(x, frame) y = AveragePool<kernel_shape=[3,4], strides=[2,2]>(p)", {"AveragePool": 1}, 17),
    ("into an average that counts its own", "p = Pad(x, frame) y = AveragePool<kernel_shape=[3,5], pads=[0,1,1,1], count_include_pad=1>(p)", {"AveragePool": 1}, 17),
    ("two in a row", "p = Pad(x, frame) q = Pad(p, frame) y = Conv(q, w)", {"Conv": 1}, 17),
    ("once the scale between them is gone", "p = Pad(x, frame) m = Mul(p, k) y = Conv(m, w)", {"Conv": 1}, 17),
    ("once the batch norm between them is gone", "p = Pad(x, frame) n = BatchNormalization(p, scale, bias, mean, var) y = Conv(n, w)", {"Conv": 1}, 17),
]  # fmt: skip

#: What looks alike, and must stay.
STAYS = [
    ("it adds another number", "p = Pad(x, frame, half) y = Conv(p, w)"),
    ("it adds what is computed", "p = Pad(x, frame, number) y = Conv(p, w)"),
    ("it adds as much as is computed", "p = Pad(x, eight) y = Conv(p, w)"),
    ("it repeats the edge", 'p = Pad<mode="edge">(x, frame) y = Conv(p, w)'),
    ("it takes away", "p = Pad(x, cut) y = Conv(p, w)"),
    ("it adds channels", "p = Pad(x, deep) q = Slice(p, first, second, first) y = Conv(q, w)"),
    ("the conv pads by the length of what it reads", 'p = Pad(x, frame) y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(p, w)'),
    ("a transposed conv does something else by that name", "p = Pad(x, frame) y = ConvTranspose(p, ct)"),
    ("a largest pixel is none of a border", "p = Pad(x, frame) y = MaxPool<kernel_shape=[3,4]>(p)"),
    ("an average does not count its own border", "p = Pad(x, frame) y = AveragePool<kernel_shape=[4,5], pads=[1,1,1,1]>(p)"),
    ("an average of what hangs over", "p = Pad(x, frame) y = AveragePool<kernel_shape=[3,4], strides=[2,2], ceil_mode=1>(p)"),
    ("a window of an average would see nothing", "p = Pad(x, wide) y = AveragePool<kernel_shape=[3,3]>(p)"),
    ("somebody else reads it", "p = Pad(x, frame) a = Conv(p, w) b = Tanh(p) c = Flatten(a) d = Flatten(b) y = Concat<axis=1>(c, d)"),
    ("it is read as a weight", "p = Pad(x, frame) y = Conv(q, p)"),
]  # fmt: skip

#: What those rows read that no constant is.
FED = {"number": "double number", "eight": "int64[8] eight", "q": "double[N,3,20,20] q"}


@pytest.mark.parametrize(("body", "left", "opset"), [row[1:] for row in GOES], ids=[row[0] for row in GOES])
def test_pad_with_zeros_goes(body: str, left: dict[str, int], opset: int) -> None:
    rank = "A,B" if "Flatten" in body else "A,B,C,D"
    text = f"g (double[N,3,8,9] x) => (double[{rank}] y) {{ {body} }}"
    after, _ = folded(model_of(text, used(text, ARRAYS | norm(3)), opset=opset), tidy=True, merge=False)
    assert ops(after) == left


@pytest.mark.parametrize("body", [row[1] for row in STAYS], ids=[row[0] for row in STAYS])
def test_pad_stays(body: str) -> None:
    arrays = ARRAYS | {"first": np.array([1]), "second": np.array([4])}
    fed = [declared for name, declared in FED.items() if used(body, {name: np.zeros(0)}) and f"{name} = " not in body]
    rank = "A,B" if "Flatten" in body else "A,B,C,D"
    text = f"g ({', '.join(['double[N,3,8,9] x', *fed])}) => (double[{rank}] y) {{ {body} }}"
    before = model_of(text, used(text, arrays))
    after = before.clone()
    fold(after, tidy=True, merge=False)
    assert ops(after) == ops(before)


def test_pad_that_is_an_output_or_kept_stays() -> None:
    text = "g (double[N,3,8,9] x) => (double[N,3,A,B] p, double[N,4,C,D] y) { p = Pad(x, frame) y = Conv(p, w) }"
    named, _ = folded(model_of(text, used(text, ARRAYS)), tidy=True)
    assert ops(named) == {"Pad": 1, "Conv": 1}
    text = text.replace("double[N,3,A,B] p, ", "")
    for kept in ("Pad", "Conv"):
        spared, _ = folded(
            model_of(text, used(text, ARRAYS)), selected=lambda node, op=kept: node.op_type != op, tidy=True
        )
        assert ops(spared) == {"Pad": 1, "Conv": 1}


def test_branches_of_which_one_pads_by_a_pad_merge() -> None:
    """A 3×3 beside a 1×1, as RepVGG has them, the padding of the first written as Keras writes it."""
    text = """g (double[N,3,8,9] x) => (double[N,4,8,9] y) {
        p = Pad(x, around) a = Conv(p, w) b = Conv(x, h) y = Add(a, b)
    }"""
    arrays = ARRAYS | constants(h=(4, 3, 1, 1)) | {"around": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    merged, _ = folded(model_of(text, used(text, arrays)), tidy=True)
    assert ops(merged) == {"Conv": 1}


#: What stands between a Pad and a pool, or beside them, and without which ONNX Runtime would take one into the other.
BETWEEN = [
    ("a scale", "c = Conv(x, v) p = Pad(c, frame) m = Mul(p, k5) y = MaxPool<kernel_shape=[3,4]>(m)"),
    ("a scale that a batch norm behind would take", "p = Pad(x, frame) m = Mul(p, k) a = MaxPool<kernel_shape=[3,4]>(m) y = BatchNormalization(a, scale, bias, mean, var)"),
    ("scales that cancel out", "p = Pad(x, frame) m = Mul(p, half) d = Div(m, half) y = MaxPool<kernel_shape=[3,4]>(d)"),
    ("a shape there and back", "p = Pad(x, frame) a = Flatten(p) b = Reshape(a, back) y = MaxPool<kernel_shape=[3,4]>(b)"),
    ("what nobody reads", "p = Pad(x, frame) a = Relu(p) y = MaxPool<kernel_shape=[3,4]>(p)"),
    ("a scale, and a window within the padding", "c = Conv(x, v) p = Pad(c, wide) m = Mul(p, k5) y = AveragePool<kernel_shape=[2,2]>(m)"),
]  # fmt: skip


@pytest.mark.parametrize("body", [row[1] for row in BETWEEN], ids=[row[0] for row in BETWEEN])
def test_pad_does_not_come_to_stand_alone_before_a_pool(body: str, tmp_path: Path) -> None:
    """ONNX Runtime pads a MaxPool with less than any number, and does not load a window within the padding."""
    arrays = (
        ARRAYS
        | norm(3)
        | constants(k5=(5, 1, 1))
        | {"k": np.array([2.0, 3.0, 1.5]).reshape(3, 1, 1), "back": np.array([-1, 3, 9, 14])}
    )
    head = "g (float[N,3,8,9] x) => (float[A,B,C,D] y)"
    text = f"{head} {{ {body} }}"
    singles = {name: a.astype(np.float32) if a.dtype == float else a for name, a in used(text, arrays).items()}
    original, folded_path = tmp_path / "original.onnx", tmp_path / "folded.onnx"
    ir.save(model_of(text, singles), original)
    bnfold.optimize(original, folded_path)
    feeds = {"x": -np.random.default_rng(0).random((2, 3, 8, 9), np.float32)}
    wanted, found = (onnxruntime.InferenceSession(path).run(None, feeds)[0] for path in (original, folded_path))
    assert np.abs(found - wanted).max() <= 1e-5
