"""The folder of a run while it is trained: one process at a time, and nothing left over from a killed one."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.training.run import CHECKPOINT_FILE, CURVES_FILE, METRICS_FILE, RUN_FILE, WEIGHTS_FILE

#: All files of a run; the first says that there is one, so that it goes first and comes last.
FILES = (RUN_FILE, WEIGHTS_FILE, METRICS_FILE, CURVES_FILE, CHECKPOINT_FILE)


@contextmanager
def claimed_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training in ``folder``, and remove what a killed one was writing.

    The system gives the folder up when the process ends, however it ends.

    Raises:
        OutputError: another process trains there, or the folder cannot be used.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be opened: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another process is training in {folder}; wait for it, or choose another folder"
            ) from error
        except OSError:
            pass  # a file system without locks on folders
        for name in FILES:
            for leftover in folder.glob(f".{name}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def clear_folder(folder: Path) -> None:
    """Remove the files of an earlier run.

    Raises:
        OutputError: one cannot be removed.
    """
    for name in FILES:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{folder / name} cannot be removed: {error.strerror or error}") from error
