"""A training run: the same bits whenever it is interrupted, and nothing lost when it cannot go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_samples import quick_options, write_npz

from bnfold.errors import CheckpointError, DataError, InputError, OutputError, SetupError
from bnfold.training import TrainOptions, load_recipe, read_run, resume_options, train
from bnfold.training.checkpoint import load_weights
from bnfold.training.schedule import augmented, learning_rate, network_seed, sample_order

#: Everything that has a state or draws numbers: augmentation, dropout, mixed precision, an average, parts of a step.
ALL_AT_ONCE = {
    "model": "efficientnet",
    "model_args": {
        "widths": [4, 8], "blocks": 1, "kernels": 3, "expansion": 2, "stem": 4, "head": 8, "dropout": 0.3,
    },
    "optimizer": "adamw", "ema": 0.9, "precision": "bfloat16", "accumulate": 2, "shift": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _without_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "curves" not in request.node.name:
        monkeypatch.setattr("bnfold.training.trainer.draw_curves", lambda _history: None)


def _interrupt_at(step: int) -> Callable[[str, int, int], None]:
    """Progress that asks the process to stop while the given step is done, as Ctrl-C would."""

    def progress(_stage: str, done: int, _total: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "weights.safetensors")


def _assert_same_weights(one: Path, other: Path) -> None:
    first, second = _weights(one), _weights(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


# A step in the first epoch, one in the middle of a later one, the last of an epoch, the last but one of all.
@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw"}, ALL_AT_ONCE], ids=["sgd", "adamw", "all at once"])
@pytest.mark.parametrize("step", [1, 9, 12, 17])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, step: int, changes: dict[str, Any]) -> None:
    whole = train(quick_options(tmp_path, output=tmp_path / "whole", **changes))
    with pytest.raises(KeyboardInterrupt):
        train(quick_options(tmp_path, **changes), _interrupt_at(step))
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    resumed = train(resume_options(str(tmp_path / "run")))
    assert resumed.resumed_at == (step - 1) // 6
    _assert_same_weights(tmp_path / "whole", tmp_path / "run")
    figures = ("epoch", "lr", "train_loss", "test_loss", "test_accuracy")
    assert [[row[key] for key in figures] for row in resumed.history] == [
        [row[key] for key in figures] for row in whole.history
    ]


def test_a_run_can_be_interrupted_again_and_again(tmp_path: Path) -> None:
    train(quick_options(tmp_path, output=tmp_path / "whole"))
    options = quick_options(tmp_path)
    for step in (2, 7, 8, 15):
        with pytest.raises(KeyboardInterrupt):
            train(options, _interrupt_at(step))
        options = replace(options, resume=True)
    train(options)
    _assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_second_interruption_stops_at_once_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    def impatient(_stage: str, done: int, _total: int) -> None:
        if done == 9:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(quick_options(tmp_path), impatient)
    assert train(quick_options(tmp_path, resume=True)).resumed_at == 1
    train(quick_options(tmp_path, output=tmp_path / "whole"))
    _assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(quick_options(tmp_path, output=tmp_path / name, seed=seed, epochs=1))
    _assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(_weights(tmp_path / "a")["linear.weight"], _weights(tmp_path / "c")["linear.weight"])


def test_training_leaves_the_callers_random_state_threads_and_signals_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    handler = signal.getsignal(signal.SIGINT)
    train(quick_options(tmp_path, epochs=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(train(quick_options(tmp_path, epochs=1))))
    thread.start()
    thread.join()
    assert results[0].epochs == 1


def test_the_runs_folder_says_what_it_takes_to_build_the_network_again(tmp_path: Path) -> None:
    result = train(quick_options(tmp_path))
    run = read_run(tmp_path / "run")
    assert (run.model, run.input_shape, run.classes) == ("mlp", (1, 6, 6), ("0", "1", "2"))
    assert run.model_args == {"in_features": 36, "num_classes": 3, "widths": [8], "dropout": 0.2}
    assert run.result is not None
    assert run.result["test_accuracy"] == result.test_accuracy
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [dict(row) for row in result.history]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.safetensors", "metrics.jsonl", "run.json", "weights.safetensors",
    ]  # fmt: skip
    json.dumps(result.to_json(), allow_nan=False)


def test_each_epoch_is_told_of_as_it_ends(tmp_path: Path) -> None:
    told: list[Any] = []
    result = train(quick_options(tmp_path), on_epoch=told.append)
    assert told == list(result.history)


def test_curves_of_loss_and_accuracy_are_drawn_where_matplotlib_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(quick_options(tmp_path, epochs=1))
    picture = (tmp_path / "run" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    monkeypatch.setattr("bnfold.training.trainer.find_spec", lambda _name: None)
    train(quick_options(tmp_path, epochs=1, overwrite=True))
    assert not (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}])
def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = train(quick_options(tmp_path, **changes))
    before = _weights(tmp_path / "run")
    again = train(quick_options(tmp_path, resume=True, **changes))
    assert again.history == result.history
    assert all(torch.equal(value, before[key]) for key, value in _weights(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.01}, "lr at its default, not 0.01"),
        ({"epochs": 4}, "epochs 3, not 4"),
        ({"ema": 0.9}, "ema 0.0, not 0.9"),
        ({"accumulate": 2}, "accumulate 1, not 2"),
        ({"precision": "bfloat16"}, "precision 'float32', not 'bfloat16'"),
        ({"model_args": {"widths": [9]}}, "model_args"),
        ({"model": "resnet", "model_args": {}}, "model 'mlp', not 'resnet'"),
    ],
)
def test_a_run_is_not_resumed_as_another(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    train(quick_options(tmp_path, epochs=3))
    with pytest.raises(CheckpointError, match=message):
        train(quick_options(tmp_path, resume=True, **changes))


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    train(quick_options(tmp_path, epochs=1))
    write_npz(tmp_path / "data.npz", seed=1)
    with pytest.raises(CheckpointError, match="has changed"):
        train(quick_options(tmp_path, epochs=1, resume=True))


def _truncate(folder: Path) -> None:
    path = folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def _swap(folder: Path) -> None:
    (folder / "checkpoint.safetensors").write_bytes((folder.parent / "other/checkpoint.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "checkpoint.safetensors").unlink(), "does not exist"),
        (_truncate, "damaged"),
        (_swap, "hidden.0.weight has shape"),
        (lambda folder: (folder / "run.json").unlink(), "holds no training run"),
        (lambda folder: (folder / "run.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "run.json").write_text("[]"), "damaged"),
        (lambda folder: (folder / "run.json").write_text('{"format": 99}'), "newer bnfold"),
    ],
)
def test_a_damaged_run_is_not_resumed(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    train(quick_options(tmp_path, epochs=1))
    train(quick_options(tmp_path, epochs=1, output=tmp_path / "other", model_args={"widths": [5]}))
    damage(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        train(quick_options(tmp_path, epochs=1, resume=True))


def test_a_run_is_overwritten_only_on_request(tmp_path: Path) -> None:
    train(quick_options(tmp_path, epochs=1))
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    with pytest.raises(OutputError, match="holds a run already"):
        train(quick_options(tmp_path, epochs=1, seed=3))
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before
    train(quick_options(tmp_path, epochs=1, seed=3, overwrite=True))
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": "npz:none.npz"}, DataError, "does not exist"),
        ({"model": "no_module_of_this_name:net"}, InputError, "cannot be imported"),
        ({"model": "vgg", "model_args": {"widths": [4, 4, 4, 4]}}, InputError, "does not take images"),
        ({"model_args": {"num_classes": 2}}, InputError, r"returns \(2, 2\)"),
        ({"model_args": {"widths": [8], "dropout": 7}}, InputError, "cannot be built"),
        ({"device": "cuda"}, SetupError, "no CUDA device"),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(error, match=message):
        train(quick_options(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        train(quick_options(tmp_path))
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": True}, "epochs is True"),
        ({"batch_size": 1}, "at least 2: one image has no batch statistics"),
        ({"accumulate": 0}, "at least 1"),
        ({"ema": 1.0}, "below 1"),
        ({"precision": "float16"}, "one of float32, bfloat16"),
        ({"lr": -1.0}, "above 0"),
        ({"lr": float("nan")}, "above 0"),
        ({"lr": 1e39}, "at most 1e38"),
        ({"optimizer": "adam"}, "one of sgd, adamw"),
        ({"label_smoothing": 1.0}, "below 1"),
        ({"seed": -1}, "seed is -1"),
        ({"device": "tpu"}, "one of auto, cpu, cuda"),
        ({"model_args": [1]}, "table"),
        ({"resume": True, "overwrite": True}, "contradict"),
    ],
)
def test_an_option_out_of_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainOptions(output="run", **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", "unknown key 'batchsize'; did you mean batch_size"),
        ("colour = 3", "the keys are output"),
        ("epochs = ", "not a TOML file"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "r.toml")


def test_the_learning_rate_rises_then_falls_to_nearly_0() -> None:
    rates = [learning_rate(step, 100, 10, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == rates[10] == 0.5
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_each_epoch_visits_every_image_in_its_own_order() -> None:
    orders = [sample_order(0, epoch, 50).tolist() for epoch in range(3)] + [sample_order(1, 0, 50).tolist()]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_every_step_and_worker_has_its_own_seed() -> None:
    places = [(s, e, k, r) for s in range(3) for e in range(3) for k in range(3) for r in range(3)]
    seeds = {network_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_augmentation_shifts_within_its_bound_and_mirrors_about_half() -> None:
    images = np.zeros((400, 1, 9, 9), np.uint8)
    images[:, 0, 4, 3] = 1
    moved = augmented(images, seed=0, epoch=0, step=0, shift=2, flip=False)
    rows, columns = (np.argwhere(image[0] == 1)[0] for image in moved), np.argwhere(moved[:, 0] == 1)[:, 2]
    assert {int(row[0]) for row in rows} == {2, 3, 4, 5, 6}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5}
    mirrored = augmented(images, seed=0, epoch=0, step=0, shift=0, flip=True)[:, 0, 4, 5].sum()
    assert 140 < mirrored < 260
    np.testing.assert_array_equal(augmented(images, seed=0, epoch=0, step=0, shift=0, flip=False), images)


# ------------------------------------------------------------------------------------- as a program


def _program(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bnfold", "train", *arguments],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _wait_for_epoch(folder: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        try:
            if len((folder / "metrics.jsonl").read_text().splitlines()) >= epoch:
                return
        except FileNotFoundError:
            pass
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no epoch was finished within a minute")


_RUN = ("--data", "digits", "--model", "mlp", "--device", "cpu", "--threads", "1")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_that_resumes_to_the_same_bits(tmp_path: Path, number: int) -> None:
    process = _program("-o", "run", "--epochs", "60", *_RUN, folder=tmp_path)
    _wait_for_epoch(tmp_path / "run", 2, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    lines = [line for line in stderr.splitlines() if line]
    assert len([line for line in lines if line.startswith("epoch ")]) >= 2
    assert [line for line in lines if not line.startswith("epoch ")] == [
        "warning: stopped after a checkpoint; go on with: bnfold train --resume -o run",
        "bnfold: interrupted",
    ]
    for arguments in (("-o", "run", "--resume"), ("-o", "whole", "--epochs", "60", *_RUN)):
        process = _program(*arguments, "-q", folder=tmp_path)
        assert process.communicate(timeout=120) == ("", "")
        assert process.returncode == 0
    _assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_default_recipe_learns_the_digits(tmp_path: Path, seed: int) -> None:
    result = train(TrainOptions(output=tmp_path / "run", seed=seed, device="cpu"))
    assert result.test_accuracy >= 0.975
