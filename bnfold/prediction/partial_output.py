"""An output that grows while rows are made, survives a kill at any moment, and appears under its name when it is whole.

While a job runs, its rows lie in the folder ``OUT.partial``::

    job.json         what the job is: model, data, options, versions
    rows             the rows so far; beyond what state.json says, possibly torn
    skipped          likewise, the samples without a prediction
    state.json       how far both files are to be believed, replaced with one rename
    lock             held by the process that writes

Each second the files are brought to the disk and ``state.json`` says so. Who resumes cuts the files back to that, and
goes on with the first batch that it does not count: no row twice, none lost.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bnfold.errors import InputError, OutputError
from bnfold.files import check_output_file, publish
from bnfold.prediction.images import Failure
from bnfold.prediction.rows import Encoder, Prediction, finished_file

_COMMIT_SECONDS = 1.0

#: What a partial output may hold, in the order in which it is removed: a kill in between leaves what is understood.
#: Nothing else is ever removed.
_OWN_FILES = ("rows", "skipped", "finished", "staged", "job.json", "state.json", "lock")


@dataclass(frozen=True)
class Tally:
    """How far a job has come.

    Attributes:
        batches: whole batches whose rows are written.
        rows: rows written.
        skipped: samples without a row.
        labelled: rows with a known label.
        correct: of these, those whose best class is their label.
        correct_top: of these, those with their label among the best classes that were asked for.
    """

    batches: int = 0
    rows: int = 0
    skipped: int = 0
    labelled: int = 0
    correct: int = 0
    correct_top: int = 0

    def after(self, predictions: Sequence[Prediction], skipped: int) -> Tally:
        """The tally after one more batch."""
        known = [row for row in predictions if row.label is not None]
        return Tally(
            self.batches + 1,
            self.rows + len(predictions),
            self.skipped + skipped,
            self.labelled + len(known),
            self.correct + sum(row.predicted == row.label for row in known),
            self.correct_top
            + sum(row.label in ([ranked.predicted for ranked in row.top] or [row.predicted]) for row in known),
        )


@dataclass(frozen=True)
class _State:
    """What ``state.json`` says."""

    tally: Tally = field(default_factory=Tally)
    row_bytes: int = 0
    skipped_bytes: int = 0
    complete: bool = False

    @staticmethod
    def read(file: Path) -> _State:
        document = json.loads(file.read_bytes())
        return _State(
            Tally(**{name: int(value) for name, value in document["tally"].items()}),
            int(document["row_bytes"]),
            int(document["skipped_bytes"]),
            bool(document["complete"]),
        )


def partial_folder(output: Path) -> Path:
    """Where the partial output of ``output`` lies."""
    return output.with_name(f"{output.name}.partial")


def skipped_file(output: Path) -> Path:
    """Where the samples without a prediction are listed, if there are any: ``out.csv.skipped.jsonl``."""
    return output.with_name(f"{output.name}.skipped.jsonl")


class PartialOutput:
    """The output of one job, open for writing; a context that keeps what was written when it ends with an error."""

    def __init__(self, output: Path, job: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Begin the output, or go on with it.

        Args:
            output: the file to appear at the end.
            job: what the job is, as plain data; one that is resumed must be the same.
            resume: whether to go on with what is there.
            overwrite: whether to discard what is there.

        Raises:
            OutputError: there is a partial output and it is neither to be resumed nor discarded, another process
                writes it, or the folder cannot be written.
            InputError: the partial output is of another job.
        """
        self.output = check_output_file(output)
        self._folder = partial_folder(self.output)
        self._lock: IO[bytes] | None = None
        self._files: list[IO[bytes]] = []
        self._committed = time.monotonic()
        self._state = _State()
        try:
            self._state = self._begin(job, resume=resume, overwrite=overwrite)
            if not self._state.complete:
                self._open("rows", self._state.row_bytes)
                self._open("skipped", self._state.skipped_bytes)
        except OSError as error:
            self._close()
            raise self._unwritable(error) from error
        except BaseException:
            self._close()
            raise

    @property
    def tally(self) -> Tally:
        """How far the job has come, what is not on the disk yet included."""
        return self._state.tally

    @property
    def complete(self) -> bool:
        """Whether every row is there already, and only :meth:`finish` is left."""
        return self._state.complete

    def _begin(self, job: Mapping[str, Any], *, resume: bool, overwrite: bool) -> _State:
        there = (self._folder / "job.json").exists()
        if not there and self._folder.exists() and not self._is_own():
            raise OutputError(
                f"{self._folder} is in the way, and not an earlier run's output; move it, or write elsewhere"
            )
        if there and not (resume or overwrite):
            raise OutputError(
                f"{self._folder} holds an earlier run's rows; go on with it (--resume) or discard it (--overwrite)"
            )
        self._folder.mkdir(exist_ok=True)
        self._take_lock()
        if there and overwrite:
            self._remove(*(name for name in _OWN_FILES if name != "lock"))
        record = self._folder / "job.json"
        if not record.exists():  # a new folder, or a kill between its making and this
            self._replace("state.json", asdict(_State()))
            self._replace("job.json", job)
            return _State()
        try:
            earlier, state = json.loads(record.read_bytes()), _State.read(self._folder / "state.json")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._folder} is damaged; discard it (--overwrite)") from error
        found = list(differences(earlier, json.loads(json.dumps(job))))
        if found:
            raise InputError(
                f"{self._folder} is of another job: {'; '.join(found)}; "
                "go on as it was begun, or discard it (--overwrite)"
            )
        return state

    def _is_own(self) -> bool:
        return self._folder.is_dir() and {file.name for file in self._folder.iterdir()} <= {*_OWN_FILES}

    def _take_lock(self) -> None:
        self._lock = (self._folder / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{self._folder} is being written by another process; wait for it, or end it") from error

    def _open(self, name: str, length: int) -> None:
        file = self._folder / name
        stream = file.open("ab")
        self._files.append(stream)
        if stream.tell() < length:
            raise InputError(f"{file} is shorter than it was; discard the folder (--overwrite)")
        stream.truncate(length)
        stream.seek(length)

    def _remove(self, *names: str) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def write(self, encoder: Encoder | None, predictions: Sequence[Prediction], failures: Sequence[Failure]) -> None:
        """Append the rows of one batch.

        Args:
            encoder: how rows are written; None for a batch of which nothing was predicted.
            predictions: its rows.
            failures: its samples without one.

        Raises:
            OutputError: the disk is full, or cannot be written for another reason.
        """
        rows, skipped = self._files
        content = b""
        if encoder is not None:
            content = (b"" if self._state.tally.rows else encoder.header()) + encoder.rows(predictions)
        told = b"".join(json.dumps(asdict(failure)).encode() + b"\n" for failure in failures)
        try:
            rows.write(content)
            skipped.write(told)
            self._state = replace(
                self._state,
                tally=self._state.tally.after(predictions, len(failures)),
                row_bytes=self._state.row_bytes + len(content),
                skipped_bytes=self._state.skipped_bytes + len(told),
            )
            if time.monotonic() - self._committed >= _COMMIT_SECONDS:
                self._commit()
        except OSError as error:
            raise self._unwritable(error) from error

    def _commit(self) -> None:
        """Bring what was written to the disk, then say so."""
        for stream in self._files:
            stream.flush()
            os.fsync(stream.fileno())
        self._replace("state.json", asdict(self._state))
        self._committed = time.monotonic()

    def _replace(self, name: str, document: Any) -> None:
        """Write one of the two records: the old one or the new one is there at any moment."""
        staged = self._folder / "staged"
        with staged.open("w", encoding="utf-8") as stream:
            json.dump(document, stream)
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(self._folder / name)

    def finish(self) -> Path:
        """Put the whole output in its place, and return it.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            if not self._state.complete:
                self._state = replace(self._state, complete=True)
                self._commit()
            rows = self._folder / "rows"
            if rows.exists():  # else they are in their place already, and a kill came before the end of this function
                finished = finished_file(self.output.suffix, rows)
                self._publish_skipped()
                publish(finished, self.output)
            self._remove(*_OWN_FILES)
            self._folder.rmdir()
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._close()
        return self.output

    def _publish_skipped(self) -> None:
        """The list of this job's skipped samples; one of an earlier output goes."""
        staged, target = self._folder / "skipped", skipped_file(self.output)
        if self._state.tally.skipped and staged.exists():
            publish(staged, target)
        elif not self._state.tally.skipped:
            target.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> OutputError:
        remedy = "; mend that, then go on with --resume" if self._state.tally.rows else ""
        return OutputError(f"{self.output} cannot be written: {error.strerror or error}{remedy}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._files:
            with suppress(OSError):  # the state before is still there, and the first error is the one to tell
                self._commit()
            if not self._state.tally.rows:  # nothing to go on with
                with suppress(OSError):
                    self._remove(*_OWN_FILES)
                    self._folder.rmdir()
        self._close()

    def _close(self) -> None:
        for stream in (*self._files, self._lock):
            if stream is not None:
                with suppress(OSError):  # a full disk cannot take what is left in the buffer
                    stream.close()
        self._files, self._lock = [], None


_SAID = {"model": "the model", "data": "the data", "options": "the option", "versions": "the version of"}


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """In which way two jobs differ, each as the part of a sentence; both as they are read from JSON."""
    for part, label in _SAID.items():
        before, after = earlier.get(part, {}), now[part]
        if part in ("model", "data"):
            if before != after:
                counts = [record.get("samples") for record in (before, after)]
                told = f" ({counts[0]} samples then, {counts[1]} now)" if counts[0] != counts[1] else ""
                yield f"{label} is another{told}"
            continue
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                yield f"{label} {name} was {_shown(before.get(name))} and is {_shown(after.get(name))}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
