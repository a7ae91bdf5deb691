"""A residual network whose 3×3 convolutions are trained as four diverse branches.

Ding et al., *Diverse Branch Block: Building a Convolution as an Inception-like Unit*, 2021
(https://arxiv.org/abs/2103.13425). Each block computes::

    bn(conv3×3(x)) + bn(conv1×1(x)) + bn(conv3×3(bn(conv1×1(x)))) + bn(mean3×3(bn(conv1×1(x))))

and is one 3×3 convolution for inference. In the last two branches the 1×1 convolution pads, and what follows does
not: so the border holds what the batch norm makes of zeros, as the one convolution needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from bnfold.models.reparameterization import Kernel, NormedConv, Reparameterizable, total
from bnfold.models.stages import plan_stages


class DiverseBranchBlock(Reparameterizable):
    """k×k; 1×1; 1×1 → k×k; 1×1 → average of k×k.

    Where each channel is a group of its own, 1×1 convolutions only scale: there is no branch of one alone, none before
    the average, and the one before the k×k has two channels for each.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        depthwise = groups == out_channels
        pad = kernel_size // 2
        middle = 2 * in_channels if depthwise else in_channels
        self.dense = NormedConv(in_channels, out_channels, kernel_size, stride, groups)
        self.point = None if depthwise else NormedConv(in_channels, out_channels, 1, stride, groups)
        self.expand = NormedConv(in_channels, middle, 1, groups=groups, padding=pad)
        self.project = NormedConv(middle, out_channels, kernel_size, stride, groups, padding=0)
        self.mix = None if depthwise else NormedConv(in_channels, out_channels, 1, groups=groups, padding=pad)
        self.pool = nn.AvgPool2d(kernel_size, stride, padding=pad if depthwise else 0)
        self.pool_bn = nn.BatchNorm2d(out_channels)
        nn.init.dirac_(self.expand.conv.weight, groups)  # the branch begins as one k×k

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y: Tensor = self.dense(x) + self.project(self.expand(x))
        y = y + self.pool_bn(self.pool(x if self.mix is None else self.mix(x)))
        return y if self.point is None else y + self.point(x)

    def merged(self) -> nn.Conv2d:
        """One k×k convolution."""
        conv = self.dense.conv
        mean = Kernel.average(conv.kernel_size[0], conv.out_channels, conv.groups).normalized(self.pool_bn)
        branches = [
            self.dense.kernel(),
            self.expand.kernel().then(self.project.kernel()),
            mean if self.mix is None else self.mix.kernel().then(mean),
        ]
        if self.point is not None:
            branches.append(self.point.kernel())
        return total(branches).as_conv(conv)


class ResidualBlock(nn.Module):
    """Two diverse branch blocks and a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = DiverseBranchBlock(in_channels, out_channels, 3, stride)
        self.second = DiverseBranchBlock(out_channels, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = NormedConv(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H / stride, W / stride)."""
        y = self.second(F.relu(self.first(x)))
        return F.relu(y + self.shortcut(x))


class DBBNet(nn.Module):
    """Stem, one stage of residual blocks for each width, mean, linear.

    Args:
        in_channels: channels of the image.
        num_classes: number of classes.
        widths: channels of each stage.
        blocks: residual blocks of each stage; one number serves all stages.
        strides: stride of the first block of each stage; where none are given, each stage but the first has 2.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32),
        blocks: int | Sequence[int] = 1,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        plan = [block for stage in plan_stages(widths[0], widths, blocks, strides) for block in stage]
        self.stem = DiverseBranchBlock(in_channels, widths[0])
        self.blocks = nn.Sequential(*(ResidualBlock(*block) for block in plan))
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, num_classes)."""
        y = self.blocks(F.relu(self.stem(x)))
        logits: Tensor = self.linear(y.mean(dim=(2, 3)))
        return logits
