"""One launch: fresh processes, cold sessions, warm-up, then interleaved rounds.

Where a process' memory happens to lie makes it faster or slower for as long as it lives, by a per cent or
two. No number of runs in one process shows that; only other processes do. Hence several launches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.benchmarking import schedule
from bnfold.benchmarking.candidates import Candidate, Group
from bnfold.benchmarking.process import Worker
from bnfold.benchmarking.scenario import Kind
from bnfold.benchmarking.steadiness import MINIMUM_SAMPLES, trend

#: The first stretch of a warm-up, in ns; each further one is twice as long.
_WARM_UP_NS = 20_000_000

#: The share of a launch's time that the warm-up of each candidate may take.
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class ProcessRecord:
    """What one process measured.

    Attributes:
        creation_s: time to create the session in a process that has only imported onnxruntime, in seconds.
        first_run_s: time of the first run, in seconds.
        idle_bytes: the most memory that the process held before it created the session.
        peak_bytes: the most memory that the process held.
        steady: whether the warm-up settled; None where it had too few runs to tell, or where there was none.
        runs_per_sample: runs that each sample is an average over.
        rounds: the samples of each round, in ns a run; none in a cold start.
        busy_s: in the Poisson scenario, the time spent answering; else 0.
        span_s: in the Poisson scenario, the time in which that was; else 0.
    """

    creation_s: float
    first_run_s: float
    idle_bytes: int
    peak_bytes: int
    steady: bool | None = None
    runs_per_sample: int = 1
    rounds: tuple[tuple[int, ...], ...] = ()
    busy_s: float = 0.0
    span_s: float = 0.0


@dataclass(frozen=True)
class LaunchRecord:
    """What one launch measured.

    Attributes:
        seconds: how long it took, start-up included.
        pause_s: how much of that was waiting for threads to stop.
        onnxruntime: the version that the processes imported.
        processes: one for each of the group.
    """

    seconds: float
    pause_s: float
    onnxruntime: str
    processes: tuple[ProcessRecord, ...]


@dataclass(frozen=True)
class Opening:
    """What a process opens.

    Attributes:
        model: the file.
        profile: where ONNX Runtime's profile goes, as the beginning of a path; empty for none.
    """

    model: Path
    profile: str = ""


@dataclass(frozen=True)
class _WarmUp:
    latency_ns: float
    steady: bool | None


@dataclass(frozen=True)
class _Block:
    samples_ns: tuple[int, ...]
    busy_ns: int
    span_ns: int


class _Crew:
    """The processes of one launch, of which only one runs at a time."""

    def __init__(self, group: Group, workers: Sequence[Worker]) -> None:
        self.group = group
        self.workers = workers
        greetings = [worker.answer("starting") for worker in workers]
        self.tick_ns = max(int(greeting["tick_ns"]) for greeting in greetings)
        self.onnxruntime = str(greetings[0]["onnxruntime"])
        self._idle_bytes = [int(greeting["idle_bytes"]) for greeting in greetings]
        self.pause_s = sum(worker.rest() for worker in workers)

    @contextmanager
    def turn(self, index: int) -> Iterator[Worker]:
        """Let one process run; the block that follows begins when all its threads have stopped again."""
        worker = self.workers[index]
        yield worker
        self.pause_s += worker.rest()

    def open(self, order: Sequence[int], openings: Sequence[Opening] = ()) -> tuple[ProcessRecord, ...]:
        """Create every session and run it once, in the given order.

        Args:
            order: of the processes.
            openings: what each of them opens, if not its candidate's model as it is.
        """
        records: dict[int, ProcessRecord] = {}
        for index in order:
            with self.turn(index) as worker:
                candidate = self.group.processes[index]
                opening = openings[index] if openings else Opening(candidate.subject.path)
                created = worker.ask("creating its session", _open_request(candidate, opening))
                ran = worker.ask("running for the first time", _first_run_request(self.group, candidate))
                records[index] = ProcessRecord(
                    creation_s=created["creation_ns"] / 1e9,
                    first_run_s=ran["first_run_ns"] / 1e9,
                    idle_bytes=self._idle_bytes[index],
                    peak_bytes=0,
                )
        return tuple(records[index] for index in range(len(self.workers)))

    def with_memory(self, records: Sequence[ProcessRecord]) -> tuple[ProcessRecord, ...]:
        """The records with the most memory that each process has held."""
        request = {"do": "memory"}
        peaks = [int(worker.ask("telling its memory", request)["peak_bytes"]) for worker in self.workers]
        return tuple(replace(record, peak_bytes=peak) for record, peak in zip(records, peaks, strict=True))


@contextmanager
def crew(group: Group) -> Iterator[_Crew]:
    """Start a process for each of the group; all are gone afterwards."""
    with ExitStack() as stack:
        # All start at once, and none is timed before all have imported what they need.
        workers = [stack.enter_context(Worker(candidate.name, group.timeout)) for candidate in group.processes]
        yield _Crew(group, workers)


def cold_start(group: Group, seed: Sequence[int]) -> LaunchRecord:
    """Create the session of every candidate in a fresh process and run it once; raises as :func:`launch`."""
    started = time.monotonic()
    with crew(group) as team:
        order = next(schedule.rounds(len(group.processes), seed))
        records = team.with_memory(team.open(order))
        return LaunchRecord(time.monotonic() - started, team.pause_s, team.onnxruntime, records)


def launch(group: Group, seconds: float, seed: Sequence[int]) -> LaunchRecord:
    """Measure every candidate of a group in fresh processes, for about ``seconds``.

    Raises:
        ModelError: a model cannot be loaded or run.
        ProviderError: the provider is not there or cannot run.
        MissingExtraError: onnxruntime is not installed.
        WorkerError: a process failed, was killed, or did not answer in time.
    """
    started = time.monotonic()
    orders = schedule.rounds(len(group.processes), seed)
    with crew(group) as team:
        records = team.open(next(orders))
        warm_ups = warm_up(team, next(orders), records, int(_WARM_UP_SHARE * seconds * 1e9))
        plans = schedule.plan_blocks(
            [warm.latency_ns for warm in warm_ups],
            [candidate.setting.scenario for candidate in group.processes],
            team.tick_ns,
        )
        blocks: list[list[_Block]] = [[] for _ in plans]
        longest = 0.0
        for count, order in enumerate(orders):
            begun = time.monotonic()
            if count >= schedule.MINIMUM_ROUNDS and begun + longest > started + seconds and count % 2 == 0:
                break
            for index in order:
                with team.turn(index) as worker:
                    # One seed for all in a round: they are given the same arrivals.
                    blocks[index].append(_block(worker, group.processes[index], plans[index], (*seed, count)))
            longest = max(longest, time.monotonic() - begun)
        records = tuple(
            _with_blocks(record, warm, plan, found)
            for record, warm, plan, found in zip(records, warm_ups, plans, blocks, strict=True)
        )
        records = team.with_memory(records)
    return LaunchRecord(time.monotonic() - started, team.pause_s, team.onnxruntime, records)


def _with_blocks(
    record: ProcessRecord, warm: _WarmUp, plan: schedule.BlockPlan, blocks: Sequence[_Block]
) -> ProcessRecord:
    return replace(
        record,
        steady=warm.steady,
        runs_per_sample=plan.runs,
        rounds=tuple(block.samples_ns for block in blocks),
        busy_s=sum(block.busy_ns for block in blocks) / 1e9,
        span_s=sum(block.span_ns for block in blocks) / 1e9,
    )


def _open_request(candidate: Candidate, opening: Opening) -> dict[str, Any]:
    session = replace(candidate.setting.session_options(), profile=opening.profile)
    return {"do": "open", "model": str(opening.model), "session": asdict(session)}


def _first_run_request(group: Group, candidate: Candidate) -> dict[str, Any]:
    return {
        "do": "first run",
        "binding": candidate.setting.binding,
        "feeds": [[feed.name, feed.dtype, list(feed.shape)] for feed in group.feeds],
        "seed": group.input_seed,
    }


def warm_up(team: _Crew, order: Sequence[int], records: Sequence[ProcessRecord], limit_ns: int) -> list[_WarmUp]:
    """Warm every process up, in the given order; the result is in the order of the group."""
    found: dict[int, _WarmUp] = {}
    for index in order:
        with team.turn(index) as worker:
            found[index] = _warm_up(worker, records[index].first_run_s * 1e9, limit_ns)
    return [found[index] for index in range(len(found))]


def _warm_up(worker: Worker, first_run_ns: float, limit_ns: int) -> _WarmUp:
    """Run in ever longer stretches until the latency in one of them has no trend, or the time is up."""
    latency = float(np.median(_one_by_one(worker, 1)))
    spent = 0.0
    stretch = _WARM_UP_NS
    steady = None
    while spent + MINIMUM_SAMPLES * latency < max(limit_ns, first_run_ns):
        count = max(MINIMUM_SAMPLES, int(min(stretch, limit_ns - spent) / max(latency, 1.0)))
        samples = _one_by_one(worker, count)
        spent += sum(samples)
        latency = float(np.median(samples))
        line = trend(samples)
        steady = line is not None and line.steady
        if steady:
            break
        stretch *= 2
    return _WarmUp(latency, steady)


def _one_by_one(worker: Worker, samples: int) -> list[int]:
    request = {"do": "run", "kind": Kind.SINGLE_STREAM.value, "runs": 1, "samples": samples, "lead_in_ns": 0}
    found: list[int] = worker.ask("warming up", request)["samples_ns"]
    return found


def _block(worker: Worker, candidate: Candidate, plan: schedule.BlockPlan, seed: Sequence[int]) -> _Block:
    scenario = candidate.setting.scenario
    request = {
        "do": "run",
        "kind": scenario.kind.value,
        "streams": scenario.streams,
        "rate": scenario.rate,
        "seed": list(seed),
        "runs": plan.runs,
        "samples": plan.samples,
        "lead_in": plan.lead_in,
        "lead_in_ns": schedule.LEAD_IN_NS,
    }
    answer = worker.ask("being measured", request, schedule.waiting_s(plan, scenario))
    return _Block(
        tuple(round(total / plan.runs) for total in answer["samples_ns"]),
        answer.get("busy_ns", 0),
        answer.get("span_ns", 0),
    )
