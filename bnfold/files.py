"""Write files so that each one appears whole or not at all, and tell them apart by their bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bnfold.errors import OutputError

StrPath = str | os.PathLike[str]


def check_output_file(path: StrPath) -> Path:
    """Return the :class:`~pathlib.Path` of the file to write, links followed, if one can be created there.

    Call it before long work starts, so that a wrong path costs seconds rather than hours.

    Raises:
        OutputError: the path is a folder or a device, or its parent folder does not exist or cannot be written.
    """
    target = Path(path)
    if target.is_symlink():  # what it leads to is written, as any program would
        target = target.resolve()
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the path of a file to write")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} is not a regular file; give the path of a file to write")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"the folder {target.parent} cannot be written; choose another place")
    return target


@contextmanager
def output_folder(path: StrPath) -> Iterator[Path]:
    """Create the folder ``path``, parents included; where the block fails, those that it left empty are gone again.

    Raises:
        OutputError: the name is empty, a file of that name exists or the folder cannot be created.
    """
    if not os.fspath(path):
        raise OutputError("the name of the folder to write is empty; give one")
    folder = Path(path)
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the folder {folder} cannot be created: {_reason(error, folder)}") from error
        yield folder
    except BaseException:
        for place in made:
            with suppress(OSError):  # it is not empty, or was never made
                place.rmdir()
        raise


def _reason(error: OSError, folder: Path) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        odd = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
        return f"{odd} is {'a link to nothing' if odd.is_symlink() and not odd.exists() else 'no folder'}"
    return error.strerror or str(error)


@contextmanager
def staging_folder(target: StrPath) -> Iterator[Path]:
    """A hidden folder beside ``target``, for files that :func:`publish` then moves into place.

    It lies on the same file system, so that the move is atomic, and is removed at the end whatever happens.

    Raises:
        OutputError: the folder cannot be made, or a write inside the block failed (for example, a full disk).
    """
    destination = check_output_file(target)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise cannot_be_written(destination, error) from error


def cannot_be_written(target: StrPath, error: OSError) -> OutputError:
    """The error for what the system says of a write, which names what the user asked for, not how it is staged."""
    # numpy says only how many bytes of how many went through.
    full = error.strerror is None and "requested and" in str(error)
    return OutputError(f"{target} cannot be written: {'the disk is full' if full else error.strerror or error}")


def publish(source: Path, target: StrPath) -> None:
    """Move a finished file into place with one atomic rename, its bytes on disk first."""
    with source.open("rb") as stream:
        os.fsync(stream.fileno())
    if Path(target).exists():
        shutil.copymode(target, source)
    source.replace(target)


def sha256_of(*files: Path) -> str:
    """The SHA-256 of the files' bytes, one after the other as one stream.

    Raises:
        OSError: one cannot be read; the error names it.
    """
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def write_bytes(path: StrPath, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    target = check_output_file(path)
    with staging_folder(target) as folder:
        staged = folder / "content"
        staged.write_bytes(content)
        publish(staged, target)


def write_text(path: StrPath, content: str) -> None:
    """Write ``content`` to ``path`` atomically as UTF-8.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, content.encode(errors="backslashreplace"))  # a file's name may be no text


def write_json(path: StrPath, document: Any) -> None:
    """Write ``document`` to ``path`` atomically as indented JSON, with NaN and infinities refused.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json_text(document))


def json_text(document: Any) -> str:
    """``document`` as indented JSON, with NaN and infinities refused."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
