"""A plain network of 3×3 convolutions with batch norm, in the manner of VGG.

Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, 2014
(https://arxiv.org/abs/1409.1556), with batch norm after each convolution, and a mean in place of the large fully
connected layers unless those are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.layers import for_each_stage, initialize


class VGG(nn.Module):
    """For each width, ``depth`` times convolution, batch norm and ReLU, then a 2×2 maximum; mean; linear.

    The defaults fit 8×8 and 32×32 images. The paper's VGG-16 for 224×224 has ``widths=(64, 128, 256, 512, 512)``,
    ``depth=(2, 2, 3, 3, 3)`` and ``hidden=(4096, 4096)``.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage; the image's sides must be at least 2 to the power of their number.
        depth: convolutions of each stage; one number serves all stages.
        hidden: units of linear layers with ReLU and dropout, which read all pixels in place of their mean.
        side: of the image behind the last stage; needed for ``hidden`` alone. 224×224 after five stages is 7×7.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64, 128),
        depth: int | Sequence[int] = 2,
        hidden: Sequence[int] = (),
        side: int = 7,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width, count in zip(widths, for_each_stage("depth", depth, widths), strict=True):
            for _ in range(count):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        head: list[nn.Module] = []
        features = channels * side**2 if hidden else channels
        for units in hidden:
            head += [nn.Linear(features, units), nn.ReLU(), nn.Dropout()]
            features = units
        self.hidden = nn.Sequential(*head)
        self.linear = nn.Linear(features, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        y = self.features(x)
        y = self.hidden(y.flatten(1)) if len(self.hidden) else y.mean(dim=(2, 3))
        logits: Tensor = self.linear(y)
        return logits
