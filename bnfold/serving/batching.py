"""Join the requests of several clients into batches, and split the results again.

Requests wait in one queue, oldest first. Whichever session is idle takes the oldest, and with it all that fit: the
same sizes behind the batch dimension, and no more rows together than the model takes. It waits for more until the
oldest has waited for the model's queue delay. A batch that fails is run again request by request, so that one
client's data fail no other's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.serving.request import Request, RunError, UnavailableError

Feeds = Mapping[str, NDArray[Any]]
Values = dict[str, NDArray[Any]]
#: Runs one batch; called in a thread of its own.
Run = Callable[[Feeds], Values]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a request got.

    Attributes:
        values: the outputs by name.
        waited: seconds in the queue.
        rows: rows of the batch that it was run in.
    """

    values: Values
    waited: float
    rows: int


@dataclass(eq=False)
class _Waiting:
    request: Request
    answer: asyncio.Future[Answer]
    arrived: float = field(default_factory=time.monotonic)

    @property
    def sizes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple(sorted((name, values.shape[1:]) for name, values in self.request.feeds.items()))


class Batcher:
    """The queue of one model, and its sessions.

    Args:
        runs: one for each session; each is called in its own thread, one batch at a time.
        max_rows: rows of a batch at most; 1 or less never joins.
        delay: seconds that the oldest may wait for others.
        preferred: rows at which a batch goes without waiting for more.
        observe: told of each batch that was run: requests, rows, seconds.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        max_rows: int,
        delay: float,
        preferred: Sequence[int],
        observe: Callable[[int, int, float], None],
    ) -> None:
        self._queue: deque[_Waiting] = deque()
        self._max_rows, self._delay, self._preferred = max_rows, delay, frozenset(preferred)
        self._observe = observe
        self._arrival = asyncio.Event()
        self._collecting = asyncio.Lock()
        self._closed = False
        self._executors = [ThreadPoolExecutor(1, thread_name_prefix="session") for _ in runs]
        self._workers = [
            asyncio.create_task(self._work(run, executor)) for run, executor in zip(runs, self._executors, strict=True)
        ]

    async def submit(self, request: Request) -> Answer:
        """Run a request, alone or in a batch.

        Raises:
            RunError: the model failed on it.
            RequestError: ONNX Runtime says that the request's sizes contradict each other.
            UnavailableError: the model is being unloaded.
        """
        if self._closed:
            raise UnavailableError("the model is being unloaded")
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._arrival.set()
        return await waiting.answer

    async def close(self) -> None:
        """End the sessions' threads; whoever waits still is told that the model is gone."""
        self._closed = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for waiting in self._queue:
            if not waiting.answer.done():
                waiting.answer.set_exception(UnavailableError("the model is being unloaded"))
        self._queue.clear()
        for executor in self._executors:
            executor.shutdown(wait=False)

    async def _work(self, run: Run, executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._collecting:
                batch = await self._collect()
            started = time.monotonic()
            results = await loop.run_in_executor(executor, _run_batch, run, [waiting.request for waiting in batch])
            rows = sum(waiting.request.rows for waiting in batch)
            self._observe(len(batch), rows, time.monotonic() - started)
            for waiting, result in zip(batch, results, strict=True):
                if waiting.answer.done():  # its client has gone
                    continue
                if isinstance(result, BaseException):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result(Answer(result, started - waiting.arrived, rows))

    async def _collect(self) -> list[_Waiting]:
        """Take the next batch from the queue, once it is full or its oldest request has waited long enough."""
        while True:
            self._forget_the_gone()
            if self._queue:
                batch = self._joinable()
                rows = sum(waiting.request.rows for waiting in batch)
                left = self._queue[0].arrived + self._delay - time.monotonic()
                if left <= 0 or rows >= self._max_rows or rows in self._preferred:
                    taken = set(map(id, batch))
                    self._queue = deque(waiting for waiting in self._queue if id(waiting) not in taken)
                    return batch
            else:
                left = None
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                continue

    def _forget_the_gone(self) -> None:
        if any(waiting.answer.done() for waiting in self._queue):
            self._queue = deque(waiting for waiting in self._queue if not waiting.answer.done())

    def _joinable(self) -> list[_Waiting]:
        """The oldest request and, in their order, those that can join it."""
        oldest = self._queue[0]
        batch, rows = [oldest], oldest.request.rows
        for waiting in list(self._queue)[1:]:
            if rows >= self._max_rows:
                break
            if rows + waiting.request.rows <= self._max_rows and waiting.sizes == oldest.sizes:
                batch.append(waiting)
                rows += waiting.request.rows
        return batch


def _run_batch(run: Run, requests: Sequence[Request]) -> list[Values | BaseException]:
    """The outputs of each request, or what went wrong with it."""
    if len(requests) == 1:
        return [_run_one(run, requests[0])]
    feeds = {name: np.concatenate([request.feeds[name] for request in requests]) for name in requests[0].feeds}
    rows = [request.rows for request in requests]
    try:
        values = run(feeds)
    except Exception:
        return [_run_one(run, request) for request in requests]
    if any(array.ndim == 0 or len(array) != sum(rows) for array in values.values()):
        return [_run_one(run, request) for request in requests]
    ends = np.cumsum(rows)[:-1]
    parts = {name: np.split(array, ends) for name, array in values.items()}
    return [{name: parts[name][index] for name in parts} for index in range(len(requests))]


def _run_one(run: Run, request: Request) -> Values | BaseException:
    try:
        return run(request.feeds)
    except Exception as error:
        # A foreign exception is wrapped: it would carry the tensors of this frame in its traceback.
        known = type(error).__module__.startswith("bnfold")
        return error.with_traceback(None) if known else RunError(f"the model failed: {type(error).__name__}")
