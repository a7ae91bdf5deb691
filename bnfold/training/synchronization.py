"""A network that several workers run together: equal gradients, and batch norms over the whole batch.

torch's own SyncBatchNorm is for CUDA only, so that the one here is what workers on CPUs, which talk over gloo, use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from bnfold.training.distributed import Team


def shared_network(model: nn.Module, team: Team) -> nn.Module:
    """The network as its workers run it together; alone, the network itself.

    The batch norms of ``model`` are replaced where they are, by such with the same tensors under the same names.
    """
    if team.size == 1:
        return model
    if team.device.type == "cuda":
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(synchronized, device_ids=[team.device.index])
    return DistributedDataParallel(synchronize(model))


def synchronize(module: nn.Module) -> nn.Module:
    """``module`` with a :class:`SynchronizedBatchNorm` in the place of each batch norm in it, itself included.

    One that stands in several places is replaced by the same one in all of them.
    """
    return _synchronized(module, {})


def _synchronized(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in made:
        if isinstance(module, _BatchNorm):
            made[module] = SynchronizedBatchNorm.of(module)
        else:
            made[module] = module
            for name, child in list(module._modules.items()):
                if child is not None:
                    setattr(module, name, _synchronized(child, made))
    return made[module]


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all workers, on any device.

    For channel c with n elements over all workers: ``μ = Σx/n``, ``σ² = Σ(x − μ)²/n``,
    ``y = γ·(x − μ)/√(σ² + ε) + β``, the sums over all workers. Gradients flow through the sums, so that they are those
    of one batch norm over the whole batch; running statistics are equal on all workers. In float32 at least, whatever
    the input. In evaluation mode it is a plain batch norm.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> SynchronizedBatchNorm:
        """One with the settings and the very tensors of ``norm``."""
        made = cls(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        made.affine, made.track_running_stats, made.training = norm.affine, norm.track_running_stats, norm.training
        made._parameters, made._buffers = norm._parameters, norm._buffers
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected an input of at least 2 axes, got {input.ndim}")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, …) → the same shape and type."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        axes = [axis for axis in range(x.ndim) if axis != 1]
        column = [1, -1, *([1] * (x.ndim - 2))]
        own = x.new_tensor([x.numel() // x.shape[1]])
        sums = _summed(torch.cat([x.sum(axes), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.reshape(column)
        var = _summed(centred.square().sum(axes)) / count
        if self.training:
            self._track(mean.detach(), var.detach(), count)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        y = centred * scale.reshape(column)
        if self.bias is not None:
            y = y + self.bias.reshape(column)
        return y.to(input.dtype)

    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:
                share = 1.0 / float(self.num_batches_tracked)
        assert share is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over all workers; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    result: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return result
