"""The model as ONNX Runtime has optimized it, in its own format: it loads faster, and on one type of machine only.

At its highest level of optimization ONNX Runtime lays weights out for the processor that it runs on, and its format may
change with its version. Such a file lies in ``not-portable/`` beside the portable one, and is never read unless it is
asked for; on another machine that is an error, and no reason to read the portable file in its place without a word.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from bnfold.benchmarking.context import cpu_name
from bnfold.deployment.manifest import Machine
from bnfold.deployment.repository import DeployedModel
from bnfold.errors import ModelError, OptionError, SetupError
from bnfold.extras import require
from bnfold.session import SessionOptions, create_session, provider_name

#: The folder of such files in a version's folder.
FOLDER = "not-portable"

#: How the kernel's names of vector instructions begin, on x86 and on ARM.
_VECTOR = ("avx", "amx", "fma", "sse4", "asimd", "sve", "sme", "i8mm", "bf16")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


def check_machine_name(name: str) -> None:
    """Require a name that can be a file's.

    Raises:
        OptionError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(f"{name!r} cannot name a type of machine; use letters, digits, dashes and underscores")


def this_machine(name: str = "this machine") -> Machine:
    """What a file that is made here runs on.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    runtime = require("onnxruntime", "cpu")
    return Machine(
        name=name,
        cpu=cpu_name(),
        instructions=_vector_instructions(),
        system=f"{platform.system()} {platform.machine()}",
        onnxruntime=runtime.__version__,
        provider=provider_name("cpu"),
    )


def _vector_instructions() -> str:
    """Those that Linux tells of, in the order of the alphabet; empty where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    flags = next((flags.split() for key, _, flags in lines if key.strip() in ("flags", "Features")), [])
    return " ".join(sorted(flag for flag in flags if flag.startswith(_VECTOR)))


def write_machine_file(model: Path, folder: Path, machine: Machine) -> Path:
    """Let ONNX Runtime write a model in its own format into a folder, and return the file's path.

    Raises:
        ModelError: it cannot; a file of this format ends at 2 GiB.
    """
    target = folder / f"{machine.name}.ort"
    create_session(model, SessionOptions(optimized=str(target)))
    if not target.is_file():
        raise ModelError(f"ONNX Runtime wrote {model} in no format of its own; leave --ort-format out")
    return target


def machine_model(model: DeployedModel) -> Path:
    """The file of a deployed model in ONNX Runtime's own format, on the machine that it was made for.

    Raises:
        SetupError: there is none, or this is another machine; the message says which it was made for.
    """
    made = model.manifest.machine_file
    where = f"version {model.version} of {model.name}"
    if made is None:
        raise SetupError(f"{where} has no file in ONNX Runtime's own format; deploy it with --ort-format MACHINE")
    here, there = this_machine(), made.machine
    for what, ours, theirs in (
        ("the processor", here.cpu, there.cpu),
        ("the set of its vector instructions", here.instructions, there.instructions),
        ("the system", here.system, there.system),
        ("ONNX Runtime", here.onnxruntime, there.onnxruntime),
    ):
        if ours != theirs:
            raise SetupError(
                f"{model.folder / made.path} was made for {there.name}, where {what} is {theirs}, and here it is "
                f"{ours}; use {model.model.name}, which is portable"
            )
    return model.folder / made.path
