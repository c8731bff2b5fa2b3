"""The package as others install it, and the list of its public names."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def test_api_md_is_what_the_docstrings_say():
    spec = importlib.util.spec_from_file_location("docs_api", REPOSITORY / "docs/api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    written = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    assert written == api.text(), "run: python docs/api.py"
    assert "Raises:" in written and "(N, C, H, W)" in written and "in [0, 1]" in written


def test_a_wheel_in_an_empty_environment_makes_a_tiny_run(tmp_path):
    """The environment has Python, the wheel, and a path to the packages that it requires, which are not installed anew."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"  # a build writes beside its source
    for name in subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "gnime", "pyproject.toml",
                                "setup.py", "README.md", "requirements.txt"],
                               cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    identity = {f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in ("init -q", "add .", "commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=source, env=os.environ | identity, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True).stdout
    (source / "gnime/py.typed").write_text("# changed")
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"  # what pip calls
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("gnime-*.whl")
    home = tmp_path / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(home)}))
    subprocess.run([sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet", "--no-deps",
                    "--no-index", wheel], check=True)
    (packages / "required.pth").write_text(sysconfig.get_path("purelib"))
    assert (packages / "gnime/py.typed").exists()

    def run(*command):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert run(home / "bin/python", "-c", "import sys, gnime; print('torch' in sys.modules, gnime.__file__)").split() == [
        "False", str(packages / "gnime/__init__.py")]
    assert run(home / "bin/python", "-c", "from gnime.system import commit; print(commit())").strip() == head[:12] + "+"
    for name in ("train", "eval", "reproduce"):
        assert run(home / f"bin/gnime-{name}", "--help").startswith("usage: ")
    said = run(home / "bin/gnime-prepare", "--target", "digits", "--gpu", "-1", "--limit", "30", "--epochs", "1",
               "--root", "root")
    assert "next: gnime-train --target digits" in said
    assert (tmp_path / "root/aux/digits_lrp.hkl").exists()
