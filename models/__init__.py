"""The networks that bnfold trains and exports, one file each, built by name.

Importing this package imports no network and no torch: a network's module is imported when it is built.
To add a network, write ``models/NAME.py`` and add one line to :data:`NETWORKS`.

A name is one of :data:`NETWORKS`; or a published size of one (:mod:`bnfold.models.published`); or
``torchvision:NAME`` or ``timm:NAME``, where that package is installed; or ``package.module:factory``, where ``factory``
is any callable that returns an ``nn.Module`` (the current folder is searched too).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import BnfoldError, InputError, MissingExtraError, one_line
from bnfold.extras import require
from bnfold.models.published import PUBLISHED

if TYPE_CHECKING:
    from torch import nn

#: Every network of bnfold: its name, and ``module:factory``.
NETWORKS: Mapping[str, str] = {
    "acnet": "bnfold.models.acnet:ACNet",
    "convmixer": "bnfold.models.convmixer:ConvMixer",
    "convnext": "bnfold.models.convnext:ConvNeXt",
    "crnn": "bnfold.models.crnn:CRNN",
    "dbb": "bnfold.models.dbb:DBBNet",
    "deit": "bnfold.models.deit:DeiT",
    "densenet": "bnfold.models.densenet:DenseNet",
    "efficientnet": "bnfold.models.efficientnet:EfficientNet",
    "fcn1d": "bnfold.models.fcn1d:FCN1d",
    "ghostnet": "bnfold.models.ghostnet:GhostNet",
    "inception": "bnfold.models.inception:InceptionNet",
    "levit": "bnfold.models.levit:LeViT",
    "mlp": "bnfold.models.mlp:MLP",
    "mobilenet_v2": "bnfold.models.mobilenet_v2:MobileNetV2",
    "mobileone": "bnfold.models.mobileone:MobileOne",
    "preact_resnet": "bnfold.models.preact_resnet:PreActResNet",
    "r2plus1d": "bnfold.models.r2plus1d:R2Plus1d",
    "repvgg": "bnfold.models.repvgg:RepVGG",
    "repvit": "bnfold.models.repvit:RepViT",
    "resmlp": "bnfold.models.resmlp:ResMLP",
    "resnet": "bnfold.models.resnet:ResNet",
    "shufflenet_v2": "bnfold.models.shufflenet_v2:ShuffleNetV2",
    "unet": "bnfold.models.unet:UNet",
    "vgg": "bnfold.models.vgg:VGG",
}

#: What a user's module may raise while it is imported or built: anything, and it may try to end the program.
_USER_CODE_ERRORS = (Exception, SystemExit)


def names() -> tuple[str, ...]:
    """The names of bnfold's own networks, sorted; those of published sizes are not among them."""
    return tuple(sorted(NETWORKS))


def is_network_name(name: str) -> bool:
    """Whether ``name`` has the form of a network's name, so that it is not meant as a path."""
    return name in NETWORKS or name in PUBLISHED or ":" in name


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a network, its weights initialised from torch's current random state.

    Args:
        name: see the module's docstring.
        arguments: keyword arguments of the network, over those of a published size.

    Raises:
        InputError: the name is unknown, the module cannot be imported, the arguments do not fit, or what was
            built is not an ``nn.Module``.
        MissingExtraError: torch, or the package that the name asks for, is not installed.
    """
    require("torch", "train")
    from torch import nn

    with _current_folder_importable():
        factory = _factory(name)
        try:
            network = factory(**arguments)
        except BnfoldError:
            raise
        except _USER_CODE_ERRORS as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
            raise InputError(
                f"the network {name} cannot be built with {given}: {_kind_and_message(error)}"
                f"{_list_hint(factory, arguments)}"
            ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{name} returned a {type(network).__name__}, not a torch.nn.Module; name what builds a network"
        )
    return network


def _list_hint(factory: Callable[..., object], arguments: Mapping[str, Any]) -> str:
    """Where one number or text was given for an argument that is a list: how a list is given."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return ""
    for key, value in arguments.items():
        if key in parameters and isinstance(parameters[key].default, tuple) and isinstance(value, int | float | str):
            return f"; {key} may have to be a list: 16,32 for two numbers, [16] for one"
    return ""


def fitting_arguments(name: str, input_shape: Sequence[int], num_classes: int) -> dict[str, Any]:
    """The arguments that follow from the data, as far as the network takes them by name.

    These are ``in_channels`` (timm: ``in_chans``), ``in_features`` (C·H·W), ``input_shape`` and
    ``num_classes``.

    Args:
        name: see the module's docstring.
        input_shape: shape of one sample without the batch, (C, H, W).
        num_classes: number of classes.

    Raises:
        InputError: the name is unknown or cannot be imported.
        MissingExtraError: the package that the name asks for is not installed.
    """
    features = 1
    for size in input_shape:
        features *= size
    known = {
        "in_channels": input_shape[0],
        "in_features": features,
        "input_shape": list(input_shape),
        "num_classes": num_classes,
    }
    package = name.partition(":")[0]
    if package == "timm":
        return {"in_chans": input_shape[0], "num_classes": num_classes}
    if package == "torchvision":
        return {"num_classes": num_classes}
    with _current_folder_importable():
        factory = _factory(name)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}
    return {key: value for key, value in known.items() if key in parameters}


def description(name: str) -> str:
    """What a network says of itself and of its arguments: the docstring of what builds it.

    Args:
        name: see the module's docstring.

    Raises:
        InputError: the name is unknown or cannot be imported.
        MissingExtraError: the package that the name asks for is not installed.
    """
    with _current_folder_importable():
        factory = _factory(name)
    if isinstance(factory, partial):
        factory = factory.func
    return inspect.getdoc(factory) or ""


def _factory(name: str) -> Callable[..., object]:
    """The callable that builds the network of that name."""
    package, _, member = name.partition(":")
    if package == "torchvision" and member:
        get_model = _package("torchvision").models.get_model
        return lambda **arguments: get_model(member, **arguments)
    if package == "timm" and member:
        create_model = _package("timm").create_model
        return lambda **arguments: create_model(member, **arguments)
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return partial(_factory(published.network), **published.arguments)
    target = NETWORKS.get(name, name)
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        close = difflib.get_close_matches(name, [*NETWORKS, *PUBLISHED], n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names())}"
        raise InputError(f"there is no network named {name!r} ({hint}); your own is given as package.module:factory")
    try:
        value: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except _USER_CODE_ERRORS as error:
        raise InputError(f"the network {name} cannot be imported: {_kind_and_message(error)}") from error
    if not callable(value):
        raise InputError(f"{name} is a {type(value).__name__}, not a callable that builds a network")
    return value


def _package(name: str) -> Any:
    """An optional package of networks, which no extra of bnfold installs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{name} is not installed; install it with: pip install {name}") from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Let a user's module in the current folder be found, as ``python -m`` would."""
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _kind_and_message(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")
