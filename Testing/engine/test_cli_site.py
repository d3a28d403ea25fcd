"""`peftseg site-adapt`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from peftseg import site_training
from peftseg.adapter_file import read_recipe
from peftseg.cli import build_parser, main
from peftseg.cli_endings import VERDICTS
from peftseg.cli_options import parse, parse_options
from peftseg.cli_site import settings_of, typed
from peftseg.config import SiteAdaptJob, from_json, kind_of, to_json, with_absolute_paths
from peftseg.errors import BadInput
from peftseg.gate import ACCEPTED, REFUSED, Verdict
from peftseg.site_options import (
    DEFAULT_EPOCHS,
    DEFAULT_PRESET,
    PRESET_TITLES,
    PRESETS,
    SITE_OPTIONS,
    UDAS_EPOCHS,
    check_site_options,
)
from peftseg.suggest import FAR
from site_cases import write_scans, write_site_model

DOCS = Path(__file__).resolve().parents[2] / "Docs"
PAGE = (DOCS / "site-adapt.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def words(tmp_path, monkeypatch):
    model = write_site_model(tmp_path / "model")
    (tmp_path / "site" / "images").mkdir(parents=True)
    (tmp_path / "site" / "labels").mkdir()
    write_scans(tmp_path / "site" / "images", 3)
    (tmp_path / "site" / "labels" / "patient_0.nii.gz").write_bytes(b"no scan, and not to be read")
    judged(monkeypatch, ACCEPTED)
    return [
        *("site-adapt", "--model", str(model.directory), "--unlabelled", str(tmp_path / "site")),
        *("--out", str(tmp_path / "a.safetensors"), "--epochs", "1", "--device", "cpu", "--precision", "fp32"),
    ]


def judged(monkeypatch, status):
    monkeypatch.setattr(site_training, "judge", lambda *_: Verdict(status, ("A reason with 3 numbers.",), {}))


def test_a_folder_of_scans_becomes_an_adapter_and_apply_uses_it(words, tmp_path, capfd):
    assert main([*words, "--option", "rank=1", "--name", "scanner B"]) == 0
    out = capfd.readouterr().out
    assert "The adaptation is accepted." in out
    assert "A reason with 3 numbers." in out
    recipe = read_recipe(tmp_path / "a.safetensors")
    assert (recipe.name, recipe.options["rank"], recipe.record["unlabelled_scans"]) == ("scanner B", 1, 3)
    scan = str(tmp_path / "site" / "images" / "patient_1.nii.gz")
    applied = ["apply", "--adapter", str(tmp_path / "a.safetensors"), "--input", scan, "--out", str(tmp_path / "seg")]
    assert main([*applied, "--device", "cpu"]) == 0
    assert (tmp_path / "seg" / "patient_1_seg.nii.gz").is_file()


def test_a_refusal_is_no_failure_has_an_exit_code_of_its_own_and_says_what_to_do(words, tmp_path, capfd, monkeypatch):
    judged(monkeypatch, REFUSED)
    assert main(words) == 5
    out = capfd.readouterr().out
    assert "refused: keep the base model" in out
    assert "--keep-refused" in out
    assert not (tmp_path / "a.safetensors").exists()
    assert main([*words, "--keep-refused"]) == 0
    assert (tmp_path / "a.safetensors").exists()
    capfd.readouterr()
    assert main(["adapters", "show", str(tmp_path / "a.safetensors")]) == 0
    card = capfd.readouterr().out
    assert "- Judged before it was kept: refused, and kept all the same. A reason with 3 numbers." in card
    assert "- Its check had refused it: use it with care." in card


def test_json_gives_the_events_with_the_verdict(words, capfd):
    assert main([*words, "--json"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[-1]["event"] == "finished"
    assert events[-1]["verdict"] == {"status": ACCEPTED, "reasons": ["A reason with 3 numbers."], "facts": {}}
    assert events[-1]["scans"] == 3


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--preset", "convlor"], "convlora"),
        (["--option", "rnak=2"], "rank"),
        (["--structures", "ball,spleen"], "no head for 'spleen'"),
        (["--unlabelled", "/no/such/folder"], "does not exist"),
    ],
)
def test_bad_requests_are_told_with_what_is_valid(words, capfd, more, text):
    assert main([*words, *more]) == 2
    assert text in capfd.readouterr().err


def test_a_job_comes_back_from_json_and_its_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = SiteAdaptJob("brain", ("a.nii.gz", "b"), "c.safetensors", options={"rank": 1}, structures=("ball",), epochs=3)
    assert from_json(to_json(job)) == job
    assert kind_of(job) == "site_adapt"
    absolute = with_absolute_paths(job)
    assert absolute.unlabelled == (str(tmp_path / "a.nii.gz"), str(tmp_path / "b"))
    assert absolute.out == str(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("change", "text"),
    [({"preset": "none"}, "convlora_adabn"), ({"unlabelled": ()}, "no scan"), ({"epochs": 0}, "1 or more")],
)
def test_a_job_that_cannot_be_is_refused(change, text):
    with pytest.raises(BadInput, match=text):
        SiteAdaptJob(**{"model": "m", "unlabelled": ("a",), "out": "o.safetensors", **change})


# presets and options, told


def test_the_list_tells_of_every_preset_and_option_and_needs_nothing_else(capfd):
    with pytest.raises(SystemExit) as left:
        main(["site-adapt", "--list"])
    assert left.value.code == 0
    out = capfd.readouterr().out
    for preset, title in PRESET_TITLES.items():
        assert f"    {preset}: {title}.\n        {settings_of(preset) or 'all defaults'}\n" in out
    options = out.partition("Options, ")[2].splitlines()
    for option in SITE_OPTIONS:
        line = next(line for line in options if re.match(rf"    {option.name}\b", line))
        assert line.endswith(option.help)
        assert option.default is None or f"{option.name}={typed(option.default)}" in line


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_sets_can_be_typed_as_it_is_printed(preset):
    typed_in = parse_options([pair for pair in settings_of(preset).split(", ") if pair])
    assert typed_in == PRESETS[preset]
    assert check_site_options(DEFAULT_PRESET, typed_in) == check_site_options(preset, {})


def test_the_page_has_the_tables_of_the_program():
    assert set(PRESET_TITLES) == set(PRESETS)
    lines = PAGE.splitlines()
    for preset, title in PRESET_TITLES.items():
        settings = ", ".join(f"`{pair}`" for pair in settings_of(preset).split(", ") if pair) or "-"
        start = f"| `{preset}` | {title} | {settings} | "
        assert any(line.startswith(start) and len(line) > len(start) + 20 for line in lines), start
    for option in SITE_OPTIONS:
        default = "left out" if option.default is None else f"`{typed(option.default)}`"
        assert f"| `{option.name}` | {default} | {option.help} |" in lines
    rows = [line.split(" | ")[0] for line in lines if line.startswith("| `")]
    assert rows == [f"| `{name}`" for name in (*PRESETS, *(option.name for option in SITE_OPTIONS))]


def test_the_page_has_the_programs_verdicts_and_numbers():
    for words in VERDICTS.values():
        assert f"| {words} | {5 if words.startswith('refused') else 0} |" in PAGE
    assert f"Training takes {DEFAULT_EPOCHS} epochs, with `udas` up to {UDAS_EPOCHS};" in PAGE
    assert f"beyond {FAR:g} nothing is suggested" in PAGE


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_is_understood(command, capfd):
    program, *arguments = shlex.split(command)
    assert program == "peftseg"
    if "--list" in arguments:
        with pytest.raises(SystemExit):
            parse(build_parser(), arguments)
        return
    chosen = parse(build_parser(), arguments)
    assert callable(chosen.run)
    if chosen.command == "site-adapt":
        check_site_options(chosen.preset, parse_options(chosen.option))


def test_the_page_is_linked_and_its_links_are_there():
    assert "(Docs/site-adapt.md)" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert "(site-adapt.md)" in (DOCS / "daily-use.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (DOCS / link).is_file()
