"""Population statistics: the running mean and variance of each batch norm, over the whole training set.

A moving average holds what the last batches happened to be, and what the weights were then. Here each batch norm
gets the mean and variance that its input has over the training set *in the network that is deployed*: all batch
norms before it normalize with their own new statistics, not with those of batches. In a sweep along the network each
one is therefore determined once, with nothing to iterate, and the result is a fixed point: to recalibrate again changes
nothing. It is also what training mode computes where one batch holds the whole training set.

The alternative, averages of batch statistics with the whole network in training mode (Wu and Johnson 2021 call it
PreciseBN; torch's ``update_bn`` does it), takes one pass instead of one for each batch norm in a row. But its answer
depends on the batch size, and describes a network that normalizes with batches, which is not the one that runs.

The variance is divided by the number of elements: the training set is the population here, not a sample of one.
Images are taken as they are, without augmentation. Sums are float64, merged by Chan's formula, so that neither the
batch size nor the order matters beyond rounding.

Importing this package imports neither torch nor onnxruntime; :func:`recalibrate` does when it is called.
"""

from __future__ import annotations

from pathlib import Path

from bnfold.extras import require
from bnfold.files import StrPath
from bnfold.progress import Progress, silent
from bnfold.recalibration.options import RecalibrateOptions
from bnfold.recalibration.result import Accuracy, Drift, Left, RecalibrateResult

__all__ = ["Accuracy", "Drift", "Left", "RecalibrateOptions", "RecalibrateResult", "recalibrate"]


def recalibrate(
    source: StrPath,
    output: StrPath,
    options: RecalibrateOptions | None = None,
    progress: Progress = silent,
) -> RecalibrateResult:
    """Replace the running statistics of each batch norm by those of the training set; see the top of this package.

    Args:
        source: a run's folder, or a file of weights in it; or an ONNX file.
        output: for a run, the folder of the new run, which must not exist yet; for an ONNX file, the file to write.
        options: see :class:`RecalibrateOptions`.
        progress: called as the sweep goes on.

    Raises:
        ModelError: the ONNX file does not load, holds no batch norm, or none that can be recalibrated.
        CheckpointError: the run is missing or damaged, or its network has no batch norm.
        DataError: the data is missing, damaged, does not fit the network, or makes a value that is not finite.
        InputError: an ONNX file is given without data.
        OutputError: the output exists, is the source, or cannot be written.
        SetupError: a package of an extra is missing, or the provider or device does not run here.
    """
    options = options or RecalibrateOptions()
    path = Path(source)
    if path.is_dir() or path.suffix == ".safetensors":
        require("torch", "train")
        require("safetensors", "train")
        from bnfold.recalibration.run import recalibrate_run

        return recalibrate_run(path, Path(output), options, progress)
    from bnfold.recalibration.onnx_model import recalibrate_onnx

    return recalibrate_onnx(path, output, options, progress)
