"""MONAI in processes of our own: all that the engine calls of it, without packages that it would only import."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from peftseg.lean_import import UNUSED

# What the engine uses of MONAI; then the unused packages that are there, and one of them imported after all.
USE = """
import sys
import peftseg.{entry}
import numpy as np
import torch
from monai.data.utils import compute_importance_map
from peftseg.lean_import import UNUSED
from peftseg.metrics import surface_dice
from peftseg.models import NetworkSpec
from peftseg.networks import build

small = {{"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]}}
segresnet, _ = build(NetworkSpec("segresnet", small), 2)
swin, _ = build(NetworkSpec("swinunetr", {{"in_channels": 1, "feature_size": 12}}), 2)
with torch.inference_mode():
    assert segresnet(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)
    assert swin(torch.zeros(1, 1, 64, 32, 32)).shape == (1, 2, 64, 32, 32)
assert compute_importance_map((4, 4, 4), mode="gaussian").shape == (4, 4, 4)
ball = np.zeros((8, 8, 8), bool)
ball[2:6, 2:6, 2:6] = True
assert surface_dice(ball, ball, (1.0, 1.0, 1.0), 1.0) == 1
print(*(name for name in UNUSED if name in sys.modules))
import scipy.signal
assert scipy.signal.hilbert(np.ones(4)).shape == (4,)
import monai
assert monai.__spec__.loader is monai.__loader__ and type(monai.__loader__).__name__ == "SourceFileLoader"
"""
INSTALLED = [name for name in ("matplotlib", "pandas", "skimage", "sklearn") if importlib.util.find_spec(name)]


def unused_after(entry: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", USE.format(entry=entry)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_process_of_our_own_imports_no_package_that_only_monai_would():
    assert unused_after("__main__") == set()


@pytest.mark.skipif(not INSTALLED, reason="no package is installed that MONAI imports and the engine does not need")
def test_in_another_program_monai_stays_what_it_is():
    assert set(INSTALLED) & set(UNUSED) <= unused_after("cli")
