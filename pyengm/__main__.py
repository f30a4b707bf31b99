"""`python -m pyengm`, for torchrun say, is the command `pyengm`."""

import sys

from pyengm.cli import main

if __name__ == "__main__":
    sys.exit(main())
