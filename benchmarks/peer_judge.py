"""Whether a file that an optimizer wrote still is the same model, and how large it is.

Run as a program it answers requests (see peer_process.py): a file may be so wrong that ONNX Runtime dies of it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass
from peer_process import Answer, serve

from bnfold.errors import BnfoldError, ModelError
from bnfold.session import SessionOptions, create_session, run_session
from bnfold.verification import VerifyOptions, verify
from bnfold.verification.inputs import drawn_feeds
from bnfold.verification.specs import input_specs


def size(path: Path) -> tuple[int, int]:
    """The nodes of all graphs of a file, ``Constant`` not counted, and how many of them are batch norms."""
    model = ir.load(path)
    if model.functions:
        InlinePass()(model)
    types = [node.op_type for graph in model.graphs() for node in graph if node.op_type != "Constant"]
    return len(types), types.count("BatchNormalization")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file.

    Attributes:
        numbers: it runs, and computes something else; otherwise it is no valid file, or has another interface.
        detail: a sentence.
    """

    numbers: bool
    detail: str


def fault(original: Path, candidate: Path, override: str = "", *, brief: bool = False) -> Fault | None:
    """What is wrong with ``candidate``; None where it computes the same as ``original``, in the same interface.

    The judge is :func:`bnfold.verify`: float64 decides, and ONNX Runtime with its optimizations off, where it runs the
    original at all. What rounding the weights explains is no fault.

    Args:
        original: the file that was optimized.
        candidate: what became of it.
        override: an input that has a default value; another is fed.
        brief: one normal input must do, for models that take long to compute in float64.
    """
    before, after = ir.load(original), ir.load(candidate)
    form = _other_form(before, after, candidate)
    if form:
        return Fault(False, form)
    options = VerifyOptions(level="disable", runtime=runs(original), per_fold=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            inputs = _one_input(before, Path(folder)) if brief else None
            found = verify(original, candidate, replace(options, inputs=inputs))
        if found.verdict == "mismatch":
            return Fault(True, found.sentence)
        if override:
            _feed(before, override)
            _feed(after, override)
            found = verify(before, after, options)
            if found.verdict == "mismatch":
                return Fault(True, f"with another {override}: {found.sentence}")
    except BnfoldError as error:
        return Fault(False, _first_line(error))
    return None


def _other_form(before: ir.Model, after: ir.Model, candidate: Path) -> str:
    """Why a file is not valid, or not to be used in the original's place; empty where it is."""
    try:
        onnx.checker.check_model(candidate, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return _first_line(error)
    foreign = {node.domain for node in after.graph} - {node.domain for node in before.graph} - {"", "ai.onnx"}
    if foreign:
        return f"not portable: it has operators of {', '.join(sorted(foreign))}"
    for what, ours, theirs in (
        ("inputs", _callers(before), _callers(after)),
        ("outputs", before.graph.outputs, after.graph.outputs),
    ):
        if [v.name for v in ours] != [v.name for v in theirs]:
            return f"its {what} are {', '.join(str(v.name) for v in theirs)}"
    return ""


def runs(model: Path) -> bool:
    """Whether ONNX Runtime runs a model: whether it has the kernels, and the model is right."""
    try:
        session = create_session(model, SessionOptions(level="disable"))
        run_session(session, drawn_feeds(input_specs(ir.load(model)), samples=1, seed=0)[0].values)
    except ModelError:
        return False
    return True


def _callers(model: ir.Model) -> list[ir.Value]:
    """What a caller may feed; before IR version 4 every initializer is among the inputs, too."""
    return [v for v in model.graph.inputs if model.ir_version >= 4 or v.name not in model.graph.initializers]


def _one_input(model: ir.Model, folder: Path) -> Path:
    """A file of one normal input for each that has to be fed."""
    path = folder / "inputs.npz"
    feed = drawn_feeds(input_specs(model), samples=1, seed=0)[0]
    np.savez(path, **feed.values)
    return path


def _feed(model: ir.Model, name: str) -> None:
    """Give an input another default value, as if a caller fed it."""
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = np.random.default_rng(1).uniform(0.5, 2.0, value.const_value.shape.numpy())
    value.const_value = ir.tensor(array.astype(value.const_value.dtype.numpy()), name=name)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]


def answer(request: Answer) -> Answer:
    """Judge one file."""
    candidate = Path(request["candidate"])
    found = fault(Path(request["original"]), candidate, request["override"], brief=request["brief"])
    if found is not None:
        return {"fault": found.detail, "numbers": found.numbers}
    nodes, norms = size(candidate)
    return {"fault": "", "nodes": nodes, "norms": norms}


if __name__ == "__main__":
    serve(answer)
