"""What every Python process that a test starts does first (`Testing/conftest.py` puts this folder on its path).

MONAI imports transformers where it is installed, which takes 2.5 seconds of processor time. It is here only for peft, the
outside check of test_methods_outside_check.py, and not where the extension is installed; nothing that a test starts uses it.
"""

import sys

sys.modules["transformers"] = None
