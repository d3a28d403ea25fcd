"""What every Python process that a test starts does first (`Testing/conftest.py` puts this folder on its path).

MONAI imports these packages where they are installed, which takes 3 seconds of processor time. They are here only for
outside checks (peft; nnU-Net), and not where the extension is installed. Workers of pytest, which make these checks, start
here, too.
"""

import sys

WORKER = any("exec(eval(sys.stdin.readline()))" in argument for argument in sys.orig_argv)  # how execnet starts one

for name in ("transformers",) if WORKER else ("transformers", "sklearn", "skimage"):
    sys.modules[name] = None
