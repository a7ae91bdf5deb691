"""The same job on a Ray cluster: Ray Data maps the numbers of the batches over a pool of actors, each with one session.

What travels is the number of a batch one way and its scores the other way. Each actor opens the model and the data
itself, by the same paths, and refuses to work where they are not those of the driver. Batches are cut as the local
engine cuts them, so that the scores are the same bits. An actor that dies is started again, and what it was at is
done again by Ray; the driver takes the results in order, once each.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bnfold import errors
from bnfold.errors import BnfoldError, OptionError, WorkerError, one_line
from bnfold.extras import require
from bnfold.files import StrPath
from bnfold.prediction.images import Failure
from bnfold.prediction.job import Job
from bnfold.prediction.options import PredictOptions
from bnfold.prediction.partial_output import differences
from bnfold.prediction.rows import Scored
from bnfold.training.data import resolved_spec

_ACTORS = 2

#: How long to wait for the first answer of a cluster.
_REACH_SECONDS = 5.0

#: Batches of one task at most: what an actor that dies has to do again, against what a task costs.
_TASK_BATCHES = 8


def scored_by_actors(model: StrPath, data: str, job: Job, first: int) -> Generator[Scored, None, None]:
    """The scores of all batches from ``first`` on, in order.

    Raises:
        WorkerError: the cluster cannot be reached, has too few CPUs, or failed.
        BnfoldError: what the local engine would raise, from the actor where it happened.
    """
    options = job.options
    actors = options.actors or _ACTORS
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # failures come as exceptions
    ray: Any = require("ray", "ray")
    require("ray.data", "ray")
    failures = (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError)
    started = not ray.is_initialized()
    with redirect_stdout(_OfThisThread(sys.stdout)):
        try:
            if started:
                _start(ray, options, actors)
            _check_room(ray, options, actors)
            number = first
            for answer in _answers(ray, model, data, job, first, actors):
                if answer["number"] != number:
                    raise WorkerError(f"Ray answered batch {answer['number']} for {number}; please report this")
                number += 1
                yield _unpacked(answer)
            if number != job.batches:
                raise WorkerError(f"Ray ended after {number} of {job.batches} batches; go on with --resume")
        except failures as error:
            raise WorkerError(f"Ray failed: {one_line(error)}") from error
        finally:
            if started:
                with redirect_stdout(io.StringIO()):  # this thread prints there what Ray's threads held back
                    ray.shutdown()


class _OfThisThread(io.TextIOBase):
    """What this thread writes; not what Ray's threads say of actors that died, among the results on stdout."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return self._stream.write(text) if threading.get_ident() == self._thread else len(text)

    def flush(self) -> None:
        self._stream.flush()


def _start(ray: Any, options: PredictOptions, actors: int) -> None:
    """Connect to the cluster, or start one on this machine, quietly."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if options.address is None:
        # Actors wait for their threads as CPUs; one more is for the task that counts batches.
        settings |= {"num_cpus": actors * options.session_threads + 1, "include_dashboard": False}
    else:
        _check_reachable(options.address)
    with _silent_natives():
        ray.init(address=options.address or "local", **settings)


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes, and then ends the whole process."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):  # "auto", which Ray looks up
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except OSError as error:
        raise WorkerError(
            f"there is no Ray cluster at {address}: {error.strerror or error}; start one with: ray start --head"
        ) from error


@contextmanager
def _silent_natives() -> Iterator[None]:
    """Nothing on stderr, not even from native code: Ray's says there which level of logging it was given."""
    sys.stderr.flush()
    kept = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)


def _check_room(ray: Any, options: PredictOptions, actors: int) -> None:
    """Actors that find no CPU wait for ever."""
    wanted = actors * options.session_threads
    cpus = ray.cluster_resources().get("CPU", 0)
    if cpus < wanted:
        raise OptionError(
            f"{actors} actors of {options.session_threads} threads need {wanted} CPUs, and the cluster has {cpus:g}; "
            "ask for fewer (--actors, --threads)"
        )


def _answers(
    ray: Any, model: StrPath, data: str, job: Job, first: int, actors: int
) -> Generator[Mapping[str, Any], None, None]:
    """What the actors answer, a batch at a time."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    count = job.batches - first
    labels = job.options.labels
    options = replace(
        job.options, labels=None if labels is None else str(Path(labels).absolute()), save_preprocessing=False
    )
    path = Path(data).expanduser()
    numbers = ray.data.range(count, override_num_blocks=max(1, min(count, max(actors * 4, count // _TASK_BATCHES))))
    answers = numbers.map_batches(
        _Actor,
        fn_constructor_kwargs={
            "model": str(Path(model).absolute()),
            "data": str(path.absolute()) if path.exists() else resolved_spec(data),
            "options": options,
            "identity": json.dumps(job.identity()),
            "first": first,
        },
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(actors, count)),
        num_cpus=job.options.session_threads,
        num_gpus=None if job.options.provider == "cpu" else 1,
    )
    yield from answers.iter_rows()


class _Actor:
    """One session in a process of Ray's; every answer is plain data, an error included."""

    def __init__(self, model: str, data: str, options: PredictOptions, identity: str, first: int) -> None:
        self._first = first
        self._job: Job | None = None
        self._refusal: BnfoldError | None = None
        try:
            self._job = Job.open(model, data, options, options.provider)
            found = list(differences(json.loads(identity), json.loads(json.dumps(self._job.identity()))))
            if found:
                self._refusal = WorkerError(
                    f"an actor sees another job than the driver: {'; '.join(found)}; "
                    "give all nodes the same files and the same environment"
                )
        except BnfoldError as error:
            self._refusal = error

    def __call__(self, numbers: Mapping[str, Any]) -> Mapping[str, Any]:
        (number,) = numbers["id"].tolist()
        try:
            if self._refusal is not None:
                raise self._refusal
            assert self._job is not None
            scored = self._job.run(self._job.decode(self._job.read(number + self._first)))
        except BnfoldError as error:
            return _packed(number + self._first, error=error)
        return _packed(number + self._first, scored)


def _packed(number: int, scored: Scored | None = None, error: BnfoldError | None = None) -> Mapping[str, Any]:
    head: dict[str, Any] = {}
    content = b""
    if error is not None:
        head["error"] = [type(error).__name__, str(error)]
    if scored is not None:
        head = {
            "names": scored.names,
            "labels": None if scored.labels is None else scored.labels.tolist(),
            "dtype": scored.scores.dtype.str,
            "shape": scored.scores.shape,
            "failures": [asdict(failure) for failure in scored.failures],
        }
        content = np.ascontiguousarray(scored.scores).tobytes()
    return {"number": np.array([number]), "head": [json.dumps(head)], "scores": [content]}


def _unpacked(answer: Mapping[str, Any]) -> Scored:
    head = json.loads(answer["head"])
    if "error" in head:
        kind, message = head["error"]
        raise getattr(errors, kind)(message)
    return Scored(
        names=tuple(head["names"]),
        labels=None if head["labels"] is None else np.array(head["labels"], np.int64),
        scores=np.frombuffer(answer["scores"], np.dtype(head["dtype"])).reshape(head["shape"]),
        failures=tuple(Failure(**failure) for failure in head["failures"]),
    )
