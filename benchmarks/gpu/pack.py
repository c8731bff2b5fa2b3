"""What travels to the GPU machine: the project at a commit, and the data of a target.

    python pack.py pack FOLDER mnist|cifar10|digits DATASETS [COMMIT]     writes FOLDER; with cifar10, FOLDER2 as well
    python pack.py unpack FOLDER                                          there: its data into WORK/data
"""

import subprocess
import sys
import tarfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACKED = "gnime", "tests", "benchmarks", "docs/table1.csv", "prepare.py", "train.py", "eval.py", "pyproject.toml"


def pack(folder: Path, target: str, datasets: Path, commit: str = "HEAD") -> None:
    """The commit itself travels, nothing uncommitted. Data that lie in `folder` already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "project.tar").open("wb") as file:
        subprocess.run(["git", "-C", str(PROJECT), "archive", commit, *PACKED], stdout=file, check=True)
    if target == "mnist" and not (folder / "mnist.tar.gz").exists():
        whole = folder / ".mnist.tar.gz"
        with tarfile.open(whole, "w:gz", compresslevel=6) as tar:
            tar.add(datasets / "MNIST" / "raw", "MNIST/raw")
        whole.replace(folder / "mnist.tar.gz")
    if target == "cifar10":
        from mosaic import write_parts

        second = folder.with_name(f"{folder.name}2")
        write_parts(datasets / "cifar10.zip", (folder / "cifar_0.tar", second / "cifar_1.tar"))


def unpack(folder: Path) -> None:
    import env

    data = env.WORK / "data"
    data.mkdir(parents=True, exist_ok=True)
    for packed in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(packed) as tar:
            tar.extractall(data, filter="data")
        env.log("unpacked", packed.name)
    for part in sorted(folder.glob("cifar_?.tar")):
        from mosaic import unpack_part

        unpack_part(part, data / "cifar10")
        env.log("unpacked", part.name)


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "unpack":
        unpack(Path(folder))
    else:
        target, datasets, *commit = rest
        pack(Path(folder), target, Path(datasets), *commit)
