"""What a model computes, in float64: the number that both files of a verification are held against.

The float64 evaluation has a unit roundoff of 1.1e-16, so that its own error is some nine orders of magnitude below
that of a float32 run: what differs in it is algebra and the rounding of weights, never the order of a sum.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from bnfold.draws import stream
from bnfold.skeleton import skeleton_of
from bnfold.verification.bodies import Holder, lay_open, lift_weights
from bnfold.verification.double import LARGE, widen
from bnfold.verification.metrics import UNIT_ROUNDOFF, is_float

if TYPE_CHECKING:
    from bnfold.verification.evaluator import Evaluator64, Late

Array = NDArray[Any]

#: Operators whose weights a fold may round anew. A nudge to the constants of others could change a shape, the
#: sign under a root, or the step of a quantizer.
_WEIGHTED = frozenset(
    [
        *("BatchNormalization", "Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"),
        # What multiplies the data, and the bias; no fold changes the offsets and the mask.
        *("DeformConv 1", "DeformConv 3"),
    ]
)
_PARTLY_WEIGHTED = frozenset(entry.split()[0] for entry in _WEIGHTED if " " in entry)
_SCALED = frozenset({"Add", "Div", "Mul", "Sub"})

#: Operators that a weight may pass on its way, its elements unchanged.
_REARRANGED = frozenset({"Cast", "CastLike", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

#: Constants of fewer elements than this that feed an Add or Mul may be sizes on their way to a Resize or Reshape.
_FEWEST_SCALES = 9

#: Elements that are moved at once; so few stay in a processor's cache.
_AT_ONCE = 1 << 16

_FLOATS = {
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
}


class Oracle:
    """A model ready to be evaluated in float64.

    Args:
        model: the model as loaded; it is copied, not changed.

    Attributes:
        model: the copy, in float64, without local functions and Constant nodes.
        stored: for each floating-point initializer of the copy, the type that the file keeps it in.

    Raises:
        NotInFloat64Error: (here and in :meth:`run`) the model holds an operator that does not run in float64.
    """

    def __init__(self, model: ir.Model) -> None:
        widened = model.clone()
        if widened.functions:
            InlinePass()(widened)  # the reference evaluator loses its replaced operators inside functions
        LiftConstantsToInitializersPass(size_limit=0)(widened)
        lift_weights(widened)
        # What one rounding of each weight amounts to, in the type that the file keeps it in.
        self._roundoff = {
            name: UNIT_ROUNDOFF[dtype]
            for name, value in widened.graph.initializers.items()
            if (dtype := weight_dtype(value)) is not None
        }
        self.stored = {
            name: _FLOATS[value.dtype] for name, value in widened.graph.initializers.items() if value.dtype in _FLOATS
        }
        widen(widened)
        self.model = widened
        self._names = [str(value.name) for value in model.graph.outputs]
        self._prepare()

    def _prepare(self) -> None:
        """Make what evaluates the model. Weights go around the protobuf, which would copy them, and ends at 2 GiB."""
        from bnfold.verification.evaluator import Evaluator64, Late

        self._constants: dict[str, Array | Late] = {}
        bare = self.model.clone()
        for name, value in list(bare.graph.initializers.items()):
            assert value.const_value is not None
            tensor = value.const_value
            self._constants[name] = Late(tensor.numpy) if tensor.size >= LARGE else tensor.numpy()
            bare.graph.initializers.pop(name)
        self._evaluator: Evaluator64 = Evaluator64(skeleton_of(bare)[0])

    def laid_open(self, wanted: AbstractSet[Holder]) -> Oracle:
        """The same with subgraphs laid open; see :mod:`bnfold.verification.bodies`."""
        if not wanted:
            return self
        other = copy(self)
        other.model = self.model.clone()
        lay_open(other.model, wanted)
        other._prepare()
        return other

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name; floating-point inputs of any width are taken as they are, without rounding.

        Args:
            feeds: a value for each input of the graph that has no initializer.
        """
        return self._run(feeds, self._constants, self._names)

    def values(self, feeds: Mapping[str, Array], names: Iterable[str], nudge: int | None = None) -> dict[str, Array]:
        """Any values of the main graph from any others; only the operators on the way are run.

        Args:
            feeds: values by name, inner ones as well as inputs.
            names: what is wanted.
            nudge: a seed, to move each weight on the way by one unit roundoff as :meth:`run_nudged` does.
        """
        wanted = list(names)
        wide: dict[str, Any] = {name: _widened(value) for name, value in feeds.items()}
        if nudge is not None:
            wide.update(self._nudged(nudge, self._evaluator.reads_between(feeds, wanted) - feeds.keys()))
        with np.errstate(all="ignore"):
            results = self._evaluator.between(ChainMap(wide, self._constants), wanted)
        return {name: np.asarray(value) for name, value in zip(wanted, results, strict=True)}

    def watch(self, feeds: Mapping[str, Array], see: Callable[[str, Array], None]) -> None:
        """Run the model and tell ``see`` of each value of the main graph, inputs included, by name."""
        wide = {name: _widened(value) for name, value in feeds.items()}
        for name, value in wide.items():
            see(name, value)
        with np.errstate(all="ignore"):
            self._evaluator.between({**self._constants, **wide}, [str(v.name) for v in self.model.graph.outputs], see)

    def run_nudged(self, feeds: Mapping[str, Array], seed: int) -> dict[str, Array]:
        """The outputs when each weight is moved by one unit roundoff of its type, up or down at random.

        It tells how much the rounding of weights, which a fold cannot avoid, moves the outputs.
        """
        from bnfold.verification.evaluator import Late

        nudged: dict[str, Any] = {name: Late(partial(self._nudge, name, seed)) for name in self._roundoff}
        return self._run(feeds, {**self._constants, **nudged}, self._names)

    def _nudged(self, seed: int, names: Iterable[str]) -> dict[str, Array]:
        """The weights among ``names``, each moved."""
        return {name: self._nudge(name, seed) for name in names if name in self._roundoff}

    def _nudge(self, name: str, seed: int) -> Array:
        """A weight moved by one unit roundoff of its type, each element up or down at random."""
        stored, roundoff = self._constants[name], self._roundoff[name]
        moved = np.array(stored if isinstance(stored, np.ndarray) else stored.make(), order="C")
        coins = stream(seed, name).integers(0, 2, moved.size, dtype=np.bool_)
        flat = moved.reshape(-1)
        for start in range(0, flat.size, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            flat[part] *= np.where(coins[part], 1 + roundoff, 1 - roundoff)
        return moved

    @property
    def narrowed(self) -> list[str]:
        """Operators that the evaluator computed in less than float64 so far, in alphabetical order."""
        return sorted(self._evaluator.narrowed())

    def _run(self, feeds: Mapping[str, Array], constants: Mapping[str, Any], names: list[str]) -> dict[str, Array]:
        wide = {name: _widened(value) for name, value in feeds.items()}
        with np.errstate(all="ignore"):  # overflow and invalid operations are results here, not news
            results = self._evaluator.run(names, {**constants, **wide})
        return {name: np.asarray(value) for name, value in zip(names, results, strict=True)}


def _widened(value: Array) -> Array:
    return value.astype(np.float64) if is_float(value) else value


def weight_dtype(value: ir.Value) -> str | None:
    """The floating-point type of an initializer that a fold may round anew; None for any other."""
    if value.dtype not in _FLOATS or value.const_value is None:
        return None
    users = set(_users(value))
    if users <= _WEIGHTED or (users <= _WEIGHTED | _SCALED and value.const_value.size >= _FEWEST_SCALES):
        return _FLOATS[value.dtype]
    return None


def _users(value: ir.Value) -> Iterator[str]:
    """The operators that read a constant, as it is or rearranged; with the index where only some inputs are weights."""
    for node, index in value.uses():
        if node.op_type in _REARRANGED:
            for output in node.outputs:
                yield from _users(output)
        else:
            yield f"{node.op_type} {index}" if node.op_type in _PARTLY_WEIGHTED else node.op_type
