"""A convolutional recurrent network: an image read column by column, with batch norm between the recurrent layers.

Shi et al., *An End-to-End Trainable Neural Network for Image-based Sequence Recognition*, 2015
(https://arxiv.org/abs/1507.05717), for the plan: convolutions, of which the columns become steps in time, then
bidirectional recurrent layers. Amodei et al., *Deep Speech 2*, 2015 (https://arxiv.org/abs/1512.02595), for a batch
norm over samples and steps before each recurrent layer, and before the last linear one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.layers import ConvNorm, initialize

_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class NormedRecurrence(nn.Module):
    """``rnn(bn(x))``, read forward and backward; the batch norm is over samples and steps.

    Args:
        in_features: features of each step.
        hidden: size of the state of each direction.
        cell: ``gru`` or ``lstm``.
    """

    def __init__(self, in_features: int, hidden: int, cell: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features)
        self.recurrence = _CELLS[cell](in_features, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, in_features) → (N, T, 2·hidden)."""
        outputs: Tensor = self.recurrence(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]
        return outputs


class CRNN(nn.Module):
    """Convolutions with batch norm, ReLU and pooling; recurrent layers over the columns; their mean; linear.

    The first pooling halves the image, further ones its height alone, so that steps are left to read.

    Args:
        input_shape: (C, H, W) of the image; the width may be another when it runs.
        num_classes: number of classes.
        widths: channels of each convolution.
        hidden: size of the state of each direction.
        depth: recurrent layers.
        cell: ``lstm`` or ``gru``.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 8, 8),
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32),
        hidden: int = 24,
        depth: int = 2,
        cell: str = "lstm",
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise ValueError(f"cell must be one of {', '.join(_CELLS)}")
        if not widths or depth < 1:
            raise ValueError("widths need at least one number, and depth is 1 or more")
        channels, height, width = input_shape
        rows, columns = height >> len(widths), width >> 1
        if not rows or not columns:
            raise ValueError(f"an image of {height}×{width} pixels is too small for {len(widths)} poolings")
        layers: list[nn.Module] = []
        for index, features in enumerate(widths):
            layers += [ConvNorm(channels, features, 3), nn.MaxPool2d((2, 1) if index else (2, 2))]
            channels = features
        self.stem = nn.Sequential(*layers)
        inputs = [channels * rows, *[2 * hidden] * (depth - 1)]
        self.recurrences = nn.Sequential(*(NormedRecurrence(features, hidden, cell) for features in inputs))
        self.norm = nn.BatchNorm1d(2 * hidden)
        self.linear = nn.Linear(2 * hidden, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, num_classes)."""
        columns = self.stem(x).flatten(1, 2).transpose(1, 2)
        steps = self.norm(self.recurrences(columns).transpose(1, 2))
        logits: Tensor = self.linear(steps.mean(dim=2))
        return logits
