"""`python -m srlab ...` is the command `srlab ...`, also where the folder of scripts is not on the PATH."""

import sys

from srlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
