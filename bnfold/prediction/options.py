"""What a prediction is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold.errors import OptionError
from bnfold.files import StrPath

#: What to do about a sample that cannot be read, or for which the model yields no numbers.
ON_ERROR = ("fail", "skip")

#: Where the work is done: in this process, or by actors of a Ray cluster.
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class PredictOptions:
    """How to predict.

    Attributes:
        provider: where to run, see :class:`bnfold.session.SessionOptions`.
        batch: samples a run; a model with a fixed batch size uses that.
        split: part of a data set, ``test`` or ``train``.
        labels: file with the name of one class a line; the names in the sidecar or the model otherwise.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime, and is 1 for an actor.
        workers: threads that decode ahead of the session; 0 does one thing after the other.
        top_k: how many of the best classes a row tells.
        logits: whether a row tells all scores.
        on_error: ``fail`` ends at the first sample that cannot be read, ``skip`` goes on without it.
        resume: go on with a partial output.
        overwrite: discard a partial output.
        preprocess: settings that go before the sidecar and the model's metadata, see
            :func:`bnfold.prediction.preprocessing.overridden`.
        save_preprocessing: write what was used as the sidecar of the model.
        column: of Parquet files: the one that holds the samples.
        label_column: of Parquet files: the one that holds the labels.
        engine: ``local`` or ``ray``.
        address: of a Ray cluster; None starts one on this machine.
        actors: how many actors of Ray.

    Raises:
        OptionError: a value is out of range, or contradicts another.
    """

    provider: str = "cpu"
    batch: int = 64
    split: str = "test"
    labels: StrPath | None = None
    threads: int = 0
    workers: int = 2
    top_k: int = 1
    logits: bool = False
    on_error: str = "fail"
    resume: bool = False
    overwrite: bool = False
    preprocess: tuple[str, ...] = ()
    save_preprocessing: bool = False
    column: str | None = None
    label_column: str | None = None
    engine: str = "local"
    address: str | None = None
    actors: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("threads", 0), ("workers", 0), ("top_k", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.split not in ("test", "train"):
            raise OptionError(f"split is {self.split!r}; it is test or train")
        if self.on_error not in ON_ERROR:
            raise OptionError(f"on_error is {self.on_error!r}; it is {' or '.join(ON_ERROR)}")
        if self.engine not in ENGINES:
            raise OptionError(f"engine is {self.engine!r}; it is {' or '.join(ENGINES)}")
        if self.resume and self.overwrite:
            raise OptionError("a partial output is either resumed or overwritten; choose one of the two")
        if self.engine != "ray" and (self.address is not None or self.actors is not None):
            raise OptionError("address and actors are for the engine ray (--engine ray)")
        if self.actors is not None and self.actors < 1:
            raise OptionError(f"actors is {self.actors}; it must be at least 1")

    @property
    def session_threads(self) -> int:
        """Intra-op threads of each session."""
        return self.threads or (1 if self.engine == "ray" else 0)
