"""Several workers train as one: the same batch norms, the same gradients, the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from training_samples import quick_options

from bnfold.training.checkpoint import load_weights
from bnfold.training.synchronization import SynchronizedBatchNorm, synchronize


@pytest.fixture(scope="module", autouse=True)
def _alone_in_a_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one worker, over gloo, so that sums over workers are real calls."""
    file = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", store=distributed.FileStore(str(file), 1), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (6, 3)),
        (nn.BatchNorm1d, (4, 3, 5)),
        (nn.BatchNorm2d, (4, 3, 5, 2)),
        (nn.BatchNorm3d, (2, 3, 2, 3, 4)),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1, "momentum": 0.7}],
)
def test_a_synchronized_batch_norm_of_one_worker_is_batch_norm(
    kind: type[nn.Module], shape: tuple[int, ...], settings: dict[str, object]
) -> None:
    torch.manual_seed(0)
    plain = kind(3, **settings)
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    ours = kind(3, **settings)
    ours.load_state_dict(plain.state_dict())
    ours = synchronize(ours)
    assert isinstance(ours, SynchronizedBatchNorm)
    for _ in range(3):
        x = (torch.randn(shape) * 2 + 5).requires_grad_()
        other = x.detach().clone().requires_grad_()
        gradient = torch.randn(shape)
        expected, got = plain(x), ours(other)
        expected.backward(gradient)
        got.backward(gradient)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.grad, x.grad, rtol=1e-3, atol=1e-5)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    for one, two in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


def test_the_tensors_and_names_of_a_network_stay_when_it_is_synchronized() -> None:
    norm = nn.BatchNorm2d(2)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ModuleDict({"inner": nn.Sequential(nn.ReLU(), norm)})).eval()
    tensors = dict(network.state_dict(keep_vars=True))
    assert synchronize(network) is network
    assert {key: id(value) for key, value in network.state_dict(keep_vars=True).items()} == {
        key: id(value) for key, value in tensors.items()
    }
    assert isinstance(network[1], SynchronizedBatchNorm)
    assert network[2]["inner"][1] is network[1]
    assert not network[1].training


# ------------------------------------------------------------------------------------- as a program

_TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bnfold", "train")


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*_TWO, *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_two_workers_train_together_and_one_of_them_reports(tmp_path: Path) -> None:
    arguments = ("-o", "run", "--epochs", "8", "--model", "mlp", "--data", "digits", "--device", "cpu", "--json")
    process = _start(tmp_path, *arguments)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    result = json.loads(stdout)
    assert result["workers"] == 2
    assert result["test_accuracy"] >= 0.95
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 8
    assert len([line for line in stderr.splitlines() if line.startswith("epoch ")]) == 8


@pytest.mark.slow
def test_two_workers_come_to_the_weights_that_one_comes_to(tmp_path: Path) -> None:
    """Batch norm over the whole batch, and the mean of gradients, are what one worker computes, but for rounding."""
    options = quick_options(tmp_path)
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'model = "resnet"\ndata = "{options.data}"\nepochs = 1\nbatch_size = 8\nlr = 0.01\ndevice = "cpu"\nthreads = 1\n'
        "ema = 0.5\naccumulate = 1\n[model_args]\nwidths = [4, 8]\n"
    )
    process = _start(tmp_path, "r.toml", "-o", "two", "-q")
    assert process.communicate(timeout=300)[0] == ""
    assert process.returncode == 0
    alone = [sys.executable, "-P", "-m", "bnfold", "train", "r.toml", "-o", "one", "-q"]
    assert subprocess.run(alone, cwd=tmp_path, check=False).returncode == 0
    one, two = (load_weights(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_two_workers_that_are_stopped_go_on_to_the_same_bits(tmp_path: Path) -> None:
    arguments = (
        "--model", "vgg", "--model-args", "widths=[8,16]", "--model-args", "depth=1",
        "--epochs", "5", "--device", "cpu", "--threads", "1", "--ema", "0.9", "-q",
    )  # fmt: skip
    process = _start(tmp_path, "-o", "run", *arguments)
    _wait_for_epoch(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    for given in (("-o", "run", "--resume", "-q"), ("-o", "whole", *arguments)):
        process = _start(tmp_path, *given)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_when_a_worker_dies_the_other_says_so_and_the_checkpoint_stays(tmp_path: Path) -> None:
    process = _start(tmp_path, "-o", "run", "--epochs", "400", "--device", "cpu", "--threads", "1")
    _wait_for_epoch(tmp_path / "run", 2, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = [
        child
        for child in children
        if b"RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes().replace(b"LOCAL_", b"")
    ]
    os.kill(int(second), signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    load_weights(tmp_path / "run" / "checkpoint.safetensors")
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    ours = [line for line in stderr.splitlines() if line.startswith("bnfold: ")]
    assert ours
    assert all("go on from the last checkpoint (--resume)" in line or "interrupted" in line for line in ours), stderr


def _wait_for_epoch(folder: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= epoch:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no epoch was finished within two minutes")
