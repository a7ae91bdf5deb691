"""What an export is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnfold.errors import OptionError
from bnfold.files import StrPath

#: The opset of an export where none is asked for, whatever the version of torch.
DEFAULT_OPSET = 20


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        model: name of the network, where the source is a file of weights (:func:`bnfold.models.build`).
        model_args: its arguments.
        weights: file of weights, where the source is a network's name; without it the initial weights stay.
        opset: version of the default operator set.
        input_shape: shape of one sample without the batch; needed unless the source is a run.
        static: fix the batch size at 1 in place of leaving it open.
        clean: evaluate constant sub-graphs and name nodes after their modules; False keeps what torch's
            exporter wrote.
        seed: of the random inputs of the check, and of initial weights.

    Raises:
        InputError: a value is out of range.
    """

    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    weights: StrPath | None = None
    opset: int = DEFAULT_OPSET
    input_shape: tuple[int, ...] | None = None
    static: bool = False
    clean: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.opset < 7:
            raise OptionError(f"opset is {self.opset}; batch norm has its present form from opset 7 on")
        if self.input_shape is not None and (not self.input_shape or min(self.input_shape) < 1):
            raise OptionError(f"input_shape is {self.input_shape}; give sizes of at least 1, such as 3,224,224")
        if not 0 <= self.seed < 1 << 63:
            raise OptionError(f"seed is {self.seed}; it must be from 0 to below 2 to the power of 63")
