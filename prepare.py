"""Victim, evaluation classifier, images and explanations. Run with --help."""

import sys

from gnime.cli import main

if __name__ == "__main__":
    sys.exit(main("prepare"))
