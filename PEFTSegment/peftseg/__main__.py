"""`python -m peftseg` is the command line."""

import sys

from peftseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
