"""The pipeline around the engine: load, inline, fold, check, verify, save."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from bnfold.errors import BnfoldError, InputError, ModelError, OutputError
from bnfold.files import StrPath, staging_folder
from bnfold.fold import fold
from bnfold.fold.absorb import ABSORBING_OPS
from bnfold.fold.report import FoldReport
from bnfold.fold.sites import is_batch_norm
from bnfold.graph import label
from bnfold.model_file import (
    ExternalData,
    check_file,
    check_model_output,
    data_file,
    external_tensors,
    from_proto,
    is_external,
    keep_weights_of,
    load_model,
    lost_on_saving,
    publish_model,
    write_model,
)
from bnfold.progress import Progress, silent
from bnfold.shapes import contradiction
from bnfold.sidecar import copy_sidecar, sidecar_left_by_another
from bnfold.skeleton import skeleton_of

if TYPE_CHECKING:
    from bnfold.verification import VerifyOptions, VerifyResult


#: What can be optimized: a path, or a model in memory.
Source = ir.Model | onnx.ModelProto | StrPath


@dataclass(frozen=True)
class OptimizeOptions:
    """How to optimize.

    Attributes:
        freeze_inputs: treat initializers that a caller could override (IR version 4 and later) as constants, and
            remove them from the inputs.
        only: shell patterns of node or output names; where given, only affines that match one are folded, and
            nothing is merged but what matches.
        keep: shell patterns of node or output names; what matches one stays, with its constants, and goes on computing
            what it did.
        merge: whether linear ops that can be one, branches that meet in a sum or ops in a row, become one.
        external_data: where the weights of the written file go.
        in_place: whether the output may be the input file.
        verify: how to prove the result before it is written; None to write it unproven.
    """

    freeze_inputs: bool = False
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    merge: bool = True
    external_data: ExternalData = "auto"
    in_place: bool = False
    verify: VerifyOptions | None = None


@dataclass(frozen=True, eq=False)
class OptimizeResult:
    """What :func:`optimize` made.

    Attributes:
        model: the optimized model.
        report: the fate of each batch norm.
        verification: the proof, if one was asked for.
        path: the file that was written; None where none was asked for, or where the proof failed.
        notes: what the user should know of the file, in sentences.
    """

    model: ir.Model
    report: FoldReport
    verification: VerifyResult | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as plain data, without the model itself."""
        return {
            "output": str(self.path) if self.path else None,
            "report": self.report.to_json(),
            "verification": self.verification.to_json() if self.verification else None,
            "notes": list(self.notes),
        }


def optimize(
    model: Source,
    output: StrPath | None = None,
    options: OptimizeOptions | None = None,
    progress: Progress = silent,
) -> OptimizeResult:
    """Fold every batch norm, and every other per-channel affine, that algebra lets fold.

    Args:
        model: the path of an ONNX file, or a model in memory (onnx or onnx-ir), which stays as it is.
        output: the file to write; it appears whole, after it was checked and proven, or not at all. The sidecar
            ``MODEL.preprocessing.json`` of a model that has one is copied beside it.
        options: see :class:`OptimizeOptions`.
        progress: told of the proof's progress.

    Returns:
        The optimized model with exactly one record for each batch norm of the input. Where the proof that
        ``options.verify`` asks for fails, nothing is written and ``path`` is None.

    Raises:
        ModelError: the model cannot be loaded.
        InputError: a pattern in ``only`` or ``keep`` matches nothing, or a proof was asked for without an output.
        OutputError: the output cannot be written, or is the input and ``in_place`` was not asked for.
    """
    options = options or OptimizeOptions()
    if output is None:
        if options.verify is not None:
            raise InputError("a proof compares two files; give an output path, or call bnfold.verify yourself")
        work = _loaded(model)
        return OptimizeResult(work, _fold(work, options))
    target = check_model_output(output)
    if _is_input(model, target) and not options.in_place:
        raise OutputError(f"{target} is the input itself; write elsewhere, or ask for it with --in-place")
    work = _loaded(model)
    overwrites_weights = not options.in_place and _reads_from(data_file(target), work)
    report = _fold(work, options)
    if overwrites_weights and is_external(work, options.external_data):
        raise OutputError(
            f"{data_file(target)} holds the weights of the input, and would be overwritten; choose another name"
        )
    with staging_folder(target) as folder:
        staged = write_model(work, folder / target.name, external_data=options.external_data)
        _check_result(staged, model)
        verification = _proof(model, staged, options, progress)
        if verification is not None and verification.verdict == "mismatch":
            return OptimizeResult(work, report, verification)
        if options.in_place and data_file(target).exists():
            keep_weights_of(data_file(target), work)
        publish_model(staged, target)
    sidecar = copy_sidecar(model, target) if isinstance(model, str | os.PathLike) else sidecar_left_by_another(target)
    return OptimizeResult(work, report, verification, target, (*lost_on_saving(work), *sidecar))


def inspect(model: Source, options: OptimizeOptions | None = None) -> FoldReport:
    """What :func:`optimize` would do to each batch norm, and why not more: the same engine on a copy.

    Raises:
        ModelError: the model cannot be loaded.
        InputError: a pattern in ``only`` or ``keep`` matches nothing.
    """
    return _fold(_loaded(model), options or OptimizeOptions())


def _fold(model: ir.Model, options: OptimizeOptions) -> FoldReport:
    """Inline and fold, in place."""
    _inline(model)
    if options.freeze_inputs and model.ir_version >= 4:
        common_passes.RemoveInitializersFromInputsPass()(model)
    kept = _named_like(options.keep, model)
    others = _nodes(model) - _named_like(options.only, model) if options.only else frozenset()
    return fold(
        model,
        lambda node: node not in kept and node not in others,
        spared=lambda node: node in kept,
        merge=options.merge,
        tidy=True,
    )


def _loaded(model: Source) -> ir.Model:
    """A model of one's own to edit."""
    match model:
        case ir.Model():
            copy = model.clone()
            copy.meta.update(model.meta)
            return copy
        case onnx.ModelProto():
            return from_proto(model)
        case str() | os.PathLike():
            return load_model(model)
        case _:
            raise InputError(
                f"a {type(model).__name__} is no model; give a path, an onnx.ModelProto or an onnx_ir.Model"
            )


def _may_hold_a_site(node: ir.Node) -> bool:
    """Whether an op may be an affine or absorb one, once the function's parameters are known."""
    if is_batch_norm(node) or node.op_type in ABSORBING_OPS or node.op_type == "Neg":
        return True
    return node.op_type in ("Add", "Sub", "Mul", "Div") and node.inputs[0] is not node.inputs[1]


def _inline(model: ir.Model) -> None:
    """Inline the local functions that may hold a site, however deep."""
    wanted: set[ir.OperatorIdentifier] = set()
    changed = True
    while changed:
        holders = {
            identifier
            for identifier, function in model.functions.items()
            if identifier not in wanted
            and any(_may_hold_a_site(node) or node.op_identifier() in wanted for node in function.all_nodes())
        }
        wanted |= holders
        changed = bool(holders)
    if not wanted:
        return
    try:
        common_passes.InlinePass(lambda function: function.identifier() in wanted)(model)
    except ir.passes.PreconditionError as error:
        raise ModelError(f"the model's local functions call each other in a circle: {error}") from error


def _nodes(model: ir.Model) -> frozenset[ir.Node]:
    """The nodes that the model came with; what folding makes is nobody's to name."""
    return frozenset(node for graph in model.graphs() for node in graph if node.outputs)


def _named_like(patterns: Sequence[str], model: ir.Model) -> frozenset[ir.Node]:
    """The nodes of which the name, or that of the first output, matches a pattern now: folding renames values."""
    names = {node: (label(node), node.outputs[0].name or "") for node in _nodes(model)}
    found: set[ir.Node] = set()
    for pattern in patterns:
        like = [node for node in names if any(fnmatchcase(name, pattern) for name in names[node])]
        if not like:
            raise InputError(f"no node or output is named like {pattern!r}; `bnfold inspect` lists the names")
        found.update(like)
    return frozenset(found)


def _reads_from(path: Path, model: ir.Model) -> bool:
    """Whether a model keeps weights in that file."""
    return path.exists() and any(path.samefile(tensor.path) for tensor in external_tensors(model))


def _is_input(model: Source, target: Path) -> bool:
    """Whether ``target`` is the file that the model is loaded from."""
    on_disk = isinstance(model, str | os.PathLike) and target.exists() and Path(model).exists()
    return on_disk and target.samefile(Path(str(model)))


def _check_result(staged: Path, source: Source) -> None:
    """What bnfold writes is held against the ONNX specification, and its shapes against each other, before anyone
    sees it; contradictions that the input has already are its own.
    """
    what = "folding made an invalid model, which was not written; please report it"
    try:
        written = check_file(staged, "the result")
    except ModelError as error:
        raise ModelError(f"{what}: {error}") from error
    found = contradiction(*written)
    if found is not None and contradiction(*skeleton_of(_loaded(source))) is None:
        raise ModelError(f"{what}: {found}")


def _proof(model: Source, staged: Path, options: OptimizeOptions, progress: Progress) -> VerifyResult | None:
    if options.verify is None:
        return None
    from bnfold.verification import verify

    try:
        reference = from_proto(model) if isinstance(model, onnx.ModelProto) else model
        return verify(reference, staged, options.verify, progress)
    except BnfoldError as error:
        raise type(error)(f"the result cannot be proven, so it was not written (--no-verify writes it): {error}") from (
            error
        )
