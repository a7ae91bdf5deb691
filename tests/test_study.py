"""The study: verdicts that follow from intervals, networks side by side that are networks, pages that stand alone."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.benchmarking.statistics import Interval
from bnfold.cli.main import main
from bnfold.errors import OptionError, OutputError
from bnfold.studies import EXPERIMENTS, StudyOptions
from bnfold.studies.result import Finding, Outcome, Region, Source, Verdict

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from torch import nn  # noqa: E402

from bnfold.studies.ensemble import Architecture, Ensemble, accuracies, losses  # noqa: E402
from bnfold.studies.experiments import covariate_shift, scale_invariance, smoothness  # noqa: E402
from bnfold.studies.intervals import difference, extremes, mean_interval, ratio  # noqa: E402
from bnfold.studies.laboratory import Curve, Laboratory, Plan, accuracy_of  # noqa: E402
from bnfold.studies.task import Part, Task, digits  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of small tensors wait for each other, the longer the busier the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SOURCE = Source("Somebody 2000", "A <claim>", "https://example.org")

# Verdicts

ABOVE_1 = Region(1.0, math.inf, "above 1")
ABOUT_2 = Region(1.9, 2.1, "1.9 to 2.1")


@pytest.mark.parametrize(
    ("region", "low", "high", "verdict"),
    [
        (ABOVE_1, 1.01, 3.0, Verdict.AGREES),
        (ABOVE_1, 0.99, 3.0, Verdict.UNDECIDED),
        (ABOVE_1, 1.0, 3.0, Verdict.UNDECIDED),
        (ABOVE_1, 0.2, 0.99, Verdict.DISAGREES),
        (ABOVE_1, 0.2, 1.0, Verdict.DISAGREES),
        (ABOUT_2, 1.95, 2.05, Verdict.AGREES),
        (ABOUT_2, 1.0, 3.0, Verdict.UNDECIDED),
        (ABOUT_2, 2.05, 2.15, Verdict.UNDECIDED),
        (ABOUT_2, 2.2, 2.4, Verdict.DISAGREES),
        (ABOUT_2, 1.0, 1.8, Verdict.DISAGREES),
        (ABOVE_1, math.nan, math.nan, Verdict.UNDECIDED),
    ],
)
def test_verdict_follows_from_the_interval_alone(region: Region, low: float, high: float, verdict: Verdict) -> None:
    assert region.judge(Interval((low + high) / 2, low, high)) is verdict


def finding(estimate: float) -> Finding:
    return Finding("It is.", SOURCE, "what | it is", Interval(estimate, estimate - 0.1, estimate + 0.1), ABOVE_1)


@pytest.mark.parametrize(
    ("estimates", "verdict"),
    [([2, 3], Verdict.AGREES), ([2, 0.5], Verdict.IN_PART), ([0.5], Verdict.DISAGREES), ([1, 1], Verdict.UNDECIDED)],
)
def test_outcome_agrees_in_part_where_its_findings_differ(estimates: list[float], verdict: Verdict) -> None:
    outcome = Outcome("name", "title", "setup", tuple(finding(estimate) for estimate in estimates), (), (), "caveats")
    assert outcome.verdict is verdict


def test_no_experiment_names_a_verdict() -> None:
    """They are computed in one place."""
    folder = Path(bnfold.__file__).parent / "studies" / "experiments"
    for file in folder.glob("*.py"):
        assert "Verdict" not in file.read_text(encoding="utf-8"), file


# Intervals


def test_mean_interval_is_students() -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(3, 2, 8)
    low, high = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
    interval = mean_interval(values)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((values.mean(), low, high))


def test_differences_and_ratios_are_of_runs_with_the_same_seed() -> None:
    noise = np.random.default_rng(0).normal(0, 100, 6)
    paired = difference(noise + 1, noise)
    assert (paired.estimate, paired.low, paired.high) == pytest.approx((1, 1, 1))
    scale = np.exp(noise / 50)
    paired = ratio(2 * scale, scale)
    assert (paired.estimate, paired.low, paired.high) == pytest.approx((2, 2, 2))


def test_extremes_hold_every_case() -> None:
    assert extremes([3.0, 1.0, 2.0]) == Interval(2.0, 1.0, 3.0)


# Ensembles


def small(**changes: object) -> Architecture:
    return Architecture(**({"depth": 3, "width": 6} | changes))  # type: ignore[arg-type]


def as_modules(ensemble: Ensemble, member: int) -> tuple[list[nn.Linear], list[nn.BatchNorm1d]]:
    """One member's layers as torch's own modules."""
    linears, norms = [], []
    for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data = weight.data[member].T.clone()
        linear.bias.data = bias.data[member, 0].clone()
        linears.append(linear)
    for gamma, beta in zip(ensemble.gammas, ensemble.betas, strict=True):
        norm = nn.BatchNorm1d(gamma.shape[2])
        norm.weight.data, norm.bias.data = gamma.data[member, 0].clone(), beta.data[member, 0].clone()
        norms.append(norm)
    return linears, norms


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_each_member_is_the_network_that_torch_computes(norm: str, activation: str, skip: bool) -> None:
    """Forward in both modes, running statistics and gradients."""
    ensemble = Ensemble(small(norm=norm, activation=activation, skip=skip), [3, 4], features=5, classes=4)
    torch.manual_seed(0)
    x, y = torch.randn(2, 9, 5), torch.randint(4, (2, 9))
    statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
    logits = ensemble.forward(x, collect=statistics)
    gradients = torch.autograd.grad(losses(logits, y).sum(), ensemble.parameters())
    ensemble.update_running(statistics, 9)
    for member in range(2):
        linears, norms = as_modules(ensemble, member)
        phi = torch.relu if activation == "relu" else torch.sigmoid

        def network(h: torch.Tensor) -> torch.Tensor:
            for layer, linear in enumerate(linears[:-1]):  # noqa: B023 - called before the next member
                z = norms[layer](linear(h)) if norms else linear(h)  # noqa: B023
                h = h + phi(z) if skip and layer else phi(z)  # noqa: B023
            return linears[-1](h)  # type: ignore[no-any-return]  # noqa: B023

        wanted = network(x[member])
        assert torch.allclose(logits[member], wanted, atol=1e-5)
        nn.functional.cross_entropy(wanted, y[member]).backward()
        for gradient, linear in zip(gradients, linears, strict=False):
            assert linear.weight.grad is not None
            assert torch.allclose(gradient[member], linear.weight.grad.T, atol=1e-5)
        for (mean, var), norm_module in zip(ensemble.running, norms, strict=True):
            assert torch.allclose(mean[member, 0], norm_module.running_mean, atol=1e-6)  # type: ignore[arg-type]
            assert torch.allclose(var[member, 0], norm_module.running_var, atol=1e-5)  # type: ignore[arg-type]
            norm_module.eval()
        inference = ensemble.forward(x, ensemble.running or None)[member]
        assert torch.allclose(inference, network(x[member]), atol=1e-4)


def test_population_statistics_make_inference_and_training_mode_the_same() -> None:
    ensemble = Ensemble(small(norm="batch"), [0, 1], features=5, classes=4)
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ensemble.forward(x), ensemble.forward(x, ensemble.population(x)), atol=1e-5)


def test_noise_moves_what_batch_norm_puts_out_and_only_when_asked() -> None:
    ensemble = Ensemble(small(norm="noisy"), [0], features=5, classes=4)
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    calm, noisy = [], []
    ensemble.forward(x, watch=calm)
    ensemble.forward(x, disturbance=torch.Generator().manual_seed(1), watch=noisy)
    assert calm[0].mean(1).abs().max() < 1e-5
    assert 0.2 < noisy[0].mean(1).abs().mean() < 0.4  # a quarter on average
    assert (noisy[0].std(1) / calm[0].std(1)).mean() > 1.05


def test_accuracy_counts_what_is_not_finite_as_wrong() -> None:
    logits = torch.tensor([[[2.0, 1.0], [0.0, 3.0]], [[2.0, math.nan], [math.inf, 0.0]]])
    assert accuracies(logits, torch.tensor([0, 1])).tolist() == [1.0, 0.0]


# The laboratory


def toy() -> Task:
    random = np.random.default_rng(0)

    def part(count: int) -> Part:
        y = random.integers(0, 3, count)
        x = random.normal(0, 0.3, (count, 4)) + np.eye(4)[y]
        return Part(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y))

    return Task(part(60), part(30), part(30), features=4, classes=3)


def laboratory() -> Laboratory:
    return Laboratory(toy(), (0, 1, 2), quick=True)


def test_training_learns_and_repeats_itself() -> None:
    plan = Plan(steps=60, batch=10, every=20)
    curves = [laboratory().curve(small(norm="batch"), plan, 0.1) for _ in range(2)]
    assert curves[0].steps.tolist() == [20, 40, 60]
    assert curves[0].accuracy[-1].min() > 0.9
    assert np.array_equal(curves[0].accuracy, curves[1].accuracy)


def test_member_that_diverges_disturbs_no_other() -> None:
    lab, plan = laboratory(), Plan(steps=40, batch=10, every=40)
    alone = lab.train(small(), plan, [0], [0.05], lab.task.test)
    beside = lab.train(small(), plan, [0, 1], [0.05, 1e6], lab.task.test)
    assert beside.accuracy[0, 0] == alone.accuracy[0, 0]
    assert beside.accuracy[0, 1] < 0.5


def test_learning_rates_are_chosen_on_other_seeds_and_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, calls = laboratory(), []
    train = lab.train

    def spy(architecture: Architecture, plan: Plan, seeds: list[int], rates: list[float], held_out: Part) -> Curve:
        calls.append((set(seeds), held_out))
        return train(architecture, plan, seeds, rates, held_out)

    monkeypatch.setattr(lab, "train", spy)
    plan = Plan(steps=30, batch=10)
    assert lab.tuned(small(), plan) == lab.tuned(small(), plan)
    assert len(calls) == 1  # the choice is remembered
    assert not calls[0][0] & set(lab.seeds)
    assert calls[0][1] is lab.task.validation


def test_steps_to_a_target_count_the_whole_training_where_it_is_not_reached() -> None:
    curve = Curve(np.array([10, 20, 30]), np.array([[0.1, 0.9], [0.95, 0.2], [0.8, 0.3]]))
    assert curve.steps_to(0.9).tolist() == [20, 10]
    assert curve.steps_to(0.94).tolist() == [20, 30]
    assert curve.reaches(0.94).tolist() == [True, False]


def test_parts_of_the_digits_share_no_image() -> None:
    task = digits()
    parts = [{row.numpy().tobytes() for row in part.x} for part in (task.fit, task.validation, task.test)]
    assert [len(task.fit), len(task.validation), len(task.test)] == [1151, 287, 359]
    assert len(set.union(*parts)) >= sum(map(len, parts)) - 2  # scikit-learn's digits hold hardly any twins


# Experiments


def test_identities_hold_and_a_layer_that_is_not_blind_to_scale_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Laboratory(digits(), tuple(range(5)), quick=True)
    assert scale_invariance.run(lab).verdict is Verdict.AGREES
    monkeypatch.setattr(scale_invariance, "forward_training", lambda *given, **_: _with_eps(*given))
    assert scale_invariance.run(lab).verdict is not Verdict.AGREES


def _with_eps(*given: np.ndarray) -> object:
    from bnfold.batch_norm import forward_training

    return forward_training(*given, eps=1e-3)


def test_survey_leaves_the_network_where_it_was() -> None:
    ensemble = Ensemble(small(), [0], features=4, classes=3)
    batch = Part(toy().fit.x[None, :20], toy().fit.y[None, :20])
    before = [parameter.detach().clone() for parameter in ensemble.parameters()]
    here = losses(ensemble.forward(batch.x), batch.y)
    gradients = torch.autograd.grad(here.sum(), ensemble.parameters())
    surveyor = smoothness._Surveyor(rate=0.1, every=1)
    surveyor.observe(0, ensemble, batch, here.detach(), gradients)
    assert all(torch.equal(now, then) for now, then in zip(ensemble.parameters(), before, strict=True))
    assert surveyor.loss_range[0][0] > 0


@pytest.mark.parametrize(("moved", "expected"), [("below", True), ("above", False)])
def test_shift_of_gradients_is_what_the_layers_below_cause(moved: str, expected: bool) -> None:
    ensemble = Ensemble(small(norm="batch"), [0, 1], features=4, classes=3)
    task = toy()
    batch = Part(task.fit.x.expand(2, -1, -1), task.fit.y.expand(2, -1))
    vane = covariate_shift._Crosswind(every=10)
    vane.observe(0, ensemble, batch, torch.zeros(2), [])
    with torch.no_grad():
        ensemble.weights[0 if moved == "below" else -1].add_(0.1)
    now = [parameter.detach().clone() for parameter in ensemble.parameters()]
    vane.observe(1, ensemble, batch, torch.zeros(2), [])
    assert all(torch.equal(one, other) for one, other in zip(ensemble.parameters(), now, strict=True))
    assert (vane.changes[0] > 0).all() == expected
    assert (vane.changes[0] == 0).all() != expected


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_and_each_finding_is_measured(name: str) -> None:
    lab = Laboratory(digits(), tuple(range(5)), quick=True, stage=name)
    outcome: Outcome = import_module(EXPERIMENTS[name]).run(lab)
    assert outcome.name == name
    assert outcome.findings
    for finding_ in outcome.findings:
        assert finding_.seen.low <= finding_.seen.estimate <= finding_.seen.high
    assert all(len(row) == len(table.columns) for table in outcome.tables for row in table.rows)


@pytest.mark.slow
def test_growth_of_the_gradient_is_the_one_that_theory_predicts() -> None:
    outcome = import_module(EXPERIMENTS["explosion"]).run(Laboratory(digits(), tuple(range(5)), quick=True))
    assert outcome.findings[0].seen.estimate == pytest.approx(math.pi / (math.pi - 1), rel=0.02)


# Pages and command


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("study")
    bnfold.study(folder, StudyOptions(("scale_invariance",), quick=True))
    return folder


def _interrupted(_laboratory: Laboratory) -> Outcome:
    raise KeyboardInterrupt


def _full(_source: Path, _target: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name", "failing", "error"),
    [
        ("bnfold.studies.experiments.scale_invariance", "run", _interrupted, KeyboardInterrupt),
        ("bnfold.reporting.study_pages", "publish", _full, OutputError),
    ],
)
def test_a_study_that_fails_leaves_no_folder(
    module: str, name: str, failing: object, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(import_module(module), name, failing)
    with pytest.raises(error):
        bnfold.study(tmp_path / "a" / "b", StudyOptions(("scale_invariance",), quick=True))
    assert not list(tmp_path.iterdir())


def test_pages_are_all_there_and_stand_alone(pages: Path) -> None:
    assert sorted(path.name for path in pages.iterdir()) == [
        "README.md", "index.html", "scale_invariance.html", "scale_invariance.md", "scale_invariance.png", "study.json",
    ]  # fmt: skip
    for name in ("index.html", "scale_invariance.html"):
        text = (pages / name).read_text(encoding="utf-8")
        assert text.startswith("<!DOCTYPE html>")
        assert "src=" not in text
        assert "Ioffe and Szegedy 2015" in text
    assert (pages / "scale_invariance.png").read_bytes().startswith(b"\x89PNG")
    assert "](scale_invariance.png)" in (pages / "scale_invariance.md").read_text(encoding="utf-8")


def test_markdown_tables_have_as_many_cells_as_headings(pages: Path) -> None:
    for name in ("README.md", "scale_invariance.md"):
        rows = [line for line in (pages / name).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        counts = [line.replace("\\|", "").count("|") for line in rows]
        assert set(counts) <= {8, 7, 4}, name


def test_json_holds_what_the_verdicts_are_made_from(pages: Path) -> None:
    document = json.loads((pages / "study.json").read_text(encoding="utf-8"))
    (experiment,) = document["experiments"]
    for entry in experiment["findings"]:
        assert entry["verdict"] == "agrees"
        assert entry["seen"]["low"] <= entry["seen"]["estimate"] <= entry["seen"]["high"] < 1e-10


def test_command_shows_each_claim_and_where_the_pages_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["study", "scale_invariance", "--quick", "--json", "-o", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["seeds"] == 5
    assert "5 agree" in captured.err
    assert "index.html" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["scale_invarianze"], 2, "did you mean scale_invariance?"),
        (["--seeds", "2"], 2, "seeds"),
        (["scale_invariance", "--quick", "-o", "FILE"], 3, "cannot be created"),
        (["scale_invariance", "--quick", "-o", ""], 3, "name of the folder to write is empty"),
        (["scale_invariance", "--quick", "-o", "FOLDER"], 3, "README.md is there already and would be lost"),
    ],
)
def test_wrong_usage_and_bad_input_are_one_sentence(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("# Mine")
    places = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path / "folder")}
    given = [places.get(argument, argument) for argument in arguments]
    assert main(["study", *given]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_pages_of_an_earlier_study_are_replaced(pages: Path) -> None:
    bnfold.study(pages, StudyOptions(("scale_invariance",), quick=True))
    assert len(list(pages.iterdir())) == 6


def test_too_few_seeds_are_refused() -> None:
    with pytest.raises(OptionError, match="at least 5"):
        StudyOptions(seeds=4)


def test_accuracy_is_of_inference() -> None:
    """With running statistics, which one step has hardly moved, not those of the batch."""
    ensemble = Ensemble(small(norm="batch"), [0], features=4, classes=3)
    part = toy().test
    running = accuracy_of(ensemble, part)
    assert accuracy_of(ensemble, Part(part.x[:1], part.y[:1]))[0] in (0.0, 1.0)
    assert np.array_equal(running, accuracy_of(ensemble, part, ensemble.running))
