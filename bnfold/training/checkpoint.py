"""Weights and training state in safetensors files, which can hold numbers and nothing that runs.

A checkpoint is one file: tensors under ``model.``, ``optimizer.`` and, where the run averages its weights,
``average.``, and the place in the run as JSON in the header. One file is replaced by one rename, so weights, optimizer
and place always belong together.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bnfold.errors import CheckpointError, one_line
from bnfold.files import StrPath, write_bytes

_MODEL, _OPTIMIZER, _AVERAGE = "model.", "optimizer.", "average."
_HEADER = "bnfold"

#: What each optimizer remembers of a parameter.
_OPTIMIZER_STATE: Mapping[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.SGD: frozenset(("momentum_buffer",)),
    torch.optim.AdamW: frozenset(("step", "exp_avg", "exp_avg_sq")),
}

#: Keys under which others' training programs keep the weights inside a larger dictionary.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Place:
    """How far a run has come.

    Attributes:
        epoch: epochs completed.
        step: steps completed of the epoch that follows.
        loss_sum: sum of the losses of those steps.
        history: the figures of each completed epoch.
    """

    epoch: int
    step: int
    loss_sum: float
    history: tuple[Mapping[str, Any], ...]

    def check(self, epochs: int, steps: int, source: StrPath) -> None:
        """A place must lie in a run of so many epochs, each of so many steps.

        Raises:
            CheckpointError: it does not.
        """
        inside = 0 <= self.epoch <= epochs and 0 <= self.step <= steps and (self.epoch < epochs or self.step == 0)
        if not inside or [row.get("epoch") for row in self.history] != list(range(1, self.epoch + 1)):
            raise CheckpointError(
                f"{source} is damaged: step {self.step} after epoch {self.epoch}, with figures of {len(self.history)} "
                f"epochs, is no place in a run of {epochs} epochs of {steps} steps"
            )


def save_weights(path: Path, model: nn.Module, header: Mapping[str, Any]) -> None:
    """Write a network's state, with ``header`` as JSON in the file's own header.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, save(_portable(model.state_dict()), {_HEADER: json.dumps(header)}))


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, place: Place, average: nn.Module | None = None
) -> None:
    """Write network, optimizer, averaged network and place in the run as one file.

    Raises:
        OutputError: the file cannot be written.
    """
    names = _parameter_names(model, optimizer)
    tensors = {_MODEL + key: value for key, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{names[number]}.{key}"] = value
    if average is not None:
        tensors |= {_AVERAGE + key: value for key, value in average.state_dict().items()}
    header = json.dumps(asdict(place), allow_nan=False)
    write_bytes(path, save(_portable(tensors), {_HEADER: header}))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> Place:
    """Restore network, optimizer and averaged network from a checkpoint, and return the place in the run.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to another architecture.
    """
    tensors, metadata = read_safetensors(path)
    try:
        header = json.loads(metadata[_HEADER])
        history = tuple(dict(row) for row in header["history"])
        place = Place(int(header["epoch"]), int(header["step"]), float(header["loss_sum"]), history)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of a run: its header does not say how far the run came"
        ) from error
    apply_weights(model, _with_prefix(tensors, _MODEL), path)
    if average is not None:
        apply_weights(average, _with_prefix(tensors, _AVERAGE), path)
    _restore_optimizer(optimizer, _parameter_names(model, optimizer), _with_prefix(tensors, _OPTIMIZER), path)
    return place


def load_weights(path: StrPath) -> dict[str, Tensor]:
    """The weights in a ``.safetensors`` file, in a run's checkpoint, or in a torch file of plain tensors.

    A torch file may hold the weights under ``state_dict``, ``model_state_dict`` or ``model``; the
    ``module.`` that data parallel training puts before each name is taken off.

    Raises:
        CheckpointError: the file is missing, is damaged, or holds something other than named tensors.
    """
    source = Path(path)
    if source.suffix == ".safetensors":
        tensors, metadata = read_safetensors(source)
        weights = _with_prefix(tensors, _MODEL) if _is_checkpoint(metadata) else tensors
    else:
        weights = _read_torch_file(source)
    if weights and all(key.startswith("module.") for key in weights):
        weights = _with_prefix(weights, "module.")
    return weights


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its header's texts.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or is not a safetensors file: {one_line(error)}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def apply_weights(model: nn.Module, weights: Mapping[str, Tensor], source: StrPath) -> None:
    """Copy ``weights`` into ``model`` if every tensor fits, and none if one does not.

    Args:
        model: the network.
        weights: one tensor for each of its parameters and buffers.
        source: what to call the weights in an error.

    Raises:
        CheckpointError: a tensor is missing, is left over, or differs in shape or kind; it names the first.
    """
    own = model.state_dict()
    remedy = "build the network with the name and arguments that the weights were trained with"
    for key, target in own.items():
        if key not in weights:
            raise CheckpointError(f"{source} has no tensor {key}, which the network needs; {remedy}")
        given = weights[key]
        if given.shape != target.shape:
            raise CheckpointError(
                f"{source}: the tensor {key} has shape {list(given.shape)} and the network's "
                f"{list(target.shape)}; {remedy}"
            )
        if given.is_floating_point() != target.is_floating_point():
            raise CheckpointError(f"{source}: the tensor {key} is {given.dtype} and the network's {target.dtype}")
    for key in weights:
        if key not in own:
            raise CheckpointError(f"{source} has a tensor {key}, which the network does not; {remedy}")
    model.load_state_dict(dict(weights))


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    _check_file(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about how the file was pickled; it loads or it does not
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than plain tensors, which is not safe to load; "
            "save the network's state_dict()"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged or is not a torch file") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a state dict of named tensors is needed")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds a {type(value).__name__} under {key!r}; a state dict holds named tensors"
            )
    return content


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the path of a file of weights")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as the format demands (tied weights are written twice)."""
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _is_checkpoint(metadata: Mapping[str, str]) -> bool:
    """Whether a file's header says that it is a run's checkpoint rather than weights alone."""
    try:
        return "epoch" in json.loads(metadata.get(_HEADER, "{}"))
    except (ValueError, TypeError):
        return False


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The name of each parameter in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor], path: Path
) -> None:
    number = {name: index for index, name in enumerate(names)}
    shapes = {
        name: parameter.shape
        for name, parameter in zip(names, (p for group in optimizer.param_groups for p in group["params"]), strict=True)
    }
    expected = _OPTIMIZER_STATE[type(optimizer)]
    state: dict[int, dict[str, Tensor]] = {}
    for full_key, value in tensors.items():
        name, _, key = full_key.rpartition(".")
        if name not in number:
            raise CheckpointError(f"{path} has optimizer state for {name}, which the network does not have")
        if key not in expected or (value.ndim > 0 and value.shape != shapes[name]):
            raise CheckpointError(f"{path} is damaged: {key} of {name} is no state of {type(optimizer).__name__}")
        state.setdefault(number[name], {})[key] = value
    for index, entries in state.items():
        if entries.keys() != expected:
            raise CheckpointError(f"{path} is damaged: it has only a part of the optimizer's state for {names[index]}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
