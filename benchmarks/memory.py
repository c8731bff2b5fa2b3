"""Peak memory of prepare, train and eval as the number of images grows: resident anonymous memory, without page cache.

A set of random pictures is written straight to `aux/`, narrow networks run one epoch on it with nothing but the number
of images changed, and a thread samples RssAnon. Peaks of one and the same run differ by up to a tenth and more: few and
many images are measured in turn.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Report, options

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = "prepare", "train", "eval"

CHILD = """
import sys, threading, time
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from gnime import arrays, pipeline
from gnime.config import Run, TrainConfig, target

n, size, script, root, threads = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(threads)
peak = 0
def watch():
    global peak
    while True:
        text = Path("/proc/self/status").read_text()
        peak = max(peak, int(text.split("RssAnon:")[1].split()[0]))
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()

stage = TrainConfig(epochs=1, batch_size=128)
chosen = replace(target("noise", size), convs=(8, 8, 8), hidden=8, width=128, classifier=stage, inverter=stage, injector=stage)
run = Run(script, chosen, "grad", root, root, gpu=-1, rows=("predmi", "expmi", "rnd", "gnime"))

def images(run):
    record = {{"target": "noise", "image_size": size, "seed": 0, "available": n}}
    rng = np.random.default_rng(0)
    with arrays.create(root / "aux/noise_imgs.hkl", (n, 3, size, size), "uint8", record) as writer:
        for start in range(0, n, 256):
            writer.write(rng.integers(0, 256, (min(256, n - start), 3, size, size), np.uint8))
    digest = arrays.load(root / "aux/noise_imgs.hkl").digest
    record = record | {{"classes": [str(i) for i in range(10)], "images": digest}}
    with arrays.create(root / "aux/noise_labels.hkl", (n,), "int64", record) as writer:
        writer.write(np.arange(n) % 10)

{{"images": images, "prepare": pipeline.prepare, "train": pipeline.train, "eval": pipeline.evaluate}}[script](run)
print("PEAK", peak)
"""


def peak(n, size, script, root, threads):
    """MiB."""
    code = CHILD.format(root=str(ROOT))
    arguments = [str(value) for value in (n, size, script, root, threads)]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    return int(run.stdout.rsplit("PEAK", 1)[1]) / 1024


def forget(root):
    """All but the images and their labels."""
    for folder in ("models", "figures"):
        shutil.rmtree(root / folder, ignore_errors=True)
    for path in (root / "aux").glob("noise_grad*"):
        path.unlink()


def main():
    chosen = options(__doc__)
    small, large, size, rounds = (2000, 6000, 32, 1) if chosen.quick else (5000, 50000, 128, 3)
    report = Report(chosen)
    peaks = {(script, n): [] for script in SCRIPTS for n in (small, large)}
    with tempfile.TemporaryDirectory() as folder:
        roots = {n: Path(folder) / str(n) for n in (small, large)}
        for _ in range(rounds):
            for n, root in roots.items():
                if not root.exists():
                    root.mkdir()
                    peak(n, size, "images", root, chosen.threads)
                forget(root)
                for script in SCRIPTS:
                    peaks[script, n].append(peak(n, size, script, root, chosen.threads))
                    print(f"{script}, {n} images of 3x{size}x{size}: peak {peaks[script, n][-1]:.0f} MiB", flush=True)
    for (script, n), values in peaks.items():
        report.values(f"{script}, {n} images", values, "MiB")
    for script in SCRIPTS:
        ratio = statistics.median(b / a for a, b in zip(peaks[script, small], peaks[script, large], strict=True))
        report.claim(f"{script}: growth of peak memory from {small} to {large} images, %", 100 * (ratio - 1), 10, at_most=True)
    report.finish()


if __name__ == "__main__":
    main()
