"""How much a region makes of a rounding, where errors may grow from one step to the next.

A recurrent network may multiply an error at each step, a hundred steps long: two evaluations of one function, each
right to the last digit at every step, then differ by more than any fixed number of roundings. So it is measured how
much the result moves where the inputs of the region move by a few roundings: what is wrong grows no less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.graph import in_default_domain
from bnfold.verification.metrics import deviation, is_float, scale_of
from bnfold.verification.regions import Network, Region, Trial
from bnfold.verification.specs import RECURRENT

Array = NDArray[Any]

#: By how much inputs are moved, relative to themselves: about what each step rounds.
_MOVED = 2.0**-51

#: How often, since one move may lead nowhere by chance.
_TIMES = 3


def growth(network: Network, region: Region, trials: Sequence[Trial]) -> float:
    """How many times as far the result of a region moves, relative to scale, as its inputs do; 1 at least.

    It is 1 where nothing in the region goes through time.

    Args:
        network: the network.
        region: a region of it.
        trials: inputs of the region, with what it computes of them.
    """
    if not any(node.op_type in RECURRENT and in_default_domain(node) for node in region.nodes):
        return 1.0
    scale = max(scale_of(wanted) for _, wanted in trials)
    farthest = 0.0
    for seed in range(_TIMES):
        random = np.random.default_rng(seed)
        for feed, wanted in trials:
            found = network.oracle.values(_moved(feed.values, random), [region.output])[region.output]
            farthest = max(farthest, float(deviation(wanted, found)[0].max(initial=0.0)))
    return max(1.0, farthest / (_MOVED * scale)) if scale > 0 else 1.0


def _moved(values: Mapping[str, Array], random: np.random.Generator) -> dict[str, Array]:
    """Each number a little larger or smaller."""
    return {
        name: array * (1 + _MOVED * random.choice((-1.0, 1.0), array.shape)) if is_float(array) else array
        for name, array in values.items()
    }
