"""What several test files need and no fixture gives."""

import json

import torch
from torch import nn

from gnime.cells import mode
from gnime.checkpoints import save_checkpoint
from gnime.models.classifier import Classifier
from gnime.networks import build
from gnime.store import weights_digest


class Killed(BaseException):
    """As final as a kill: no handler of ours catches it."""


def run_of(seed=0, name="mnist", xai="grad", official=(), warnings=(), precision="fp32",
           command="run --seeds 0", **mse):
    """A run's file by hand. mse: setting -> MSE, "_" for "-"; SSIM is 1 - 10 MSE, TCA 1 - MSE."""
    settings = {}
    for setting, value in mse.items():
        settings[setting.replace("_", "-")] = {
            "mse": value, "psnr": 20.0, "ssim": 1 - 10 * value, "accuracy": 0.5, "tca": 1 - value, "deepsim": 0.25,
            "residual_leakage": None, "mse_interval": [value - 0.001, value + 0.003],
            "mse_quantiles": [value / 10, 0.0, value / 2, 9.0, value * 3]}
    stage = {"epochs": 7, "batch_size": 16, "lr": 0.001}
    return {"target": name, "xai": xai, "seed": seed, "n": {"images": 60, "test": 6, "train": 22}, "command": command,
            "configuration": {"official": list(official), "image": [1, 32, 32], "width": 64, "weight": 100.0,
                              "stages": {"classifier": stage}},
            "networks": {}, "settings": settings, "warnings": list(warnings), "precision": precision,
            "versions": {"torch": "2"}, "commit": "abc",
            "hardware": {"cpu": "a processor", "device": "CPU"}}


def write(runner, preset, *runs):
    for run in runs:
        name = f"{run['target']}_{run['xai']}{mode(tuple(run['configuration']['official']))}_seed{run['seed']}.json"
        path = runner.folder / "results" / preset / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run))


MAPS = {"lrp": (3, 16), "grad": (3, 16), "gradcam": (1, 8)}  # of the maps of `small_classifier`


def random_defence(path, kind, victim, xai="lrp", **changed):
    """A file of a defence of 5 classes with random numbers in it, made for `victim`."""
    channels, side = MAPS[xai]
    shape = [channels, side, side]
    spec = {"injector": {"channels": channels, "size": side, "classes": 5, "width": 64, "mean": 0.3, "std": 0.2},
            "cond-mean": {"shape": shape, "classes": 5, "centres": 30},
            "prototypes": {"shape": shape, "prototypes": 20},
            "cond-prototypes": {"shape": shape, "classes": 5, "centres": 30, "prototypes": 6}}[kind] | {"network": kind}
    network = build(spec)
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and buffer.ndim:
            buffer.uniform_(*((-0.2, 0.2) if "coefficients" in name or kind == "cond-prototypes" else (0, 1)))
    if kind == "prototypes":
        network.owner.copy_(torch.arange(20) % 5)
    record = {"victim": weights_digest(victim), "xai": xai, "version": 1, "pool": None, "image": [3, 16, 16], "maps": shape,
              "classes": 5}
    record["xai"] = changed.pop("renamed", xai)
    save_checkpoint(path, network.state_dict(), spec, {"kind": "test"}, {"protects": record | changed})
    return path


def stack(*parts):
    """A stack with weights and biases of either sign, more of them positive: no layer is dead."""
    model = nn.Sequential(*parts)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.2, 0.5)
    return model


def small_classifier():
    """A classifier of docs/method.md "Classifiers", narrow, with biases that are not zero."""
    model = Classifier((3, 16), 5, (6, 8), 12, dropout=0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


def conv(*args, **named):
    return [nn.Conv2d(*args, **named), nn.ReLU()]


def head(features):
    return [nn.Flatten(), nn.Linear(features, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4)]


STACKS = {  # name: (image shape, layers)
    "max pooling": ((1, 8, 8), [*conv(1, 3, 3, padding=1), nn.MaxPool2d(2), *conv(3, 4, 3, padding=1), nn.MaxPool2d(2),
                                *head(16)]),
    "average pooling": ((2, 8, 6), [*conv(2, 3, 3, padding=1), nn.AvgPool2d(2), *conv(3, 3, 3), *head(6)]),
    "odd sides": ((1, 9, 7), [*conv(1, 3, 3, padding=1), nn.MaxPool2d(2), *conv(3, 2, 2), *head(12)]),
    "strides": ((2, 10, 9), [*conv(2, 3, 3, stride=2, padding=1), *conv(3, 4, (2, 3), stride=(2, 1)), *head(24)]),
    "overlapping pools": ((1, 9, 9), [*conv(1, 2, 3), nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(3, 1, padding=1),
                                      *head(32)]),
    "rectangular pools": ((1, 8, 9), [*conv(1, 2, 3, padding=1), nn.MaxPool2d((2, 3)), nn.AvgPool2d((1, 2), stride=(2, 1)),
                                      *head(8)]),
    "rounded up pools": ((1, 7, 7), [*conv(1, 2, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True),
                                     nn.AvgPool2d(3, ceil_mode=True), *head(8)]),
    "groups, dilation": ((2, 9, 9), [*conv(2, 4, 3, dilation=2, groups=2), *conv(4, 4, 3, padding=2, dilation=2, groups=2),
                                     *head(100)]),
    "paddings by name": ((1, 6, 6), [*conv(1, 2, 3, padding="same"), *conv(2, 3, (2, 3), padding="same"),
                                     *conv(3, 2, 3, padding="valid"), *head(32)]),
    "pooling first": ((1, 8, 8), [nn.AvgPool2d(2), *conv(1, 3, 3, padding=1), *conv(3, 2, 3), *head(8)]),
    "overlapping pooling first": ((1, 8, 8), [nn.AvgPool2d(3, 1), *conv(1, 2, 3), *head(32)]),
    "features as logits": ((2, 6, 6), [*conv(2, 3, 3, padding=1), nn.AvgPool2d(3), nn.Flatten()]),
    "no convolution": ((1, 4, 5), [nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)]),
    "nested, in place": ((1, 8, 8), [nn.Dropout(0.5), nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True)),
                                     nn.Sequential(nn.MaxPool2d(2), nn.Sequential(*head(27)))]),
}
