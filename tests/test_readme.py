"""Every command of README.md: run at a tiny size, or read by the real parser of the command where a run takes too long."""

import re
import shlex
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gnime import cells, cli, export, pipeline
from gnime.config import TARGETS
from gnime.networks import rebuild

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
PROGRAMS = re.compile(r"(?:make|pip|python|torchrun|gnime-\w+)(?: .*)?$", re.DOTALL)
TINY = ["--limit", "40", "--width", "64", "--epochs", "1", "--batch-size", "20", "--gpu", "-1"]  # after the command's own flags
# why a command is only read, and what runs it
READ = {"make": "minutes, and a new environment: every line of the recipes in the Makefile is read too",
        "torchrun": "two processes; tests/test_parallel.py runs them",
        "pip": "tests/test_package.py installs a wheel",
        "gnime": "tests/test_package.py starts the installed commands",
        "python -m gnime.export": "converts for seconds; tests/test_export.py runs it",
        "python -m gnime.reproduce": "hours; tests/test_reproduce.py and tests/test_seeds.py run it"}


def commands():
    """Lines of the indented and the fenced blocks, and words in code marks, that begin with a program's name."""
    lines = re.findall(r"^    (.+)$", README, re.MULTILINE)
    lines += [line for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
              for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`\n][^`]*)`", prose)]
    return [" ".join(shlex.split(text, comments=True)) for text in lines + spans if PROGRAMS.match(text)]


def kind(command):
    """The key of `READ` of a command that is only read; None of one that is run."""
    return next((name for name in READ if command.startswith(name)), None)


def read(command):
    """Raises SystemExit or AssertionError where the command is none."""
    words = [word for word in shlex.split(command) if word != "..."]
    if words[0] == "make":
        recipe = subprocess.run(["make", "--always-make", "--dry-run", *words[1:]], cwd=REPOSITORY, capture_output=True,
                                text=True)
        assert recipe.returncode == 0, recipe.stderr
        for line in recipe.stdout.splitlines():
            if script := re.match(r"\S*python (prepare|train|eval)\.py (.*)", line):
                cli.parser(script[1]).parse_args(shlex.split(script[2]))
    elif words[0] == "torchrun":
        (at,) = [i for i, word in enumerate(words) if word.endswith(".py")]
        cli.parser(words[at].removesuffix(".py")).parse_args(words[at + 1 :])
    elif words[0] == "pip":
        assert words[1] == "install" and Path(REPOSITORY, words[-1].partition("[")[0], "pyproject.toml").is_file()
    elif words[0].startswith("gnime-"):
        assert f'\n{words[0]} = "' in (REPOSITORY / "pyproject.toml").read_text()
        name = words[0].removeprefix("gnime-")
        (cells.parser() if name == "reproduce" else cli.parser(name)).parse_args(words[1:])
    else:
        {"gnime.export": export, "gnime.reproduce": cells}[words[2]].parser().parse_args(words[3:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: with an MNIST of noise, whose classes differ in their brightness."""
    folder = tmp_path_factory.mktemp("readme")
    raw, numbers = folder / "datasets/MNIST/raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, n in (("train", 40), ("t10k", 20)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = numbers.integers(0, 100, (n, 28, 28)) + 15 * labels[:, None, None]
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, n, 28, 28) + images.astype(np.uint8).tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + labels.tobytes())
    return folder


def test_the_commands_that_are_found():
    assert {kind(command) for command in commands()} == {None, *READ}, "READ names what README.md has"
    assert [command.split()[1] for command in commands() if not kind(command)] == ["prepare.py", "train.py", "eval.py"]


@pytest.mark.parametrize("command", [command for command in dict.fromkeys(commands()) if kind(command)])
def test_commands_that_are_only_read(command):
    read(command)


@pytest.mark.parametrize("command", ["make dmeo", "torchrun --nproc-per-node 2 train.py --wieght 3", "python -m gnime.export",
                                     "gnime-evaluate", "python -m gnime.reproduce --preset small", "pip install gnime-2"])
def test_a_wrong_command_is_noticed(command):
    with pytest.raises((SystemExit, AssertionError)):
        read(command)


def test_commands_and_code_that_are_run(folder, monkeypatch, capsys):
    """In the order of README.md, in one folder, with narrow classifiers; pictures are drawn in other tests."""
    monkeypatch.chdir(folder)
    monkeypatch.setitem(TARGETS, "mnist", replace(TARGETS["mnist"], convs=(8, 16), hidden=32))
    monkeypatch.setattr(pipeline, "_pictures", lambda *_: None)
    for command in commands():
        if not kind(command):
            _, script, *flags = shlex.split(command)
            assert cli.main(script.removesuffix(".py"), [*flags, *TINY]) == 0, command
    assert {path.name for path in folder.iterdir()} == {"models", "aux", "figures", "datasets"}
    assert "publish: " in capsys.readouterr().out

    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    names = {"model": rebuild("models/victim/mnist.pt"), "images": torch.rand(2, 1, 32, 32)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["maps"].shape == names["explanation"].shape == (2, 1, 32, 32)
    assert not torch.equal(names["maps"], names["explanation"]) and names["explanation"].min() == 0
