"""What to measure: the options of a benchmark and the matrix of settings that they span."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from bnfold.errors import OptionError
from bnfold.session import LEVELS, SessionOptions, provider_name

#: Seconds that each model of a comparison gets in each setting, unless ``seconds`` says otherwise.
SECONDS_PER_MODEL = 5.0


@dataclass(frozen=True)
class Setting:
    """One cell of the matrix: how every candidate runs in one comparison.

    Attributes:
        provider: the execution provider, as :class:`bnfold.session.SessionOptions` takes it.
        batch: the size of a dynamic first dimension; None means 1.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.
        level: graph optimization level.
        spinning: whether idle worker threads of ONNX Runtime spin before they sleep.
    """

    provider: str = "cpu"
    batch: int | None = None
    threads: int = 0
    level: str = "all"
    spinning: bool = True

    def session_options(self) -> SessionOptions:
        """The session that this setting asks for."""
        return SessionOptions(provider=self.provider, level=self.level, threads=self.threads, spinning=self.spinning)

    def label(self) -> str:
        """The setting in a few words, for example ``cpu, batch 8, 2 threads, level all``."""
        parts = [self.provider]
        if self.batch is not None:
            parts.append(f"batch {self.batch}")
        if self.threads:
            parts.append("1 thread" if self.threads == 1 else f"{self.threads} threads")
        parts.append(f"level {self.level}")
        if not self.spinning:
            parts.append("no spinning")
        return ", ".join(parts)

    def to_json(self) -> dict[str, object]:
        """The setting as plain data."""
        return {
            "provider": self.provider,
            "batch": self.batch,
            "threads": self.threads,
            "level": self.level,
            "spinning": self.spinning,
        }


@dataclass(frozen=True)
class BenchmarkOptions:
    """How to benchmark. Every combination of the four tuples is one setting, compared on its own.

    Attributes:
        providers: execution providers.
        batches: sizes of the dynamic first dimension; empty for the model's own, or 1 where it is dynamic.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.
        levels: graph optimization levels, keys of :data:`bnfold.session.LEVELS`.
        seconds: time to spend on each setting, start-up of the processes included; None for
            :data:`SECONDS_PER_MODEL` for each model. A model too slow for it gets a few runs all the same.
        launches: how many times fresh processes are started for each setting; at least 2, since one launch
            cannot tell a difference between models from a difference between memory layouts.
        seed: of the inputs, the order of the runs and the percentiles' intervals.
        input_shapes: the shape to use for an input, by name, where the model leaves dimensions open.
        spinning: whether idle worker threads of ONNX Runtime spin before they sleep (its default).
        control: run the first model in a second process as well; what those two differ by is noise, and no
            difference below it is reported.

    Raises:
        InputError: a value is out of its range.
        ProviderError: a provider's name is unknown.
    """

    providers: tuple[str, ...] = ("cpu",)
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (0,)
    levels: tuple[str, ...] = ("all",)
    seconds: float | None = None
    launches: int = 5
    seed: int = 0
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spinning: bool = True
    control: bool = True

    def __post_init__(self) -> None:
        if not (self.providers and self.threads and self.levels):
            raise OptionError("a benchmark needs at least one provider, one thread count and one level")
        for provider in self.providers:
            provider_name(provider)
        for level in self.levels:
            if level not in LEVELS:
                raise OptionError(f"unknown optimization level {level!r}; use one of {', '.join(LEVELS)}")
        if any(batch < 1 for batch in self.batches):
            raise OptionError("a batch size is at least 1")
        if any(threads < 0 for threads in self.threads):
            raise OptionError("a thread count is at least 0, which leaves the choice to ONNX Runtime")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise OptionError("the time of a benchmark is a positive number of seconds")
        if self.launches < 2:
            raise OptionError("a benchmark needs at least 2 launches, to see how much launches differ")
        if self.seed < 0:
            raise OptionError("a seed is at least 0")
        if any(size < 0 for shape in self.input_shapes.values() for size in shape):
            raise OptionError("the sizes of an input shape are at least 0")

    def settings(self) -> tuple[Setting, ...]:
        """Every combination, each once, in the order given."""
        cells = product(self.providers, self.batches or (None,), self.threads, self.levels)
        return tuple(
            dict.fromkeys(
                Setting(provider, batch, threads, level, self.spinning) for provider, batch, threads, level in cells
            )
        )

    def seconds_for(self, models: int) -> float:
        """The time that one setting gets, in seconds, when ``models`` models are compared."""
        return SECONDS_PER_MODEL * models if self.seconds is None else self.seconds

    def to_json(self) -> dict[str, object]:
        """The options as plain data."""
        return {
            "providers": list(self.providers),
            "batches": list(self.batches),
            "threads": list(self.threads),
            "levels": list(self.levels),
            "seconds": self.seconds,
            "launches": self.launches,
            "seed": self.seed,
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "spinning": self.spinning,
            "control": self.control,
        }
