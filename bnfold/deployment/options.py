"""How to deploy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bnfold.deployment.machine_format import check_machine_name
from bnfold.deployment.manifest import TARGETS, Target
from bnfold.deployment.publishing import check_name
from bnfold.errors import OptionError
from bnfold.files import StrPath

#: The most samples of one run, of a model that takes as many as one likes.
DEFAULT_BATCH = 8

PRECISIONS = ("FP32", "FP16")

#: What the numbers of Triton's configuration end at.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class DeployOptions:
    """How to deploy.

    Attributes:
        name: the model's name in the repository; None for the file's, without its suffix.
        max_batch: the most samples of one run; None for :data:`DEFAULT_BATCH`, or the model's own where that is fixed.
        target: what the server runs it on; on ``tensorrt``, CUDA takes what TensorRT leaves.
        precision: on ``tensorrt``, what it may compute in.
        engine_cache: on ``tensorrt``, a folder that is there on the server, for the engines that it builds.
        instances: sessions that run side by side, on each device.
        threads: intra-op threads of each; 0 leaves the choice to ONNX Runtime, which takes every core.
        arena: whether ONNX Runtime keeps memory that a run no longer needs for the next one.
        queue_delay_us: how long a request may wait for others, in microseconds.
        preferred: batch sizes that are run at once when reached.
        labels: a file with the name of one class a line; None for those in the model's metadata.
        original: the model that this one was made from, to prove that both compute the same function.
        verify: whether to prove anything.
        shapes: shapes of inputs by name, for sizes that the model leaves open.
        contributed: whether operators of ONNX Runtime alone are allowed.
        onnxruntime: the version of it that the server has, if it is to be checked.
        ort_format: a name for this type of machine, to write ONNX Runtime's own format for it too.
        storage_uri: where the repository will be, for KServe.

    Raises:
        OptionError: a value is out of range, or contradicts another.
    """

    name: str | None = None
    max_batch: int | None = None
    target: Target = "cpu"
    precision: str = "FP32"
    engine_cache: str = ""
    instances: int = 1
    threads: int = 0
    arena: bool = True
    queue_delay_us: int = 0
    preferred: Sequence[int] = ()
    labels: StrPath | None = None
    original: StrPath | None = None
    verify: bool = True
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    contributed: bool = False
    onnxruntime: str | None = None
    ort_format: str | None = None
    storage_uri: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.target not in TARGETS:
            raise OptionError(f"unknown target {self.target!r}; use one of {', '.join(TARGETS)}")
        if self.precision not in PRECISIONS:
            raise OptionError(f"unknown precision {self.precision!r}; use one of {', '.join(PRECISIONS)}")
        if self.target != "tensorrt" and (self.precision != "FP32" or self.engine_cache):
            raise OptionError(f"a precision and an engine cache are TensorRT's, and the target is {self.target}")
        for what, value, least in (
            ("max_batch", self.max_batch, 1),
            ("instances", self.instances, 1),
            ("threads", self.threads, 0),
            ("queue_delay_us", self.queue_delay_us, 0),
            *(("a preferred batch", size, 1) for size in self.preferred),
        ):
            if value is not None and not least <= value <= _MOST:
                raise OptionError(f"{what} is {value}; it must be at least {least} and at most {_MOST}")
        if not self.verify and self.original is not None:
            raise OptionError("an original is there to be verified against; leave it out, or verify")
        if self.ort_format is not None:
            check_machine_name(self.ort_format)
            if self.target != "cpu":
                raise OptionError(f"ONNX Runtime's own format is written for the CPU, and the target is {self.target}")
