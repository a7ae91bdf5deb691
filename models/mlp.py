"""A multilayer perceptron with batch norm after each hidden linear layer.

The setting of Ioffe and Szegedy's first experiment, *Batch Normalization*, 2015
(https://arxiv.org/abs/1502.03167), section 4.1: each hidden layer computes ``relu(bn(W x + b))``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, then linear, batch norm and ReLU for each width, then linear.

    Args:
        in_features: values in one sample, C·H·W of an image.
        num_classes: number of classes.
        widths: units of each hidden layer.
        dropout: probability of setting a hidden unit to zero in training.
    """

    def __init__(
        self,
        in_features: int = 64,
        num_classes: int = 10,
        widths: Sequence[int] = (256, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = in_features
        for width in widths:
            layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            features = width
        self.hidden = nn.Sequential(*layers)
        self.linear = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) with in_features values a sample → logits (N, num_classes)."""
        logits: Tensor = self.linear(self.hidden(x.flatten(1)))
        return logits
