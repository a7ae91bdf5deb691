"""The sizes at which networks were published, for 224×224 pixels in colour and 1,000 classes.

Each is one of the networks of this package with the arguments that its docstring gives; every argument can still be
given otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

#: The input and the classes that the figures of the literature are for.
INPUT_SHAPE = (3, 224, 224)
CLASSES = 1000


class Published(NamedTuple):
    """A network of this package at a published size."""

    network: str
    arguments: Mapping[str, Any]


#: The networks of which weights depend on the height and width of the image.
_SIZED = frozenset(("deit", "resmlp"))


def _published(network: str, **arguments: Any) -> Published:
    image: dict[str, Any] = {"input_shape": INPUT_SHAPE} if network in _SIZED else {"in_channels": INPUT_SHAPE[0]}
    return Published(network, MappingProxyType({**image, "num_classes": CLASSES, **arguments}))


_RESNET = {"widths": (64, 128, 256, 512), "large_stem": True}
_INVERTED = {"strides": (1, 2, 2, 2, 1, 2, 1), "stem": 32, "stem_stride": 2, "head": 1280}
_HALVED = {"strides": (2, 2, 2, 2, 2)}

#: By the names that torchvision and timm have for them, where those are not taken.
PUBLISHED: Mapping[str, Published] = {
    "convmixer_768_32": _published("convmixer", width=768, depth=32, kernel=7, patch=7),
    "convnext_tiny": _published("convnext", widths=(96, 192, 384, 768), blocks=(3, 3, 9, 3), kernel=7, patch=4),
    "deit_small": _published("deit", width=384, depth=12, heads=6, patch=16),
    "densenet121": _published("densenet", blocks=(6, 12, 24, 16), growth=32, stem=64, large_stem=True),
    "efficientnet_b0": _published(
        "efficientnet", widths=(16, 24, 40, 80, 112, 192, 320), blocks=(1, 2, 2, 3, 3, 4, 1),
        kernels=(3, 3, 5, 3, 5, 5, 3), expansion=(1, 6, 6, 6, 6, 6, 6), dropout=0.2, **_INVERTED,
    ),
    "mobilenet_v2_1.0": _published(
        "mobilenet_v2", widths=(16, 24, 32, 64, 96, 160, 320), blocks=(1, 2, 3, 4, 3, 3, 1),
        expansion=(1, 6, 6, 6, 6, 6, 6), **_INVERTED,
    ),
    "mobileone_s0": _published("mobileone", widths=(48, 48, 128, 256, 1024), blocks=(1, 2, 8, 10, 1), **_HALVED),
    "repvgg_a0": _published("repvgg", widths=(48, 48, 96, 192, 1280), blocks=(1, 2, 4, 14, 1), **_HALVED),
    "resmlp_12": _published("resmlp", width=384, depth=12, patch=16),
    "resnet18": _published("resnet", blocks=2, **_RESNET),
    "resnet34": _published("resnet", blocks=(3, 4, 6, 3), **_RESNET),
    "resnet50": _published("resnet", blocks=(3, 4, 6, 3), bottleneck=True, **_RESNET),
    "shufflenet_v2_1.0": _published(
        "shufflenet_v2", widths=(116, 232, 464), blocks=(4, 8, 4), stem=24, large_stem=True, head=1024
    ),
    "vgg16": _published("vgg", widths=(64, 128, 256, 512, 512), depth=(2, 2, 3, 3, 3), hidden=(4096, 4096)),
}  # fmt: skip
