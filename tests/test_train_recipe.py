"""What the recipe promises: parts of a step, averaged weights, mixed precision, and what weight decay leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_samples import quick_options

from bnfold.models import build
from bnfold.training import train
from bnfold.training.averaging import WeightAverage, estimate_statistics
from bnfold.training.checkpoint import load_weights, read_safetensors
from bnfold.training.data import load_data
from bnfold.training.dataset import DataSet
from bnfold.training.distributed import Team
from bnfold.training.preparation import prepare
from bnfold.training.synchronization import SynchronizedBatchNorm


@pytest.fixture(autouse=True)
def _without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.training.trainer.draw_curves", lambda _history: None)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "run" / "weights.safetensors")


def test_the_gradients_of_the_parts_of_a_step_add_up_to_that_of_the_whole(tmp_path: Path) -> None:
    # Without batch norm or dropout the parts do not see each other.
    plain = {"model": "resmlp", "model_args": {"width": 8, "depth": 1, "patch": 3}}
    train(quick_options(tmp_path, **plain))
    whole = _weights(tmp_path)
    train(quick_options(tmp_path, **plain, accumulate=4, overwrite=True))
    for name, value in _weights(tmp_path).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5)


def test_a_batch_norm_sees_one_part_at_a_time(tmp_path: Path) -> None:
    for accumulate, updates in ((1, 18), (4, 72)):  # 3 epochs of 6 steps
        train(quick_options(tmp_path, accumulate=accumulate, overwrite=True))
        assert int(_weights(tmp_path)["hidden.1.num_batches_tracked"]) == updates


def test_averaged_weights_follow_their_definition() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(network, 0.5)
    expected = network[0].weight.detach().double().clone()
    for step in range(20):
        with torch.no_grad():
            network[0].weight.normal_()
            network[1].running_mean.fill_(step)
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network[0].weight.detach().double()
    torch.testing.assert_close(average.network[0].weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert float(average.network[1].running_mean[0]) == 19


def test_batch_norms_of_averaged_weights_are_estimated_on_the_training_images(tmp_path: Path) -> None:
    options = quick_options(tmp_path, ema=0.9)
    train(options)
    weights = _weights(tmp_path)
    data = load_data(options.data)
    assert len(data.train) < 256  # one batch: the estimate is the population's
    inputs = data.inputs(data.train).reshape(len(data.train), -1).astype(np.float64)
    hidden = inputs @ weights["hidden.0.weight"].double().numpy().T + weights["hidden.0.bias"].double().numpy()
    np.testing.assert_allclose(weights["hidden.1.running_mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights["hidden.1.running_var"], hidden.var(0, ddof=1), rtol=1e-4)
    # The weights that were trained go on in the checkpoint, beside their average.
    state, _ = read_safetensors(tmp_path / "run" / "checkpoint.safetensors")
    assert torch.equal(state["average.hidden.0.weight"], weights["hidden.0.weight"])
    assert not torch.equal(state["model.hidden.0.weight"], weights["hidden.0.weight"])


def test_the_figures_of_an_averaged_run_are_those_of_what_it_gives(tmp_path: Path) -> None:
    options = quick_options(tmp_path, ema=0.9)
    result = train(options)
    data = load_data(options.data)
    network = build("mlp", in_features=36, num_classes=3, widths=[8], dropout=0.2).eval()
    network.load_state_dict(_weights(tmp_path))
    with torch.no_grad():
        logits = network(torch.from_numpy(data.inputs(data.test))).double()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.test.labels))
    assert result.test_loss == pytest.approx(float(loss), rel=1e-6)


def test_estimated_statistics_are_means_over_batches_with_dropout_off() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3, momentum=0.3))
    batches = [torch.randn(8, 3) + index for index in range(5)]
    estimate_statistics(network, batches)
    norm = network[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([batch.mean(0) for batch in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([batch.var(0) for batch in batches]).mean(0))
    assert (norm.momentum, norm.training, int(norm.num_batches_tracked)) == (0.3, False, 0)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, SynchronizedBatchNorm])
def test_batch_norm_in_mixed_precision_computes_statistics_in_float32(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _tensor: None)  # one worker
    images = (torch.randn(16, 3, 20, 20) + torch.tensor([0.0, 3.0, 50.0]).reshape(1, 3, 1, 1)).bfloat16()
    norm = kind(3, momentum=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        output = norm(images)
    assert output.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == norm.weight.dtype == torch.float32
    exact = images.double()
    # bfloat16 has 8 bits: statistics in it would be off by up to 0.4 %.
    torch.testing.assert_close(norm.running_mean.double(), exact.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), exact.var((0, 2, 3)), rtol=1e-4, atol=0)


def test_mixed_precision_runs_convolutions_in_bfloat16_and_keeps_weights_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[torch.dtype]] = {}

    def build_watched(name: str, **arguments: Any) -> nn.Module:
        network = build(name, **arguments)

        def note(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            if module.training:
                seen.setdefault(type(module).__name__, set()).add(output.dtype)

        for module in network.modules():
            module.register_forward_hook(note)
        return network

    monkeypatch.setattr("bnfold.training.preparation.build", build_watched)
    train(quick_options(tmp_path, model="resnet", model_args={"widths": [4]}, precision="bfloat16", epochs=1))
    assert seen["Conv2d"] == {torch.bfloat16}
    assert {value.dtype for value in _weights(tmp_path).values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("name", ["resnet", "levit", "efficientnet", "mlp"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_leaves_biases_and_norms_alone(tmp_path: Path, name: str, optimizer: str) -> None:
    options = quick_options(tmp_path, model=name, optimizer=optimizer, weight_decay=0.3)
    data: DataSet = load_data(options.data)
    network = build(name, **({"in_features": 36} if name == "mlp" else {}))
    training = prepare(options, data, Team(0, 1, torch.device("cpu")), network)
    decay = {
        id(parameter): group["weight_decay"]
        for group in training.optimizer.param_groups
        for parameter in group["params"]
    }
    norms = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters()
    }
    assert norms
    for label, parameter in network.named_parameters():
        free = id(parameter) in norms or label.endswith("bias")
        assert decay[id(parameter)] == (0.0 if free else 0.3), label


def test_label_smoothing_spreads_its_share_over_all_classes(tmp_path: Path) -> None:
    # A learning rate of almost nothing: the loss is that of the initial weights, under either target.
    rows = [
        train(
            quick_options(
                tmp_path,
                output=tmp_path / str(share),
                label_smoothing=share,
                lr=1e-12,
                epochs=1,
                model_args={"widths": [8]},
            )
        ).history[0]
        for share in (0.0, 0.5, 0.9)
    ]
    losses = [row["train_loss"] for row in rows]
    # Linear in the share, by definition.
    assert losses[1] - losses[0] == pytest.approx((losses[2] - losses[0]) * 0.5 / 0.9, rel=1e-4)
