"""Measure how often `bnfold verify` is wrong: false alarms on honest folds, and damaged folds that it lets pass.

Run: ``python tests/verify_rates.py [NETWORKS] [DTYPE] [--first SEED] [--minutes M] [--no-runtime]``. The figures in
docs/verification.md come from it.

Half of the networks are folded by hand (:mod:`verify_networks`), half by bnfold's engine (:mod:`verify_families`).
Each damaged fold is judged twice: by its outputs alone (``--no-per-fold``), and fold by fold as well. One that passes by
its outputs is run again on other inputs, four times as many: what then exceeds the bound has *escaped* them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
import verify_damages
import verify_networks
from verify_families import family_network
from verify_networks import ONNX_TYPES, random_network

import bnfold
from bnfold.fold import fold

#: Inputs on which what passed is run again.
OTHER_INPUTS = {"seed": 1000, "samples": 8}


@dataclass
class Rates:
    """What was counted so far.

    Attributes:
        verdicts: of honest folds, by how they were made.
        alarms: what was said of honest folds that were not proven.
        ratios: largest error over bound of each honest fold, by run.
        worst: the largest errors of the exact fold, and of constants in units in the last place.
        tried: damaged folds, by damage.
        caught: those seen in the outputs, and those seen fold by fold.
        passed: those that passed both, with what is left of the damage in the outputs.
        escaped: those that passed by their outputs and exceed the bound on other inputs.
    """

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    alarms: list[str] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    worst: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tried: Counter[str] = field(default_factory=Counter)
    caught: Counter[tuple[str, str]] = field(default_factory=Counter)
    passed: list[str] = field(default_factory=list)
    escaped: list[str] = field(default_factory=list)

    def honest(self, made: str, seed: int, pair: tuple[ir.Model, ir.Model], options: bnfold.VerifyOptions) -> None:
        """Count an honest fold."""
        result = bnfold.verify(*pair, options)
        folds = result.folds
        if result.verdict == "nothing proven" and folds is None:  # nothing was folded
            self.verdicts[made, "the same graph"] += 1
            return
        proven = result.ok and folds is not None and folds.proven
        self.verdicts[made, "proven" if proven else "ALARM"] += 1
        if not proven or folds is None:
            self.alarms.append(f"{made}, seed {seed}: {result.sentence} {'' if folds is None else folds.sentence}")
            return
        for output in result.outputs:
            for finding in output.judgement.findings:
                self.ratios[finding.run].append(finding.ratio)
        self.ratios["a region of a fold"] += [p.error / p.allowed for p in folds.proofs if p.error and p.allowed]
        self.worst["algebra"] = max(self.worst["algebra"], *(p.algebra or 0.0 for p in folds.proofs), 0.0)
        if folds.rounded_once:
            self.worst["ulp"] = max(self.worst["ulp"], *(p.ulp or 0.0 for p in folds.proofs), 0.0)

    def damaged(self, name: str, seed: int, pair: tuple[ir.Model, ir.Model], options: bnfold.VerifyOptions) -> None:
        """Count a damaged fold."""
        self.tried[name] += 1
        outputs_alone = replace(options, per_fold=False)
        by_output = _mismatch(pair, outputs_alone)
        self.caught[name, "outputs"] += by_output
        fold_by_fold = _mismatch(pair, replace(options, runtime=False, samples=1))
        self.caught[name, "folds"] += fold_by_fold
        if not by_output:
            excess = _worst(pair, replace(outputs_alone, **OTHER_INPUTS))
            if excess > 1:
                passed = "" if fold_by_fold else ", and passed fold by fold"
                self.escaped.append(f"{name}, seed {seed}: {excess:.3g} times the bound{passed}")
        if not by_output and not fold_by_fold:
            self.passed.append(f"{name}, seed {seed}")


def _worst(pair: tuple[ir.Model, ir.Model], options: bnfold.VerifyOptions) -> float:
    """The largest error over its bound."""
    return max(output.judgement.worst.ratio for output in bnfold.verify(*pair, options).outputs)


def _mismatch(pair: tuple[ir.Model, ir.Model], options: bnfold.VerifyOptions) -> bool:
    return bnfold.verify(*pair, options).verdict == "mismatch"


def measure(seeds: range, dtype: str, options: bnfold.VerifyOptions, minutes: float) -> tuple[Rates, int]:
    """Judge honest and damaged folds of the networks of each seed, as many as the time allows; tells how many."""
    rates, done = Rates(), 0
    end = time.monotonic() + 60 * minutes
    for seed in seeds:
        for made, reference, candidate in _honest(seed, dtype):
            rates.honest(made, seed, (reference, candidate), options)
        for name, reference, candidate in damaged_folds(seed, dtype):
            rates.damaged(name, seed, (reference, candidate), options)
        done += 1
        print(f"\r{done} of {len(seeds)}", end="", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            break
    print(file=sys.stderr)
    return rates, done


def _honest(seed: int, dtype: str) -> Iterator[tuple[str, ir.Model, ir.Model]]:
    network = random_network(seed, dtype)
    reference = ir.from_proto(network.model(False))
    yield "by hand", reference, ir.from_proto(network.model(True))
    if dtype != "float64":
        yield "by hand in float32", reference, ir.from_proto(network.model(True, fold_type=np.float32))
    yield "by the engine", *engine_pair(seed, dtype)


def engine_pair(seed: int, dtype: str) -> tuple[ir.Model, ir.Model]:
    """A network of many families, and the engine's fold of it."""
    reference = ir.from_proto(family_network(seed, dtype))
    candidate = reference.clone()
    fold(candidate)
    return reference, ir.from_proto(ir.to_proto(candidate))


def damaged_folds(seed: int, dtype: str) -> Iterator[tuple[str, ir.Model, ir.Model]]:
    """Every damage that applies, to a fold by hand and to one by the engine."""
    network = random_network(seed, dtype)
    by_hand, honest = network.model(False), network.model(True)
    for name, damage in verify_networks.DAMAGES.items():
        found = network.model(True, damage(network, np.random.default_rng(seed)))
        if found.SerializeToString() != honest.SerializeToString():
            yield f"{name} (by hand)", ir.from_proto(by_hand), ir.from_proto(found)
    reference, candidate = (ir.to_proto(model) for model in engine_pair(seed, dtype))
    for name in verify_damages.DAMAGES:
        broken: onnx.ModelProto | None = verify_damages.damaged(name, reference, candidate, seed)
        if broken is not None:
            yield name, ir.from_proto(reference), ir.from_proto(broken)


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="?", type=int, default=100)
    parser.add_argument("dtype", nargs="?", choices=ONNX_TYPES, default="float32")
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no network after so long")
    parser.add_argument("--no-runtime", action="store_true", help="compare in float64 only")
    given = parser.parse_args()
    options = bnfold.VerifyOptions(runtime=not given.no_runtime)
    seeds = range(given.first, given.first + given.networks)
    rates, done = measure(seeds, given.dtype, options, given.minutes)
    print(f"{given.dtype}, {done} networks by hand and {done} by the engine, seeds from {given.first}")
    for (made, verdict), count in sorted(rates.verdicts.items()):
        print(f"  honest, {made}: {verdict}: {count}")
    for line in rates.alarms:
        print(f"    {line}")
    for run, ratios in ((run, ratios) for run, ratios in rates.ratios.items() if ratios):
        print(f"  {run}: error / bound of honest folds: median {np.median(ratios):.3f}, largest {max(ratios):.3f}")
    print(f"  the exact fold is off by at most {rates.worst['algebra']:.1e}, constants by {rates.worst['ulp']:.4f} ulp")
    print("| damage | tried | seen in the outputs | seen fold by fold |\n|---|---|---|---|")
    for name in rates.tried:
        counts = (rates.tried[name], rates.caught[name, "outputs"], rates.caught[name, "folds"])
        print(f"| {name} | {' | '.join(map(str, counts))} |")
    totals = (
        rates.tried.total(),
        *(sum(n for (_, how), n in rates.caught.items() if how == w) for w in ("outputs", "folds")),
    )
    print(f"| all | {' | '.join(map(str, totals))} |")
    print(f"escaped: {len(rates.escaped)}; passed both: {len(rates.passed)}")
    for line in (*rates.escaped, *rates.passed):
        print(f"    {line}")


if __name__ == "__main__":
    main()
