"""The mean explanation given the published prediction, to which it adds nothing.

That is about the image which is explained. Near a defender's image's own prediction the mean resembles that image's map.
"""

import torch
from torch import Tensor

from ..batches import gather_rows
from ..models.conditional_mean import gaussian
from ..system import permutation
from . import DefenderData, Fit

WIDTHS = (0.3, 0.5, 1.0, 1.5, 3.0)
RIDGES = (0.01, 0.1, 0.3, 1.0)
# Images that the regression sees; the class means see all. However large the half is, maps and coefficients of 3x128x128 then
# take 0.4 GB each, a fit 2.6 GB and 30 s of a CPU, and the file 0.4 GB beside the class means.
CENTRES = 2000
PIXELS = 4096  # at a time in 64 bits


def fit(data: DefenderData) -> Fit:
    """A `ConditionalMean`: class means, and kernel ridge regression of the rest on the logits.

    Width and ridge have the least leave-one-out error of the grid.
    """
    return fit_with_residuals(data)[0]


def fit_with_residuals(data: DefenderData) -> tuple[Fit, Tensor]:
    """The fit, and (centres, K S S) the maps less what a regression without them predicts.

    A new image's would be a little larger: the class means that the regression starts from contain the image.
    """
    chosen = choose(torch.tensor(data.rows), CENTRES, data.seed, "centres")
    logits = gather_rows(data.predictions, chosen, data.device.torch).double()
    offset, scale = logits.mean(0), logits.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1) * logits.shape[1] ** 0.5
    centres = (logits - offset) / scale  # (m, classes)
    maps = gather_rows(data.explanations, chosen, data.device.torch)
    rest = (maps - data.class_means[logits.argmax(1)]).flatten(1)  # (m, K S S)
    gram = sum(part @ part.T for part in (columns.double() for columns in rest.split(PIXELS, 1)))
    kernels = {width: gaussian(centres, centres, width) for width in WIDTHS}
    errors = {(width, ridge): leave_one_out_error(kernels[width], gram, ridge) for width in WIDTHS for ridge in RIDGES}
    width, ridge = min(errors, key=errors.get)
    inverse = ridge_inverse(kernels[width], ridge)
    coefficients = torch.cat([(inverse @ columns.double()).float() for columns in rest.split(PIXELS, 1)], 1)
    tensors = {"means": data.class_means, "offset": offset.float(), "scale": scale.float(), "width": torch.tensor(width),
               "centres": centres.float(), "coefficients": coefficients}
    spec = {"network": "cond-mean", "shape": list(maps.shape[1:]), "classes": logits.shape[1], "centres": len(chosen)}
    report = {"h": width, "ridge": ridge, "leave_one_out": errors[width, ridge] / rest.shape[1], "images": len(chosen)}
    return Fit(spec, tensors, report), coefficients / inverse.diagonal()[:, None].float()


def choose(rows: Tensor, most: int, seed: int, *purpose: object) -> Tensor:
    """At most so many of the rows, chosen at random, in their order."""
    return rows[permutation(len(rows), seed, *purpose)[:most].sort().values]


def ridge_inverse(kernel: Tensor, ridge: float) -> Tensor:
    """(kernel + ridge I)^-1."""
    return torch.cholesky_inverse(torch.linalg.cholesky(kernel + ridge * torch.eye(len(kernel)).to(kernel)))


def leave_one_out_error(kernel: Tensor, gram: Tensor, ridge: float) -> float:
    """Mean over images of |r_i - f_i(y_i)|^2, where f_i is the ridge regression of r on all images but i.

    r_i - f_i(y_i) = (M r)_i / M_ii with M = (kernel + ridge I)^-1 (Rasmussen and Williams, Gaussian Processes for Machine
    Learning, 5.12). The squares take r's Gram matrix alone, so its pixels are read once for the whole grid.

    Args:
        kernel, gram: k(y_i, y_j) and r_i . r_j, (m, m) float64.
    """
    inverse = ridge_inverse(kernel, ridge)
    squares = ((inverse @ gram) * inverse).sum(1)  # |(M r)_i|^2
    return (squares / inverse.diagonal().square()).mean().item()
