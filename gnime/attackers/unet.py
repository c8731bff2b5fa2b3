"""An attacker of another architecture, trained on shifted pictures; see `models.unet`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batches import mean_std
from ..data import AttackerData
from ..experiment import Experiment
from ..registry import Row
from . import Fitted
from .inverter import fit_inverter

REACH = 1 / 16  # of the side: the largest shift


def unet(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """The residual U-Net. Where the row withholds its maps, they are zeros: then it learns from the prediction alone."""
    maps = shown.explanations
    of_maps = (0.0, 1.0) if maps is None else mean_std(maps, shown.train)
    spec = {"scales": [*of_maps, *mean_std(shown.predictions, shown.train)]}
    spec |= {"explanation_channels": 1} if maps is None else {}
    return fit_inverter("unet", experiment, row, shown, loss=shifted_error, **spec)


def shifted_error(network: nn.Module, batch: list) -> Tensor:
    """Mean squared error where half of the images are shifted, each with its map by a draw of its own.

    Shifts are small, because the prediction stays that of the picture in its place. Pictures are not mirrored or turned: that
    makes another digit, or none. Pixels that come in from outside are unknown and do not count. The network sees where they
    are, so it learns no blur from shifts of a map that says nothing.

    batch: explanations (n, K, S, S) or None, predictions (n, classes), images (n, C, T, T).
    """
    explanation, prediction, image = batch
    seen = network.seen(explanation, len(image))
    reach = round(REACH * image.shape[2])
    by = torch.randint(-reach, reach + 1, (len(image), 2)) * torch.randint(2, (len(image), 1))  # seeded for each epoch
    by = by.to(image.device)
    seen, image = shift(seen, by, reach), shift(image, by, reach)
    return ((network.reconstruct(seen, prediction).float() - image) * seen[:, -1:]).square().mean()


def shift(pictures: Tensor, by: Tensor, reach: int) -> Tensor:
    """Pictures (n, C, T, T), each moved down and right by its pair in `by`, (n, 2) from -reach to reach; zeros come in."""
    n, side = len(pictures), torch.arange(pictures.shape[2], device=pictures.device)
    padded = F.pad(pictures, [reach] * 4)
    rows, columns = (side + reach - by[:, dim, None] for dim in (0, 1))  # (n, T): where each one comes from
    moved = padded[torch.arange(n, device=pictures.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)  # from (n, T, T, C)
