"""Keep the session busy: read and decode ahead of it in threads, and write behind it, none further than needed.

The caller's thread reads samples in order and takes results in order. ``workers`` threads decode. One thread runs the
session: ONNX Runtime spreads a run over threads of its own. At most ``workers + 2`` batches are on the way at any
time, so that memory does not grow with the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Raw = TypeVar("_Raw")
_Decoded = TypeVar("_Decoded")
_Result = TypeVar("_Result")


def pipelined(
    raw: Iterable[_Raw],
    decode: Callable[[_Raw], _Decoded],
    run: Callable[[_Decoded], _Result],
    workers: int,
    stop: Callable[[], None] = lambda: None,
) -> Generator[_Result, None, None]:
    """``run(decode(item))`` for each item, in order.

    An exception of any stage comes when its item's turn has come, after the results of all items before it.

    Args:
        raw: taken from in the caller's thread.
        decode: called in ``workers`` threads.
        run: called in one thread.
        workers: 0 runs all of it in the caller's thread, one step after the other.
        stop: makes the ``run`` that is going on fail; called where nobody wants further results, as after Ctrl-C.
    """
    if workers == 0:
        yield from (run(decode(item)) for item in raw)
        return
    decoders = ThreadPoolExecutor(workers, "bnfold-decode")
    runner = ThreadPoolExecutor(1, "bnfold-session")
    under_way: deque[Future[_Result]] = deque()
    items = iter(raw)

    def run_next(decoded: Future[_Decoded]) -> _Result:
        return run(decoded.result())

    def start_one() -> None:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:  # it waits for its turn, as those of the other stages do
            failed: Future[_Result] = Future()
            failed.set_exception(error)
            under_way.append(failed)
            return
        under_way.append(runner.submit(run_next, decoders.submit(decode, item)))

    try:
        for _ in range(workers + 2):
            start_one()
        while under_way:
            result = under_way.popleft().result()
            start_one()
            yield result
    except BaseException:
        stop()
        raise
    finally:
        # What is decoded no more lets the runner's waits end.
        decoders.shutdown(wait=False, cancel_futures=True)
        runner.shutdown(wait=True, cancel_futures=True)
        decoders.shutdown(wait=True)
