"""Which node of one network plays the part of which node of another, and how far their constants are apart.

Both networks should be the same but for the rounding of constants: the exact fold in float64, and the file that
claims to be it. Names help, but nodes are matched by what they do to what, so that a tool may call values otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.verification.metrics import UNIT_ROUNDOFF, is_float, spacing
from bnfold.verification.regions import Network, names_of

Array = NDArray[Any]

#: Operators whose result does not depend on the order of their inputs.
_COMMUTATIVE = frozenset({"Add", "Mul", "Sum"})

#: Half a unit in the last place is what rounding once costs. The rest is for numbers next to the middle of two others,
#: which float32 on the way to float16 may push over it.
HALF = 0.5 + 2.0**-12

#: Constants that are all wrong, and by more than this of their largest, are other constants.
_SIMILAR = 0.1

#: What float64 itself may be off by, relative to the largest magnitude of a constant: one that is stored in it, and
#: one that is narrower, where this counts only next to the middle of two numbers.
_FLOAT64, _NARROW = 1e-12, 1e-14


@dataclass(frozen=True)
class ConstantError:
    """A constant of the candidate beside the exact one.

    Attributes:
        name: the candidate's name for it.
        role: which input of the node it is, as ONNX calls it, or its number.
        ulp: the largest difference, in units in the last place of the type that the file keeps it in.
        relative: the largest difference over the largest magnitude.
        index: where the largest difference is.
        expected: the exact number there.
        found: the candidate's.
        size: how many elements it has.
        rounded: how many are not exact; in float64, nobody knows, and all are counted.
        off: how many are not even the nearest number of their type.
        problem: what is wrong where it is not the size of a difference.
    """

    name: str
    role: str
    ulp: float
    relative: float
    index: tuple[int, ...]
    expected: float
    found: float
    size: int
    rounded: int
    off: int
    problem: str = ""

    @property
    def sound(self) -> bool:
        """Whether every element is the exact one, rounded once."""
        return not self.off and not self.problem

    @property
    def similar(self) -> bool:
        """Whether it can be taken for the same constant, damaged perhaps, and not for another one."""
        return not self.problem and (2 * self.off <= self.size or self.relative <= _SIMILAR)

    @property
    def sentence(self) -> str:
        """What is wrong with it, for a person to read."""
        if self.problem:
            return f"{self.name} ({self.role}) is {self.problem}"
        place = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        return (
            f"{self.name}{place} ({self.role}) is {self.found:.8g} and should be {self.expected:.8g}, "
            f"{self.ulp:.3g} units in the last place away; {self.off} element{'s are' if self.off > 1 else ' is'} wrong"
        )


@dataclass(frozen=True, eq=False)
class Twin:
    """Two nodes that play the same part.

    Attributes:
        expected: the node of the exact fold.
        found: the node of the candidate.
        constants: the candidate's floating-point constants beside the exact ones.
        differences: what else is not the same.
    """

    expected: ir.Node
    found: ir.Node
    constants: tuple[ConstantError, ...]
    differences: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether both do the same, but for constants rounded once."""
        return not self.differences and all(constant.sound for constant in self.constants)

    @property
    def damaged(self) -> bool:
        """Whether constants that belong to each other are apart: not by their shape or type, which may not matter."""
        return self.firm and any(constant.off for constant in self.constants)

    @property
    def firm(self) -> bool:
        """Whether there can be no doubt that the two belong together."""
        if self.differences:
            return False
        return names_of(self.expected) == names_of(self.found) or all(c.similar for c in self.constants)


class Twins:
    """The twins of two networks.

    Args:
        expected: the exact fold.
        found: the candidate.
        types: in which the reference keeps its constants.

    Attributes:
        pairs: in the order of the candidate.
        names: the candidate's value for each value of the exact fold that it has.
    """

    def __init__(self, expected: Network, found: Network, types: Mapping[str, str]) -> None:
        self._expected = expected
        self._types = types
        self._found = found
        self.names: dict[str, str] = {name: name for name in expected.inputs if name in found.inputs}
        self._back = dict(self.names)
        self._left = dict.fromkeys(expected.nodes)
        self._by_part: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
        for node in expected.nodes:
            self._by_part[self._part(expected, node, None)].append(node)
        self.pairs = tuple(pair for node in found.nodes if (pair := self._pair(node)) is not None)
        self.of: Mapping[ir.Node, Twin] = {pair.expected: pair for pair in self.pairs}

    @property
    def complete(self) -> bool:
        """Whether each node has its twin, and no two do different things to different values."""
        same_count = len(self.pairs) == len(self._expected.nodes) == len(self._found.nodes)
        return same_count and not any(pair.differences for pair in self.pairs)

    @property
    def agreeing(self) -> int:
        """How many nodes do the same, constants aside."""
        return sum(not pair.differences for pair in self.pairs)

    def _part(self, network: Network, node: ir.Node, names: Mapping[str, str] | None) -> tuple[object, ...]:
        """What a node does, to which values, in the exact fold's names; constants count only by their place."""
        inputs = []
        for value in node.inputs:
            name = None if value is None else str(value.name)
            if name is None or not network.varies(name):
                inputs.append("" if name is None else "constant")
            else:
                inputs.append(f"value {name if names is None else names.get(name)}")
        if node.op_type in _COMMUTATIVE:
            inputs.sort()
        return network.operator(node), tuple(inputs)

    def _pair(self, node: ir.Node) -> Twin | None:
        alike = [n for n in self._by_part[self._part(self._found, node, self._back)] if n in self._left]
        namesake = self._namesake(node)
        if alike:
            twin = namesake if namesake in alike else self._nearest(node, alike)
            differences: tuple[str, ...] = ()
        elif namesake is not None:
            twin = namesake
            differences = self._differences(twin, node)
        else:
            return None
        del self._left[twin]
        for ours, theirs in zip(names_of(twin), names_of(node), strict=False):
            self.names[ours] = theirs
            self._back[theirs] = ours
        return Twin(twin, node, () if differences else self._constants(twin, node), differences)

    def _namesake(self, node: ir.Node) -> ir.Node | None:
        names = names_of(node)
        other = self._expected.producers.get(names[0]) if names else None
        return other if other in self._left else None

    def _nearest(self, node: ir.Node, alike: Sequence[ir.Node]) -> ir.Node:
        """Of nodes that do the same to the same values, the one with the most similar constants."""
        if len(alike) == 1:
            return alike[0]
        return min(
            alike,
            key=lambda other: max((min(c.relative, 1e300) for c in self._constants(other, node)), default=0.0),
        )

    def _constants(self, twin: ir.Node, node: ir.Node) -> tuple[ConstantError, ...]:
        ours, theirs = self._constant_inputs(self._expected, twin), self._constant_inputs(self._found, node)
        return tuple(
            error
            for (_, one), (index, other) in zip(ours, theirs, strict=True)
            for error in self._compared(_role(node, index), one, other)
        )

    def _constant_inputs(self, network: Network, node: ir.Node) -> list[tuple[int, ir.Value]]:
        return [(i, v) for i, v in enumerate(node.inputs) if v is not None and not network.varies(str(v.name))]

    def _compared(self, role: str, one: ir.Value, other: ir.Value) -> Iterator[ConstantError]:
        """Two constants side by side: what is stored of them, where both are computed alike."""
        ours_by, theirs_by = one.producer(), other.producer()
        if ours_by is not None and theirs_by is not None and self._alike(ours_by, theirs_by):
            for ours, theirs in zip(ours_by.inputs, theirs_by.inputs, strict=True):
                if ours is not None and theirs is not None:
                    yield from self._compared(role, ours, theirs)
        else:
            error = self._stored(role, one, other)
            if error is not None:
                yield error

    def _alike(self, one: ir.Node, other: ir.Node) -> bool:
        given = [[value is not None for value in node.inputs] for node in (one, other)]
        return given[0] == given[1] and self._expected.operator(one) == self._found.operator(other)

    def _stored(self, role: str, one: ir.Value, other: ir.Value) -> ConstantError | None:
        expected, found = self._expected.constant(one), self._found.constant(other)
        name = str(other.name)
        if expected.shape != found.shape or expected.dtype != found.dtype:
            problem = f"{_described(found)} where {_described(expected)} belongs"
            return ConstantError(name, role, np.inf, np.inf, (), 0.0, 0.0, found.size, 0, 0, problem)
        if not is_float(expected):
            if np.array_equal(expected, found):
                return None
            problem = f"{_few(found)} where {_few(expected)} belongs"
            return ConstantError(name, role, np.inf, np.inf, (), 0.0, 0.0, found.size, 0, 0, problem)
        return _error(name, role, expected, found, self._dtype(str(one.name), name), name in self._found.oracle.stored)

    def _dtype(self, expected: str, found: str) -> str:
        """The type that a constant is rounded to: the file's, but none coarser than the reference's."""
        stored = self._found.oracle.stored.get(found, "float64")
        coarsest = self._types.get(expected) or max(self._types.values(), default=stored, key=UNIT_ROUNDOFF.__getitem__)
        return min(stored, coarsest, key=UNIT_ROUNDOFF.__getitem__)

    def _differences(self, twin: ir.Node, node: ir.Node) -> tuple[str, ...]:
        """In what two nodes of the same name differ, for a person to read."""
        found = []
        if twin.op_type != node.op_type:
            found.append(f"{node.op_type} where {twin.op_type} belongs")
        else:
            for name in sorted({*twin.attributes, *node.attributes}):
                ours, theirs = (_attribute(n, name) for n in (twin, node))
                if ours != theirs:
                    found.append(f"{name} is {theirs} and should be {ours}")
        wanted = [self._input_text(self._expected, value, None) for value in twin.inputs]
        given = [self._input_text(self._found, value, self._back) for value in node.inputs]
        if len(wanted) == len(given):
            odd = [index for index, name in enumerate(wanted) if given[index] != name]
            wanted, given = [wanted[index] for index in odd], [given[index] for index in odd]
        if wanted != given:
            found.append(f"it reads {', '.join(given)} where {', '.join(wanted)} belongs")
        return tuple(found) or ("its attributes or subgraphs differ",)

    def _input_text(self, network: Network, value: ir.Value | None, names: Mapping[str, str] | None) -> str:
        if value is None:
            return "nothing"
        name = str(value.name)
        if not network.varies(name):
            return "a constant"
        return name if names is None else names.get(name, name)


_ROLES: Mapping[str, tuple[str, ...]] = {
    "BatchNormalization": ("X", "scale", "B", "input_mean", "input_var"),
    "Conv": ("X", "weight", "bias"),
    "ConvTranspose": ("X", "weight", "bias"),
    "DeformConv": ("X", "weight", "offset", "bias", "mask"),
    "Gemm": ("A", "weight", "bias"),
    "GRU": ("X", "weight", "recurrent weight", "bias"),
    "LSTM": ("X", "weight", "recurrent weight", "bias"),
    "MatMul": ("A", "weight"),
    "RNN": ("X", "weight", "recurrent weight", "bias"),
}


def _role(node: ir.Node, index: int) -> str:
    roles = _ROLES.get(node.op_type, ())
    return roles[index] if index < len(roles) else f"input {index}"


def _error(name: str, role: str, expected: Array, found: Array, dtype: str, stored: bool) -> ConstantError:
    if not expected.size:
        return ConstantError(name, role, 0.0, 0.0, (), 0.0, 0.0, 0, 0, 0)
    with np.errstate(all="ignore"):
        finite = np.isfinite(expected) & np.isfinite(found)
        same = (expected == found) | (np.isnan(expected) & np.isnan(found))
        difference = np.where(same, 0.0, np.where(finite, np.abs(expected - found), np.inf))
        largest = float(np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0))
        step = spacing(np.where(finite, expected, 0.0), dtype)
        noise = _FLOAT64 if dtype == "float64" else _NARROW
        excess = difference / (HALF * step + noise * largest)
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), expected.shape))
    return ConstantError(
        name=name,
        role=role,
        ulp=float(difference[worst] / step[worst]),
        relative=float(difference.max() / largest) if largest > 0 else (np.inf if difference.any() else 0.0),
        index=worst,
        expected=float(expected[worst]),
        found=float(found[worst]),
        size=expected.size,
        # In float64 the exact ones are rounded too; what the file computes is not.
        rounded=expected.size if stored and dtype == "float64" else int((~same).sum()),
        off=int((excess > 1).sum()),
    )


def _attribute(node: ir.Node, name: str) -> str:
    attribute = node.attributes.get(name)
    if attribute is None:
        return "not set"
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR):
        return "another"
    return str(attribute.value)


def _described(array: Array) -> str:
    return f"{array.dtype.name} of shape {array.shape}"


def _few(array: Array) -> str:
    return str(array.tolist()) if array.size <= 8 else _described(array)
