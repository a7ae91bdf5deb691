"""What a worker does in a block, by scenario: run, and read the clock.

No garbage is collected meanwhile. Nothing here knows ONNX Runtime: ``run`` is one inference.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Barrier, Thread
from time import perf_counter_ns

Run = Callable[[], object]

#: A thread that sleeps wakes up late, by some 0.1 ms: the last stretch before an arrival is spent watching the clock.
_WATCH_NS = 500_000


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def lead_in(run: Run, duration_ns: int) -> None:
    """Run once, and go on for so long: caches and threads wake up."""
    end = perf_counter_ns() + duration_ns
    run()
    while perf_counter_ns() < end:
        run()


def single_stream(run: Run, runs: int, samples: int) -> list[int]:
    """The time of ``runs`` runs one after the other, in ns, so many times."""
    return [_in_a_row(run, runs) for _ in range(samples)]


def _in_a_row(run: Run, runs: int) -> int:
    started = perf_counter_ns()
    for _ in range(runs):
        run()
    return perf_counter_ns() - started


def offline(run: Run, streams: int, runs: int, samples: int) -> list[int]:
    """The time until ``streams`` threads have emptied a queue of ``runs`` runs, in ns, so many times."""
    return [_queue(run, streams, runs) for _ in range(samples)]


def _queue(run: Run, streams: int, runs: int) -> int:
    tickets = [None] * runs
    barrier = Barrier(streams)
    spans: list[tuple[int, int]] = []
    failures: list[BaseException] = []

    def work() -> None:
        barrier.wait()
        started = perf_counter_ns()
        try:
            while tickets:
                try:
                    tickets.pop()
                except IndexError:  # another stream took the last one
                    break
                run()
        except BaseException as error:
            failures.append(error)
            tickets.clear()
        spans.append((started, perf_counter_ns()))

    threads = [Thread(target=work) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return max(end for _, end in spans) - min(start for start, _ in spans)


def poisson(run: Run, gaps_ns: Sequence[int]) -> tuple[list[int], int, int]:
    """Answer requests in the order of their arrival, one at a time.

    A request that arrives while another one is being answered waits, and its wait counts: the latency runs from
    the scheduled arrival to the answer.

    Args:
        run: one inference.
        gaps_ns: the time from each scheduled arrival to the next, in ns.

    Returns:
        The latency of each request; the time spent answering; the time from the first arrival's schedule to the
        last answer or the last arrival, whichever is later. All in ns.
    """
    latencies, busy = [], 0
    due = started = perf_counter_ns()
    done = due
    for gap in gaps_ns:
        due += gap
        _wait_until(due)
        begun = perf_counter_ns()
        run()
        done = perf_counter_ns()
        latencies.append(done - due)
        busy += done - begun
    return latencies, busy, max(done, due) - started


def _wait_until(due: int) -> None:
    ahead = due - perf_counter_ns() - _WATCH_NS
    if ahead > 0:
        time.sleep(ahead / 1e9)
    while perf_counter_ns() < due:
        pass
