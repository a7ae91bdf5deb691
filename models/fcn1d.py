"""A fully convolutional network for time series: the network in one dimension.

Wang et al., *Time Series Classification from Scratch with Deep Neural Networks: A Strong Baseline*, 2016
(https://arxiv.org/abs/1611.06455). Each layer computes ``relu(bn(conv(x)))``, then comes the mean over time.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.layers import for_each_stage, initialize


class FCN1d(nn.Module):
    """Convolution, batch norm and ReLU for each width; mean over time; linear.

    The paper's network has ``widths=(128, 256, 128)`` and kernels of 8, 5 and 3. The length of the series is free; an
    image is read as the series of its pixels, row by row.

    Args:
        in_channels: channels of the series.
        num_classes: number of classes.
        widths: channels of each layer.
        kernels: length of each layer's kernels, odd numbers; one number serves all layers.
        stride: of each layer but the first.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 32),
        kernels: int | Sequence[int] = (7, 5, 3),
        stride: int = 1,
    ) -> None:
        super().__init__()
        lengths = for_each_stage("kernels", kernels, widths)
        if any(length % 2 == 0 for length in lengths):
            raise ValueError("kernels must be odd numbers, which keep the length of the series")
        layers: list[nn.Module] = []
        channels = in_channels
        for index, (width, length) in enumerate(zip(widths, lengths, strict=True)):
            step = stride if index else 1
            layers += [
                nn.Conv1d(channels, width, length, step, length // 2, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, length), or an image (N, in_channels, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.features(x.flatten(2)).mean(dim=2))
        return logits
