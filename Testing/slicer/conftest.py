"""What the tests of the Slicer module run on: the stand-in, or the real application where they run inside of it.

Either is started once, and checked and cleaned after each test.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import real_application
import slicerhost

IN_SLICER = real_application.is_running()
collect_ignore = ["test_host.py"] if IN_SLICER else []


@pytest.fixture(scope="session")
def running_host():
    """The host, started by the first test that asks for it: other tests' workers load neither Qt nor VTK."""
    if IN_SLICER:
        return real_application.RealSlicer()
    reason = slicerhost.missing_reason()
    if reason:
        pytest.skip(reason)
    return slicerhost.start()


@pytest.fixture
def host(running_host):
    """The host, empty; errors that Slicer would only print, and answers left over, fail the test at its end."""
    yield running_host
    problems = running_host.reset()
    assert not problems, "\n".join(problems)


@pytest.fixture
def older_host(host):
    """The host as Slicer 5.10: without the names that came later."""
    with host.slicer_5_10():
        yield host


@pytest.fixture
def pictures(tmp_path) -> Path:
    """The folder for pictures: PEFTSEGMENT_SCREENSHOTS where it is set, to be looked at, else a temporary one."""
    folder = Path(os.environ.get("PEFTSEGMENT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def module(host):
    """The module, loaded and shown; it is unloaded afterwards. Its widget is `module.main`."""
    host.load_module(Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py")
    shown = host.show_module("PEFTSegment")
    host.wait_for(lambda: shown.main.strip.examined, 30, "the look at the installation")
    host.process_events(100)
    yield shown
    host.unload_module("PEFTSegment")


@pytest.fixture
def tiny_model(own_home) -> str:
    """The id of a tiny model in the catalogue that knows the bright ball."""
    import scene_makers

    return scene_makers.install_tiny_model(own_home)
