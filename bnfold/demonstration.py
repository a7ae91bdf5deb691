"""The main job on real data, start to end: train, export, inspect, optimize, verify, benchmark, report.

The data are scikit-learn's digits: 1,797 real images of 8×8 pixels that ship with it, so that nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.benchmarking import BenchmarkOptions, BenchmarkResult, benchmark
from bnfold.errors import BnfoldError, OutputError
from bnfold.exporting import export
from bnfold.extras import require
from bnfold.files import StrPath, check_output_file, output_folder, write_json, write_text
from bnfold.fold.report import FoldReport
from bnfold.optimizer import OptimizeOptions, optimize
from bnfold.prediction import predict
from bnfold.progress import Progress, silent
from bnfold.reporting import write_demo_report
from bnfold.training import TrainOptions, TrainResult, train
from bnfold.verification import VerifyOptions, VerifyResult

DATA = "digits"

#: How the note in the demo's folder begins, by which the next demo knows it.
_MARK = "# A demo of bnfold\n"

_README = """
`bnfold demo` made these files: a network trained on scikit-learn's digits, exported, folded, proven and measured.
[report.html](report.html) tells what came of it; the next demo in this folder replaces all of them.
"""


@dataclass(frozen=True)
class DemoOptions:
    """How the demo runs.

    Attributes:
        epochs: of training.
        seed: of training, of the inputs of the proof and of the benchmark's order.
        seconds: time budget of the benchmark.
    """

    epochs: int = 15
    seed: int = 0
    seconds: float = 10.0


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo made and found.

    Attributes:
        folder: where every artefact lies.
        training: the run.
        report: the fate of each batch norm.
        verification: whether the optimized model computes the same function.
        benchmark: latency of original and optimized model.
        accuracies: on the test split: ``torch``, ``original`` and ``optimized``.
        original: the exported file.
        optimized: the folded file.
    """

    folder: Path
    training: TrainResult
    report: FoldReport
    verification: VerifyResult
    benchmark: BenchmarkResult
    accuracies: Mapping[str, float]
    original: Path
    optimized: Path

    @property
    def ok(self) -> bool:
        """Whether the result is proven, no batch norm is left and the accuracy is the same in all three runs."""
        return (
            self.verification.ok
            and self.report.batch_norms_after == 0
            and len({round(accuracy, 6) for accuracy in self.accuracies.values()}) == 1
        )

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """Each artefact, with what it is."""
        return (
            ("run/", "the training run: weights and checkpoint (safetensors), run.json, metrics.jsonl"),
            (self.original.name, "the network with its batch norms"),
            (self.optimized.name, "the same function without them"),
            ("folds.json", "the fate of each batch norm"),
            ("verification.json", "every figure of the proof"),
            ("benchmark.json", "every latency sample"),
            ("report.html", "this report"),
        )

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "folder": str(self.folder),
            "ok": self.ok,
            "accuracy": dict(self.accuracies),
            "training": self.training.to_json(),
            "report": self.report.to_json(),
            "verification": self.verification.to_json(),
            "benchmark": self.benchmark.to_json(),
        }


def demo(folder: StrPath, options: DemoOptions | None = None, progress: Progress = silent) -> DemoResult:
    """Run the whole pipeline in ``folder``, which keeps every artefact and ``report.html``.

    Raises:
        MissingExtraError: a package of the extras ``cpu``, ``train`` or ``plot`` is missing.
        OptionError: the time is no number of seconds.
        OutputError: the folder cannot be written, or holds files that are no demo's.
    """
    options = options or DemoOptions()
    for module, extra in (("torch", "train"), ("onnxruntime", "cpu"), ("jinja2", "plot"), ("matplotlib", "plot")):
        require(module, extra)
    measure = BenchmarkOptions(seconds=options.seconds, seed=options.seed)
    with output_folder(folder) as place:
        _check_is_ours(place)
        check_output_file(place / "report.html")  # now, not at the end
        write_text(place / "README.md", _MARK + _README)
        return _run(place, options, measure, progress)


def _check_is_ours(place: Path) -> None:
    """Refuse a folder with files that are no demo's: a training run among them would be written over."""
    note = place / "README.md"
    if (
        place.is_dir()
        and any(place.iterdir())
        and not (note.is_file() and note.read_bytes().startswith(_MARK.encode()))
    ):
        raise OutputError(f"{place} holds files that are no demo's, and some might be lost; give a folder of its own")


def _run(place: Path, options: DemoOptions, measure: BenchmarkOptions, progress: Progress) -> DemoResult:
    original, optimized = place / "original.onnx", place / "optimized.onnx"
    training = train(
        TrainOptions(output=place / "run", data=DATA, epochs=options.epochs, seed=options.seed, overwrite=True),
        progress,
    )
    export(training.folder, original, progress=progress)
    folded = optimize(original, optimized, OptimizeOptions(verify=VerifyOptions(seed=options.seed)), progress)
    if folded.path is None or folded.verification is None:
        raise BnfoldError("the optimized model does not compute the same function; please report this")
    accuracies = {"torch": training.test_accuracy}
    for name, path in (("original", original), ("optimized", optimized)):
        accuracy = predict(path, DATA).accuracy
        assert accuracy is not None
        accuracies[name] = accuracy
    measured = benchmark([original, optimized], measure, progress)
    result = DemoResult(place, training, folded.report, folded.verification, measured, accuracies, original, optimized)
    write_json(place / "folds.json", folded.report.to_json())
    write_json(place / "verification.json", folded.verification.to_json())
    write_json(place / "benchmark.json", measured.to_json(samples=True))
    write_demo_report(result, place / "report.html")
    return result
