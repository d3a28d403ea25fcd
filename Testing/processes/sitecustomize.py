"""What every Python process that a test starts does first (`Testing/conftest.py` puts this folder on its path).

MONAI imports these packages where they are installed, which takes 3.5 seconds of processor time. They are here only
for peft and nnU-Net, outside checks that no process of a test makes, and not where the extension is installed.
"""

import sys

for name in ("transformers", "sklearn", "skimage", "pandas", "torchvision"):
    sys.modules[name] = None
