"""`python -m peftseg` is the command line."""

import os
import sys

# PythonSlicer sets it, also for a job that `jobs` starts without it: plug-ins of Slicer's ITK, and SimpleITK has its own.
os.environ.pop("ITK_AUTOLOAD_PATH", None)
# Before torch is imported: what it cannot do on Apple's GPUs (some 3D operations) it then does on the processor.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

from peftseg.cli import main
from peftseg.lean_import import import_monai_lean

import_monai_lean()

if __name__ == "__main__":
    sys.exit(main())
