"""Who runs when, and how much: seeded and pure.

A *sample* is the time of a few runs, mostly one, divided by their number. A *block* is a few samples of one candidate
in a row. A *round* is one block of every candidate, in random order. A *launch* is some rounds by fresh
processes. Rounds come in mirrored pairs (an order, then its reverse), so that over a pair every candidate has
the same mean position in time and a drift that is linear in time cancels from every comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from numpy.random import default_rng  # here, since numpy loads it late: a launch is no time to import

from bnfold.benchmarking.scenario import Kind, Scenario

#: A sample is at least this long, in ns, so that reading the clock does not show in it.
MINIMUM_SAMPLE_NS = 20_000

#: A sample is at least so many ticks of the clock.
MINIMUM_TICKS = 200

#: The measured part of a block, in ns: short against drift, long against what a switch costs.
BLOCK_NS = 20_000_000

#: The queue of an offline block takes about so long to empty, in ns.
QUEUE_NS = 50_000_000

#: It holds at least so many runs for each stream, so that the streams end at about the same time.
RUNS_PER_STREAM = 8

#: The measured part of a Poisson block, in ns: long enough for queues to build up.
ARRIVALS_NS = 250_000_000

#: It holds at least so many arrivals.
MINIMUM_ARRIVALS = 10

#: So large a share of a Poisson block's arrivals comes before those that are counted: at the start nobody waits.
ARRIVALS_LEAD_IN = 0.25

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
        runs: in one sample.
        samples: in one block.
        lead_in: arrivals before them that are not counted; 0 unless the scenario is Poisson.
    """

    runs: int
    samples: int
    lead_in: int = 0


def plan_blocks(latencies_ns: Sequence[float], scenarios: Sequence[Scenario], tick_ns: int) -> tuple[BlockPlan, ...]:
    """The blocks of each candidate, from its warm latency.

    Single streams share one number of runs in a sample, so that their samples are averages over equally many;
    the number of samples follows each one's own speed.

    Args:
        latencies_ns: warm latency of each candidate, in ns.
        scenarios: of each candidate.
        tick_ns: the smallest step of the clock, in ns.
    """
    shortest = max(min(latencies_ns), 1.0)
    shared = max(1, math.ceil(max(MINIMUM_SAMPLE_NS, MINIMUM_TICKS * tick_ns) / shortest))
    return tuple(
        _plan_block(max(latency, 1.0), scenario, shared)
        for latency, scenario in zip(latencies_ns, scenarios, strict=True)
    )


def _plan_block(latency_ns: float, scenario: Scenario, runs: int) -> BlockPlan:
    match scenario.kind:
        case Kind.OFFLINE:
            return BlockPlan(max(RUNS_PER_STREAM * scenario.streams, math.ceil(QUEUE_NS / latency_ns)), 1)
        case Kind.POISSON:
            assert scenario.rate is not None
            arrivals = max(MINIMUM_ARRIVALS, round(scenario.rate * ARRIVALS_NS / 1e9))
            return BlockPlan(1, arrivals, math.ceil(ARRIVALS_LEAD_IN * arrivals))
        case _:
            return BlockPlan(runs, max(1, round(BLOCK_NS / (runs * latency_ns))))


def waiting_s(plan: BlockPlan, scenario: Scenario) -> float:
    """The time that a block may take because of when its requests arrive, in seconds: twice its mean."""
    return 2 * (plan.lead_in + plan.samples) / scenario.rate if scenario.rate else 0.0


def another_launch(done: int, wanted: int, spent_s: float, longest_s: float, budget_s: float) -> bool:
    """Whether to launch again.

    Always up to :data:`MINIMUM_LAUNCHES`; after that only if a launch as long as the longest so far ends
    within the budget, with a tenth to spare for what start-up varies by.
    """
    if done >= wanted:
        return False
    return done < MINIMUM_LAUNCHES or spent_s + longest_s <= 1.1 * budget_s
