"""Small ways to damage a folded model, each of which somebody's fold has had, or might.

A damage takes the reference, the honest candidate and a random generator, and returns a damaged copy of the
candidate; None where the model has nothing to damage in that way, or where not a single bit of it would change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from bnfold.fold import fold

Random = np.random.Generator
Damage = Callable[[onnx.ModelProto, onnx.ModelProto, Random], onnx.ModelProto | None]

#: The axis of each operator's weight that its output channels lie on.
_OUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}

#: The next coarser type of each.
_COARSER = {
    "float64": np.float32,
    "float32": np.float16,
    "float16": ml_dtypes.bfloat16,
    "bfloat16": ml_dtypes.float8_e5m2,
}


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _array(model: onnx.ModelProto, name: str) -> np.ndarray | None:
    return next((numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name), None)


def _store(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))


def _linears(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, np.ndarray]]:
    for node in model.graph.node:
        if node.op_type in _OUT_AXIS and (weight := _array(model, node.input[1])) is not None:
            yield node, weight


def _picked(random: Random, found: list) -> object | None:
    return found[int(random.integers(len(found)))] if found else None


def _of_weight(change: Callable[[onnx.NodeProto, np.ndarray, Random], np.ndarray | None]) -> Damage:
    """A change to one weight; it gets the weight in float64 with its output channels on the first axis."""

    def damage(_reference: onnx.ModelProto, candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
        copy = _copy(candidate)
        found = list(_linears(copy))
        for index in random.permutation(len(found)):
            node, weight = found[index]
            axis = _OUT_AXIS[node.op_type]
            changed = change(node, np.moveaxis(weight.astype(np.float64), axis, 0).copy(), random)
            if changed is not None:
                _store(copy, node.input[1], np.moveaxis(changed, 0, axis).astype(weight.dtype))
                return copy
        return None

    return damage


def _of_bias(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(_reference: onnx.ModelProto, candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
        copy = _copy(candidate)
        made = {node.output[0] for node in copy.graph.node if node.op_type == "MatMul"}
        names = [n.input[2] for n in copy.graph.node if n.op_type in _OUT_AXIS and len(n.input) > 2]
        names += [n.input[1] for n in copy.graph.node if n.op_type == "Add" and n.input[0] in made]
        name = _picked(random, [name for name in names if _array(copy, name) is not None])
        if name is None:
            return None
        bias = _array(copy, name)
        _store(copy, name, change(bias.astype(np.float64)).astype(bias.dtype))
        return copy

    return damage


def _of_node(fits: Callable[[onnx.NodeProto], bool], change: Callable[[onnx.NodeProto], None]) -> Damage:
    def damage(_reference: onnx.ModelProto, candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
        copy = _copy(candidate)
        node = _picked(random, [node for node in copy.graph.node if fits(node)])
        if node is None:
            return None
        change(node)
        return copy

    return damage


def _of_reference(change: Callable[[onnx.NodeProto, onnx.ModelProto], None]) -> Damage:
    """A fold of another reference, one batch norm of which is not what it was: a fold by the wrong formula."""

    def damage(reference: onnx.ModelProto, _candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
        copy = _copy(reference)
        node = _picked(random, [node for node in copy.graph.node if node.op_type == "BatchNormalization"])
        if node is None:
            return None
        change(node, copy)
        model = ir.from_proto(copy)
        fold(model)
        # Where the batch norm was left alone, it must be as in the reference: this is about folds.
        left = {n.outputs[0].name for n in model.graph if n.op_type == "BatchNormalization"}
        return None if node.output[0] in left else ir.to_proto(model)

    return damage


def _scaled(factor: float) -> Damage:
    def change(_node: onnx.NodeProto, weight: np.ndarray, random: Random) -> np.ndarray:
        weight[int(random.integers(len(weight)))] *= factor
        return weight

    return _of_weight(change)


def _one_element(_node: onnx.NodeProto, weight: np.ndarray, random: Random) -> np.ndarray:
    weight.reshape(-1)[int(random.integers(weight.size))] *= 1.01
    return weight


def _swapped(_node: onnx.NodeProto, weight: np.ndarray, random: Random) -> np.ndarray | None:
    if len(weight) < 2:
        return None
    one, other = random.choice(len(weight), 2, replace=False)
    weight[[one, other]] = weight[[other, one]]
    return weight


def _group(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _turned_groups(node: onnx.NodeProto, weight: np.ndarray, _random: Random) -> np.ndarray | None:
    """The groups of a grouped operator in another order."""
    groups = _group(node)
    if groups < 2 or node.op_type != "Conv":
        return None
    return np.roll(weight.reshape(groups, -1, *weight.shape[1:]), 1, axis=0).reshape(weight.shape)


def _transposed_group(node: onnx.NodeProto, weight: np.ndarray, _random: Random) -> np.ndarray | None:
    """Inputs and outputs of each group taken for each other."""
    groups = _group(node)
    blocks = weight.reshape(groups, -1, *weight.shape[1:]) if node.op_type == "Conv" else None
    if blocks is None or blocks.shape[1] != blocks.shape[2] or blocks.shape[1] < 2:
        return None
    return blocks.swapaxes(1, 2).reshape(weight.shape)


def _shifted_taps(_node: onnx.NodeProto, weight: np.ndarray, _random: Random) -> np.ndarray | None:
    """A merged kernel one tap away from its place."""
    return np.roll(weight, 1, axis=-1) if weight.ndim > 2 and weight.shape[-1] > 1 else None


def _turned_taps(_node: onnx.NodeProto, weight: np.ndarray, _random: Random) -> np.ndarray | None:
    square = weight.ndim == 4 and weight.shape[2] == weight.shape[3] > 1
    return weight.swapaxes(2, 3) if square else None


def _negated(_node: onnx.NodeProto, weight: np.ndarray, random: Random) -> np.ndarray:
    weight[int(random.integers(len(weight)))] *= -1
    return weight


def _coarse(whole: bool) -> Damage:
    """A weight, or one element of it, rounded to the next coarser type."""

    def damage(_reference: onnx.ModelProto, candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
        copy = _copy(candidate)
        picked = _picked(random, list(_linears(copy)))
        if picked is None:
            return None
        node, weight = picked
        coarse = weight.astype(_COARSER[weight.dtype.name]).astype(weight.dtype)
        if not whole:
            place = int(random.integers(weight.size))
            coarse = np.where(np.arange(weight.size).reshape(weight.shape) == place, coarse, weight)
        _store(copy, node.input[1], coarse)
        return copy

    return damage


def _one_bit(_reference: onnx.ModelProto, candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
    """The last bit of one element."""
    copy = _copy(candidate)
    picked = _picked(random, list(_linears(copy)))
    if picked is None:
        return None
    node, weight = picked
    if weight.dtype == np.float64:  # in which the exact fold is no more exact than that
        return None
    changed = weight.copy()
    changed.reshape(-1).view(f"u{weight.itemsize}")[int(random.integers(weight.size))] ^= 1
    _store(copy, node.input[1], changed)
    return copy


def _attribute(node: onnx.NodeProto, name: str) -> list | None:
    return next((list(helper.get_attribute_value(a)) for a in node.attribute if a.name == name), None)


def _set(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _border(node: onnx.NodeProto) -> None:
    """One row of the border on the other side."""
    pads = _attribute(node, "pads")
    half = len(pads) // 2
    pads[0], pads[half] = pads[0] - 1, pads[half] + 1
    _set(node, "pads", pads)


def _other_affine(change: Callable[[np.ndarray, list[int]], np.ndarray | None]) -> Damage:
    """A constant of a Mul, Add or Sub that is left in the model."""

    def damage(_reference: onnx.ModelProto, candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
        copy = _copy(candidate)
        found = [
            (name, array)
            for node in copy.graph.node
            if node.op_type in ("Mul", "Add", "Sub")
            for name in node.input
            if (array := _array(copy, name)) is not None and array.size > 1
        ]
        random.shuffle(found)
        for name, array in found:
            changed = change(array, list(array.shape))
            if changed is not None:
                _store(copy, name, changed)
                return copy
        return None

    return damage


def _other_axis(array: np.ndarray, shape: list[int]) -> np.ndarray | None:
    """The scale of channels taken for one of rows, which only its place in the shape tells apart."""
    return array.swapaxes(-3, -2) if len(shape) >= 3 and shape[-3] == 12 and shape[-2] == 1 else None


def _wrong_padding(reference: onnx.ModelProto, _candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
    """A batch norm folded forward into a convolution that pads: right inside, wrong along the border."""
    copy = _copy(reference)
    makers = {node.output[0]: node for node in copy.graph.node}
    readers = [name for node in copy.graph.node for name in node.input]
    found = [
        (makers[node.input[0]], node)
        for node in copy.graph.node
        if node.op_type == "Conv" and any(_attribute(node, "pads") or []) and node.input[0] in makers
        if makers[node.input[0]].op_type == "BatchNormalization" and readers.count(node.input[0]) == 1
        if _group(node) == 1
    ]
    picked = _picked(random, found)
    if picked is None:
        return None
    norm, conv = picked
    gamma, beta, mean, var = (_array(copy, name).astype(np.float64) for name in norm.input[1:5])
    scale = gamma / np.sqrt(var + np.float32(norm.attribute[0].f))
    shift = beta - scale * mean
    weight = _array(copy, conv.input[1])
    bias = _array(copy, conv.input[2]).astype(np.float64) if len(conv.input) > 2 else 0.0
    wide = weight.astype(np.float64)
    moved = bias + np.einsum("oikl,i->o", wide, shift)
    _store(copy, conv.input[1], (wide * scale.reshape(1, -1, 1, 1)).astype(weight.dtype))
    copy.graph.initializer.append(numpy_helper.from_array(moved.astype(weight.dtype), f"{conv.name}_moved"))
    inputs = [norm.input[0], conv.input[1], f"{conv.name}_moved"]
    del conv.input[:]
    conv.input.extend(inputs)
    copy.graph.node.remove(norm)
    model = ir.from_proto(copy)
    fold(model)
    return ir.to_proto(model)


def _parameter(index: int, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def apply(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        array = _array(model, node.input[index])
        _store(model, node.input[index], change(array.astype(np.float64)).astype(array.dtype))

    return _of_reference(apply)


def _epsilon(node: onnx.NodeProto, _model: onnx.ModelProto) -> None:
    old = next(a.f for a in node.attribute if a.name == "epsilon")
    _set(node, "epsilon", 1e-3 if old < 1e-4 else 1e-5)


def _binary(*op_types: str) -> Callable[[onnx.NodeProto], bool]:
    return lambda node: node.op_type in op_types and len(node.input) == 2


def _turn_inputs(node: onnx.NodeProto) -> None:
    inputs = list(node.input)[::-1]
    del node.input[:]
    node.input.extend(inputs)


def _become(op_type: str, inputs: int | None = None) -> Callable[[onnx.NodeProto], None]:
    def change(node: onnx.NodeProto) -> None:
        node.op_type = op_type
        del node.input[inputs if inputs is not None else len(node.input) :]
        if op_type in ("Identity", "Sub"):
            del node.attribute[:]

    return change


def _activation_lost(_reference: onnx.ModelProto, candidate: onnx.ModelProto, random: Random) -> onnx.ModelProto | None:
    """One in front of a Relu alone could as well be left out: that is no damage."""
    copy = _copy(candidate)
    readers = {
        name: {n.op_type for n in copy.graph.node if name in n.input} for n in copy.graph.node for name in n.output
    }
    found = [n for n in copy.graph.node if n.op_type in ("Relu", "LeakyRelu") and readers[n.output[0]] != {"Relu"}]
    node = _picked(random, found)
    if node is None:
        return None
    _become("Identity")(node)
    return copy


def _pads(node: onnx.NodeProto) -> bool:
    pads = _attribute(node, "pads") or []
    return node.op_type in ("Conv", "MaxPool", "AveragePool") and bool(pads) and pads[0] > 0


def _uneven(node: onnx.NodeProto) -> bool:
    strides = _attribute(node, "strides") or []
    return node.op_type == "Conv" and len(set(strides)) > 1


DAMAGES: dict[str, Damage] = {
    "one channel of a weight × 1.01": _scaled(1.01),
    "one channel of a weight × 1.001": _scaled(1.001),
    "one element of a weight × 1.01": _of_weight(_one_element),
    "last bit of one element": _one_bit,
    "one element in a coarser type": _coarse(whole=False),
    "one weight in a coarser type": _coarse(whole=True),
    "two channels of a weight swapped": _of_weight(_swapped),
    "sign of one channel": _of_weight(_negated),
    "groups of a weight turned": _of_weight(_turned_groups),
    "a group transposed": _of_weight(_transposed_group),
    "kernel one tap off": _of_weight(_shifted_taps),
    "kernel transposed": _of_weight(_turned_taps),
    "bias dropped": _of_bias(np.zeros_like),
    "bias × 1.001": _of_bias(lambda bias: bias * 1.001),
    "wrong epsilon": _of_reference(_epsilon),
    "mean not subtracted": _parameter(3, np.zeros_like),
    "shift not added": _parameter(2, np.zeros_like),
    "deviation not rooted": _parameter(4, np.square),
    "batch norm through zero padding": _wrong_padding,
    "one border row on the other side": _of_node(_pads, _border),
    "strides turned": _of_node(_uneven, lambda node: _set(node, "strides", _attribute(node, "strides")[::-1])),
    "inputs of a Sub swapped": _of_node(_binary("Sub"), _turn_inputs),
    "a branch lost": _of_node(_binary("Add"), _become("Identity", 1)),
    "sign of a branch": _of_node(_binary("Add"), _become("Sub")),
    "inputs of a Concat swapped": _of_node(_binary("Concat"), _turn_inputs),
    "scale on another axis": _other_affine(_other_axis),
    "constant of an affine × 1.001": _other_affine(
        lambda array, _shape: (array.astype(float) * 1.001).astype(array.dtype)
    ),
    "an activation lost": _activation_lost,
}


def damaged(name: str, reference: onnx.ModelProto, candidate: onnx.ModelProto, seed: int) -> onnx.ModelProto | None:
    """The candidate with one damage; None where it does not apply, or leaves every constant and node as it was."""
    found = DAMAGES[name](reference, candidate, np.random.default_rng(seed))
    if found is None:
        return None
    onnx.checker.check_model(found)
    same = list(found.graph.node) == list(candidate.graph.node)
    constants = [{t.name: (tuple(t.dims), t.raw_data) for t in m.graph.initializer} for m in (found, candidate)]
    return None if same and constants[0] == constants[1] else found
