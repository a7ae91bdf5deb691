"""Read a model repository that ``bnfold deploy`` wrote::

    REPOSITORY/NAME/config.pbtxt        the version that is served: Triton's configuration, which names it
    REPOSITORY/NAME/VERSION/            one version, never changed after it is there
        model.onnx                      and model.onnx.data, where the weights are a file of their own
        config.pbtxt                    what NAME/config.pbtxt is while this version is served
        manifest.json                   see :mod:`bnfold.deployment.manifest`
        labels.txt, model.onnx.preprocessing.json, golden.npz, fold_report.json, inferenceservice.yaml, not-portable/

**What is served is the version whose own ``config.pbtxt`` NAME/config.pbtxt is a copy of**, byte for byte. Its
``version_policy`` names that version alone, so that Triton reads the repository in the same way. One rename of one file
is therefore all that turns a repository from one version to another, settings and labels included, and there is no
moment at which it is between the two.

Nothing is read through a link that leads out of the repository, and nothing whose size or hash is not the manifest's.
The hashes find damage and mistakes; whoever can write to the repository can write a manifest that fits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bnfold.deployment.manifest import (
    MANIFEST_FILE,
    DynamicBatching,
    InvalidManifestError,
    Manifest,
    Serving,
    TensorSpec,
)
from bnfold.errors import RepositoryError
from bnfold.files import StrPath, sha256_of

__all__ = [
    "DeployedModel",
    "DynamicBatching",
    "ModelFolder",
    "Serving",
    "TensorSpec",
    "all_folders",
    "load_version",
    "model_folders",
    "read_repository",
    "warnings_of",
]

CONFIG_FILE = "config.pbtxt"

#: Names of folders that are being written. Triton takes every name that begins with a digit for a version's, and no
#: other.
STAGING_PREFIX = ".deploying-"

_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

#: A manifest or a configuration is a few kilobytes; what is larger than this is neither.
_LARGEST_TEXT = 16 << 20


@dataclass(frozen=True)
class DeployedModel:
    """A version of a model, its files checked against their hashes.

    Attributes:
        folder: the version's.
        manifest: what it says of itself.
        labels: the name of each class of the first output; empty where unknown.
        digest: the SHA-256 of the manifest, which holds those of all other files.
    """

    folder: Path
    manifest: Manifest
    labels: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The version, from 1 on."""
        return self.manifest.version

    @property
    def model(self) -> Path:
        """The portable ONNX file."""
        return self.folder / self.manifest.model

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in the model's order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in the model's order."""
        return self.manifest.outputs

    @property
    def serving(self) -> Serving:
        """How it is to be run."""
        return self.manifest.serving

    @property
    def golden(self) -> Path | None:
        """The golden file; see :func:`bnfold.deployment.golden.golden_pair`."""
        return None if self.manifest.golden is None else self.folder / self.manifest.golden

    @property
    def preprocessing(self) -> Path | None:
        """The file that says how an image becomes the input; see :mod:`bnfold.prediction.preprocessing`."""
        return None if self.manifest.preprocessing is None else self.folder / self.manifest.preprocessing


@dataclass(frozen=True)
class ModelFolder:
    """What lies under a model's name; nothing of it is checked yet but which version is served.

    Attributes:
        path: the folder.
        versions: those that bnfold deployed, and the one that is served, rising.
        taken: every number that a folder has, whoever made it.
        served: the one that is served; None where there is none.
        leftovers: what interrupted deployments left; they are never read.
        edited: whether the configuration is none that bnfold wrote for one of the versions.
        foreign: whether bnfold deployed nothing here.
    """

    path: Path
    versions: tuple[int, ...]
    taken: tuple[int, ...]
    served: int | None
    leftovers: tuple[Path, ...]
    edited: bool
    foreign: bool

    @property
    def name(self) -> str:
        """The model's name."""
        return self.path.name


def read_repository(path: StrPath) -> tuple[DeployedModel, ...]:
    """The version that is served of every model in a repository, sorted by name.

    What is in the repository and is none of them is told by :func:`warnings_of`.

    Raises:
        RepositoryError: the path is no repository, a file is missing or is not what was deployed, a configuration was
            changed by hand, or a link leads out of the repository.
    """
    return tuple(load_version(folder, folder.served) for folder in model_folders(path) if folder.served is not None)


def warnings_of(path: StrPath) -> tuple[str, ...]:
    """What is in a repository and is not served, each as a sentence without its full stop.

    Raises:
        RepositoryError: see :func:`model_folders`.
    """
    return tuple(sentence for folder in all_folders(path) for sentence in _warnings(folder))


def _warnings(folder: ModelFolder) -> Iterator[str]:
    if folder.edited:
        yield edited_message(folder)
    elif folder.foreign:
        yield f"{folder.path} was not deployed by bnfold and is left alone"
    elif folder.served is None:
        yield f"{folder.path} serves nothing: it has no {CONFIG_FILE}, as after an interrupted deployment; deploy again"
    for leftover in folder.leftovers:
        yield f"{leftover} is of a deployment that runs now or was interrupted; the next one of this model removes it"


def model_folders(path: StrPath) -> tuple[ModelFolder, ...]:
    """Every model's folder in a repository, sorted by name.

    Raises:
        RepositoryError: the path is no folder, cannot be read, a configuration was changed by hand, or a link leads
            out of the repository.
    """
    folders = all_folders(path)
    for folder in folders:
        if folder.edited:
            raise RepositoryError(edited_message(folder))
    return folders


def all_folders(path: StrPath) -> tuple[ModelFolder, ...]:
    """The same, content with a configuration that was changed by hand.

    Raises:
        RepositoryError: see :func:`model_folders`.
    """
    repository = Path(path)
    if not repository.is_dir():
        what = "is a file" if repository.exists() else "does not exist"
        raise RepositoryError(f"{repository} {what}; give the folder of a model repository")
    try:
        entries = sorted(entry for entry in repository.iterdir() if entry.is_dir())
        return tuple(model_folder(entry) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise RepositoryError(f"{error.filename or repository} cannot be read: {error.strerror or error}") from error


def edited_message(folder: ModelFolder) -> str:
    """What to tell of a configuration that was changed by hand."""
    newest = max(folder.versions)
    return (
        f"{folder.path / CONFIG_FILE} is not what bnfold wrote for any version there; `bnfold deploy --rollback "
        f"{folder.name} {folder.path.parent} --to {newest}` writes that of a version, and settings are options of "
        "bnfold deploy"
    )


def model_folder(path: Path) -> ModelFolder:
    """What lies in a model's folder.

    Raises:
        RepositoryError: a link leads out of it.
        OSError: it cannot be read.
    """
    _require_inside(path, path.parent)
    text = _config(path)  # before the versions: one that it names is there before it is named
    entries = sorted(path.iterdir())
    taken = sorted(int(entry.name) for entry in entries if _VERSION_NAME.fullmatch(entry.name))
    versions = {number for number in taken if (path / str(number) / MANIFEST_FILE).is_file()}
    leftovers = tuple(entry for entry in entries if entry.name.startswith(STAGING_PREFIX))
    served = None
    if text is not None:
        served = next((number for number in reversed(taken) if _config(path / str(number)) == text), None)
    if served is not None:
        versions.add(served)  # also where its manifest is lost: that is damage, and no configuration of somebody else
    return ModelFolder(
        path=path,
        versions=tuple(sorted(versions)),
        taken=tuple(taken),
        served=served,
        leftovers=leftovers,
        edited=text is not None and served is None and bool(versions),
        foreign=not versions and (text is not None or bool(taken) or not leftovers),
    )


def _config(folder: Path) -> bytes | None:
    """The configuration in a model's folder or a version's; None where there is none."""
    config = folder / CONFIG_FILE
    if not config.is_file():
        return None
    _require_inside(config, folder)
    return _small_file(config)


def load_version(folder: ModelFolder, version: int) -> DeployedModel:
    """One version of a model, every file of it held against its hash.

    Raises:
        RepositoryError: a file is missing, is not what was deployed, or lies outside of the folder.
    """
    home = folder.path / str(version)
    try:
        return _load(folder.name, version, home)
    except OSError as error:
        raise RepositoryError(f"{error.filename or home} cannot be read: {error.strerror or error}") from error


def _load(name: str, version: int, home: Path) -> DeployedModel:
    _require_inside(home, home.parent)
    _require_inside(home / MANIFEST_FILE, home)
    text = _small_file(home / MANIFEST_FILE)
    try:
        manifest = Manifest.from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RepositoryError(f"{home / MANIFEST_FILE} is damaged: it is no JSON; deploy the model again") from error
    except InvalidManifestError as error:
        raise RepositoryError(f"{home / MANIFEST_FILE} cannot be used: {error}") from error
    if (manifest.name, manifest.version) != (name, version):
        raise RepositoryError(
            f"{home} holds version {manifest.version} of {manifest.name}, which was deployed elsewhere; "
            "do not rename folders, deploy the model under this name"
        )
    _check_files(home, manifest)
    labels = () if manifest.labels is None else _labels(home / manifest.labels)
    return DeployedModel(home, manifest, labels, hashlib.sha256(text).hexdigest())


def _check_files(home: Path, manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        file = home / name
        _require_inside(file, home)
        if not file.is_file():
            raise RepositoryError(f"{file} is missing, and the manifest beside it names it; deploy the model again")
        if file.stat().st_size != record.size or sha256_of(file) != record.sha256:
            raise RepositoryError(
                f"{file} is not the file that was deployed: its SHA-256 is not the manifest's; deploy the model again, "
                "or roll back"
            )


def _labels(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{file} is not text in UTF-8; deploy the model again") from error


def _require_inside(path: Path, folder: Path) -> None:
    """Links are followed as long as they stay in the folder, as those of a mounted volume do."""
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except RuntimeError as error:  # so pathlib tells, before Python 3.13, of links that go round in a circle
        raise RepositoryError(f"{path} is a link to itself; put the file itself there") from error
    if not inside:
        raise RepositoryError(f"{path} is a link that leads out of {folder}; put the files themselves there")


def _small_file(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST_TEXT:
        raise RepositoryError(f"{path} is {path.stat().st_size} bytes long, and none that bnfold wrote")
    return path.read_bytes()
