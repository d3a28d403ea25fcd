"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
