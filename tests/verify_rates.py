"""Measure how often `verify` is wrong: false alarms on honest folds, and damaged folds that it lets pass.

Run: ``python tests/verify_rates.py [NETWORKS] [DTYPE]``. The figures in docs/verification.md come from it.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import onnx_ir as ir
from verify_networks import DAMAGES, random_network

import bnfold


def main() -> None:
    """Print the rates."""
    networks = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float32"
    runtime = "--no-runtime" not in sys.argv
    options = bnfold.VerifyOptions(runtime=runtime)
    verdicts: Counter[str] = Counter()
    highest: dict[str, list[float]] = {}
    caught: Counter[str] = Counter()
    for seed in range(networks):
        network = random_network(seed, dtype)
        reference = ir.from_proto(network.model(folded=False))
        result = bnfold.verify(reference, ir.from_proto(network.model(folded=True)), options)
        verdicts[result.verdict] += 1
        for output in result.outputs:
            for finding in output.judgement.findings:
                highest.setdefault(finding.run, []).append(finding.ratio)
        if not result.ok:
            print(f"seed {seed}: {result.sentence} {result.reference_note}")
        random = np.random.default_rng(seed)
        for name, damage in DAMAGES.items():
            broken = network.model(folded=True, damage=damage(network, random))
            found = bnfold.verify(reference, ir.from_proto(broken), options)
            caught[name] += found.verdict == "mismatch"
            if found.verdict != "mismatch":
                effect = max(o.relative("candidate_float64") or 0 for o in found.outputs)
                print(f"seed {seed}: missed {name}: effect {effect:.2g} of the scale; {found.sentence[-60:]}")
    print(f"{dtype}, {networks} networks, honest folds: {dict(verdicts)}")
    for run, ratios in highest.items():
        print(f"  {run}: error / bound: median {np.median(ratios):.3f}, largest {max(ratios):.3f}")
    for name in DAMAGES:
        print(f"  caught {name}: {caught[name]} of {networks}")


if __name__ == "__main__":
    main()
