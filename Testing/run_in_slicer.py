"""Run the tests of the Slicer module inside the real Slicer, on the real application.

    Slicer --testing --no-splash --python-script Testing/run_in_slicer.py [options and files for pytest]

pytest has to be in Slicer's Python, once:  PythonSlicer -m pip install pytest
`--testing` gives Slicer temporary settings and answers its dialogs. Tests that look into the stand-in skip themselves.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MISSING = "pytest is not in Slicer's Python. Install it once:\n    PythonSlicer -m pip install pytest"
OPTIONS = (
    f"--config-file={ROOT / 'pyproject.toml'}",
    f"--rootdir={ROOT}",
    "--override-ini=filterwarnings=default",  # other extensions' warnings are not ours to answer for
    "--capture=no",  # Slicer's console is no file
    "-p",
    "no:faulthandler",
    "-p",
    "no:cacheprovider",
)


class Console:
    """Slicer's Python console as pytest wants its output: it asks for more than the console has."""

    encoding = "utf-8"

    def __init__(self, stream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, and say how much."""
        self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Show what was written."""
        self._stream.flush()

    def isatty(self) -> bool:
        """No colours."""
        return False


def main(arguments: list[str]) -> int:
    """Run the tests; pytest's exit code, or 1 without pytest."""
    try:
        import pytest
    except ModuleNotFoundError:
        print(MISSING)
        return 1
    sys.path[:0] = [str(ROOT / "PEFTSegment"), str(ROOT / "Testing")]
    sys.dont_write_bytecode = True
    os.environ.pop("PYTEST_ADDOPTS", None)
    # Without a file named, all of them; options alone, such as -k, keep it so.
    files = [] if any(Path(a.partition("::")[0]).exists() for a in arguments) else [str(ROOT / "Testing" / "slicer")]
    with contextlib.redirect_stdout(Console(sys.stdout)):
        return int(pytest.main([*OPTIONS, *arguments, *files]))


if __name__ == "__main__":
    import slicer

    code = 1
    try:
        code = main(sys.argv[1:])
    finally:
        slicer.util.exit(code)
