"""What goes wrong in training is one sentence, and the last good state stays and can be gone on from."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_samples import quick_options

import bnfold.files
from bnfold.errors import CheckpointError, DataError, InputError, OutputError
from bnfold.training import read_run, resume_options, train
from bnfold.training.checkpoint import load_weights, read_safetensors
from bnfold.training.divergence import first_layer_not_finite, not_finite_state


class Exponential(nn.Module):
    """Overflows in training mode alone, so that nothing shows before the first step."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x + 1000 * self.training)


class Root(nn.Module):
    """The square root of what a convolution gives, which is NaN below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.sqrt(self.conv(x).abs() - 1000 * self.training))


def exponential() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Sequential(Exponential(), nn.Linear(36, 3)))


class FailsInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("shapes\n do not fit")
        return self.linear(x.flatten(1))


def root() -> nn.Module:
    return nn.Sequential(Root(), nn.Flatten(), nn.Linear(32, 3))


def spoilt() -> nn.Module:
    network = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    with torch.no_grad():
        network[1].bias[1] = torch.inf
    return network


def fails_in_training() -> nn.Module:
    return FailsInTraining()


@pytest.fixture(autouse=True)
def _without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.training.trainer.draw_curves", lambda _history: None)


def _finite_checkpoint(folder: Path) -> None:
    tensors, _ = read_safetensors(folder / "checkpoint.safetensors")
    assert all(bool(value.isfinite().all()) for value in tensors.values())


def test_a_loss_that_is_not_finite_names_step_and_layer_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    told = r"loss is nan at step 2 of epoch 1: layer hidden\.0 \(Linear\) .* weights \(up to .*e\+3\d\) are; lower lr .* initial weights is kept"
    with pytest.raises(InputError, match=told):
        train(quick_options(tmp_path, lr=1e38, model_args={"widths": [8]}, warmup_epochs=0))
    _finite_checkpoint(tmp_path / "run")
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("exponential", r"layer 2\.0 \(Exponential\) is the first whose output .* though its input \(up to .*\) is"),
        ("root", r"layer 0\.bn \(BatchNorm2d\) is the first that gets an input that is not finite"),
    ],
)
def test_the_layer_that_makes_the_loss_not_finite_is_named(tmp_path: Path, factory: str, message: str) -> None:
    with pytest.raises(InputError, match=f"at step 1 of epoch 1: {message}"):
        train(quick_options(tmp_path, model=f"test_train_failures:{factory}", model_args={}))
    _finite_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    ("network", "images", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.full((3, 2), torch.inf), "images themselves"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.zeros(3, 2), "it is the loss itself"),
        (nn.Sequential(nn.Identity(), nn.Threshold(1.0, float("nan"))), torch.zeros(3, 2), r"layer 1 \(Threshold\)"),
        (nn.Threshold(1.0, float("nan")), torch.zeros(3, 2), r"the network itself \(Threshold\)"),
        (spoilt(), torch.zeros(3, 2), r"layer 1 \(Linear\) .* its bias is not, after the steps before"),
    ],
)
def test_the_first_layer_that_is_not_finite_is_found(network: nn.Module, images: Tensor, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(first_layer_not_finite(network, images))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_run_that_diverges_later_keeps_the_checkpoint_of_the_epoch_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("training", 8):
            monkeypatch.setattr("bnfold.training.trainer.learning_rate", lambda *_: 1e38)

    with pytest.raises(InputError, match=r"in epoch 2: .*|of epoch 2: .*") as told:
        train(quick_options(tmp_path), spoil)
    assert "the checkpoint after epoch 1 is kept" in str(told.value)
    monkeypatch.undo()
    assert train(resume_options(str(tmp_path / "run"))).resumed_at == 1


def test_a_statistic_that_is_not_finite_counts_as_state() -> None:
    norm = nn.BatchNorm1d(2)
    assert not_finite_state(norm) is None
    norm.running_var[1] = torch.inf
    assert not_finite_state(norm) == "running_var"


def test_a_network_that_fails_in_a_step_is_one_sentence(tmp_path: Path) -> None:
    options = quick_options(tmp_path, model="test_train_failures:fails_in_training", model_args={})
    with pytest.raises(InputError, match="failed at step 1 of epoch 1: shapes do not fit"):
        train(options)


def test_data_of_one_class_cannot_be_trained_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((10, 4, 4), np.uint8), y=np.zeros(10, np.int64))
    with pytest.raises(DataError, match="has one class"):
        train(quick_options(tmp_path, data=f"npz:{tmp_path / 'one.npz'}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(5, 64, 1), (60, 47, 1), (60, 48, 1), (60, 24, 2)])
def test_what_does_not_fill_a_batch_waits_for_another_epoch(
    tmp_path: Path, count: int, batch_size: int, steps: int
) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "n.npz", x=random.integers(0, 255, (count, 6, 6), np.uint8), y=np.arange(count) % 2)
    train(quick_options(tmp_path, data=f"npz:{tmp_path / 'n.npz'}", batch_size=batch_size, epochs=2))
    weights = load_weights(tmp_path / "run" / "weights.safetensors")
    assert int(weights["hidden.1.num_batches_tracked"]) == 2 * steps


# ------------------------------------------------------------------------------- stopped in any write


class _Stopped(BaseException):
    """What no handler catches, as the end of the process would be."""


def _stop_at_write(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Fail in the given write of a file, its bytes on disk and not yet in place."""
    publish, count = bnfold.files.publish, iter(range(1, 1000))

    def failing(source: Path, target: Path) -> None:
        if next(count) == number:
            raise error
        publish(source, target)

    monkeypatch.setattr(bnfold.files, "publish", failing)


# Two epochs write checkpoint, run.json and metrics; checkpoint and metrics twice; weights and run.json.
@pytest.mark.parametrize("write", range(1, 10))
def test_a_run_stopped_in_any_write_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    options = quick_options(tmp_path, epochs=2, ema=0.9)
    train(replace(options, output=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        _stop_at_write(patch, write, _Stopped())
        with pytest.raises(_Stopped):
            train(options)
    # Before run.json is there, there is no run to go on with.
    train(options if write <= 2 else resume_options(str(tmp_path / "run")))
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]
    assert read_run(tmp_path / "run").result == read_run(tmp_path / "whole").result


@pytest.mark.parametrize("write", [1, 4, 8])
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    with monkeypatch.context() as patch:
        _stop_at_write(patch, write, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            train(quick_options(tmp_path, epochs=2))
    assert not list((tmp_path / "run").glob(".*"))
    if write > 2:
        train(resume_options(str(tmp_path / "run")))


def test_starting_anew_over_a_run_leaves_no_mixture_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = quick_options(tmp_path, epochs=1)
    train(options)
    with monkeypatch.context() as patch:
        _stop_at_write(patch, 2, _Stopped())  # the new checkpoint is there, its run.json is not
        with pytest.raises(_Stopped):
            train(replace(options, seed=5, overwrite=True))
    with pytest.raises(CheckpointError, match="holds no training run"):
        resume_options(str(tmp_path / "run"))


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    train(quick_options(tmp_path, epochs=1))
    leftover = tmp_path / "run" / ".checkpoint.safetensors.x1y2"
    leftover.mkdir()
    (leftover / "content").write_bytes(b"half")
    mine = tmp_path / "run" / ".notes"
    mine.write_text("mine")
    train(quick_options(tmp_path, epochs=1, resume=True))
    assert not leftover.exists()
    assert mine.read_text() == "mine"


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    train(quick_options(tmp_path, epochs=1))
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    descriptor = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        for changes in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match="another process is training"):
                train(quick_options(tmp_path, epochs=1, **changes))
    finally:
        os.close(descriptor)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before
    train(quick_options(tmp_path, epochs=1, resume=True))


#: Trains and is killed: after a step in the middle of an epoch, or while the nth file is being put in place.
_KILLED = """
import os, signal, sys
import bnfold.files
from bnfold.training import TrainOptions, train
step, write, output, data = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
publish, count = bnfold.files.publish, iter(range(1, 1000))
def killed(source, target):
    if next(count) == write:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(source, target)
bnfold.files.publish = killed
def progress(_stage, done, _total):
    if done == step:
        os.kill(os.getpid(), signal.SIGKILL)
train(TrainOptions(output=output, model="efficientnet", model_args={"dropout": 0.3}, data=data, epochs=3, batch_size=8,
                   optimizer="adamw", ema=0.9, precision="bfloat16", accumulate=2, flip=True, device="cpu", threads=1),
      progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("step", "write"), [(9, 0), (0, 4), (0, 5), (17, 0)])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, step: int, write: int) -> None:
    options = quick_options(tmp_path)  # writes the data
    for name, arguments, code in (("run", (step, write), -signal.SIGKILL), ("whole", (0, 0), 0)):
        command = [sys.executable, "-P", "-c", _KILLED, *map(str, arguments), str(tmp_path / name), options.data]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        assert subprocess.run(command, env=environment, check=False).returncode == code
    train(resume_options(str(tmp_path / "run")))
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:0],
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: content.replace(b'\\"epoch\\": 1', b'\\"epoch\\": x', 1),
        lambda content: content.replace(b'"model.hidden.0.weight"', b'"model.hidden.0.weighs"', 1),
        lambda content: content.replace(b'"optimizer.hidden.0.weight.', b'"optimizer.hidden.0.weighs.', 1),
        lambda content: content.replace(b"momentum_buffer", b"momentum_buffet", 1),
        lambda content: content.replace(b'\\"history\\": [', b'\\"history\\":  7,\\"h\\": [', 1),
        lambda content: content.replace(b'\\"epoch\\": 1', b'\\"epoch\\": 7', 1),
        lambda content: content.replace(b'\\"step\\": 0', b'\\"step\\":99', 1),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    train(quick_options(tmp_path, epochs=1))
    path = tmp_path / "run" / "checkpoint.safetensors"
    content = path.read_bytes()
    damaged = damage(content)
    assert damaged != content
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError):
        train(quick_options(tmp_path, epochs=1, resume=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("options", {"epochs": 0}), ("options", {"colour": 1}), ("options", 3), ("model_args", [1]),
        ("classes", 7), ("result", 3),
    ],
)  # fmt: skip
def test_an_edited_record_is_one_sentence(tmp_path: Path, key: str, value: Any) -> None:
    train(quick_options(tmp_path, epochs=1))
    path = tmp_path / "run" / "run.json"
    document = json.loads(path.read_text())
    if key == "classes":
        document["data"][key] = value
    else:
        document[key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError):
        train(resume_options(str(tmp_path / "run")))
