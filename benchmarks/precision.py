"""What attackers recover when everything is trained in bf16, against fp32, beside the spread of seeds.

Whole runs of the three scripts on the embedded digits, narrow networks, a run for every seed and precision. Also measured
where a processor has no bf16 instructions: slower, to the same numbers.
"""

import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import torch
from common import Report, options

from gnime import cli
from gnime.config import Run, target
from gnime.device import Device

SETTINGS = "predmi", "expmi", "rnd", "gnime"
WIDTH, LIMIT = 64, 600


def results(seed, precision, chosen):
    """What `eval.py` wrote."""
    with tempfile.TemporaryDirectory() as root:
        flags = ["--target", "digits", "--xai", "grad", "--width", WIDTH, "--limit", LIMIT, "--seed", seed,
                 "--precision", precision, "--gpu", chosen.gpu, "--root", root, *(("--epochs", 2) if chosen.quick else ())]
        for script in ("prepare", "train", "eval"):
            with contextlib.redirect_stdout(io.StringIO()):
                if code := cli.main(script, [str(flag) for flag in flags]):
                    raise SystemExit(code)
        return json.loads((Path(root) / "figures/digits_grad/results.json").read_text())


def main():
    chosen = options(__doc__, gpu=True)
    seeds = range(2 if chosen.quick else 8)
    device = Device(Run("train", target("digits"), "grad", Path(), Path(), gpu=chosen.gpu)).torch
    report = Report(chosen, torch.cuda.get_device_name(device) if device.type == "cuda" else None)
    print(f"digits, grad, width {WIDTH}, {LIMIT} images, seeds {', '.join(map(str, seeds))}")
    mse = {}
    for seed in seeds:
        for precision in ("fp32", "bf16"):
            found = results(seed, precision, chosen)
            for setting in SETTINGS:
                mse.setdefault((setting, precision), []).append(found["settings"][setting]["mse"])
                report.number(f"{setting}, {precision}, seed {seed}: MSE", mse[setting, precision][-1])
            print(f"seed {seed}, {precision}: {found['duration']} of eval.py, {len(found['warnings'])} warnings", flush=True)
    for setting in SETTINGS:
        fp32, bf16 = (mse[setting, precision] for precision in ("fp32", "bf16"))
        apart = abs(statistics.mean(bf16) - statistics.mean(fp32)) / statistics.stdev(fp32)
        report.claim(f"{setting}: MSE, bf16 from fp32, standard deviations of seeds", apart, 2, at_most=True)
    report.finish()


if __name__ == "__main__":
    main()
