"""Which stored adapter fits a new scan: made-up scanners ranked right, and what cannot be ranked is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from made_up_sites import (
    BLURRED,
    COARSE,
    FLAT,
    NOISY,
    PLAIN,
    PREPROCESSING,
    Scanner,
    made_up_scan,
    write_tiny_base,
)
from peftseg import jobs, worker
from peftseg.adapter_file import save_adapter
from peftseg.cli import main
from peftseg.config import SuggestJob, from_json, to_json
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.job_folder import ending_of
from peftseg.library import store
from peftseg.models import ModelEntry, read_model_dir, resolve
from peftseg.paths import adapters_dir, models_dir
from peftseg.preprocess import prepare
from peftseg.site_checks import mixed_sites, modality_warnings
from peftseg.site_layers import describe_site, statistics_of
from peftseg.site_statistics import GREY, LAYERS, TEXTURE, VOXELS
from peftseg.suggest import run_suggest
from peftseg.verdicts import stored_status
from peftseg.volume import Volume, read_volume, write_volume
from peftseg.weights import architecture, fingerprint, load_base, save_model
from test_library import RECIPE

CPU = torch.device("cpu")
SITES = {"plain": PLAIN, "noisy": NOISY, "flat": FLAT, "coarse": COARSE}


def site_of(entry: ModelEntry, volumes: list[Volume], recipe=None) -> dict:
    return describe_site(entry, volumes, recipe or entry.preprocessing, CPU, Reporter.silent())


def keep(entry: ModelEntry, name: str, record: dict, folder: Path, **changes) -> Path:
    """Put an adapter of a model into the library."""
    recipe = replace(
        RECIPE,
        name=name,
        method="site",
        base_id=entry.id,
        base_fingerprint=fingerprint(load_base(entry)[0].state_dict(), architecture(entry)),
        network=entry.network,
        preprocessing=entry.preprocessing,
        record=record,
    )
    path = folder / f"{name}.safetensors"
    save_adapter(path, replace(recipe, **changes), {"w::full": torch.zeros(1)})
    return store(path)


def written(scanner: Scanner, patient: int, folder: Path) -> str:
    volume = made_up_scan(scanner, patient)
    path = folder / f"scan_{patient}.nii.gz"
    write_volume(path, volume.array, volume.grid)
    return str(path)


def suggest(path: str, model: str | None = None) -> dict:
    return run_suggest(SuggestJob(path, model, device="cpu"), Reporter.silent())


@pytest.fixture(scope="module", params=[True, False], ids=["batch norm", "no batch norm"])
def stored(request, tmp_path_factory):
    """Recipes of three sites, made once for each kind of base."""
    entry = write_tiny_base(tmp_path_factory.mktemp("base") / "m", request.param)
    return entry, {
        name: site_of(entry, [made_up_scan(scanner, n) for n in range(5)]) for name, scanner in SITES.items()
    }


@pytest.fixture
def library(stored, tmp_path):
    """The base in the models folder, and an adapter of each site in the library."""
    entry, records = stored
    write_tiny_base(models_dir() / entry.id, entry.id == "tiny-bn")
    for name, record in records.items():
        keep(entry, name, {"site": record, "shots": 5}, tmp_path)
    return entry


# the ranking


@pytest.mark.parametrize("scanner", SITES)
def test_the_adapter_of_the_scans_own_site_comes_first(library, tmp_path, scanner):
    for patient in (50, 51):
        result = suggest(written(SITES[scanner], patient, tmp_path))
        first, second = result["ranking"][:2]
        assert (first["kind"], first["ref"], result["suggested"]) == ("adapter", f"{scanner}-v1", 0)
        assert first["distance"] < 2.5 < second["distance"]
        assert "5 scans of this site" in first["reason"]
        assert result["advice"].startswith(f"Use the adapter {scanner}-v1. The scan ")


def test_the_ranking_names_what_a_client_needs(library, tmp_path):
    result = suggest(written(NOISY, 50, tmp_path))
    row = result["ranking"][0]
    assert {k: row[k] for k in ("name", "model", "method", "structures", "scans")} == {
        "name": "noisy",
        "model": library.id,
        "method": "site",
        "structures": ["liver"],
        "scans": 5,
    }
    assert Path(row["path"]).parent == adapters_dir()
    assert set(row["parts"]) == {GREY, TEXTURE, VOXELS} | ({LAYERS} if library.id == "tiny-bn" else set())
    distances = [row["distance"] for row in result["ranking"]]
    assert distances == sorted(distances)
    assert "most in its noise and sharpness" in next(r for r in result["ranking"] if r["ref"] == "plain-v1")["reason"]


def test_the_output_says_what_the_distance_is_made_of(library, tmp_path):
    basis = suggest(written(PLAIN, 50, tmp_path))["basis"]
    if library.id == "tiny-bn":
        assert basis == (
            "Compared by grey values, noise and sharpness and voxel size, and by the effect on the model (its first batch "
            "normalisations)."
        )
    else:
        assert basis == (
            "Compared by grey values, noise and sharpness and voxel size alone, because tiny has no batch normalisation."
        )


def test_a_scan_of_no_known_site_gets_no_suggestion_but_advice(library, tmp_path):
    result = suggest(written(Scanner(noise=40.0, blur=2.0), 50, tmp_path))
    assert result["suggested"] is None
    assert result["advice"].startswith("No stored adapter or model fits this scan well")
    assert all("is unlike" in row["reason"] for row in result["ranking"])


def test_an_adapter_with_its_own_preprocessing_is_compared_under_that(library, tmp_path):
    recipe = replace(PREPROCESSING, spacing=(2.0, 2.0, 2.0))
    volumes = [made_up_scan(BLURRED, n) for n in range(5)]
    keep(library, "coarser", {"site": site_of(library, volumes, recipe)}, tmp_path, preprocessing=recipe)
    path = written(BLURRED, 50, tmp_path)
    first = suggest(path)["ranking"][0]
    assert (first["ref"], first["distance"] < 1.5) == ("coarser-v1", True)
    keep(library, "mistaken", {"site": site_of(library, volumes, recipe)}, tmp_path)
    rows = {row["ref"]: row["distance"] for row in suggest(path)["ranking"]}
    assert rows["mistaken-v1"] > rows["coarser-v1"] + 0.5


def test_a_few_shot_adapter_that_tells_of_its_scans_is_ranked_too(library, tmp_path):
    volumes = [made_up_scan(BLURRED, n) for n in range(5)]
    keep(library, "few", {"site": site_of(library, volumes), "shots": 5}, tmp_path, method="lora")
    row = suggest(written(BLURRED, 50, tmp_path))["ranking"][0]
    assert (row["ref"], row["method"]) == ("few-v1", "lora")


def test_an_adapter_that_fits_about_as_well_is_named(library, stored, tmp_path):
    keep(library, "twin", {"site": stored[1]["flat"]}, tmp_path)
    result = suggest(written(FLAT, 50, tmp_path))
    assert [row["ref"] for row in result["ranking"][:2]] == ["flat-v1", "twin-v1"]
    assert result["advice"].endswith("twin-v1 fits about as well.")


def judged(status: str) -> dict:
    return {"status": status, "reasons": ["A reason with 3 numbers."], "facts": {}}


def test_a_refused_adapter_is_never_suggested_however_well_it_fits_and_its_check_is_told(library, stored, tmp_path):
    site = stored[1]["flat"]
    keep(library, "bad", {"site": site, "gate": judged("refused")}, tmp_path)
    keep(library, "worse", {"site": site, "gate": judged("refused")}, tmp_path)
    keep(library, "a doubt", {"site": site, "gate": judged("warning")}, tmp_path)
    keep(library, "zz", {"site": site, "gate": judged("accepted")}, tmp_path)
    result = suggest(written(FLAT, 50, tmp_path))
    rows = {row["ref"]: row for row in result["ranking"][:5]}
    verdicts = {ref: row["verdict"] for ref, row in rows.items()}
    assert verdicts == {
        "a doubt-v1": "warning",
        "bad-v1": "refused",
        "flat-v1": None,
        "worse-v1": "refused",
        "zz-v1": "accepted",
    }
    assert rows["bad-v1"]["reason"].endswith("each other. Its check had refused it: use it with care.")
    assert rows["a doubt-v1"]["reason"].endswith("each other. Its check had accepted it with a warning.")
    assert rows["zz-v1"]["reason"] == rows["flat-v1"]["reason"]
    assert result["ranking"][result["suggested"]]["ref"] == "a doubt-v1"
    assert result["advice"].startswith("Use the adapter a doubt-v1. ")
    assert result["advice"].endswith("Its check had accepted it with a warning. flat-v1 fits about as well.")


def test_where_only_refused_adapters_fit_the_next_that_fits_is_suggested_or_none(stored, tmp_path):
    entry, records = stored
    write_tiny_base(models_dir() / entry.id, entry.id == "tiny-bn")
    keep(entry, "bad", {"site": records["flat"], "gate": judged("refused")}, tmp_path)
    path = written(FLAT, 50, tmp_path)
    alone = suggest(path)
    assert (alone["ranking"][0]["ref"], alone["suggested"]) == ("bad-v1", None)
    assert alone["advice"].startswith(
        "bad-v1 fits, but its check had refused it. No other stored adapter or model fits"
    )
    farther = {"site": site_of(entry, [made_up_scan(replace(FLAT, noise=FLAT.noise * 1.2), n) for n in range(5)])}
    keep(entry, "farther", farther, tmp_path)
    keep(entry, "worse", {"site": records["flat"], "gate": judged("refused")}, tmp_path)
    both = suggest(path)
    assert [row["ref"] for row in both["ranking"][:3]] == ["bad-v1", "worse-v1", "farther-v1"]
    assert both["suggested"] == 2
    assert both["advice"].startswith(
        "bad-v1, worse-v1 fit, but their checks had refused them. Use the adapter farther-v1."
    )


@pytest.mark.parametrize("garbled", ["refused", {"status": "who knows"}, {}, None, []])
def test_a_record_without_a_readable_verdict_counts_as_not_judged(garbled):
    assert stored_status({"gate": garbled}) is None
    assert stored_status({}) is None


def test_twice_the_same_question_gives_the_same_answer(library, tmp_path):
    path = written(FLAT, 50, tmp_path)
    assert suggest(path) == suggest(path)


# the base


def test_a_base_that_tells_of_its_training_scans_is_ranked_by_them(tmp_path):
    entry = write_tiny_base(tmp_path / "m", batch_norm=True)
    record = {"site": site_of(entry, [made_up_scan(PLAIN, n) for n in range(6)])}
    entry = write_tiny_base(models_dir() / "tiny-bn", batch_norm=True, record=record)
    keep(entry, "noisy", {"site": site_of(entry, [made_up_scan(NOISY, n) for n in range(5)])}, tmp_path)
    own, other = (suggest(written(scanner, 50, tmp_path)) for scanner in (PLAIN, NOISY))
    assert [own["ranking"][0][k] for k in ("kind", "ref", "path", "scans")] == ["base", "tiny-bn", None, 6]
    assert own["advice"].startswith("Use the model tiny-bn as it is. ")
    assert "6 scans of the model's training" in own["ranking"][0]["reason"]
    assert other["ranking"][0]["ref"] == "noisy-v1"


def test_a_base_that_tells_nothing_is_ranked_by_its_running_statistics_where_it_has_some(library, tmp_path):
    result = suggest(written(PLAIN, 50, tmp_path))
    bases = [row for row in result["ranking"] if row["kind"] == "base"]
    if library.id == "tiny-bn":
        assert [set(row["parts"]) for row in bases] == [{LAYERS}]
        assert "scans of the model's training" in bases[0]["reason"]
    else:
        assert bases == []
        assert [row["ref"] for row in result["not_ranked"]] == ["tiny"]
        assert "no batch normalisation" in result["not_ranked"][0]["reason"]


def test_running_statistics_of_the_scans_own_site_make_the_base_near(tmp_path):
    entry = write_tiny_base(tmp_path / "m", batch_norm=True)
    network, _ = load_base(entry)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    network.train()
    with torch.no_grad():
        for n in range(5):
            network(prepare(made_up_scan(PLAIN, n), PREPROCESSING).image[None])
    save_model(models_dir() / "tiny-bn", entry, network.eval())
    near = read_model_dir(models_dir() / "tiny-bn")
    keep(near, "noisy", {"site": site_of(near, [made_up_scan(NOISY, n) for n in range(5)])}, tmp_path)
    assert suggest(written(PLAIN, 50, tmp_path))["ranking"][0]["kind"] == "base"
    assert suggest(written(NOISY, 50, tmp_path))["ranking"][0]["ref"] == "noisy-v1"


# what cannot be ranked


def test_unreadable_and_foreign_adapters_are_told_and_the_others_ranked(library, tmp_path):
    damaged = keep(library, "damaged", {"site": {}}, tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    keep(library, "silent", {"shots": 5}, tmp_path)
    keep(library, "garbled", {"site": {"format": 1, "scans": "many"}}, tmp_path)
    keep(library, "weights", {"site": {}}, tmp_path, base_fingerprint="0" * 64)
    keep(library, "elsewhere", {"site": {}}, tmp_path, base_id="another model")
    (adapters_dir() / "text.safetensors").write_text("this is no adapter")
    result = suggest(written(NOISY, 50, tmp_path))
    assert result["ranking"][0]["ref"] == "noisy-v1"
    told = {row["ref"]: row["reason"] for row in result["not_ranked"] if row["ref"] != "tiny"}
    assert set(told) == {"damaged-v1", "silent-v1", "garbled-v1", "weights-v1", "elsewhere-v1", "text"}
    assert "does not say what its scans are like" in told["silent-v1"]
    assert "cannot be read" in told["garbled-v1"]
    assert "other weights of the model" in told["weights-v1"]
    assert "'another model', which is not on this machine" in told["elsewhere-v1"]


def test_a_model_that_is_asked_for_keeps_the_others_out(library, tmp_path):
    keep(library, "elsewhere", {"site": {}}, tmp_path, base_id="another model")
    result = suggest(written(NOISY, 50, tmp_path), library.id)
    assert result["ranking"][0]["ref"] == "noisy-v1"
    assert "elsewhere-v1" not in {row["ref"] for row in result["not_ranked"]}
    with pytest.raises(BadInput, match="Unknown model"):
        suggest(written(NOISY, 50, tmp_path), "no such model")


def test_an_empty_library_is_no_error(tmp_path):
    result = suggest(written(NOISY, 50, tmp_path))
    assert (result["ranking"], result["suggested"], result["not_ranked"]) == ([], None, [])
    assert result["advice"].startswith("There is no adapter or model to compare the scan with")


def test_one_readable_scan_is_asked_for(library, tmp_path):
    for n in (1, 2):
        written(NOISY, n, tmp_path)
    (tmp_path / "bad.nii.gz").write_bytes(b"this is no scan")
    for wrong in (tmp_path, tmp_path / "bad.nii.gz", tmp_path / "nothing.nii.gz"):
        with pytest.raises(BadInput):
            suggest(str(wrong))
    with pytest.raises(BadInput):
        SuggestJob("")


# as a job, and on the command line


def test_the_job_comes_back_from_its_file():
    job = SuggestJob("/data/scan.nii.gz", "brain-t1", device="cpu", replace_nonfinite=0.0)
    assert from_json(to_json(job)) == job


def test_it_runs_as_a_job(tmp_path):
    entry = write_tiny_base(models_dir() / "tiny-bn", batch_norm=True)
    keep(entry, "flat", {"site": site_of(entry, [made_up_scan(FLAT, n) for n in range(3)])}, tmp_path)
    folder = jobs.create_job(SuggestJob(written(FLAT, 50, tmp_path), entry.id, device="cpu"))
    assert worker.run(folder) == 0
    ending = ending_of(folder)
    assert ending["ranking"][ending["suggested"]]["ref"] == "flat-v1"


def test_it_can_be_cancelled_at_every_step(library, tmp_path):
    path = written(FLAT, 50, tmp_path)
    for looks in range(2):
        left = iter(range(10**6))
        reporter = Reporter.silent()
        reporter._request = lambda left=left, looks=looks: "cancel" if next(left) >= looks else ""
        with pytest.raises(JobCancelled):
            run_suggest(SuggestJob(path, device="cpu"), reporter)


def test_the_command_prints_a_table_for_people_and_events_for_programs(library, stored, tmp_path, capfd):
    arguments = ["adapters", "suggest", "--input", written(COARSE, 50, tmp_path), "--device", "cpu"]
    assert main(arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["ref", "kind", "distance", "structures", "reason"]
    assert lines[1].startswith("coarse-v1")
    assert lines[-1].startswith("Use the adapter coarse-v1.")
    keep(library, "bad", {"site": stored[1]["coarse"], "gate": judged("refused")}, tmp_path)
    assert main(arguments) == 0
    told = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("bad-v1"))
    assert told.endswith("Its check had refused it: use it with care.")
    assert main([*arguments, "--model", library.id, "--json"]) == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    suggested = last["ranking"][last["suggested"]]
    assert (last["event"], suggested["ref"], suggested["verdict"]) == ("finished", "coarse-v1", None)
    assert main(["adapters", "suggest", "--input", str(tmp_path / "none.nii.gz")]) == 2


# real scans


@pytest.mark.realdata
def test_real_scans_of_two_sites_find_their_own_adapter(shared_data, tmp_path):
    entry = resolve("brain-t1")
    folders = {"ixi": "subcortical_ixi", "msd": "hippocampus_msd"}
    for name, folder in folders.items():
        files = sorted((shared_data / folder / "support" / "images").iterdir())
        keep(entry, name, {"site": site_of(entry, [read_volume(file) for file in files[:8]])}, tmp_path)
    for name, folder in folders.items():
        for file in sorted((shared_data / folder / "test" / "images").iterdir())[:4]:
            distances = {row["ref"]: row["distance"] for row in suggest(str(file), "brain-t1")["ranking"]}
            other, base = distances.pop("msd-v1" if name == "ixi" else "ixi-v1"), distances.pop("brain-t1")
            assert distances.pop(f"{name}-v1") < 3 < other
            assert (base < 3) == (name == "ixi")  # the base's own scans are of that site, too
            assert not distances


@pytest.mark.realdata
def test_real_scans_of_one_site_are_not_taken_for_two_and_two_sites_are_told_apart(shared_data):
    entry = resolve("brain-t1")
    network, anatomy = load_base(entry)

    def looks(folder: str, part: str) -> list:
        files = sorted((shared_data / folder / part / "images").iterdir())
        scans = (read_volume(file) for file in files)
        return [
            statistics_of(v, entry.preprocessing, network, anatomy, entry.window, CPU, Reporter.silent()) for v in scans
        ]

    ixi, msd = looks("subcortical_ixi", "pretrain"), looks("hippocampus_msd", "test")
    assert modality_warnings(entry, [*ixi, *msd]) == []
    rng = np.random.default_rng(0)
    draws = [[ixi[n] for n in rng.choice(len(ixi), 8, replace=False)] for _ in range(50)]
    assert sum(bool(mixed_sites(draw)) for draw in draws) <= 1
    (text,) = mixed_sites([*ixi[:5], *msd[:3]])
    assert text.startswith("Scans 6, 7 and 8 of 8 differ")
