"""Slicer 5.10: the host without the names that came later.

Found by comparing Slicer's sources of 5.10.0 (a2b6d082) and 5.13 (583e9b37): Base/Python/slicer function by function,
SampleData, and the headers of the listed classes. Of those, `qMRMLNodeComboBox.nodeAddedByUserAction` is not taken away.
"""

from __future__ import annotations

import contextlib
import functools
import sys

import slicer

NEW_FUNCTIONS = ("LazyImport", "executePythonModule")
NEW_ARGUMENTS = {
    "launchConsoleProcess": ("blocking", "logCallback", "completedCallback"),
    "logProcessOutput": ("logCallback",),
    "findChild": ("properties",),
}
VERSION = (5, 10, 0)


@contextlib.contextmanager
def slicer_5_10(host):
    """Take the later names away; they come back at the end."""
    kept = {
        name: getattr(slicer.util, name) for name in (*NEW_FUNCTIONS, *NEW_ARGUMENTS, "pip_install", "pip_uninstall")
    }
    packaging, version = sys.modules["slicer.packaging"], host.version
    for name in NEW_FUNCTIONS:
        delattr(slicer.util, name)
    for name, arguments in NEW_ARGUMENTS.items():
        setattr(slicer.util, name, without(kept[name], arguments))
    for name in ("pip_install", "pip_uninstall"):
        setattr(slicer.util, name, recorder(host, name))
    sys.modules["slicer.packaging"] = None  # the import raises ModuleNotFoundError
    del slicer.packaging
    host.version = VERSION
    samples = sys.modules["SampleData"].SampleDataLogic
    register = samples.__dict__["registerCustomSampleDataCategory"]
    del samples.registerCustomSampleDataCategory
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(slicer.util, name, function)
        sys.modules["slicer.packaging"] = slicer.packaging = packaging
        host.version = version
        samples.registerCustomSampleDataCategory = register


def without(function, names: tuple[str, ...]):
    """Wrap a function so that it refuses arguments that it did not have."""

    @functools.wraps(function)
    def older(*arguments, **options):
        late = set(options) & set(names)
        if late:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument '{late.pop()}' (in Slicer 5.10)")
        return function(*arguments, **options)

    return older


def recorder(host, name: str):
    """Make a `slicer.util.pip_*` of one argument, as it was; it returned nothing."""

    def pip(requirements) -> None:
        host.packages.calls.append((f"util.{name}", (requirements,), {}))

    return pip
