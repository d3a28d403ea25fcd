"""`python -m peftseg` is the command line."""

import os
import sys

# PythonSlicer sets it, also for a job that `jobs` starts without it: plug-ins of Slicer's ITK, and SimpleITK has its own.
os.environ.pop("ITK_AUTOLOAD_PATH", None)

from peftseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
