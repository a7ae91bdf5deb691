"""Prove the prover: small damage of many kinds does not pass, and honest folds of many families do.

``python tests/verify_rates.py`` does the same at length; docs/verification.md has its figures.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
from verify_damages import DAMAGES, damaged
from verify_networks import random_network
from verify_rates import engine_pair

from bnfold.verification import VerifyOptions, verify
from bnfold.verification.fold_proofs import FoldsResult
from bnfold.verification.folds import prove_folds
from bnfold.verification.inputs import drawn_feeds
from bnfold.verification.oracle import Oracle
from bnfold.verification.specs import input_specs

#: Seeds of networks that together have something to damage in each of the ways.
SEEDS = (3007, 3026, 3004, 3011)

#: What changes no output by more than its rounding does, and shows in the constants alone.
INVISIBLE = {"last bit of one element", "one element in a coarser type"}


@cache
def pair_of(seed: int, dtype: str) -> tuple[ir.Model, ir.Model]:
    return engine_pair(seed, dtype)


def first_damaged(name: str, dtype: str) -> tuple[ir.Model, ir.Model]:
    for seed in SEEDS:
        reference, candidate = pair_of(seed, dtype)
        broken = damaged(name, ir.to_proto(reference), ir.to_proto(candidate), seed)
        if broken is not None:
            return reference, ir.from_proto(broken)
    raise AssertionError("no network has anything to damage in this way")


def proven(reference: ir.Model, candidate: ir.Model) -> FoldsResult:
    feeds = drawn_feeds(input_specs(reference), samples=1, seed=0)
    return prove_folds(Oracle(reference), Oracle(candidate), feeds)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("seed", SEEDS)
def test_honest_folds_of_many_families_are_proven(dtype: str, seed: int) -> None:
    result = proven(*pair_of(seed, dtype))
    assert result.proven, result.sentence


@pytest.mark.parametrize("seed", range(3100, 3106))
def test_honest_folds_in_float32_arithmetic_are_proven(seed: int) -> None:
    network = random_network(seed)
    folded = network.model(True, fold_type=np.float32)
    result = proven(ir.from_proto(network.model(False)), ir.from_proto(folded))
    assert result.proven, result.sentence
    assert not result.rounded_once


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", DAMAGES)
def test_no_damage_passes_fold_by_fold(dtype: str, name: str) -> None:
    result = proven(*first_damaged(name, dtype))
    assert result.wrong, result.sentence


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in INVISIBLE])
def test_what_passes_by_its_outputs_stays_within_the_bound_on_other_inputs(name: str) -> None:
    pair = first_damaged(name, "float32")
    if verify(*pair, VerifyOptions(runtime=False, samples=1)).ok:
        assert verify(*pair, VerifyOptions(runtime=False, samples=4, seed=77)).ok
