"""Seconds until `--help` has answered, for each script."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import Report, options

ROOT = Path(__file__).resolve().parent.parent


def main():
    chosen = options(__doc__)
    report = Report(chosen)
    for script in ("prepare", "train", "eval"):
        seconds = []
        for _ in range(5 if chosen.quick else 20):
            began = time.perf_counter()
            subprocess.run([sys.executable, str(ROOT / f"{script}.py"), "--help"], capture_output=True, check=True)
            seconds.append(time.perf_counter() - began)
        report.times(f"{script}.py --help", seconds)
        report.claim(f"{script}.py --help, seconds", statistics.median(seconds), 0.3, at_most=True)
    report.finish()


if __name__ == "__main__":
    main()
