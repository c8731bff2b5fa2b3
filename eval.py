"""The settings side by side: table and pictures. Run with --help."""

import sys

from gnime.cli import main

if __name__ == "__main__":
    sys.exit(main("eval"))
