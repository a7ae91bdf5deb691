"""What folding gains, on networks where ONNX Runtime folds by itself and on those where it does not.

Run: python benchmarks/gains.py [--time SECONDS]. Prints the Markdown table that the README shows.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import bnfold
from bnfold.benchmarking.statistics import Comparison, Verdict
from bnfold.exporting import ExportOptions
from bnfold.models import build
from bnfold.optimizer import OptimizeOptions
from bnfold.verification import VerifyOptions


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    title: str
    model: str
    shape: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    raw: bool = False


CASES = (
    Case("ResNet-20, 3×32×32", "resnet", (3, 32, 32), {"in_channels": 3, "blocks": 3}),
    Case("ResNet-20, torch's raw export", "resnet", (3, 32, 32), {"in_channels": 3, "blocks": 3}, raw=True),
    Case("VGG, 3×32×32", "vgg", (3, 32, 32), {"in_channels": 3}),
    Case("VGG, torch's raw export", "vgg", (3, 32, 32), {"in_channels": 3}, raw=True),
    Case("pre-activation ResNet, 3×32×32", "preact_resnet", (3, 32, 32), {"in_channels": 3, "blocks": 3}),
    Case("MobileNetV2, torch's raw export", "mobilenet_v2", (3, 32, 32), {"in_channels": 3}, raw=True),
    Case("RepVGG, 3×32×32", "repvgg", (3, 32, 32), {"in_channels": 3}),
    Case("MobileOne, 3×32×32", "mobileone", (3, 32, 32), {"in_channels": 3}),
    Case("diverse branch blocks, 3×32×32", "dbb", (3, 32, 32), {"in_channels": 3}),
    Case("DenseNet, 3×32×32", "densenet", (3, 32, 32), {"in_channels": 3}),
    Case("ConvMixer, 3×32×32", "convmixer", (3, 32, 32), {"in_channels": 3, "width": 128, "depth": 8}),
    Case("LeViT-like, 3×32×32", "levit", (3, 32, 32), {"input_shape": [3, 32, 32]}),
    Case("MLP 256-128 with BatchNorm1d", "mlp", (64,), {}),
    Case("MLP 1024×3 with BatchNorm1d", "mlp", (256,), {"in_features": 256, "widths": [1024, 1024, 1024]}),
)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=float, default=20.0, help="seconds for each network")
    seconds = parser.parse_args().time
    print("| network | batch norms | of them, ONNX Runtime folds | nodes | speed-up (95 % interval) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            print(row(case, Path(folder), seconds), flush=True)


def row(case: Case, folder: Path, seconds: float) -> str:
    """One network: export, fold, prove, measure."""
    weights, original, folded = folder / "weights.safetensors", folder / "original.onnx", folder / "folded.onnx"
    save_file(trained_looking(case).state_dict(), weights)
    options = ExportOptions(model=case.model, model_args=case.arguments, input_shape=case.shape, clean=not case.raw)
    bnfold.export(weights, original, options)
    result = bnfold.optimize(original, folded, OptimizeOptions(verify=VerifyOptions()))
    assert result.path is not None
    report = result.report
    measured = bnfold.benchmark([original, folded], bnfold.BenchmarkOptions(seconds=seconds))
    candidate = measured.groups[0].candidates[1]
    folded_by_ort = sum(record.ort_folds for record in report.batch_norms)
    return (
        f"| {case.title} | {len(report.batch_norms)} → {report.batch_norms_after} | {folded_by_ort} "
        f"| {report.nodes_before} → {report.nodes_after} | {_speedup(candidate.comparison)} |"
    )


def trained_looking(case: Case) -> torch.nn.Module:
    """The network with random statistics, since those of a fresh one are all 0 and 1."""
    torch.manual_seed(0)
    network = build(case.model, **case.arguments)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                torch.nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]
    return network


def _speedup(comparison: Comparison | None) -> str:
    assert comparison is not None
    speedup = comparison.speedup
    interval = f"({speedup.low:.2f}–{speedup.high:.2f})"
    if comparison.verdict is Verdict.NO_DIFFERENCE:
        return f"{speedup.estimate:.2f}× {interval}, no difference"
    return f"**{speedup.estimate:.2f}×** {interval}"


if __name__ == "__main__":
    main()
