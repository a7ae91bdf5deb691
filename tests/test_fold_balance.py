"""Folds past sums: what else is summed is divided by the scale, and nothing that reads it sees a difference."""

from __future__ import annotations

import re

import numpy as np
import pytest
from folding import Array, constants, feeds_of, folded, model_of, norm, ops, used

from bnfold.fold import fold
from bnfold.fold.report import Kept
from bnfold.verification.oracle import Oracle

ARRAYS: dict[str, Array] = (
    norm(4)
    | norm(4, "2")
    | constants(
        w=(4, 4, 1, 1),
        u=(4, 4, 1, 1),
        v=(4, 4, 3, 3),
        d=(4, 1, 3, 3),
        b=(4,),
        k=(4, 1, 1),
        k2=(4, 1, 1),
        k3=(4, 1, 1),
        full=(1, 4, 6, 6),
    )
    | {"one": np.array(2.5)}
)


def graph(body: str) -> str:
    """The text of a graph; ``BN(a)`` and ``BN2(a)`` are batch norms."""
    body = re.sub(r"BN(2?)\((\w+)\)", r"BatchNormalization(\2, scale\1, bias\1, mean\1, var\1)", body)
    return f"g (double[N,4,6,6] x, double[N,4,6,6] z) => (double[N,4,6,6] y) {{ {body} }}"


# name, the ops of a graph whose BN follows an activation and goes into a sum, and how many of these ops are left
FOLDS = [
    ("the other summand is a convolution", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)", {"BatchNormalization": 0}),
    ("on the right", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Add(o, n) y = Conv(s, u)", {"BatchNormalization": 0}),
    ("subtracted from", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Sub(n, o) y = Conv(s, u)", {"BatchNormalization": 0}),
    ("subtracted", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Sub(o, n) y = Conv(s, u)", {"BatchNormalization": 0}),
    ("between two others", "o = Conv(z, w) p = Conv(x, u) a = Tanh(x) n = BN(a) s = Sum(o, n, p) y = Conv(s, u)", {"BatchNormalization": 0}),
    ("past a sum after a sum", "o = Conv(z, w) p = Conv(x, u) a = Tanh(x) n = BN(a) s = Add(n, o) t = Add(p, s) y = Conv(t, u)", {"BatchNormalization": 0}),
    ("a shortcut that a padded convolution reads too", "i = Sigmoid(z) o = BN2(i) c = Conv <pads=[1,1,1,1], group=4> (o, d, b) a = Tanh(c) n = BN(a) s = Add(n, o) y = Conv(s, u)", {"BatchNormalization": 1}),
    ("a shortcut through a pool", "i = Sigmoid(z) m = Mul(i, k) o = AveragePool <kernel_shape=[1,1]> (m) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)", {"BatchNormalization": 1, "Mul": 0}),
    ("another summand that is a constant", "a = Tanh(x) n = Mul(a, k) s = Add(n, full) y = Conv(s, u)", {"Mul": 0}),
    ("a scale that takes the other in", "i = Sigmoid(z) o = Mul(i, k) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)", {"BatchNormalization": 1, "Mul": 0}),
    ("one factor for all channels", "o = Conv(z, w) a = Tanh(x) n = Mul(a, one) s = Add(n, o) y = Conv(s, u)", {"Mul": 0}),
    ("past the shift of its own channels", "a = Tanh(x) n = Mul(a, k) i = Identity(n) s = Add(i, k2) y = Conv <pads=[1,1,1,1]> (s, v)", {"Mul": 0}),
    ("past a shift that took another in", "a = Tanh(x) n = Mul(a, k) i = Identity(n) s = Add(i, k2) r = Identity(s) q = Add(r, k3) y = Conv <pads=[1,1,1,1]> (q, v)", {"Mul": 0, "Add": 1}),
    ("past what it is subtracted from, which took another in", "a = Tanh(x) n = Mul(a, k) i = Identity(n) s = Sub(k2, i) r = Identity(s) q = Add(r, k3) y = Conv <pads=[1,1,1,1]> (q, v)", {"Mul": 0, "Sub": 1, "Add": 0}),
    ("a product whose second factor can make room", "c = Conv(z, w) f = Sigmoid(x) o = Mul(f, c) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)", {"BatchNormalization": 0}),
    ("into a batch norm", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Add(n, o) y = BN2(s)", {"BatchNormalization": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "left"), [row[1:] for row in FOLDS], ids=[row[0] for row in FOLDS])
def test_other_summands_make_room(body: str, left: dict[str, int]) -> None:
    text = graph(body)
    copy, _ = folded(model_of(text, used(text, ARRAYS)))
    assert {name: ops(copy).get(name, 0) for name in left} == left


# name, and the ops of a graph in which something cannot be rescaled
STAYS = [
    ("the other summand is an input", "a = Tanh(x) n = BN(a) s = Add(n, z) y = Conv(s, u)"),
    ("the other summand is nonlinear", "o = Sigmoid(z) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)"),
    ("the other summand is read by an activation", "o = Conv(z, w) e = Sigmoid(o) f = Conv(e, u) a = Tanh(x) n = BN(a) s = Add(n, o) t = Conv(s, u) y = Mul(t, f)"),
    ("the other summand is the input of the norm", "o = Conv(x, w) p = Relu(o) n = BN(p) s = Add(n, p) y = Conv(s, u)"),
    ("the norm is summed with itself", "a = Tanh(x) n = BN(a) s = Add(n, n) e = Sigmoid(s) y = Conv(e, u)"),
    ("the other summand comes twice", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Sum(n, o, o) e = Sigmoid(s) y = Conv(e, u)"),
    ("the other summand is a product with itself", "c = Conv(z, w) o = Mul(c, c) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)"),
    ("the other summand is a quotient with itself", "c = Conv(z, w) o = Div(c, c) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)"),
    ("an activation reads the sum", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Add(n, o) y = Sigmoid(s)"),
    ("an activation reads the norm too", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Add(n, o) t = Conv(s, u) e = Sigmoid(n) y = Mul(t, e)"),
    ("the sum is an output", "o = Conv(z, w) a = Tanh(x) n = BN(a) y = Add(n, o)"),
    ("a padded convolution reads the sum", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv <pads=[1,1,1,1]> (s, v)"),
    ("the product with another value", "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Mul(n, o) y = Conv(s, u)"),
]  # fmt: skip


@pytest.mark.parametrize("body", [row[1] for row in STAYS], ids=[row[0] for row in STAYS])
def test_nothing_is_rescaled_that_must_stay(body: str) -> None:
    text = graph(body)
    copy, report = folded(model_of(text, used(text, ARRAYS)))
    assert ops(copy)["BatchNormalization"] == 1
    assert isinstance(report.batch_norms[0].outcome, Kept)


SCALES = [
    ("a channel without scale", 0.0, np.float64),
    ("a channel that is much smaller", 2.0**-17, np.float64),
    ("a channel that is much larger", 2.0**17, np.float64),
    ("half precision", 2.0, np.float16),
]


@pytest.mark.parametrize(("scale", "dtype"), [row[1:] for row in SCALES], ids=[row[0] for row in SCALES])
def test_values_keep_their_range(scale: float, dtype: type) -> None:
    text = graph("o = Conv(z, w) a = Tanh(x) n = Mul(a, k) s = Add(n, o) y = Conv(s, u)")
    arrays = used(text, ARRAYS) | {"k": np.array([1.0, scale, 2.0, 3.0]).reshape(4, 1, 1)}
    kind = {np.float64: "double", np.float16: "float16"}[dtype]
    model = model_of(text.replace("double", kind), {name: array.astype(dtype) for name, array in arrays.items()})
    copy, _ = folded(model, **({} if dtype is np.float64 else {"tolerance": 0.05}))
    assert ops(copy)["Mul"] == 1


def test_scales_within_range_do_fold() -> None:
    text = graph("o = Conv(z, w) a = Tanh(x) n = Mul(a, k) s = Add(n, o) y = Conv(s, u)")
    arrays = used(text, ARRAYS) | {"k": np.array([1.0, -(2.0**-16), 2.0**16, 3.0]).reshape(4, 1, 1)}
    copy, _ = folded(model_of(text, arrays))
    assert ops(copy) == {"Conv": 2, "Tanh": 1, "Add": 1}


@pytest.mark.parametrize("kept", ["n", "s", "o"])
def test_affine_that_is_left_out_takes_nothing(kept: str) -> None:
    text = graph(
        "i = Sigmoid(z) o = Mul(i, k3) a = Tanh(x) n = Mul(a, k) e = Identity(n) s = Add(e, k2) r = Add(s, o) y = Conv(r, u)"
    )
    arrays = used(text, ARRAYS)
    copy, _ = folded(model_of(text, arrays), selected=lambda node: node.outputs[0].name != kept)
    left = next(node for node in copy.graph if node.outputs[0].name == kept)
    constant = left.inputs[1]
    assert constant is not None
    assert constant.const_value is not None
    assert np.array_equal(constant.const_value.numpy(), arrays[{"n": "k", "s": "k2", "o": "k3"}[kept]])


@pytest.mark.parametrize("body", [row[1] for row in FOLDS], ids=[row[0] for row in FOLDS])
def test_node_of_any_kind_that_is_spared_stays_and_computes_what_it_did(body: str) -> None:
    text = graph(body)
    model = model_of(text, used(text, ARRAYS))
    feeds = feeds_of(model)
    for place, node in enumerate(model.graph):
        node.name = f"node{place}"
    for name in [node.name for node in model.graph]:
        before, after = model.clone(), model.clone()
        fold(after, lambda node, name=name: node.name != name, spared=lambda node, name=name: node.name == name)  # type: ignore[misc]
        values = []
        for each in (before, after):
            (node,) = (node for node in each.graph if node.name == name)
            if not node.outputs[0].is_graph_output():
                each.graph.outputs.append(node.outputs[0])
            values.append(Oracle(each).run(feeds)[str(node.outputs[0].name)])
        np.testing.assert_allclose(values[1], values[0], rtol=1e-9, atol=1e-12, err_msg=f"{name} of {body}")
        constants_of = [
            [v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None]
            for each in (before, after)
            for node in each.graph
            if node.name == name
        ]
        assert all(np.array_equal(a, b) for a, b in zip(*constants_of, strict=True))


def test_summand_of_one_pixel_makes_room_too() -> None:
    text = graph("p = GlobalAveragePool(z) o = Conv(p, w) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)")
    copy, _ = folded(model_of(text, used(text, ARRAYS)))
    assert "BatchNormalization" not in ops(copy)


def test_summand_broadcast_along_the_channels_stays() -> None:
    text = graph("o = ReduceMean <axes=[1]> (z) a = Tanh(x) n = BN(a) s = Add(n, o) y = Conv(s, u)")
    copy, _ = folded(model_of(text, used(text, ARRAYS)))
    assert ops(copy)["BatchNormalization"] == 1


def test_reader_in_the_body_of_an_if_stays_right() -> None:
    text = graph(
        "o = Conv(z, w) a = Tanh(x) n = BN(a) s = Add(n, o) t = Conv(s, u) e = If (c) "
        "<then_branch = g1 () => (double[N,4,6,6] p) { p = Sigmoid(o) }, "
        "else_branch = g2 () => (double[N,4,6,6] q) { q = Tanh(t) }> y = Add(t, e)"
    ).replace("] z)", "] z, bool c)")
    copy, _ = folded(model_of(text, used(text, ARRAYS)))
    assert ops(copy)["BatchNormalization"] == 1


def test_what_a_merge_makes_room_for_is_not_rescaled() -> None:
    """The sum of two convolutions becomes one, which takes the batch norm; the shortcut's weights stay as they are."""
    text = graph("o = Conv(z, w) c = Conv(x, w) e = Conv(x, u) m = Add(c, e) n = BN(m) s = Add(n, o) y = Sigmoid(s)")
    arrays = used(text, ARRAYS)
    copy, _ = folded(model_of(text, arrays))
    assert "BatchNormalization" not in ops(copy)
    shortcut = next(node for node in copy.graph if node.op_type == "Conv" and node.inputs[0].name == "z")  # type: ignore[union-attr]
    assert np.array_equal(shortcut.inputs[1].const_value.numpy(), arrays["w"])  # type: ignore[union-attr]
