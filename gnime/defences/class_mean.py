"""The mean explanation of the predicted class."""

import numpy as np
import torch
from torch import Tensor

from ..batches import iter_batches
from ..device import Device
from . import DefenceInputs, Protect


def class_mean(inputs: DefenceInputs) -> Protect:
    """The mean explanation of the predicted class. It depends on the image only through the published prediction.

    So it leaks no more than that and the defender's data. Where nothing of the prediction is published (zeros), all images are
    of the first class, and it is the mean of all: the real class's mean would reveal the class, up to log2 of their number in
    bits.
    """
    return lambda explanation, prediction, image, rows: inputs.class_means[prediction.argmax(1)]


def class_means(explanations: np.ndarray | Tensor, logits: np.ndarray | Tensor, rows: range, device: Device) -> Tensor:
    """Mean explanation of these rows by predicted class, (classes, K, S, S). A class without rows gets the mean of all rows.

    explanations: (n, K, S, S). logits: (n, classes).
    """
    totals = torch.zeros(logits.shape[1], *explanations.shape[1:], device=device.torch)
    counts = torch.zeros(logits.shape[1], device=device.torch)
    for _, (explanation, prediction) in iter_batches([explanations, logits], rows, device.torch):
        totals.index_add_(0, prediction.argmax(1), explanation)
        counts += torch.bincount(prediction.argmax(1), minlength=len(counts))
    overall = totals.sum(0) / counts.sum()
    return torch.where(counts.view(-1, 1, 1, 1) > 0, totals / counts.clamp(min=1).view(-1, 1, 1, 1), overall)
