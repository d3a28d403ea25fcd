"""The test host for the tests of the Slicer module: started once, checked and cleaned after each test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import slicerhost


@pytest.fixture(scope="session")
def running_host():
    """The host, started by the first test that asks for it: other tests' workers load neither Qt nor VTK."""
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
