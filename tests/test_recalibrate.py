"""Recalibration: the statistics are those of the training set in the network that is deployed, a fixed point."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from folding import constants, model_of, norm
from training_samples import write_npz

import bnfold
from bnfold.batch_norm import RunningStatistics, batch_statistics, forward_inference
from bnfold.cli.main import main
from bnfold.errors import CheckpointError, DataError, ModelError, OutputError
from bnfold.files import staging_folder
from bnfold.model_file import load_model, save_model
from bnfold.recalibration import RecalibrateOptions
from bnfold.recalibration.moments import Moments

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402

from bnfold.recalibration.network import Sweep, set_population_statistics  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of small tensors wait for each other, the longer the busier the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Moments


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [50], [10, 11, 60, 99]], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_parts_have_the_moments_of_the_whole(cuts: list[int], offset: float) -> None:
    x = np.random.default_rng(0).standard_normal((100, 3, 4)) + offset
    parts = [Moments.of(part) for part in np.split(x, cuts)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merged(part)
    assert total.count == 400
    assert np.allclose(total.mean, x.mean(axis=(0, 2)), rtol=1e-14)
    assert np.allclose(total.var, x.var(axis=(0, 2)), rtol=1e-9)


def test_a_vector_is_one_channel() -> None:
    assert Moments.of(np.array([1.0, 3.0])).var.tolist() == [1.0]


# Networks of torch


class Branches(nn.Module):
    """Batch norms in a row, beside each other, and behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.left, self.norm2 = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)
        self.right, self.norm3 = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.last, self.norm4 = nn.Linear(3, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.first(x)))
        h = torch.relu(self.norm2(self.left(h)) + self.norm3(self.right(h)))
        y: Tensor = self.norm4(self.last(h.mean((2, 3))))
        return y


def network(kind: type[nn.Module] = Branches) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


def samples(count: int = 40) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 2, 6, 6, dtype=torch.float64) * 2 + 1


def swept(net: nn.Module, x: Tensor, batch: int = 16) -> Sweep:
    def batches() -> Iterator[Tensor]:
        yield from x.split(batch)

    return set_population_statistics(net, batches)


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items() if "running" in name}


def test_statistics_are_those_of_training_mode_with_the_whole_set_as_one_batch() -> None:
    """The definition: inference with them and training on one batch of everything are the same function."""
    net, x = network(), samples()
    swept(net, x)
    with torch.no_grad():
        inference = net.eval()(x)
        training = net.train()(x)
    assert torch.allclose(inference, training, rtol=1e-10, atol=1e-10)


def test_recalibrating_again_changes_nothing() -> None:
    net, x = network(), samples()
    swept(net, x)
    before = statistics(net)
    sweep = swept(net, x)
    assert all(torch.equal(value, before[name]) for name, value in statistics(net).items())
    assert max(drift.mean_worst for drift in sweep.drifts) < 1e-14


def test_upstream_batch_norms_use_their_new_statistics() -> None:
    """With old ones upstream, the second layer's statistics would be others: the test above could not tell."""
    net, x = network(), samples()
    net.eval()
    with torch.no_grad():
        stale = net.left(torch.relu(net.norm1(net.first(x)))).mean((0, 2, 3))  # type: ignore[operator, union-attr]
    swept(net, x)
    assert not torch.allclose(statistics(net)["norm2.running_mean"], stale, atol=0.05)


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_batch_size_does_not_matter(batch: int) -> None:
    x = samples()
    reference, other = network(), network()
    swept(reference, x)
    swept(other, x, batch)
    for name, value in statistics(other).items():
        assert torch.allclose(value, statistics(reference)[name], rtol=1e-12, atol=1e-12), name


def test_nothing_but_the_statistics_changes() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    swept(net, samples())
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"norm{k}.running_{what}" for k in (1, 2, 3, 4) for what in ("mean", "var")}
    assert not any(module._forward_pre_hooks for module in net.modules())


class Odd(nn.Module):
    """One batch norm that is evaluated twice, one never, one that keeps no statistics, and one as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.usual = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.stateless = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stateless(self.usual(self.twice(self.twice(x))))
        return y


def test_batch_norms_whose_statistics_are_not_defined_are_left_with_a_reason() -> None:
    net = network(Odd)
    sweep = swept(net, samples())
    assert [drift.name for drift in sweep.drifts] == ["usual"]
    assert {left.name: left.reason.split(",")[0] for left in sweep.left} == {
        "twice": "it is evaluated 2 times in one pass",
        "never": "it is not evaluated in inference",
    }


def test_network_without_batch_norms_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no batch norm"):
        swept(nn.Conv2d(2, 3, 1).double(), samples())


def test_input_that_is_not_finite_is_named() -> None:
    x = samples()
    x[3, 0, 0, 0] = float("inf")
    with pytest.raises(DataError, match="norm1 is not finite"):
        swept(network(), x)


# ONNX files

CHAIN = (
    "g (float[N,3] input) => (float[N,4] logits) { a = MatMul(input, w) b = BatchNormalization(a, scale, bias, mean, var) "
    "r = Relu(b) d = MatMul(r, w2) logits = BatchNormalization(d, scale, bias, mean, var) }"
)


def chain(folder: Path, text: str = CHAIN, **keywords: int) -> Path:
    arrays = constants(w=(3, 4), w2=(4, 4)) | norm(4)
    model = model_of(text, {name: array.astype(np.float32) for name, array in arrays.items()}, **keywords)
    return save_model(model, folder / "model.onnx")


def inputs(folder: Path, count: int = 50, **labels: np.ndarray) -> str:
    x = np.random.default_rng(5).standard_normal((count, 3)).astype(np.float32) * 2 + 1
    np.savez(folder / "data.npz", x=x, **labels)
    return str(folder / "data.npz")


def constants_of(node: ir.Node) -> list[np.ndarray]:
    return [value.const_value.numpy() for value in node.inputs[1:]]  # type: ignore[union-attr]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_onnx_statistics_are_those_of_the_reference_transform(tmp_path: Path, batch: int) -> None:
    """The two batch norms share their parameters; each gets statistics of its own."""
    path, data = chain(tmp_path), inputs(tmp_path)
    result = bnfold.recalibrate(path, tmp_path / "out.onnx", RecalibrateOptions(data=data, batch=batch))
    assert (result.samples, result.skipped, result.passes, len(result.drifts)) == (50, 0, 2, 2)
    before, after = load_model(path), load_model(tmp_path / "out.onnx")
    weights = {name: value.const_value.numpy() for name, value in before.graph.initializers.items()}  # type: ignore[union-attr]
    x = np.load(data)["x"].astype(np.float64)
    norms = [node for node in after.graph if node.op_type == "BatchNormalization"]
    for node, weight in zip(norms, ("w", "w2"), strict=True):
        x = x @ weights[weight].astype(np.float64)
        wanted = batch_statistics(x)
        scale, bias, mean, var = constants_of(node)
        assert np.array_equal(scale, weights["scale"])
        assert np.allclose(mean, wanted.mean, rtol=1e-5, atol=1e-5)
        assert np.allclose(var, wanted.var, rtol=1e-5)
        x = np.maximum(forward_inference(x, scale, bias, RunningStatistics(mean, var)).y, 0)


def test_onnx_recalibrated_again_changes_nothing(tmp_path: Path) -> None:
    options = RecalibrateOptions(data=inputs(tmp_path))
    bnfold.recalibrate(chain(tmp_path), tmp_path / "one.onnx", options)
    result = bnfold.recalibrate(tmp_path / "one.onnx", tmp_path / "two.onnx", options)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert max(drift.mean_worst for drift in result.drifts) < 1e-6


def test_model_of_ir_version_3_stays_one(tmp_path: Path) -> None:
    path = chain(tmp_path, ir_version=3)
    bnfold.recalibrate(path, tmp_path / "out.onnx", RecalibrateOptions(data=inputs(tmp_path)))
    after = load_model(tmp_path / "out.onnx")
    assert {value.name for value in after.graph.inputs} >= set(after.graph.initializers)


def test_fixed_batch_leaves_out_what_does_not_fill_one(tmp_path: Path) -> None:
    path = chain(tmp_path, CHAIN.replace("N,", "8,"))
    result = bnfold.recalibrate(path, tmp_path / "out.onnx", RecalibrateOptions(data=inputs(tmp_path)))
    assert (result.samples, result.skipped) == (48, 2)


def test_batch_norm_in_a_branch_is_left_and_the_rest_is_done(tmp_path: Path) -> None:
    text = (
        "g (float[N,3] input) => (float[N,4] logits) { a = MatMul(input, w) c = Constant <value = bool {1}> () "
        "i = If (c) <then_branch = t () => (float[N,4] t1) { t1 = BatchNormalization(a, scale, bias, mean, var) }, "
        "else_branch = e () => (float[N,4] e1) { e1 = Identity(a) }> "
        "logits = BatchNormalization(i, scale, bias, mean, var) }"
    )
    result = bnfold.recalibrate(chain(tmp_path, text), tmp_path / "out.onnx", RecalibrateOptions(data=inputs(tmp_path)))
    assert len(result.drifts) == 1
    assert [left.reason for left in result.left] == ["it is in the body of a loop or a branch"]


def test_accuracy_is_told_where_there_are_labels(tmp_path: Path) -> None:
    data = inputs(tmp_path, y=np.arange(50) % 4)
    result = bnfold.recalibrate(chain(tmp_path), tmp_path / "out.onnx", RecalibrateOptions(data=data))
    assert result.accuracy is not None
    assert (result.accuracy.samples, result.accuracy.held_out) == (50, False)
    assert result.accuracy.after == bnfold.predict(tmp_path / "out.onnx", data).accuracy
    assert result.accuracy.before == bnfold.predict(tmp_path / "model.onnx", data).accuracy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CHAIN.replace("BatchNormalization(a, scale, bias, mean, var)", "Identity(a)").replace(
            "BatchNormalization(d, scale, bias, mean, var)", "Identity(d)"), "folded already"),
        (CHAIN.replace("(a, scale, bias, mean, var)", "<training_mode = 1> (a, scale, bias, mean, var)").replace(
            "(d, scale, bias, mean, var)", "<training_mode = 1> (d, scale, bias, mean, var)"), "training mode"),
    ],
    ids=["folded", "training mode"],
)  # fmt: skip
def test_model_without_a_batch_norm_to_recalibrate_is_refused(tmp_path: Path, text: str, message: str) -> None:
    arrays = constants(w=(3, 4), w2=(4, 4)) | norm(4)
    used = {name: array.astype(np.float32) for name, array in arrays.items() if f" {name}" in text.partition("{")[2]}
    path = save_model(model_of(text, used), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=message):
        bnfold.recalibrate(path, tmp_path / "out.onnx", RecalibrateOptions(data=inputs(tmp_path)))
    assert not (tmp_path / "out.onnx").exists()


def test_variance_that_overflows_the_stored_type_is_refused(tmp_path: Path) -> None:
    arrays = constants(w=(3, 4), w2=(4, 4)) | norm(4)
    text = CHAIN.replace("float[", "float16[")
    path = save_model(model_of(text, {k: v.astype(np.float16) for k, v in arrays.items()}), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=(np.random.default_rng(0).standard_normal((50, 3)) * 900).astype(np.float32))
    with pytest.raises(DataError, match="not finite as float16"):
        bnfold.recalibrate(path, tmp_path / "out.onnx", RecalibrateOptions(data=str(tmp_path / "data.npz")))


def test_labels_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    data = inputs(tmp_path, y=np.full(50, 9))
    with pytest.raises(DataError, match="has label 9"):
        bnfold.recalibrate(chain(tmp_path), tmp_path / "out.onnx", RecalibrateOptions(data=data))


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = write_npz(folder / "data.npz")
    options = bnfold.TrainOptions(
        output=folder / "run", model="mlp", model_args={"widths": [8, 8]}, data=f"npz:{data}", epochs=2, batch_size=16
    )
    bnfold.train(options)
    return folder / "run"


def test_run_and_its_export_get_the_same_statistics(run: Path, tmp_path: Path) -> None:
    """Through torch and through ONNX Runtime."""
    data = json.loads((run / "run.json").read_text())["data"]["spec"]
    ours = bnfold.recalibrate(run, tmp_path / "new")
    bnfold.export(run, tmp_path / "run.onnx")
    theirs = bnfold.recalibrate(tmp_path / "run.onnx", tmp_path / "new.onnx", RecalibrateOptions(data=data))
    assert ours.samples == theirs.samples == 48
    assert ours.accuracy is not None
    assert theirs.accuracy is not None
    assert ours.accuracy.held_out
    assert ours.accuracy.after == pytest.approx(theirs.accuracy.after)
    assert ours.accuracy.loss_before == pytest.approx(theirs.accuracy.loss_before, rel=1e-4)
    for one, other in zip(ours.drifts, theirs.drifts, strict=True):
        assert one.mean_worst == pytest.approx(other.mean_worst, rel=1e-3)
        assert one.var_highest == pytest.approx(other.var_highest, rel=1e-3)


def test_new_run_is_one_that_exports_and_says_what_it_is(run: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    result = bnfold.recalibrate(run, tmp_path / "deep" / "new")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "deep" / "new").iterdir()) == ["run.json", "weights.safetensors"]
    record = json.loads((tmp_path / "deep" / "new" / "run.json").read_text())["result"]
    assert record["recalibrated"] == {"data": "npz", "samples": 48, "batch_norms": 2}
    assert result.accuracy is not None
    assert record["test_accuracy"] == result.accuracy.after
    assert bnfold.export(tmp_path / "deep" / "new", tmp_path / "new.onnx").batch_norms == 2
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["new"]


def test_failure_leaves_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shape"):
        bnfold.recalibrate(run, tmp_path / "new", RecalibrateOptions(data="digits"))
    assert list(tmp_path.iterdir()) == []


def test_data_that_changed_is_refused(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz")
    bnfold.train(bnfold.TrainOptions(output=tmp_path / "run", model="mlp", data=f"npz:{data}", epochs=1))
    write_npz(tmp_path / "data.npz", seed=1)
    with pytest.raises(DataError, match="has changed"):
        bnfold.recalibrate(tmp_path / "run", tmp_path / "new")


# The command line


def test_command_tells_how_far_off_the_averages_were(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recalibrate", str(run), "-o", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "hidden.1" in out
    assert "Re-estimated 2 batch norms from 48 samples" in out
    assert "on 12 held-out samples" in out


def test_json_is_the_result_and_nothing_else(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recalibrate", str(run), "-o", str(tmp_path / "new"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [norm["elements"] for norm in document["batch_norms"]] == [48, 48]


def bad_calls(folder: Path, run: Path) -> dict[str, tuple[list[object], int, str]]:
    model, data, out = chain(folder), inputs(folder), folder / "out.onnx"
    return {
        "no output": (["recalibrate", model], 2, "--output"),
        "batch of none": (["recalibrate", model, "-o", out, "--batch", 0], 2, "--batch"),
        "no data": (["recalibrate", model, "-o", out], 3, "name the training data"),
        "unknown data": (["recalibrate", model, "-o", out, "--data", "numbers"], 3, "no data set"),
        "missing model": (["recalibrate", folder / "no.onnx", "-o", out, "--data", data], 3, "does not exist"),
        "missing run": (["recalibrate", folder / "w.safetensors", "-o", out], 3, "does not exist"),
        "folder without a run": (["recalibrate", folder, "-o", out], 3, "holds no training run"),
        "output is the input": (["recalibrate", model, "-o", model, "--data", data], 3, "is the input itself"),
        "output is the data": (["recalibrate", model, "-o", data, "--data", data], 3, "is the training data"),
        "threads of none": (["recalibrate", model, "-o", out, "--data", data, "--threads", 5000], 2, "at most 1024"),
        "output is a run": (["recalibrate", run, "-o", run], 3, "exists already"),
        "output is a file": (["recalibrate", run, "-o", model], 3, "exists already"),
        "output holds files": (["recalibrate", run, "-o", folder], 3, "exists already"),
        "absent provider": (["recalibrate", model, "-o", out, "--data", data, "--provider", "cuda"], 3, "not part"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "no output", "batch of none", "no data", "unknown data", "missing model", "missing run", "folder without a run",
        "output is the input", "output is the data", "threads of none", "output is a run", "output is a file", "output holds files",
        "absent provider",
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, words = bad_calls(tmp_path, run)[name]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("write", ["save_weights", "write_run"])
def test_a_full_disk_names_the_folder_that_was_asked_for_and_leaves_nothing(
    write: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bnfold.recalibration.run

    def full(path: Path, *_: object) -> None:
        with staging_folder(path / "run.json" if path.is_dir() else path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bnfold.recalibration.run, write, full)
    target = tmp_path / "new" / "run"
    with pytest.raises(OutputError, match=f"^{re.escape(str(target))} cannot be written: No space left on device$"):
        bnfold.recalibrate(run, target)
    assert not list(tmp_path.iterdir())
