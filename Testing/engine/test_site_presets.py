"""Which presets of adaptation without labels are offered for a model, by the header of its weights."""

from __future__ import annotations

import dataclasses

import pytest

from peftseg.adabn import running_norms
from peftseg.config import SiteAdaptJob
from peftseg.errors import BadInput
from peftseg.models import BUNDLED, NetworkSpec, read_model_dir
from peftseg.networks import build
from peftseg.site_options import DEFAULT_PRESET, PRESETS
from peftseg.site_presets import has_running_statistics, main_options, presets_for, settled
from peftseg.weights import load_base, save_model
from test_apply import ENTRY


@pytest.mark.parametrize("name", sorted(path.parent.name for path in BUNDLED.glob("*/model.json")))
def test_the_header_of_bundled_weights_says_what_the_network_says(name):
    entry = read_model_dir(BUNDLED / name)
    assert has_running_statistics(entry) == bool(running_norms(load_base(entry)[0]))


@pytest.mark.parametrize(("network", "has"), [("unet2d", True), ("unet3d_bn", True), ("unet3d", False)])
def test_statistics_that_a_network_holds_and_never_uses_do_not_count(tmp_path, network, has):
    spec = NetworkSpec(network, {"filters": 2} if network == "unet2d" else {})
    entry = dataclasses.replace(ENTRY, network=spec)
    built = build(spec, 3)[0]
    save_model(tmp_path, entry, built)
    assert has_running_statistics(read_model_dir(tmp_path)) is has
    assert bool(running_norms(built)) is has


def test_a_model_that_is_not_here_may_have_them_and_a_damaged_one_is_refused(tmp_path):
    entry = dataclasses.replace(ENTRY, directory=tmp_path)
    assert has_running_statistics(entry)
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(BadInput, match="no safetensors file"):
        has_running_statistics(entry)


def test_without_statistics_what_only_recalibrates_is_not_offered_and_nothing_twice():
    assert presets_for(True) == tuple(PRESETS)
    offered = presets_for(False)
    assert offered[0] == DEFAULT_PRESET == SiteAdaptJob.preset
    assert set(PRESETS) - set(offered) == {"adabn", "convlora_adabn"}


def test_the_main_options_are_those_that_change_something():
    def names(preset: str, running: bool) -> list[str]:
        return [option.name for option in main_options(settled(preset, {}, running))]

    assert names(DEFAULT_PRESET, True) == ["rank", "source_weight", "confidence"]
    assert names(DEFAULT_PRESET, False) == ["rank", "confidence"]
    assert names("adabn", True) == ["source_weight"]
    assert names("udas", True) == ["confidence"]
