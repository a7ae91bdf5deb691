"""The optimizers that are compared, each used as its documentation says, and the process that each runs in.

``python peer_tools.py NAME`` imports one of them and answers requests (see peer_process.py): ``source`` and ``target``
are paths, the answer holds the ``seconds`` from before the load to after the save. ``python peer_tools.py NAME SOURCE
TARGET`` folds one file and ends. No optimizer is imported but the one, so that none pays for another.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata

from peer_process import Answer, serve

#: Loads a file, folds, saves a file.
Fold = Callable[[str, str], object]


def _bnfold() -> Fold:
    import bnfold

    return bnfold.optimize


def _bnfold_proven() -> Fold:
    import bnfold
    from bnfold.optimizer import OptimizeOptions
    from bnfold.verification import VerifyOptions

    return lambda source, target: bnfold.optimize(source, target, OptimizeOptions(verify=VerifyOptions()))


def _onnx_ir() -> Fold:
    import onnx_ir as ir

    return lambda source, target: ir.save(ir.load(source), target)


def _onnxruntime() -> Fold:
    import onnxruntime

    def fold(source: str, target: str) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = target
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return fold


def _onnxsim() -> Fold:
    import onnx
    import onnxsim

    def fold(source: str, target: str) -> None:
        model, valid = onnxsim.simplify(onnx.load(source))
        if not valid:
            raise RuntimeError("simplify() says that its result could not be validated")
        onnx.save(model, target)

    return fold


def _onnxslim() -> Fold:
    import onnx
    import onnxslim

    def fold(source: str, target: str) -> None:
        onnx.save(onnxslim.slim(onnx.load(source)), target)

    return fold


def _onnxscript() -> Fold:
    import onnx_ir as ir
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common

    # Those of batch norm are among the defaults of optimize(); these two fold scales and shifts, and are not.
    rules = [common.conv_affine_fusion_rule, common.affine_conv_fusion_rule]

    def fold(source: str, target: str) -> None:
        model = optimizer.optimize(ir.load(source))
        ir.save(optimizer.optimize(rewriter.rewrite(model, rules)), target)

    return fold


def _onnxoptimizer() -> Fold:
    import onnx
    import onnxoptimizer

    passes = onnxoptimizer.get_fuse_and_elimination_passes()

    def fold(source: str, target: str) -> None:
        onnx.save(onnxoptimizer.optimize(onnx.load(source), passes, fixed_point=True), target)

    return fold


#: Every optimizer by its name, which is also that of its package; bnfold first.
TOOLS: Mapping[str, Callable[[], Fold]] = {
    "bnfold": _bnfold,
    "onnxruntime": _onnxruntime,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxscript": _onnxscript,
    "onnxoptimizer": _onnxoptimizer,
}

#: bnfold with its proof, which only its own fold time is held against.
PROVEN = "bnfold, proven"

#: The library that bnfold's graphs are made of, when nothing is done between load and save.
UNCHANGED = "onnx-ir alone"

#: What is timed beside the optimizers and is none.
REFERENCES: Mapping[str, Callable[[], Fold]] = {PROVEN: _bnfold_proven, UNCHANGED: _onnx_ir}

#: How each is used, for the reader of the tables.
USAGE: Mapping[str, str] = {
    "bnfold": "`bnfold.optimize(source, target)`: with its checks, without the proof",
    "onnxruntime": "a session at `ORT_ENABLE_BASIC` with `optimized_model_filepath`",
    "onnxsim": "`simplify(onnx.load(source))`, then `onnx.save`",
    "onnxslim": "`slim(onnx.load(source))`, then `onnx.save`",
    "onnxscript": "`optimizer.optimize` on an onnx-ir model, and its rules that fold scales and shifts into a Conv",
    "onnxoptimizer": "`optimize` with `get_fuse_and_elimination_passes()` until nothing changes, then `onnx.save`",
}


def installed() -> dict[str, str]:
    """The version of each optimizer that is installed."""
    found = {}
    for name in TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def answering(fold: Fold) -> Callable[[Answer], Answer]:
    """What folds on request and says how long it took."""

    def answer(request: Answer) -> Answer:
        start = time.perf_counter()
        fold(request["source"], request["target"])
        return {"seconds": time.perf_counter() - start}

    return answer


if __name__ == "__main__":
    chosen = {**TOOLS, **REFERENCES}[sys.argv[1]]()
    if len(sys.argv) == 2:
        serve(answering(chosen))
    else:
        chosen(*sys.argv[2:])
