"""A plain network of 3×3 convolutions with batch norm, in the manner of VGG.

Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, 2014
(https://arxiv.org/abs/1409.1556), with batch norm after each convolution and a mean in place of the large
fully connected layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class VGG(nn.Module):
    """For each width, ``depth`` times convolution, batch norm and ReLU, then a 2×2 maximum; mean; linear.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage; the image's sides must be at least 2 to the power of their number.
        depth: convolutions of each stage.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64, 128),
        depth: int = 2,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits
