"""Runs on other providers beside the CPU, behind a session layer that imitates them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from verify_networks import DAMAGES, random_network

from bnfold.errors import ModelError, ProviderError
from bnfold.session import create_session, run_session
from bnfold.verification import VerifyOptions, record_golden, subject, verify, verify_golden

CUDA = VerifyOptions(provider="cuda")


class _Session:
    """A CPU session whose floating-point results are off by a relative error."""

    def __init__(self, inner, error):
        self._inner, self._error, self._random = inner, error, np.random.default_rng(0)

    def get_outputs(self):
        return self._inner.get_outputs()

    def run(self, names, feeds, settings):
        return [
            value * (1 + self._error * self._random.uniform(-1, 1, value.shape)).astype(value.dtype)
            for value in self._inner.run(names, feeds, settings)
        ]


@pytest.fixture
def cuda(monkeypatch):
    """Imitates CUDA: ``asked`` lists the sessions that were asked for, ``errors`` says how wrong they are."""
    asked: list[tuple[str, str]] = []
    errors: dict[object, float] = {"0": 2.0**-23, "1": 2.0**-10}

    def create(model, options):
        if options.provider in ("cpu", "CPUExecutionProvider"):
            return create_session(model, options)
        tf32 = options.provider_options["use_tf32"]
        asked.append((options.level, tf32))
        plain = type(options)(level=options.level)
        return _Session(create_session(model, plain), errors.get((options.level, tf32), errors[tf32]))

    monkeypatch.setattr(subject, "create_session", create)
    monkeypatch.setattr("bnfold.verification.comparison.require", lambda *_: None)
    return asked, errors


def _pair(damage=None):
    network = random_network(3)
    chosen = None if damage is None else DAMAGES[damage](network, np.random.default_rng(0))
    return ir.from_proto(network.model(False)), ir.from_proto(network.model(True, chosen))


def _runs(result):
    return {finding.run: finding for finding in result.outputs[0].judgement.findings}


def test_cuda_is_run_with_tf32_off_and_on_beside_the_cpu(cuda):
    asked, _ = cuda
    result = verify(*_pair(), CUDA)
    assert result.ok, result.sentence
    assert set(_runs(result)) == {
        "candidate_float64", "candidate_plain", "candidate_shipped", "candidate_provider", "candidate_tf32",
    }  # fmt: skip
    assert asked == [("disable", "0"), ("disable", "1"), ("all", "0"), ("all", "1")]


@pytest.mark.usefixtures("cuda")
def test_tf32_is_held_to_its_own_precision():
    runs = _runs(verify(*_pair(), CUDA))
    assert runs["candidate_tf32"].bound > 100 * runs["candidate_provider"].bound
    assert runs["candidate_tf32"].error > runs["candidate_provider"].error


def test_a_provider_that_is_wrong_is_told_from_a_file_that_is(cuda):
    _, errors = cuda
    errors.update({("disable", "0"): 2.0**-23, ("all", "0"): 1e-2})
    result = verify(*_pair(), CUDA)
    assert result.verdict == "mismatch"
    assert any("the CPU agrees" in note for note in result.notes)


@pytest.mark.usefixtures("cuda")
def test_a_damaged_file_is_a_mismatch_on_every_provider():
    result = verify(*_pair("bias dropped"), CUDA)
    assert result.verdict == "mismatch"
    assert all(finding.ratio > 1 for finding in _runs(result).values())


@pytest.mark.usefixtures("cuda")
def test_tf32_has_a_bound_of_its_own_without_the_reference(tmp_path):
    original, folded = _pair()
    record_golden(original, tmp_path / "g.npz")
    result = verify_golden(tmp_path / "g.npz", folded, CUDA)
    assert result.ok, result.sentence
    assert any("its error on the CPU stands in" in note for note in result.notes)


def test_a_provider_that_is_not_there_is_an_error():
    with pytest.raises(ProviderError):
        verify(*_pair(), VerifyOptions(provider="XnnpackExecutionProvider"))


def test_a_model_whose_output_is_a_sequence_is_refused_by_its_name(tmp_path):
    """numpy would stack tensors of one shape, and fail on others."""
    text = '<ir_version: 8, opset_import: ["" : 17]> agraph (float[2] x) => (seq(float[2]) s) { s = SequenceConstruct(x, x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="'s' is a sequence"):
        run_session(create_session(tmp_path / "m.onnx"), {"x": np.zeros(2, np.float32)})


@pytest.mark.cuda
def test_an_honest_fold_is_equivalent_on_cuda():
    result = verify(*_pair(), CUDA)
    assert result.ok, result.sentence
    assert {"candidate_provider", "candidate_tf32"} <= set(_runs(result))
