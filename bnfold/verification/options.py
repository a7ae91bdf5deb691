"""How to verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

from bnfold.errors import OptionError
from bnfold.files import StrPath
from bnfold.session import LEVELS, PROVIDERS, provider_name
from bnfold.verification.verdict import Rule


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        inputs: the user's inputs (``.npz``, ``.npy``, ``.pb``, images, or a folder) in place of drawn ones.
        samples: random sets of inputs for each batch size.
        batches: what a dynamic first dimension is set to; None for 1, 3 and a larger one.
        shapes: shapes of inputs by name, for dynamic dimensions.
        seed: of the random inputs.
        provider: an execution provider to run on beside the CPU; ``cpu`` for none.
        level: ONNX Runtime's optimization level of the runs as shipped: ``all``, ``extended``, ``basic`` or
            ``disable``.
        runtime: False compares in float64 only and does without ONNX Runtime.
        rtol: relative to the output's scale; it and ``atol`` replace the rule.
        atol: absolute.
        rule: factors of the rule.
        per_fold: prove each fold by itself too, where float64 runs both models; one that is wrong is a mismatch, unless
            tolerances replace the rule. None for yes, unless that would take much memory: several times what the
            weights take. See :mod:`bnfold.verification.folds`.
        localize: on a mismatch, find what causes it; see :mod:`bnfold.verification.localization`.
        save_golden: a file to keep what the reference computes in, for machines that do not have it; see
            :mod:`bnfold.verification.golden`.
    """

    inputs: StrPath | None = None
    samples: int = 2
    batches: tuple[int, ...] | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    provider: str = "cpu"
    level: str = "all"
    runtime: bool = True
    rtol: float | None = None
    atol: float | None = None
    rule: Rule = field(default_factory=Rule)
    per_fold: bool | None = None
    localize: bool = False
    save_golden: StrPath | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise OptionError(f"the number of samples must be at least 1, not {self.samples}")
        if self.batches is not None and not (self.batches and min(self.batches) > 0):
            raise OptionError(f"batch sizes must be numbers from 1 on, not {self.batches}")
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not (value >= 0 and isfinite(value)):
                raise OptionError(f"{name} must be a number from 0 on, not {value}")
        if self.level not in LEVELS:
            raise OptionError(f"unknown optimization level {self.level!r}; use one of {', '.join(LEVELS)}")
        provider_name(self.provider)

    @property
    def extra_provider(self) -> str | None:
        """ONNX Runtime's name of the provider beside the CPU, if one was asked for."""
        name = provider_name(self.provider)
        return None if name == PROVIDERS["cpu"] else name

    @property
    def effective_rule(self) -> Rule:
        """The rule, or the tolerances that take its place."""
        return replace(self.rule, rtol=self.rtol, atol=self.atol)
