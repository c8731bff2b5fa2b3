"""What comes back from the GPU machine.

    python collect.py results                 OUT/gpu.tar.gz: results, logs, pictures
    python collect.py wait SECONDS            the same again and again until the cells end or the seconds are over
    python collect.py networks [PATTERN ...]  OUT/networks.tar.000, ...: trained networks in pieces of at most 15 MiB
    python collect.py join FOLDER INTO        here: networks from their pieces in FOLDER
"""

import io
import json
import sys
import tarfile
import time
from pathlib import Path

import env

PIECE = 15 * 2**20
KEPT = ("results/*/*.json", "logs/*.txt", "root/*/figures/*/*.png", "root/*/figures/*/results.json",
        "root/*/figures/*/report.html", "smoke/*.json", "smoke/*.err", "profile.txt", "decided.json", "cells.txt")
NETWORKS = "def/*/injector.pt", "inv/*.pt"


def results() -> None:
    env.OUT.mkdir(parents=True, exist_ok=True)
    part = env.OUT / ".gpu.tar.gz"
    with tarfile.open(part, "w:gz", compresslevel=3) as tar:
        for pattern in KEPT:
            for file in sorted(env.WORK.glob(pattern)):
                tar.add(file, str(file.relative_to(env.WORK)))
    part.replace(env.OUT / "gpu.tar.gz")


def wait(seconds: float) -> None:
    end, collected = time.time() + seconds, 0.0
    while time.time() < end and not (env.WORK / "cells.done").exists():
        if time.time() > collected + 30:
            results()
            collected = time.time()
        time.sleep(min(0.5, max(0.1, end - time.time())))
    results()
    for file in sorted(env.WORK.glob("results/*/*.json")):
        result = json.loads(file.read_text())
        mse = {name: round(numbers["mse"], 4) for name, numbers in result["settings"].items()}
        spent = {name: (network.get("epochs"), network.get("seconds")) for name, network in result["networks"].items()}
        env.log(file.name, result["precision"], mse, spent, *result["warnings"])


def networks(patterns: list[str]) -> list[Path]:
    """Finished networks of all roots as one tar in pieces. patterns: below models/, such as "inv/mnist_gnime_*.pt"."""
    files = {file for pattern in patterns or NETWORKS for file in env.WORK.glob(f"root/*/models/{pattern}")
             if not file.name.endswith(".state.pt") and not file.name.startswith(".")}
    for left in env.OUT.glob("networks.tar.*"):
        left.unlink()
    env.OUT.mkdir(parents=True, exist_ok=True)
    writer = _Pieces(env.OUT)
    with tarfile.open(fileobj=writer, mode="w|") as tar:
        for file in sorted(files):
            tar.add(file, str(file.relative_to(env.WORK / "root")))
    for piece in writer.paths:
        env.log(piece.name, piece.stat().st_size, "bytes")
    return writer.paths


class _Pieces:
    """A file to write to that is cut into pieces of at most `PIECE` bytes."""

    def __init__(self, folder: Path):
        self.folder, self.paths, self._room = folder, [], 0

    def write(self, data: bytes) -> int:
        data = memoryview(data)
        written = 0
        while written < len(data):
            if self._room == 0:
                self.paths.append(self.folder / f"networks.tar.{len(self.paths):03d}")
                self.paths[-1].write_bytes(b"")
                self._room = PIECE
            some = data[written : written + self._room]
            with self.paths[-1].open("ab") as file:
                file.write(some)
            written, self._room = written + len(some), self._room - len(some)
        return written


def join(folder: Path, into: Path) -> None:
    """Unpacks the pieces in `folder` under `into`."""
    whole = b"".join(piece.read_bytes() for piece in sorted(folder.glob("networks.tar.*")))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        tar.extractall(into, filter="data")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "results":
        results()
    elif what == "wait":
        wait(float(rest[0]))
    elif what == "networks":
        networks(rest)
    else:
        join(*map(Path, rest))
