"""A network's answers on a data set, and how good they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from bnfold.training.dataset import DataSet, Split, top1_accuracy

_EVALUATION_BATCH = 256


def predict_logits(model: nn.Module, data: DataSet, split: Split, device: torch.device) -> NDArray[np.float32]:
    """The network's logits (N, classes) for each image of ``split``, in evaluation mode."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(split), _EVALUATION_BATCH):
            raw = split.images[start : start + _EVALUATION_BATCH]
            images = torch.from_numpy(data.normalization.apply(raw)).to(device)
            parts.append(first_output(model(images)).float().cpu().numpy())
    return np.concatenate(parts)


def evaluate(model: nn.Module, data: DataSet, split: Split, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy (in nats) and top-1 accuracy (0 to 1) on ``split``, in evaluation mode."""
    logits = predict_logits(model, data, split, device)
    loss = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(split.labels))
    return float(loss), top1_accuracy(logits, split.labels)


def first_output(output: Any) -> Any:
    """The logits among a network's outputs, the first where there are several (auxiliary heads)."""
    return output[0] if isinstance(output, tuple | list) and output else output
