"""How large a network is: its parameters, batch norms and multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from bnfold.errors import InputError, one_line
from bnfold.extras import require
from bnfold.models import build, fitting_arguments
from bnfold.models import names as network_names
from bnfold.models.published import CLASSES, INPUT_SHAPE, PUBLISHED

if TYPE_CHECKING:
    from torch import nn

#: The input at which networks that are no published size are measured, unless another is asked for.
SMALL_INPUT, SMALL_CLASSES = (3, 32, 32), 10


@dataclass(frozen=True)
class NetworkSize:
    """A network's size for one input.

    Attributes:
        name: of the network.
        input_shape: of one sample, without the batch.
        num_classes: number of classes.
        parameters: trained values, in the form in which it is trained.
        batch_norms: modules that normalize over the batch.
        multiply_adds: of all convolutions and products of matrices in one forward pass of one sample: a convolution
            has ``out·k₁·k₂·in/groups`` for each pixel of its output, a linear layer ``in·out``. What the literature
            calls MACs, and often FLOPs.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    parameters: int
    batch_norms: int
    multiply_adds: int

    def to_json(self) -> dict[str, Any]:
        """As a plain document."""
        return {**asdict(self), "input_shape": list(self.input_shape)}


def network_sizes(
    names: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> list[NetworkSize]:
    """The sizes of several networks.

    Each is built without memory for its numbers (on torch's meta device) where its code allows that.

    Args:
        names: as :func:`bnfold.models.build` takes them; by default all of bnfold's own, and after them the published
            sizes.
        input_shape: of one sample, without the batch; by default (3, 224, 224) for the published sizes and (3, 32, 32)
            for all others.
        num_classes: by default 1,000 and 10 likewise.
        arguments: of each network, over those that follow from the input.

    Raises:
        InputError: a network cannot be built or does not take the input.
        MissingExtraError: torch, or a package that a name asks for, is not installed.
    """
    torch = require("torch", "train")
    sizes = []
    for name in names or (*network_names(), *PUBLISHED):
        usual_shape, usual_classes = (INPUT_SHAPE, CLASSES) if name in PUBLISHED else (SMALL_INPUT, SMALL_CLASSES)
        shape, classes = tuple(input_shape or usual_shape), num_classes or usual_classes
        fitting = fitting_arguments(name, shape, classes) | dict(arguments or {})
        try:
            with torch.device("meta"):
                size = network_size(build(name, **fitting), name, shape, classes)
        except InputError:  # its code may need numbers, for a schedule that calls .item(), say
            size = network_size(build(name, **fitting), name, shape, classes)
        sizes.append(size)
    return sizes


def network_size(network: nn.Module, name: str, input_shape: Sequence[int], num_classes: int) -> NetworkSize:
    """The size of a network that is built already; it is put into evaluation mode.

    Raises:
        InputError: it does not take the input.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.utils.flop_counter import FlopCounterMode

    parameters = list(network.parameters())
    network.eval()
    fused = {torch.ops.aten.mkldnn_rnn_layer: _of_one_direction}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter, torch.no_grad():
        try:
            sample = torch.zeros((1, *input_shape), device=parameters[0].device if parameters else None)
            if parameters and parameters[0].is_floating_point():
                sample = sample.to(parameters[0].dtype)
            network(sample)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            shape = ",".join(str(size) for size in input_shape)
            raise InputError(f"the network {name} does not take inputs of shape {shape}: {one_line(error)}") from error
    return NetworkSize(
        name=name,
        input_shape=tuple(input_shape),
        num_classes=num_classes,
        parameters=sum(parameter.numel() for parameter in parameters),
        batch_norms=sum(isinstance(module, _BatchNorm) for module in network.modules()),
        multiply_adds=counter.get_total_flops() // 2,
    )


def _of_one_direction(x: Sequence[int], weight: Sequence[int], recurrent: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of an LSTM that oneDNN computes as one, which torch does not count, by the shapes of its inputs."""
    return 2 * x[0] * x[1] * (prod(weight) + prod(recurrent))
