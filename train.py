"""The noise injector. Run with --help."""

import sys

from gnime.cli import main

if __name__ == "__main__":
    sys.exit(main("train"))
