"""Write to a model repository: each step leaves it serving one whole version.

A new version is written into a folder that nobody reads (:data:`STAGING_PREFIX`), flushed to disk, and renamed to its
number: it is there, and not served. Then ``NAME/config.pbtxt`` is replaced by the version's own copy, with one rename
of one file: from then on it is served. A rollback is that last step alone. Whatever ends the program in between leaves
the version that was served before, and at most a folder that the next deployment removes.

Those who write wait for each other by a lock on ``REPOSITORY/.bnfold.lock`` (``flock``, which ends with the process
that holds it, however that ends); those who read need none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bnfold.deployment.manifest import MANIFEST_FILE, FileRecord, Manifest, TensorSpec, is_model_name
from bnfold.deployment.repository import (
    CONFIG_FILE,
    STAGING_PREFIX,
    DeployedModel,
    ModelFolder,
    all_folders,
    edited_message,
    load_version,
    model_folder,
)
from bnfold.errors import OptionError, OutputError, RepositoryError
from bnfold.files import StrPath, cannot_be_written, output_folder, sha256_of, write_json

#: In the repository itself, where Triton looks at folders only.
LOCK_FILE = ".bnfold.lock"

#: How long to wait for another deployment, in seconds; one holds the lock while it copies files.
_PATIENCE = 60.0

#: Writes the files of a version into a folder, given its number, and returns the manifest without ``files``.
Fill = Callable[[Path, int], Manifest]


def check_name(name: str) -> None:
    """Require a name under which a model may be deployed.

    Raises:
        OptionError: it could lead elsewhere, or a server would not take it.
    """
    if not is_model_name(name):
        raise OptionError(
            f"{name!r} cannot name a model; use up to 128 letters, digits, dots, dashes and underscores of ASCII, "
            "the first of them a letter, a digit or an underscore (--name)"
        )


def check_place(repository: StrPath, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Require that a version with these inputs and outputs can go there, before long work starts.

    Raises:
        OutputError: the repository is a file, or cannot be written.
        RepositoryError: what is deployed there under that name takes or gives something else, is not bnfold's, or was
            changed by hand.
    """
    place = Path(repository)
    if place.exists() and not place.is_dir():
        raise OutputError(f"{place} is a file; give the folder of a model repository")
    if not place.exists():
        return
    home = place / name
    for folder in (place, home):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {folder} cannot be written; choose another repository")
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise RepositoryError(f"{home} is a file or a link; move it away, or choose another name with --name")
    if home.is_dir():
        try:
            found = model_folder(home)
        except OSError as error:
            raise RepositoryError(f"{error.filename or home} cannot be read: {error.strerror or error}") from error
        _check_fits(found, inputs, outputs)


def _check_fits(folder: ModelFolder, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    if folder.foreign and any(folder.path.iterdir()):
        raise RepositoryError(
            f"{folder.path} was not deployed by bnfold and is left alone; choose another name with --name"
        )
    if folder.edited:
        raise RepositoryError(edited_message(folder))
    if not folder.versions:
        return
    number = folder.served if folder.served is not None else max(folder.versions)
    try:
        deployed = load_version(folder, number).manifest
    except RepositoryError:
        return  # it is damaged: a new version is what helps
    for what, ours, theirs in (("inputs", inputs, deployed.inputs), ("outputs", outputs, deployed.outputs)):
        if _by_name(ours) != _by_name(theirs):
            raise RepositoryError(
                f"{folder.name} has the {what} {_listed(theirs)} in version {number}, and this model has "
                f"{_listed(ours)}; clients of one would fail on the other, so deploy it under another name with --name"
            )


def _by_name(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return sorted(specs, key=lambda spec: spec.name)


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) or "(none)"


def publish_version(repository: StrPath, name: str, fill: Fill) -> DeployedModel:
    """Add a version of a model to a repository, and serve it from now on.

    Raises:
        OptionError: the name cannot be used.
        OutputError: the repository cannot be written.
        RepositoryError: see :func:`check_place`.
    """
    check_name(name)
    with output_folder(repository) as place, _writing(place), _locked(place):
        home = place / name
        fresh = not home.exists()
        try:
            home.mkdir(exist_ok=True)
            _remove_leftovers(home)
            number = max(model_folder(home).taken, default=0) + 1
            with _staging(home) as staged:
                manifest = fill(staged, number)
                _check_fits(model_folder(home), manifest.inputs, manifest.outputs)
                _seal(staged, manifest)
                staged.rename(home / str(number))
            _flush(home)
            _serve(home, number)
        except BaseException:
            if fresh:
                _remove_leftovers(home)
                with contextlib.suppress(OSError):
                    home.rmdir()  # only if it is empty
            raise
        return load_version(model_folder(home), number)


def roll_back(repository: StrPath, name: str, version: int | None = None) -> tuple[int | None, DeployedModel]:
    """Serve another version that is still in the repository.

    Args:
        repository: the folder.
        name: the model's.
        version: which; None for the one before the one that is served.

    Returns:
        The version that was served, and what is served now.

    Raises:
        OptionError: the name cannot be used.
        OutputError: the repository cannot be written.
        RepositoryError: there is no such model or version, or that version is damaged.
    """
    check_name(name)
    place = Path(repository)
    folders = {folder.name: folder for folder in all_folders(place)}
    if name not in folders:
        known = ", ".join(folders) or "no model"
        raise RepositoryError(f"{place} has no model {name}; it has {known}")
    with _writing(place), _locked(place):
        folder = model_folder(folders[name].path)
        target = _target(folder, version)
        model = load_version(folder, target)
        _serve(folder.path, target)
    return folder.served, model


def _target(folder: ModelFolder, version: int | None) -> int:
    listed = ", ".join(map(str, folder.versions)) or "none"
    if version is not None:
        if version not in folder.versions:
            raise RepositoryError(f"{folder.path} has no version {version}; it has {listed}")
        return version
    if folder.served is None:
        raise RepositoryError(f"{folder.path} serves no version of bnfold's; say which to serve with --to ({listed})")
    earlier = [number for number in folder.versions if number < folder.served]
    if not earlier:
        raise RepositoryError(
            f"{folder.path} serves version {folder.served}, and there is none before it to go back to; it has {listed}"
        )
    return max(earlier)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = Path(error.filename2 or error.filename or place)  # what a file is copied or renamed to comes second
        staged = any(part.startswith(STAGING_PREFIX) for part in where.parts)
        raise cannot_be_written(place if staged else where, error) from error
    except OutputError as error:  # who writes a file knows of the staging folder only
        if isinstance(error.__cause__, OSError):
            raise cannot_be_written(place, error.__cause__) from error
        raise


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with (place / LOCK_FILE).open("ab") as stream:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OutputError(
                        f"another deployment is writing to {place}; try again when it has ended"
                    ) from None
                time.sleep(0.05)
        yield


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    staged = home / f"{STAGING_PREFIX}{secrets.token_hex(4)}"
    staged.mkdir()  # unlike that of tempfile, of the mode that the user's umask says: a server is another user
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # after the rename there is nothing of that name


def _remove_leftovers(home: Path) -> None:
    for leftover in home.glob(f"{STAGING_PREFIX}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _seal(staged: Path, manifest: Manifest) -> None:
    """Write the manifest with the hashes of all files, and bring everything to disk."""
    files = sorted(file for file in staged.rglob("*") if file.is_file())
    records = {file.relative_to(staged).as_posix(): FileRecord(file.stat().st_size, sha256_of(file)) for file in files}
    write_json(staged / MANIFEST_FILE, replace(manifest, files=records).to_json())
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    for folder in (*(entry for entry in staged.rglob("*") if entry.is_dir()), staged):
        _flush(folder)


def _serve(home: Path, version: int) -> None:
    """The step that counts: one rename of one file."""
    staged = home / f"{STAGING_PREFIX}{secrets.token_hex(4)}"
    try:
        shutil.copyfile(home / str(version) / CONFIG_FILE, staged)
        with staged.open("rb") as stream:
            os.fsync(stream.fileno())
        staged.replace(home / CONFIG_FILE)
    finally:
        staged.unlink(missing_ok=True)
    _flush(home)


def _flush(folder: Path) -> None:
    """Bring the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
