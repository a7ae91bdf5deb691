"""Measure how often `bnfold verify --per-fold` is wrong on real exports: honest folds and damaged ones.

Run: ``PYTHONPATH=benchmarks python tests/verify_exports.py [NETWORK …] [--half] [--minutes M]``. Each network of bnfold
is exported in three ways, its statistics drawn at random, and folded by bnfold and by ONNX Runtime's basic level,
which renames, fuses and folds in float32. The figures in docs/verification.md come from it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import verify_damages
from zoo import Exporter, ExportFailedError, Setting, Way, entries, trained_looking

import bnfold
from bnfold.errors import BnfoldError
from bnfold.model_file import serialized

SETTINGS = (Setting(Way.RAW), Setting(Way.SCRIPT_KEPT, 17), Setting(Way.BNFOLD))
PER_FOLD = bnfold.VerifyOptions(per_fold=True)

Pair = tuple[ir.Model, ir.Model]


def exports(names: list[str]) -> Iterator[tuple[str, ir.Model]]:
    """Each network in each way, with a name for it."""
    for entry in entries():
        if names and entry.name not in names:
            continue
        exporter = Exporter(trained_looking(entry), entry.shape)
        for setting in SETTINGS:
            try:
                yield f"{entry.name} by {setting.way}", exporter.model(setting)
            except ExportFailedError as error:
                print(f"  {entry.name} by {setting.way}: not exported: {error}")


def halved(model: ir.Model) -> ir.Model:
    """The model in float16: weights and the types of inputs, outputs and casts."""
    copy = model.clone()
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.dtype == ir.DataType.FLOAT:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
                value.type = ir.TensorType(ir.DataType.FLOAT16)
        for value in (*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)):
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
                    narrow = ir.tensor(attribute.as_tensor().numpy().astype(np.float16))
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, narrow)
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.as_int() == ir.DataType.FLOAT:
                    node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
    return copy


def by_bnfold(model: ir.Model) -> ir.Model:
    """What `bnfold optimize` makes of it."""
    return bnfold.optimize(model.clone(), options=bnfold.OptimizeOptions()).model


def by_onnxruntime(model: ir.Model) -> ir.Model:
    """What ONNX Runtime's basic level makes of it, read back from its own file."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(serialized(model), options, providers=["CPUExecutionProvider"])
        return ir.from_proto(ir.to_proto(ir.load(options.optimized_model_filepath)))


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--half", action="store_true", help="in float16")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no network after so long")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    honest: Counter[tuple[str, str]] = Counter()
    damaged: Counter[tuple[str, bool]] = Counter()
    worst = 0.0
    for seed, (name, model) in enumerate(exports(given.networks)):
        reference = ir.from_proto(ir.to_proto(halved(model) if given.half else model))
        for tool, optimize in (("bnfold", by_bnfold), ("ONNX Runtime", by_onnxruntime)):
            started = time.monotonic()
            try:
                candidate = ir.from_proto(ir.to_proto(optimize(reference)))
                result = bnfold.verify(reference, candidate, PER_FOLD)
            except BnfoldError as error:
                print(f"  {name}, folded by {tool}: {error}")
                honest[tool, "not compared"] += 1
                continue
            folds = result.folds
            sure = folds is not None and folds.proven
            verdict = f"{result.verdict}, {'each fold proven' if sure else 'not each fold proven'}"
            honest[tool, verdict] += 1
            worst = max([worst, *(f.ratio for o in result.outputs for f in o.judgement.findings)])
            count = 0 if folds is None else len(folds.proofs)
            print(
                f"{name}, folded by {tool}: {verdict}; {count} folds in {time.monotonic() - started:.1f} s", flush=True
            )
            if not sure or not result.ok:
                print(f"  {result.sentence}\n  {folds.sentence if folds else ''}\n  {result.notes}")
            if tool == "bnfold" and result.ok:
                for kind, caught in _damages(reference, candidate, seed):
                    damaged[kind, caught] += 1
                    if not caught:
                        print(f"  passed: {kind}", flush=True)
        if time.monotonic() > end:
            break
    print("\n".join(f"{tool}: {verdict}: {count}" for (tool, verdict), count in sorted(honest.items())))
    print(f"largest error over bound: {worst:.3f}")
    caught = sum(count for (_, seen), count in damaged.items() if seen)
    print(f"damaged folds: {damaged.total()}, caught with --per-fold: {caught}")


def _damages(reference: ir.Model, candidate: ir.Model, seed: int) -> Iterator[tuple[str, bool]]:
    """Every damage that applies, and whether it was caught."""
    protos = ir.to_proto(reference), ir.to_proto(candidate)
    for kind in verify_damages.DAMAGES:
        broken = verify_damages.damaged(kind, *protos, seed)
        if broken is not None:
            yield kind, _is_caught(reference, ir.from_proto(broken))


def _is_caught(reference: ir.Model, candidate: ir.Model) -> bool:
    try:
        options = bnfold.VerifyOptions(per_fold=True, runtime=False, samples=1)
        return bnfold.verify(reference, candidate, options).verdict == "mismatch"
    except BnfoldError:  # it does not even run
        return True


if __name__ == "__main__":
    main()
