"""The page on daily use: its commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from peftseg.cli import build_parser
from peftseg.cli_options import parse
from peftseg.drift import FAR, FARTHER, FEWEST, MORE_FLAGS, OTHER_VOLUME
from peftseg.reference_runs import TOLERANCE
from peftseg.several_rules import RULES
from peftseg.shared_folders import PATIENCE_S
from peftseg.warm_start import TIME_SHARE

PAGE = (Path(__file__).resolve().parents[2] / "Docs" / "daily-use.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_is_understood(command):
    program, *arguments = shlex.split(command)
    assert program == "peftseg"
    assert callable(parse(build_parser(), arguments).run)


def test_the_page_names_every_merge_rule_and_the_numbers_are_the_programs():
    for rule in RULES:
        assert f"| `{rule}`" in PAGE
    assert (FEWEST, MORE_FLAGS, OTHER_VOLUME, FARTHER, FAR) == (5, 0.2, 0.25, 1.5, 3.0)
    assert f"{TIME_SHARE:.0%}".replace("%", " %") in PAGE
    assert f"more than {TOLERANCE} Dice" in PAGE
    assert f"after {PATIENCE_S:.0f} seconds" in PAGE
