"""Who runs when, and how much: seeded and pure.

A *sample* is the time of ``group`` runs, divided by ``group``. A *block* is a few samples of one candidate in
a row. A *round* is one block of every candidate, in random order. A *launch* is some rounds by fresh
processes. Rounds come in mirrored pairs (an order, then its reverse), so that over a pair every candidate has
the same mean position in time and a drift that is linear in time cancels from every comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from numpy.random import default_rng  # here, since numpy loads it late: a launch is no time to import

#: A sample is at least this long, in ns, so that reading the clock does not show in it.
MINIMUM_SAMPLE_NS = 100_000

#: A sample is at least so many ticks of the clock.
MINIMUM_TICKS = 1000

#: The measured part of a block, in ns: short against drift, long against what a switch costs.
BLOCK_NS = 20_000_000

#: Runs at the start of a block that are not counted take at least this long: caches and threads wake up.
LEAD_IN_NS = 4_000_000

#: The fewest rounds of a launch: one mirrored pair.
MINIMUM_ROUNDS = 2

#: The fewest launches that a budget too small for all of them still gets.
MINIMUM_LAUNCHES = 3


def rounds(candidates: int, seed: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The order of the candidates in each round, without end.

    Args:
        candidates: how many there are.
        seed: any non-negative integers.
    """
    generator = default_rng(list(seed))
    while True:
        order = tuple(int(index) for index in generator.permutation(candidates))
        yield order
        yield order[::-1]


@dataclass(frozen=True)
class BlockPlan:
    """How much one candidate runs in each block.

    Attributes:
        group: runs in one sample.
        samples: samples in one block.
    """

    group: int
    samples: int


def plan_blocks(latencies_ns: Sequence[float], tick_ns: int) -> tuple[BlockPlan, ...]:
    """The blocks of each candidate, from its warm latency.

    All candidates share one ``group``, so that their samples are averages over equally many runs; the number
    of samples follows each one's own speed.

    Args:
        latencies_ns: warm latency of each candidate, in ns.
        tick_ns: the smallest step of the clock, in ns.
    """
    shortest = max(min(latencies_ns), 1.0)
    group = max(1, math.ceil(max(MINIMUM_SAMPLE_NS, MINIMUM_TICKS * tick_ns) / shortest))
    return tuple(BlockPlan(group, max(1, round(BLOCK_NS / (group * max(latency, 1.0))))) for latency in latencies_ns)


def another_launch(done: int, wanted: int, spent_s: float, longest_s: float, budget_s: float) -> bool:
    """Whether to launch again.

    Always up to :data:`MINIMUM_LAUNCHES`; after that only if a launch as long as the longest so far ends
    within the budget, with a tenth to spare for what start-up varies by.
    """
    if done >= wanted:
        return False
    return done < MINIMUM_LAUNCHES or spent_s + longest_s <= 1.1 * budget_s
