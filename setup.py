"""Writes the commit into a wheel: an installed package has no checkout that could be asked for it."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildPy(build_py):
    def run(self):
        super().run()
        if (HERE / ".git").exists() and not self.editable_mode and (commit := checked_out()):
            about = '"""The commit of the checkout that the wheel was built in, and "+" if it had changes."""'
            Path(self.build_lib, "gnime/_commit.py").write_text(f'{about}\n\nCOMMIT = "{commit}"\n')


def checked_out() -> str | None:
    """The commit, with "+" if files differ from it; None where git is missing or refuses the folder."""
    try:
        head, changes = (subprocess.run(["git", *command.split()], cwd=HERE, capture_output=True, text=True, check=True).stdout
                         for command in ("rev-parse HEAD", "status --porcelain --untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")


setup(cmdclass={"build_py": BuildPy})
