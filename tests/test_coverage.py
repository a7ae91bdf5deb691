"""Real exports fold completely where algebra allows, and the page of benchmarks/coverage.py says what is left."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch
from coverage import BY_ALGEBRA, Outcome, _faults, _page, measure, measure_network
from folding import constants, model_of, norm
from zoo import NEWEST_OPSET, Setting, Way, entries, entry, light_models, trained_looking, with_random_weights

import bnfold
from bnfold.fold.report import FoldReport
from bnfold.verification import VerifyOptions

_RAW = Setting(Way.RAW)

#: Networks that export in about a second each.
FAST = ("crnn", "fcn1d", "levit", "mobilenet_v2", "unet")

#: How many batch norms the graphs inside onnx have, and how many algebra leaves.
LIGHT = {
    "light_bvlc_alexnet": (0, 0),
    "light_densenet121": (121, 62),
    "light_inception_v1": (0, 0),
    "light_inception_v2": (69, 0),
    "light_resnet50": (53, 0),
    "light_shufflenet": (49, 0),
    "light_squeezenet": (0, 0),
    "light_vgg19": (0, 0),
    "light_zfnet512": (0, 0),
}


def _check(outcome: Outcome, name: str) -> FoldReport:
    assert not outcome.fault, outcome.problem
    assert outcome.report is not None, outcome.problem
    if name not in BY_ALGEBRA:
        assert not outcome.left, outcome.left[0].to_json()
    return outcome.report


@pytest.mark.parametrize("name", FAST)
def test_a_raw_export_folds_completely(name: str) -> None:
    (outcome,) = measure_network(name, [_RAW])
    report = _check(outcome, name)
    network = trained_looking(entry(name))
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert (len(report.batch_norms), report.batch_norms_after) == (len(norms), 0)
    assert outcome.error > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [e.name for e in entries()])
def test_every_export_of_every_network_folds_as_far_as_algebra_allows(name: str) -> None:
    plan = [Setting(way, 20, dynamic) for way in Way for dynamic in (False, True)]
    plan += [Setting(Way.RAW, NEWEST_OPSET), Setting(Way.BNFOLD, 13), Setting(Way.SCRIPT_KEPT, 13)]
    for outcome in measure_network(name, plan):
        if not outcome.problem.startswith(("no export", "no valid model")):
            _check(outcome, name)


@pytest.mark.parametrize("name", LIGHT)
def test_a_graph_of_the_onnx_package_folds(name: str) -> None:
    (path,) = (path for path in light_models() if path.stem == name)
    proto = onnx.load(path)
    as_stored = bnfold.inspect(proto)
    assert (len(as_stored.batch_norms), as_stored.batch_norms_after) == LIGHT[name]
    if LIGHT[name][0]:
        drawn = bnfold.inspect(with_random_weights(proto))
        assert (len(drawn.batch_norms), drawn.batch_norms_after) == LIGHT[name]


def test_every_graph_of_the_onnx_package_is_in_the_table() -> None:
    assert {path.stem for path in light_models()} == set(LIGHT)


@pytest.mark.parametrize("name", ["levit", "convnext", "resmlp", "resnet"])
def test_no_vector_of_a_trained_looking_network_is_constant(name: str) -> None:
    network = trained_looking(entry(name))
    tensors = [*network.named_parameters(), *network.named_buffers()]
    for label, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert tensor.unique().numel() > 1, label
    scales = [p for label, p in network.named_parameters() if p.ndim == 1 and label.endswith("weight")]
    assert any((scale < 0).any() for scale in scales)


def _kept() -> ir.Model:
    text = "g (double[N,4] x) => (double[N,4] y) { h = Sigmoid(x) y = BatchNormalization(h, scale, bias, mean, var) }"
    return model_of(text, norm(4))


def test_what_is_left_without_an_explanation_is_a_fault_and_on_the_page() -> None:
    outcome = measure(_kept(), _RAW, VerifyOptions(samples=1, runtime=False))
    assert outcome.counts == (1, 1, 0, 0)
    (fault,) = _faults({"unheard-of": [outcome]}, {})
    assert "1 left without an explanation" in fault
    page = "\n".join(_page({"unheard-of": [outcome]}, {}))
    assert "| unheard-of | raw | 1 → 1 | – | 2 → 2 | 20 open batch |" in page
    assert "Sigmoid (h) (`producer-not-linear`)" in page
    assert not list(_faults({next(iter(BY_ALGEBRA)): [outcome]}, {}))


def test_an_export_that_onnx_runtime_does_not_run_is_not_folded() -> None:
    text = "g (float[1,3,4,4] x) => (float[1,2,4,4] y) { y = Conv(x, w, b) }"
    arrays = {name: array.astype("float32") for name, array in constants(w=(2, 3, 1, 1), b=(3,)).items()}
    outcome = measure(model_of(text, arrays), _RAW, VerifyOptions(samples=1))
    assert outcome.report is None
    assert outcome.problem.startswith("no valid model: ONNX Runtime")
    assert not outcome.fault
