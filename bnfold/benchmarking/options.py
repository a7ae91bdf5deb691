"""What to measure: the options of a benchmark and the matrix of settings that they span."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product

from bnfold.benchmarking.scenario import SINGLE_STREAM, Scenario
from bnfold.errors import OptionError
from bnfold.session import LEVELS, SessionOptions, check_threads, provider_name

#: Seconds that each candidate of a comparison gets, unless ``seconds`` says otherwise.
SECONDS_PER_CANDIDATE = 5.0

#: The longest to wait for an answer, in seconds, beside the time of the comparison: large models take long to load.
PATIENCE = 120.0


class Compare(StrEnum):
    """What is held against what."""

    MODELS = "models"  # in each setting, every model against the first
    SETTINGS = "settings"  # for each model and batch, every setting against the first


@dataclass(frozen=True)
class Setting:
    """One cell of the matrix: how a candidate runs.

    Attributes:
        provider: the execution provider, as :class:`bnfold.session.SessionOptions` takes it.
        batch: the size of a dynamic first dimension; None means 1.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.
        level: graph optimization level.
        spinning: whether idle worker threads of ONNX Runtime spin before they sleep.
        binding: whether inputs and outputs lie bound in the provider's own memory, so that a run copies and
            allocates none of them; without it a run takes and returns arrays of the host.
        cuda_graph: whether the provider records its kernels once and replays them (CUDA, with ``binding``).
        scenario: how requests arrive.
    """

    provider: str = "cpu"
    batch: int | None = None
    threads: int = 0
    level: str = "all"
    spinning: bool = True
    binding: bool = False
    cuda_graph: bool = False
    scenario: Scenario = SINGLE_STREAM

    def session_options(self) -> SessionOptions:
        """The session that this setting asks for."""
        return SessionOptions(
            provider=self.provider,
            level=self.level,
            threads=self.threads,
            spinning=self.spinning,
            provider_options={"enable_cuda_graph": "1"} if self.cuda_graph else {},
        )

    def words(self) -> dict[str, str]:
        """Each attribute in a few words; empty where it is the default and need not be told."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads" if self.threads else ""
        return {
            "provider": self.provider,
            "batch": "" if self.batch is None else f"batch {self.batch}",
            "threads": threads,
            "level": f"level {self.level}",
            "spinning": "" if self.spinning else "no spinning",
            "binding": "IO binding" if self.binding else "",
            "cuda_graph": "CUDA graph" if self.cuda_graph else "",
            "scenario": "" if self.scenario == SINGLE_STREAM else self.scenario.label(),
        }

    def label(self) -> str:
        """The setting in a few words, for example ``cpu, batch 8, 2 threads, level all``."""
        return ", ".join(word for word in self.words().values() if word)

    def to_json(self) -> dict[str, object]:
        """The setting as plain data."""
        return {
            "provider": self.provider,
            "batch": self.batch,
            "threads": self.threads,
            "level": self.level,
            "spinning": self.spinning,
            "io_binding": self.binding,
            "cuda_graph": self.cuda_graph,
            "scenario": self.scenario.to_json(),
        }


#: What an attribute is called where one setting has its default and another has not.
_DEFAULT_WORDS: Mapping[str, str] = {
    "batch": "the model's batch",
    "threads": "threads of ONNX Runtime's choice",
    "spinning": "spinning",
    "binding": "no IO binding",
    "cuda_graph": "no CUDA graph",
    "scenario": "single stream",
}


def common_words(settings: tuple[Setting, ...]) -> str:
    """What all settings have in common, in a few words."""
    words = [setting.words() for setting in settings]
    return ", ".join(word for key, word in words[0].items() if word and all(w[key] == word for w in words))


def own_words(settings: tuple[Setting, ...]) -> tuple[str, ...]:
    """For each setting, what tells it from the others in a few words; no two are equal."""
    words = [setting.words() for setting in settings]
    differing = [key for key in words[0] if len({w[key] for w in words}) > 1]
    return tuple(" + ".join(w[key] or _DEFAULT_WORDS[key] for key in differing) or w["provider"] for w in words)


@dataclass(frozen=True)
class BenchmarkOptions:
    """How to benchmark. Every combination of the tuples that makes sense is one setting.

    Attributes:
        providers: execution providers.
        batches: sizes of the dynamic first dimension; empty for the model's own, or 1 where it is dynamic.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.
        levels: graph optimization levels, keys of :data:`bnfold.session.LEVELS`.
        spinnings: whether idle worker threads of ONNX Runtime spin before they sleep (its default).
        bindings: whether inputs and outputs are bound in the provider's memory.
        cuda_graphs: whether CUDA graphs are used; True counts only together with ``cuda`` and a binding.
        scenarios: how requests arrive.
        compare: models in each setting, or settings of each model; None for settings where there is one model and
            more than one of them to compare, else models.
        seconds: time to spend on each comparison, start-up of the processes included; None for
            :data:`SECONDS_PER_CANDIDATE` for each candidate. One too slow for it gets a few runs all the same.
        launches: how many times fresh processes are started for each comparison; at least 2, since one launch
            cannot tell a difference between models from a difference between memory layouts.
        cold_starts: how many sessions each candidate creates in fresh processes, those of the launches included;
            those beyond them take up to half of ``seconds`` on top of it.
        seed: of the inputs, the order of the runs, the arrivals and the percentiles' intervals.
        input_shapes: the shape to use for an input, by name, where the model leaves dimensions open.
        control: run the first candidate in a second process as well; what those two differ by is noise, and no
            difference below it is reported.
        timeout: the longest to wait for one answer of a candidate's process, in seconds: for its session, its first
            run, a stretch of its warm-up, a block; None for :data:`PATIENCE` and the time of the comparison. Time that
            the Poisson scenario spends waiting for arrivals comes on top of it.
        profile: whether to tell what time each op and each fold took, by ONNX Runtime's own profile.

    Raises:
        OptionError: a value is out of its range.
        ProviderError: a provider's name is unknown.
    """

    providers: tuple[str, ...] = ("cpu",)
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (0,)
    levels: tuple[str, ...] = ("all",)
    spinnings: tuple[bool, ...] = (True,)
    bindings: tuple[bool, ...] = (False,)
    cuda_graphs: tuple[bool, ...] = (False,)
    scenarios: tuple[Scenario, ...] = (SINGLE_STREAM,)
    compare: Compare | None = None
    seconds: float | None = None
    launches: int = 5
    cold_starts: int = 10
    seed: int = 0
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    control: bool = True
    profile: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("providers", "threads", "levels", "spinnings", "bindings", "cuda_graphs", "scenarios"):
            if not getattr(self, name):
                raise OptionError(f"a benchmark needs at least one value in {name}")
        for provider in self.providers:
            provider_name(provider)
        for level in self.levels:
            if level not in LEVELS:
                raise OptionError(f"unknown optimization level {level!r}; use one of {', '.join(LEVELS)}")
        if any(batch < 1 for batch in self.batches):
            raise OptionError("a batch size is at least 1")
        for threads in self.threads:
            check_threads(threads)
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise OptionError("the time of a benchmark is a positive number of seconds")
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise OptionError("the longest wait for an answer is a positive number of seconds")
        if self.launches < 2:
            raise OptionError("a benchmark needs at least 2 launches, to see how much launches differ")
        if self.cold_starts < 0:
            raise OptionError("a number of cold starts is at least 0")
        if self.seed < 0:
            raise OptionError("a seed is at least 0")
        if any(size < 0 for shape in self.input_shapes.values() for size in shape):
            raise OptionError("the sizes of an input shape are at least 0")
        if not self.settings():
            raise OptionError("CUDA graphs need the provider cuda and IO binding; ask for those as well")

    def settings(self) -> tuple[Setting, ...]:
        """Every combination that makes sense, each once, in the order given."""
        cells = product(
            self.providers,
            self.batches or (None,),
            self.threads,
            self.levels,
            self.spinnings,
            self.bindings,
            self.cuda_graphs,
            self.scenarios,
        )
        settings = (Setting(*cell) for cell in cells)
        return tuple(dict.fromkeys(setting for setting in settings if _makes_sense(setting)))

    def seconds_for(self, candidates: int) -> float:
        """The time that one comparison of so many candidates gets, in seconds."""
        return SECONDS_PER_CANDIDATE * candidates if self.seconds is None else self.seconds

    def timeout_for(self, candidates: int) -> float:
        """The longest to wait for an answer in a comparison of so many candidates, in seconds."""
        return PATIENCE + self.seconds_for(candidates) if self.timeout is None else self.timeout

    def to_json(self) -> dict[str, object]:
        """The options as plain data."""
        return {
            "providers": list(self.providers),
            "batches": list(self.batches),
            "threads": list(self.threads),
            "levels": list(self.levels),
            "spinning": list(self.spinnings),
            "io_binding": list(self.bindings),
            "cuda_graph": list(self.cuda_graphs),
            "scenarios": [scenario.to_json() for scenario in self.scenarios],
            "compare": None if self.compare is None else self.compare.value,
            "seconds": self.seconds,
            "launches": self.launches,
            "cold_starts": self.cold_starts,
            "seed": self.seed,
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "control": self.control,
            "profile": self.profile,
            "timeout": self.timeout,
        }


def _makes_sense(setting: Setting) -> bool:
    """CUDA graphs exist on CUDA only, and replay from fixed addresses."""
    return not setting.cuda_graph or (provider_name(setting.provider) == provider_name("cuda") and setting.binding)
