"""A candidate's process, as its parent sees it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bnfold import errors
from bnfold.errors import BnfoldError, WorkerError

_COMMAND = (sys.executable, "-P", "-m", "bnfold.benchmarking.worker")

#: What a worker may report; anything else would be a fault of the protocol.
_REPORTABLE = {
    kind.__name__: kind
    for kind in (
        errors.ModelError,
        errors.InputError,
        errors.ProviderError,
        errors.MissingExtraError,
        errors.WorkerError,
    )
}

#: The longest single wait for an answer, in seconds; others follow. The system counts milliseconds in an int.
_WAIT = 3600.0

#: The longest wait for a process' threads to stop, in seconds; left to spin, they take about 0.05.
_QUIET_LIMIT = 0.25

#: The wait where the state of a process' threads cannot be read, in seconds.
_BLIND_PAUSE = 0.005


class Worker:
    """One process with one candidate. Use it as a context manager: leaving it kills the process.

    Between two requests the process can be put to :meth:`rest`: it is stopped by a signal, so that ONNX Runtime's
    idle threads, which spin for some 50 ms before they sleep, take no core from whoever runs next. Should the
    parent be killed meanwhile, the kernel ends the process: its group, which is its own, is then orphaned.

    Args:
        label: what to call the candidate in an error.
        timeout: the longest to wait for an answer, in seconds; a process that takes longer is killed.
    """

    def __init__(self, label: str, timeout: float = math.inf) -> None:
        self.label = label
        self._timeout = timeout
        self._resting = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Away from the terminal's Ctrl-C, which is for the parent to act on.
            process_group=0,
            # numpy only makes the inputs: its own thread pool would be so many idle threads.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process' id."""
        return self._process.pid

    def close(self) -> None:
        """Kill the process, whatever it is doing, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # a request that the process did not live to read
                stream.close()
        self._log.close()

    def ask(self, doing: str, request: dict[str, Any], idle: float = 0.0) -> dict[str, Any]:
        """Send a request, waking the process if it rests, and return the answer.

        Args:
            doing: what the worker is asked to do, in words, for an error: "creating its session".
            request: see :mod:`bnfold.benchmarking.worker`.
            idle: how much of its time it may spend waiting, in seconds, which counts for no timeout.

        Raises:
            BnfoldError: what the worker reported; its message names the candidate.
            WorkerError: the process failed, was killed, or did not answer in time.
        """
        assert self._process.stdin is not None
        if self._resting:
            self._process.send_signal(signal.SIGCONT)
            self._resting = False
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death(doing) from None
        return self.answer(doing, idle)

    def answer(self, doing: str, idle: float = 0.0) -> dict[str, Any]:
        """Wait for the next answer; raises as :meth:`ask` does."""
        line = self._line(time.monotonic() + self._timeout + idle)
        if line is None:
            self._process.kill()
            raise WorkerError(
                f"{self.label} gave no answer within {self._timeout + idle:.4g} s while {doing}, and its process was "
                "ended; allow more with --timeout, if it is only slow"
            )
        if not line.endswith(b"\n"):
            raise self._death(doing)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._reported(answer)
        return answer

    def _line(self, deadline: float) -> bytes | None:
        """What the process writes up to a line's end, or up to its own; None if the deadline passes before."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(output, select.POLLIN)
        pieces: list[bytes] = []
        while not (pieces and pieces[-1].endswith(b"\n")):
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if not poll.poll(math.ceil(1000 * min(left, _WAIT))):
                continue
            piece = os.read(output, 1 << 16)
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces)

    def _reported(self, answer: dict[str, Any]) -> BnfoldError:
        message = str(answer["message"])
        kind = _REPORTABLE[answer["error"]]
        # What the machine lacks is nothing that the candidate is to blame for.
        if not issubclass(kind, errors.SetupError) and self.label not in message:
            message = f"{self.label}: {message}"
        return kind(message)

    def _death(self, doing: str) -> WorkerError:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
            return WorkerError(f"the process of {self.label} was killed by {name} while {doing}{hint}")
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        why = f": {lines[-1]}" if lines else ""
        return WorkerError(f"the process of {self.label} ended with exit code {code} while {doing}{why}")

    def rest(self) -> float:
        """Stop the process until its next request, and return how long its threads took to stop, in seconds."""
        started = time.monotonic()
        self._process.send_signal(signal.SIGSTOP)
        self._resting = True
        if not Path("/proc/self/task").is_dir():
            time.sleep(_BLIND_PAUSE)
            return _BLIND_PAUSE
        while (waited := time.monotonic() - started) < _QUIET_LIMIT:
            if "R" not in thread_states(self.pid):
                break
            time.sleep(0.0005)
        return waited


def thread_states(pid: int) -> str:
    """The state of each thread of a process as Linux names it: R runs, S sleeps, T is stopped; empty if it is gone."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            text = stat.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread ended meanwhile
        states.append(text.rpartition(")")[2].split()[0])
    return "".join(states)
