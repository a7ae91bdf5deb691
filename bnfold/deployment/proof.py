"""What is proven of a model before it is deployed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.deployment.golden import golden_pairs
from bnfold.deployment.options import DeployOptions
from bnfold.deployment.preparation import Prepared
from bnfold.errors import BnfoldError, ModelError
from bnfold.files import sha256_of
from bnfold.model_file import files_of, load_model
from bnfold.progress import Progress
from bnfold.session import create_session, run_session
from bnfold.verification import VerifyOptions, VerifyResult, record_golden, verify, verify_golden

GOLDEN_FILE = "golden.npz"


@dataclass(frozen=True, eq=False)
class Proofs:
    """What was proven; nothing where the user did without.

    Attributes:
        against_itself: that ONNX Runtime computes here what the model says, which float64 tells; or, where that does
            not run the model, ONNX Runtime with its optimizations off.
        against_original: that the model computes what its original does; None where none was given.
        original_sha256: of the original.
    """

    against_itself: VerifyResult | None = None
    against_original: VerifyResult | None = None
    original_sha256: str | None = None

    @property
    def verified(self) -> bool:
        """Whether anything was looked at."""
        return self.against_itself is not None

    @property
    def failures(self) -> tuple[VerifyResult, ...]:
        """Those that did not come out as they should."""
        proofs = (self.against_original, self.against_itself)
        return tuple(proof for proof in proofs if proof is not None and not _holds(proof))

    @property
    def failed(self) -> bool:
        """Whether the model must not be deployed."""
        return bool(self.failures)

    def to_json(self) -> dict[str, Any]:
        """The proofs as plain data, without the numbers of each set of inputs."""
        original = _verdict_json(self.against_original)
        if original is not None:
            original["sha256"] = self.original_sha256
        return {
            "verified": self.verified,
            "itself": _verdict_json(self.against_itself),
            "original": original,
        }


def _holds(proof: VerifyResult) -> bool:
    """Two files with the same graph compute the same without a proof, and nothing was run to show it."""
    return proof.ok or (proof.verdict == "nothing proven" and proof.reference == "none")


def _verdict_json(proof: VerifyResult | None) -> dict[str, Any] | None:
    if proof is None:
        return None
    return {
        "verdict": proof.verdict,
        "sentence": proof.sentence,
        "reference": proof.reference,
        "models": [Path(model).name for model in proof.models],
        "notes": list(proof.notes),
    }


def prove(prepared: Prepared, work: Path, options: DeployOptions, progress: Progress) -> Proofs:
    """Hold the model against its original, if there is one, and against itself in float64; keep the golden file.

    Raises:
        BnfoldError: see :func:`bnfold.verification.verify`.
    """
    try:
        return _prove(prepared.path, work / GOLDEN_FILE, options, progress)
    except BnfoldError as error:  # the user knows the model by another name than that of our copy
        message = str(error).replace(str(prepared.path), str(prepared.source))
        raise type(error)(f"{message} (--no-verify deploys it unproven)") from error


def _prove(model: Path, golden: Path, options: DeployOptions, progress: Progress) -> Proofs:
    against_original = digest = None
    if options.original is not None:
        against_original = verify(options.original, model, VerifyOptions(shapes=options.shapes), progress)
        original = Path(options.original)
        digest = sha256_of(*files_of(load_model(original), original))
        if not _holds(against_original):
            return Proofs(None, against_original, digest)
    chosen = VerifyOptions(samples=1, batches=(1, 2), shapes=options.shapes)
    record_golden(model, golden, chosen, progress)
    return Proofs(verify_golden(golden, model, chosen, progress), against_original, digest)


def check_machine_file(file: Path, golden: Path | None) -> None:
    """Hold a file in ONNX Runtime's own format against the golden file; without one, only load it.

    Raises:
        ModelError: it computes something else.
    """
    session = create_session(file)
    for pair in () if golden is None else golden_pairs(golden):
        for difference in pair.differences(run_session(session, pair.inputs)):
            raise ModelError(f"the model in ONNX Runtime's own format computes something else: {difference}")
