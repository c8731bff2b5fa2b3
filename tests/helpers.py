"""What several test files need and no fixture gives."""

import json

from gnime.reproduce import mode


class Killed(BaseException):
    """As final as a kill: no handler of ours catches it."""


def run_of(seed=0, name="mnist", xai="grad", official=(), warnings=(), command="run --seeds 0", **mse):
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
            "networks": {}, "settings": settings, "warnings": list(warnings), "versions": {"torch": "2"}, "commit": "abc",
            "hardware": {"cpu": "a processor", "device": "CPU"}}


def write(runner, preset, *runs):
    for run in runs:
        name = f"{run['target']}_{run['xai']}{mode(tuple(run['configuration']['official']))}_seed{run['seed']}.json"
        path = runner.folder / "results" / preset / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run))
