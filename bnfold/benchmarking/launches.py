"""One launch: fresh processes, cold sessions, warm-up, then interleaved rounds.

Where a process' memory happens to lie makes it faster or slower for as long as it lives, by a per cent or
two. No number of runs in one process shows that; only other processes do. Hence several launches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np

from bnfold.benchmarking import schedule
from bnfold.benchmarking.inputs import Feed
from bnfold.benchmarking.options import Setting
from bnfold.benchmarking.process import Worker
from bnfold.benchmarking.steadiness import MINIMUM_SAMPLES, trend
from bnfold.benchmarking.subjects import Subject

#: The first stretch of a warm-up, in ns; each further one is twice as long.
_WARM_UP_NS = 20_000_000

#: The share of a launch's time that the warm-up of each candidate may take.
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Job:
    """What the launches of one setting have in common.

    Attributes:
        setting: how the candidates run.
        candidates: the model of each process; the first one's control, if there is one, comes last.
        feeds: the inputs that all of them take.
        input_seed: what the inputs' numbers are drawn from.
    """

    setting: Setting
    candidates: tuple[Subject, ...]
    feeds: tuple[Feed, ...]
    input_seed: int


@dataclass(frozen=True)
class ProcessRecord:
    """What one process measured.

    Attributes:
        creation_s: time to create the session in a process that has only imported onnxruntime, in seconds.
        first_run_s: time of the first run, in seconds.
        steady: whether the warm-up settled; None where it had too few runs to tell.
        group: runs that each sample is an average over.
        blocks: the samples of each round, in ns a run.
        peak_bytes: the most memory that the process held.
    """

    creation_s: float
    first_run_s: float
    steady: bool | None
    group: int
    blocks: tuple[tuple[int, ...], ...]
    peak_bytes: int


@dataclass(frozen=True)
class LaunchRecord:
    """What one launch measured.

    Attributes:
        seconds: how long it took, start-up included.
        pause_s: how much of that was waiting for threads to stop.
        onnxruntime: the version that the processes imported.
        processes: one for each candidate of the job.
    """

    seconds: float
    pause_s: float
    onnxruntime: str
    processes: tuple[ProcessRecord, ...]


@dataclass(frozen=True)
class _WarmUp:
    latency_ns: float
    steady: bool | None


def launch(job: Job, seconds: float, seed: Sequence[int]) -> LaunchRecord:
    """Measure every candidate of a job in fresh processes, for about ``seconds``.

    Raises:
        ModelError: a model cannot be loaded or run.
        ProviderError: the provider is not there or cannot run.
        MissingExtraError: onnxruntime is not installed.
        WorkerError: a process failed or was killed.
    """
    started = time.monotonic()
    orders = schedule.rounds(len(job.candidates), seed)
    with ExitStack() as stack:
        # All start at once, and none is timed before all have imported what they need.
        workers = [stack.enter_context(Worker(subject.label)) for subject in job.candidates]
        greetings = [worker.answer("starting") for worker in workers]
        tick_ns = max(int(greeting["tick_ns"]) for greeting in greetings)
        pauses = sum(worker.rest() for worker in workers)

        openings: dict[int, dict[str, int]] = {}
        warm_ups: dict[int, _WarmUp] = {}
        order = next(orders)
        for index in order:
            openings[index] = _open(workers[index], job, index)
            pauses += workers[index].rest()
        limit_ns = int(_WARM_UP_SHARE * seconds * 1e9)
        for index in next(orders):
            warm_ups[index] = _warm_up(workers[index], openings[index]["first_run_ns"], limit_ns)
            pauses += workers[index].rest()

        plans = schedule.plan_blocks([warm_ups[index].latency_ns for index in range(len(workers))], tick_ns)
        blocks: list[list[tuple[int, ...]]] = [[] for _ in workers]
        longest = 0.0
        for count, order in enumerate(orders):
            begun = time.monotonic()
            if count >= schedule.MINIMUM_ROUNDS and begun + longest > started + seconds and count % 2 == 0:
                break
            for index in order:
                blocks[index].append(_block(workers[index], plans[index]))
                pauses += workers[index].rest()
            longest = max(longest, time.monotonic() - begun)
        peaks = [int(worker.ask("telling its memory", {"do": "memory"})["peak_bytes"]) for worker in workers]

    processes = tuple(
        ProcessRecord(
            creation_s=openings[index]["creation_ns"] / 1e9,
            first_run_s=openings[index]["first_run_ns"] / 1e9,
            steady=warm_ups[index].steady,
            group=plans[index].group,
            blocks=tuple(blocks[index]),
            peak_bytes=peaks[index],
        )
        for index in range(len(workers))
    )
    return LaunchRecord(time.monotonic() - started, pauses, str(greetings[0]["onnxruntime"]), processes)


def _open(worker: Worker, job: Job, index: int) -> dict[str, int]:
    request = {
        "do": "open",
        "model": str(job.candidates[index].path),
        "session": asdict(job.setting.session_options()),
        "feeds": [[feed.name, feed.dtype, list(feed.shape)] for feed in job.feeds],
        "seed": job.input_seed,
    }
    return worker.ask("creating its session and running it once", request)


def _run(worker: Worker, group: int, samples: int, lead_in_ns: int, doing: str) -> list[int]:
    request = {"do": "run", "group": group, "samples": samples, "lead_in_ns": lead_in_ns}
    answer = worker.ask(doing, request)
    return [round(total / group) for total in answer["samples_ns"]]


def _warm_up(worker: Worker, first_run_ns: int, limit_ns: int) -> _WarmUp:
    """Run in ever longer stretches until the latency in one of them has no trend, or the time is up."""
    latency = float(np.median(_run(worker, 1, 1, 0, "warming up")))
    spent = 0.0
    stretch = _WARM_UP_NS
    steady = None
    while spent + MINIMUM_SAMPLES * latency < max(limit_ns, first_run_ns):
        count = max(MINIMUM_SAMPLES, int(min(stretch, limit_ns - spent) / max(latency, 1.0)))
        samples = _run(worker, 1, count, 0, "warming up")
        spent += sum(samples)
        latency = float(np.median(samples))
        line = trend(samples)
        steady = line is not None and line.steady
        if steady:
            break
        stretch *= 2
    return _WarmUp(latency, steady)


def _block(worker: Worker, plan: schedule.BlockPlan) -> tuple[int, ...]:
    return tuple(_run(worker, plan.group, plan.samples, schedule.LEAD_IN_NS, "being measured"))
