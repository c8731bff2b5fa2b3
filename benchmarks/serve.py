"""A hundred thousand calls of `Protected.attribute` from eight threads: wrong answers, and the growth of memory.

Each call asks for one image. Its answer must be the image's own, bit for bit, as one thread alone got it. No two images have
the same answer. The first tenth of the calls does not count for memory.
"""

import threading
import time
from pathlib import Path

import torch
from common import Report, options

from gnime import Protected
from gnime.config import target
from gnime.explainers.lrp import lrp
from gnime.networks import build, classifier_spec

THREADS, CALLS, IMAGES = 8, 100_000, 512
GROWTH = 4.0  # MB that memory may grow by: an object of 48 bytes kept per call would be more


def service() -> Protected:
    """cond-prototypes-8 of LRP at the digits' victim, with random numbers."""
    spec = {"network": "cond-prototypes", "shape": [1, 16, 16], "classes": 10, "centres": 898, "prototypes": 8}
    victim, defence = build(classifier_spec(target("digits"), 10)).eval(), build(spec).eval()
    defence.mean.means.uniform_(0.2, 0.8)
    defence.mean.centres.normal_()
    defence.mean.coefficients.normal_(std=0.02)
    defence.prototypes.normal_(std=0.1)
    return Protected(victim.requires_grad_(False), lrp, defence, {"image": [1, 16, 16], "maps": [1, 16, 16]})


def resident() -> float:
    """Memory of the process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def ask(protected: Protected, images: torch.Tensor, expected: torch.Tensor, calls: int) -> int:
    """Wrong answers of all threads together."""
    wrong = [0] * THREADS

    def work(thread: int) -> None:
        for call in range(calls // THREADS):
            i = (thread * 61 + call * (2 * thread + 1)) % IMAGES
            wrong[thread] += not protected.attribute(images[i : i + 1]).equal(expected[i : i + 1])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(wrong)


def main():
    chosen = options(__doc__)
    report = Report(chosen)
    torch.set_num_threads(1)  # of one operation: the calls themselves are in parallel
    protected, images = service(), torch.rand(IMAGES, 1, 16, 16)
    expected = torch.cat([protected.attribute(image[None]) for image in images])
    if len(expected.unique(dim=0)) < IMAGES:
        raise SystemExit("two images have the same answer, so it would not show that a thread got the other's")
    calls = CALLS // 20 if chosen.quick else CALLS
    wrong = ask(protected, images, expected, calls // 10)
    before, began = resident(), time.perf_counter()
    for tenth in range(9):
        wrong += ask(protected, images, expected, calls // 10)
        report.number(f"MB after {(tenth + 2) * calls // 10} calls", resident())
    report.number("calls/s", 9 * (calls // 10) / (time.perf_counter() - began))
    report.claim(f"answers of another image in {10 * (calls // 10)} calls", wrong, 0, at_most=True)
    report.claim("growth of memory, MB", resident() - before, GROWTH, at_most=True)
    report.finish()


if __name__ == "__main__":
    main()
