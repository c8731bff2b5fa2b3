"""Peak memory of prepare, train and eval as the number of images grows: resident anonymous memory, without page cache.

A set of random pictures is written straight to `aux/`, narrow networks run one epoch on it with nothing but the number
of images changed, and a thread samples RssAnon.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from common import Report, options

ROOT = Path(__file__).resolve().parent.parent

CHILD = """
import sys, threading, time
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
import numpy as np
from gnime import arrays, pipeline
from gnime.config import Run, Stage, target

n, size, script, root = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
peak = 0
def watch():
    global peak
    while True:
        text = Path("/proc/self/status").read_text()
        peak = max(peak, int(text.split("RssAnon:")[1].split()[0]))
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()

stage = Stage(epochs=1, batch_size=128)
chosen = replace(target("noise", size), convs=(8, 8, 8), hidden=8, width=128, classifier=stage, inverter=stage, injector=stage)
run = Run(script, chosen, "grad", root, root, gpu=-1, settings=("predmi", "expmi", "rnd", "gnime"))
if script == "prepare":
    record = {{"target": "noise", "image_size": size, "seed": 0, "available": n}}
    rng = np.random.default_rng(0)
    with arrays.create(root / "aux/noise_imgs.hkl", (n, 3, size, size), "uint8", record) as writer:
        for start in range(0, n, 256):
            writer.write(rng.integers(0, 256, (min(256, n - start), 3, size, size), np.uint8))
    digest = arrays.load(root / "aux/noise_imgs.hkl").digest
    record = record | {{"classes": [str(i) for i in range(10)], "images": digest}}
    with arrays.create(root / "aux/noise_labels.hkl", (n,), "int64", record) as writer:
        writer.write(np.arange(n) % 10)
{{"prepare": pipeline.prepare, "train": pipeline.train, "eval": pipeline.evaluate}}[script](run)
print("PEAK", peak)
"""


def peak(n, size, script, root):
    """KiB."""
    code = CHILD.format(root=str(ROOT))
    run = subprocess.run([sys.executable, "-c", code, str(n), str(size), script, str(root)], capture_output=True, text=True,
                         check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    return int(run.stdout.rsplit("PEAK", 1)[1])


def main():
    chosen = options(__doc__)
    small, large, size = (3000, 9000, 32) if chosen.quick else (5000, 50000, 128)
    report = Report(chosen)
    peaks = {}
    for n in (small, large):
        with tempfile.TemporaryDirectory() as folder:
            for script in ("prepare", "train", "eval"):
                peaks[script, n] = peak(n, size, script, Path(folder))
                print(f"{script}, {n} images of 3x{size}x{size}: peak {peaks[script, n] / 1024:.0f} MiB", flush=True)
    for script in ("prepare", "train", "eval"):
        growth = 100 * (peaks[script, large] / peaks[script, small] - 1)
        report.claim(f"{script}: growth of peak memory from {small} to {large} images, %", growth, 10, at_most=True)
    report.figures = {f"{script} {n}": kib for (script, n), kib in peaks.items()}
    report.finish()


if __name__ == "__main__":
    main()
