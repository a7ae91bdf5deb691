"""``deploy()``: look at a model, prove it, measure it, and add it to a model repository."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from bnfold.deployment.cold_start import ColdStart, measure_cold_starts
from bnfold.deployment.kserve_manifest import inference_service
from bnfold.deployment.machine_format import FOLDER, this_machine, write_machine_file
from bnfold.deployment.manifest import MachineFile, Manifest, Serving
from bnfold.deployment.options import DeployOptions
from bnfold.deployment.portability import check_portable, check_readable
from bnfold.deployment.preparation import (
    MODEL_FILE,
    Prepared,
    default_name,
    labels_of,
    prepare,
    preprocessing_of,
    serving_of,
)
from bnfold.deployment.proof import GOLDEN_FILE, Proofs, check_machine_file, prove
from bnfold.deployment.publishing import check_name, check_place, publish_version
from bnfold.deployment.repository import CONFIG_FILE, DeployedModel
from bnfold.deployment.triton_config import LABELS_FILE, TritonModel, config_text, require_triton
from bnfold.errors import OutputError
from bnfold.files import StrPath, sha256_of, write_json
from bnfold.fold.report import FoldReport
from bnfold.model_file import files_of, load_model
from bnfold.optimizer import inspect
from bnfold.prediction.preprocessing import Preprocessing, write_sidecar
from bnfold.progress import Progress, silent
from bnfold.sidecar import sidecar_file
from bnfold.verification.versions import versions

REPORT_FILE = "fold_report.json"
SERVICE_FILE = "inferenceservice.yaml"


@dataclass(frozen=True, eq=False)
class DeployResult:
    """What :func:`deploy` did.

    Attributes:
        model: what is served now; None where a proof failed, and nothing was written.
        proofs: what was proven of it.
        cold_starts: by the file's path in the version's folder.
        warnings: each a sentence without its full stop.
    """

    model: DeployedModel | None
    proofs: Proofs
    cold_starts: Mapping[str, ColdStart] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "deployed": None if self.model is None else deployed_json(self.model),
            "verification": self.proofs.to_json(),
            "cold_starts": {path: start.to_json() for path, start in self.cold_starts.items()},
            "warnings": list(self.warnings),
        }


def deployed_json(model: DeployedModel) -> dict[str, Any]:
    """A deployed version as plain data."""
    return {"folder": str(model.folder), "digest": model.digest, "manifest": model.manifest.to_json()}


@dataclass(frozen=True, eq=False)
class _Draft:
    """All of a version but its number."""

    name: str
    source: Path
    digest: str
    prepared: Prepared
    serving: Serving
    labels: tuple[str, ...]
    preprocessing: Preprocessing | None
    report: FoldReport
    proofs: Proofs
    machine_file: MachineFile | None
    cold_starts: Mapping[str, ColdStart]
    options: DeployOptions

    def write(self, work: Path, folder: Path, version: int) -> Manifest:
        """Write the version's files, the model's copied from ``work``, and return its manifest."""
        prepared, options = self.prepared, self.options
        for entry in work.iterdir():  # not the folder itself, whose mode keeps others out
            if entry.is_dir():
                shutil.copytree(entry, folder / entry.name)
            else:
                shutil.copy(entry, folder)
        config = TritonModel(
            name=self.name,
            version=version,
            model_file=MODEL_FILE,
            inputs=prepared.inputs,
            outputs=prepared.outputs,
            serving=self.serving,
            has_labels=bool(self.labels),
            sizes=prepared.sizes,
            engine_cache=_engine_folder(options.engine_cache, self.name, work),
        )
        peak = self.cold_starts[MODEL_FILE].peak_bytes
        texts = {
            CONFIG_FILE: config_text(config),
            SERVICE_FILE: inference_service(self.name, self.serving, peak, options.storage_uri),
            **({LABELS_FILE: "".join(f"{label}\n" for label in self.labels)} if self.labels else {}),
        }
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        if self.preprocessing is not None:
            write_sidecar(folder / MODEL_FILE, self.preprocessing)
        inspected = Path(options.original or self.source).name
        write_json(folder / REPORT_FILE, {"model": inspected, **self.report.to_json()})
        return self._manifest(version)

    def _manifest(self, version: int) -> Manifest:
        return Manifest(
            name=self.name,
            version=version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=MODEL_FILE,
            inputs=self.prepared.inputs,
            outputs=self.prepared.outputs,
            serving=self.serving,
            files={},
            labels=LABELS_FILE if self.labels else None,
            preprocessing=None if self.preprocessing is None else sidecar_file(MODEL_FILE).name,
            golden=GOLDEN_FILE if self.proofs.verified else None,
            machine_file=self.machine_file,
            verification=self.proofs.to_json(),
            cold_start={path: start.to_json() for path, start in self.cold_starts.items()},
            source={"file": self.source.name, "sha256": self.digest},
            tools=versions(),
        )


def deploy(
    model: StrPath, repository: StrPath, options: DeployOptions | None = None, progress: Progress = silent
) -> DeployResult:
    """Add a model to a Triton model repository as its newest version, and serve that from now on.

    The model is run on the CPU, held against its own evaluation in float64 and against its original if one is given,
    and its sessions are timed; only then is anything written. See :mod:`bnfold.deployment.repository` for what, and
    :mod:`bnfold.deployment.publishing` for how.

    Args:
        model: an ONNX file.
        repository: the folder of the repository; it is made if it does not exist.
        options: see :class:`~bnfold.deployment.options.DeployOptions`.
        progress: told of each stage's progress.

    Returns:
        What is served now; where a proof failed, nothing was written and ``model`` is None.

    Raises:
        ModelError: the model cannot be loaded or run, or is not portable.
        OptionError: the options contradict the model.
        DataError: the labels cannot be read or do not fit.
        RepositoryError: what is deployed under that name takes something else, or is not bnfold's.
        OutputError: the repository cannot be written.
        MissingExtraError: the extra ``triton`` or ``cpu`` is not installed.
    """
    options = options or DeployOptions()
    source = Path(model)
    name = default_name(source) if options.name is None else options.name
    check_name(name)
    require_triton()
    loaded = load_model(source)
    digest = sha256_of(*files_of(loaded, source))
    warnings = _portability(loaded, source, options)
    with _work_folder() as work:
        prepared = prepare(loaded, source, work, options.shapes)
        serving = serving_of(prepared, options)
        preprocessing = preprocessing_of(loaded, source)
        labels = labels_of(prepared, source, options.labels)
        check_place(repository, name, prepared.inputs, prepared.outputs)
        own_report = inspect(source)
        report = own_report if options.original is None else inspect(options.original)
        warnings += (*_foldable(own_report, source), *_one_by_one(prepared))
        proofs = prove(prepared, work, options, progress) if options.verify else Proofs()
        if proofs.failed:
            return DeployResult(None, proofs, warnings=warnings)
        machine_file = _machine_file(prepared, work, options)
        cold_starts = _cold_starts(prepared, work, machine_file, serving, progress)
        draft = _Draft(
            name=name,
            source=source,
            digest=digest,
            prepared=prepared,
            serving=serving,
            labels=labels,
            preprocessing=preprocessing,
            report=report,
            proofs=proofs,
            machine_file=machine_file,
            cold_starts=cold_starts,
            options=options,
        )
        deployed = publish_version(repository, name, lambda folder, version: draft.write(work, folder, version))
    return DeployResult(deployed, proofs, cold_starts, warnings)


def _engine_folder(cache: str, name: str, work: Path) -> str:
    """A folder for the engines of this very model; empty where none are kept.

    ONNX Runtime finds an engine again by the file's name and the graph, not by the weights, so that a model trained
    anew would be answered for by the engine of the one before (microsoft/onnxruntime#6455).
    """
    if not cache:
        return ""
    digests = "".join(sha256_of(file) for file in sorted(work.glob(f"{MODEL_FILE}*")))  # external weights too
    return str(PurePosixPath(cache, f"{name}-{hashlib.sha256(digests.encode()).hexdigest()[:16]}"))


@contextmanager
def _work_folder() -> Iterator[Path]:
    try:
        with TemporaryDirectory(prefix="bnfold-deploy-") as folder:
            yield Path(folder)
    except OSError as error:
        where = error.filename2 or error.filename or "the folder for temporary files"
        raise OutputError(f"{where} cannot be written: {error.strerror or error}") from error


def _portability(model: ir.Model, source: Path, options: DeployOptions) -> tuple[str, ...]:
    contributed = check_portable(model, source, contributed=options.contributed)
    installed = versions().get("onnxruntime") or versions().get("onnxruntime-gpu") or "0.0"
    warnings = []
    if contributed:
        warnings.append(
            f"{', '.join(contributed)} is of ONNX Runtime alone, no part of the ONNX standard: the server should have "
            f"the version that proved the model, {installed}"
        )
    if options.onnxruntime is not None:
        warnings.append(check_readable(model, options.onnxruntime, installed))
    return tuple(filter(None, warnings))


def _foldable(report: FoldReport, source: Path) -> tuple[str, ...]:
    count = len(report.batch_norms) - report.batch_norms_after
    if count <= 0:
        return ()
    what = "batch norm of it can be folded" if count == 1 else "batch norms of it can be folded"
    return (f"{count} {what}, and deploying does not fold: `bnfold optimize {source} OUT.onnx` does",)


def _one_by_one(prepared: Prepared) -> tuple[str, ...]:
    """What to tell where the shapes promise a batch, and there is none."""
    ports = (*prepared.inputs, *prepared.outputs)
    if prepared.unbatched is None or any(spec.shape[:1] != (None,) for spec in ports):
        return ()
    return (f"requests will be run one by one, not joined in batches: {prepared.unbatched}",)


def _machine_file(prepared: Prepared, work: Path, options: DeployOptions) -> MachineFile | None:
    if options.ort_format is None:
        return None
    machine = this_machine(options.ort_format)
    (work / FOLDER).mkdir()
    file = write_machine_file(prepared.path, work / FOLDER, machine)
    check_machine_file(file, work / GOLDEN_FILE if options.verify else None)
    return MachineFile(file.relative_to(work).as_posix(), machine)


def _cold_starts(
    prepared: Prepared, work: Path, machine_file: MachineFile | None, serving: Serving, progress: Progress
) -> dict[str, ColdStart]:
    others: Sequence[str] = () if machine_file is None else (machine_file.path,)
    found = measure_cold_starts(
        prepared.path, [work / other for other in others], prepared.sizes, serving.threads, progress
    )
    return dict(zip((MODEL_FILE, *others), found, strict=True))
