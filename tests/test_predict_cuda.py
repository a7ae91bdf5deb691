"""Predict on a CUDA device: the same classes as on the CPU, and the same bytes after an interruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folding import constants, model_of

import bnfold
from bnfold.errors import InputError
from bnfold.model_file import save_model
from bnfold.prediction import PredictOptions

pytestmark = pytest.mark.cuda
pytest.importorskip("onnxruntime")

TEXT = (
    "g (float[N,3,16,16] input) => (float[N,10] logits) { c = Conv <pads = [1,1,1,1]> (input, w) r = Relu(c) "
    "p = GlobalAveragePool(r) f = Flatten(p) logits = MatMul(f, v) }"
)


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, str]:
    arrays = {name: array.astype(np.float32) for name, array in constants(w=(32, 3, 3, 3), v=(32, 10)).items()}
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 3, 16, 16)).astype(np.float32))
    return save_model(model_of(TEXT, arrays), tmp_path / "model.onnx"), str(tmp_path / "x.npy")


def test_classes_are_those_of_the_cpu(job: tuple[Path, str]) -> None:
    cpu = bnfold.predict(*job)
    cuda = bnfold.predict(*job, options=PredictOptions(provider="cuda"))
    assert cuda.provider == "CUDAExecutionProvider"
    assert [row.predicted for row in cuda.predictions] == [row.predicted for row in cpu.predictions]
    assert np.allclose([r.probability for r in cuda.predictions], [r.probability for r in cpu.predictions], atol=1e-2)


def test_interrupted_output_is_finished_on_the_device_alone(job: tuple[Path, str], tmp_path: Path) -> None:
    def stop(_stage: str, done: int, _total: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    options = PredictOptions(provider="cuda", logits=True)
    bnfold.predict(*job, tmp_path / "whole.csv", options)
    with pytest.raises(KeyboardInterrupt):
        bnfold.predict(*job, tmp_path / "out.csv", options, stop)
    with pytest.raises(InputError, match='provider was "cuda" and is "cpu"'):
        bnfold.predict(*job, tmp_path / "out.csv", PredictOptions(logits=True, resume=True))
    resumed = PredictOptions(provider="cuda", logits=True, resume=True)
    assert bnfold.predict(*job, tmp_path / "out.csv", resumed).resumed >= 64
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
