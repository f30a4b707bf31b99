"""The command `pyengm` as `python -m pyengm`, such as for torchrun."""

import sys

from pyengm.cli import main

if __name__ == "__main__":
    sys.exit(main())
