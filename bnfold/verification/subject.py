"""One of the two models under verification: as a graph, and as something that ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.errors import ModelError
from bnfold.files import StrPath
from bnfold.model_file import load_model, serialized
from bnfold.session import PROVIDERS, SessionOptions, create_session, provider_name, run_session
from bnfold.verification.metrics import UNIT_ROUNDOFF
from bnfold.verification.oracle import weight_dtype

Array = NDArray[Any]
Role = Literal["reference", "candidate"]


@dataclass(frozen=True)
class Subject:
    """A model under verification.

    Attributes:
        role: which of the two it is.
        model: its graph.
        path: the file it came from; None for a model in memory.
    """

    role: Role
    model: ir.Model
    path: Path | None = None

    @classmethod
    def of(cls, source: StrPath | ir.Model, role: Role) -> Subject:
        """Load a file, or take a model as it is.

        Raises:
            ModelError: the file cannot be loaded.
        """
        if isinstance(source, ir.Model):
            return cls(role, source)
        return cls(role, load_model(source), Path(source))

    @property
    def name(self) -> str:
        """Its file, if it has one."""
        return "a model in memory" if self.path is None else str(self.path)

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return f"the {self.role}" if self.path is None else f"the {self.role} {self.path}"

    @property
    def output_types(self) -> dict[str, str]:
        """The name of each output's data type as numpy spells it; ``float32`` where the model does not tell."""
        return {
            str(value.name): "float32" if value.dtype is None else value.dtype.numpy().name
            for value in self.model.graph.outputs
        }

    @property
    def roundoff(self) -> float:
        """The largest unit roundoff among the types of its inputs and weights; float32's where these are no floats."""
        graph = self.model.graph
        names = (v.dtype.numpy().name for v in (*graph.inputs, *graph.initializers.values()) if v.dtype is not None)
        return max((UNIT_ROUNDOFF[name] for name in names if name in UNIT_ROUNDOFF), default=UNIT_ROUNDOFF["float32"])

    @cached_property
    def _source(self) -> Path | bytes:
        # A path lets ONNX Runtime find external data beside the file, also beyond 2 GiB.
        return self.path if self.path is not None else serialized(self.model)

    def session(self, level: str, provider: str = "cpu", without: Sequence[str] = (), *, tf32: bool = False) -> Any:
        """A session at an optimization level.

        Args:
            level: a key of :data:`bnfold.session.LEVELS`.
            provider: execution provider.
            without: names of ONNX Runtime's optimizations to leave out.
            tf32: whether CUDA may use TensorFloat-32, which rounds float32 to 10 bits; it is ONNX Runtime's default,
                and would drown what is to be compared.

        Raises:
            ModelError: ONNX Runtime does not accept the model.
            ProviderError: the provider does not run here.
        """
        cuda = provider_name(provider) == PROVIDERS["cuda"]
        settings = {"use_tf32": str(int(tf32))} if cuda else {}
        options = SessionOptions(
            provider=provider, level=level, provider_options=settings, disabled_optimizers=tuple(without)
        )
        try:
            return create_session(self._source, options)
        except ModelError as error:
            raise ModelError(
                f"{self.label} cannot be run, only compared in float64 (bnfold verify --no-runtime): {error}"
            ) from error

    def plain_session(self) -> tuple[Any, bool]:
        """A session on the CPU with optimizations off, and whether the basic level had to stand in for that.

        Some versions of ONNX Runtime have no CPU kernels for float16 operators, and only the basic level bridges them.

        Raises:
            ModelError: ONNX Runtime accepts the model at neither level.
        """
        try:
            return self.session("disable"), False
        except ModelError as error:
            try:
                return self.session("basic"), True
            except ModelError:
                raise error from None

    def run(self, session: Any, values: Mapping[str, Array]) -> dict[str, Array]:
        """Run a session of this model.

        Raises:
            ModelError: ONNX Runtime failed.
        """
        return run_session(session, values)

    def nudged(self, seed: int) -> Subject:
        """This model with each weight moved to a neighbouring number of its type, up or down at random."""
        random = np.random.default_rng(seed)
        copy = self.model.clone()
        for value in copy.graph.initializers.values():
            dtype = weight_dtype(value)
            if dtype is None or value.const_value is None:
                continue
            weight = value.const_value.numpy()
            step = random.choice((-1.0, 1.0), weight.shape) * np.spacing(np.abs(weight.astype(dtype)))
            moved = (weight.astype(np.float64) + step.astype(np.float64)).astype(weight.dtype)
            value.const_value = ir.tensor(moved, name=value.name)
        return Subject(self.role, copy)
