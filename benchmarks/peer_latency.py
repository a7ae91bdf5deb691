"""Latency of several versions of one model, run by turns in one process with one thread.

Run as a program it answers requests (see peer_process.py). Each request should go to a fresh process: where a process'
memory lies makes a model faster or slower for as long as it lives.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from peer_process import Answer, serve

#: Each turn of a model lasts about this long, and this many runs at least, after one that is not counted.
_TURN_S = 0.004
_FEWEST_RUNS = 2
_FEWEST_ROUNDS = 3


def rounds(models: Sequence[str], seconds: float, seed: int) -> list[list[float]]:
    """For each round, the median seconds of a run of each model; the order within a round is drawn anew.

    Args:
        models: files that take the same inputs.
        seconds: to spend on all rounds.
        seed: of the inputs and of the order.
    """
    random = np.random.default_rng(seed)
    # Where a session's memory lies depends on those made before it.
    made = {index: _session(models[index]) for index in random.permutation(len(models))}
    sessions = [made[index] for index in range(len(models))]
    feeds = _feeds(sessions[0], random)
    for session in sessions:
        session.run(None, feeds)
    results = []
    end = time.perf_counter() + seconds
    while len(results) < _FEWEST_ROUNDS or time.perf_counter() < end:
        medians = dict.fromkeys(range(len(models)), 0.0)
        for index in random.permutation(len(models)):
            medians[int(index)] = _turn(sessions[index], feeds)
        results.append(list(medians.values()))
    return results


def _session(model: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _feeds(session: Any, random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Normal inputs; an open dimension has the length 1."""
    return {
        value.name: random.normal(size=[size if isinstance(size, int) else 1 for size in value.shape]).astype(
            np.float32
        )
        for value in session.get_inputs()
    }


def _turn(session: Any, feeds: dict[str, NDArray[np.float32]]) -> float:
    session.run(None, feeds)
    times: list[float] = []
    while len(times) < _FEWEST_RUNS or sum(times) < _TURN_S:
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def answer(request: Answer) -> Answer:
    """Measure the models of a request."""
    return {"rounds": rounds(request["models"], request["seconds"], request["seed"])}


if __name__ == "__main__":
    serve(answer)
