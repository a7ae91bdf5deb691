"""What a block counts, held against runs whose duration is known. No assertion is about the machine's speed."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from bnfold.benchmarking import blocks


class Clock:
    """A clock that only moves when somebody works or sleeps; in ns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        monkeypatch.setattr(blocks, "perf_counter_ns", self.read)
        monkeypatch.setattr(blocks.time, "sleep", lambda seconds: self.work(round(seconds * 1e9)))

    def read(self) -> int:
        self.now += 1  # so that watching it ends
        return self.now

    def work(self, duration: int) -> None:
        self.now += duration


def test_a_sample_is_the_total_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    samples = blocks.single_stream(lambda: clock.work(1000), runs=4, samples=3)
    assert samples == [pytest.approx(4000, abs=5)] * 3


def test_a_lead_in_runs_once_even_where_no_time_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, count = Clock(monkeypatch), []
    blocks.lead_in(lambda: count.append(clock.work(1000)), 0)
    assert len(count) == 1
    blocks.lead_in(lambda: count.append(clock.work(1000)), 10_000)
    assert len(count) >= 10


def test_requests_that_wait_are_timed_from_their_scheduled_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    durations = iter([1_000_000, 50_000_000, 1_000_000, 1_000_000, 1_000_000])
    # Arrivals every 10 ms; the second answer takes 50 ms, so that the third waits for 40 ms and so on.
    latencies, busy, span = blocks.poisson(lambda: clock.work(next(durations)), [10_000_000] * 5)
    assert latencies == pytest.approx([1e6, 50e6, 41e6, 32e6, 23e6], rel=1e-3)
    assert busy == pytest.approx(54e6, rel=1e-3)
    assert span == pytest.approx(73e6, rel=1e-3)


def test_a_server_slower_than_its_arrivals_falls_behind_and_is_always_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    latencies, busy, span = blocks.poisson(lambda: clock.work(3_000_000), [1_000_000] * 100)
    assert latencies == sorted(latencies)
    assert latencies[-1] > 190e6
    assert busy / span > 0.99


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_mean_wait_is_that_of_queueing_theory(load: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # M/D/1: with service time s and load u, a request waits for s·u / (2·(1 - u)) on average (Pollaczek-Khinchine).
    clock, service = Clock(monkeypatch), 1_000_000
    gaps = np.random.default_rng(0).exponential(service / load, 40_000).astype(np.int64).tolist()
    monkeypatch.setattr(blocks, "_WATCH_NS", 0)
    latencies, busy, span = blocks.poisson(lambda: clock.work(service), gaps)
    assert busy / span == pytest.approx(load, rel=0.02)
    assert np.mean(latencies) == pytest.approx(service * (1 + load / (2 * (1 - load))), rel=0.05)


@pytest.mark.parametrize(("streams", "runs"), [(1, 1), (1, 7), (3, 10), (4, 2)])
def test_streams_share_a_queue_and_every_run_happens_once(streams: int, runs: int) -> None:
    done: list[int] = []
    (total,) = blocks.offline(lambda: done.append(threading.get_ident()), streams, runs, 1)
    assert len(done) == runs
    assert total > 0


def test_streams_work_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=30)  # breaks if the two runs were one after the other
    blocks.offline(meeting.wait, 2, 2, 1)
    assert not meeting.broken


def test_what_a_stream_raises_reaches_the_caller_and_ends_the_others() -> None:
    count: list[None] = []

    def fail() -> None:
        count.append(None)
        if len(count) == 5:
            raise ValueError("halfway")
        time.sleep(0)

    with pytest.raises(ValueError, match="halfway"):
        blocks.offline(fail, 2, 10_000, 1)
    assert len(count) < 10_000
