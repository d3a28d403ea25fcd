"""Fixtures shared by all tests, and their order."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from peftseg.lean_import import import_monai_lean

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Listen to Ctrl-C: what a shell starts in the background ignores it, and so would the programs that tests start.

    MONAI comes without what it would only import, as in the engine's own processes; outside checks still find these packages.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    import_monai_lean()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first, so that no worker is left with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes; the test is skipped with the reason where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data folder {SHARED_DATA.name} is not beside the project")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch) -> Path:
    """Give every test its own PEFTSEGMENT_HOME, so that no test touches the user's models, adapters or jobs."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PEFTSEGMENT_HOME", str(home))
    return home
