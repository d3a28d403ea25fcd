"""What commands say at their end: sentences with the numbers in them."""

from __future__ import annotations

import math

import pytest

from peftseg.cli_endings import counted, evaluated, listed, show_for, size_of
from peftseg.config import AdaptJob, ApplyJob, CheckJob, ExportDicomJob, PretrainJob, RankJob, SiteAdaptJob
from peftseg.models import Structure
from peftseg.study import SupportItem

BOTH = (Structure("hippocampus", 1), Structure("amygdala", 2))
SCANS = tuple(SupportItem(f"{n}.nii.gz", f"l{n}.nii.gz") for n in range(3))
SHARE = {"adapter": 900, "head": 100, "base_total": 100_000}
DRAFT = "For research use only: these are drafts until a person has reviewed them."
ADAPTED = {
    "name": "site A",
    "version": 2,
    "hash": "ab" * 32,
    "ref": None,
    "epochs": 120,
    "seconds": 185.0,
    "loss": 0.2134,
    "trained_share": SHARE,
    "ranks": {"a": 4, "b": 8},
    "estimate": None,
    "choice": None,
}
BY_ADAPTER = {"adapter": "site A", "adapter_version": "2", "base": "brain-t1"}


def told(job, ending, capsys) -> list[str]:
    show_for(job)(ending)
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def adapter(tmp_path) -> str:
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(1_234_567))
    return str(path)


def test_an_adaptation_says_what_was_written_learnt_and_not_estimated(adapter, capsys):
    job = AdaptJob("brain-t1", SCANS, BOTH, adapter)
    said = told(job, {**ADAPTED, "adapter": adapter, "ref": "site A-v2"}, capsys)
    assert said == [
        f"Wrote the adapter 'site A', version 2, to {adapter} (1.2 MB, hash abababababab). It is in the library as site A-v2.",
        "It learnt hippocampus and amygdala from 3 labelled scans in 3 min (120 epochs; training loss 0.213 at the end).",
        "It holds 1,000 trained values, 1 % of the model's 100,000, with ranks from 4 to 8 in 2 layers.",
        "How good it is on other scans was not estimated (--estimate loo does it, from three scans on): look closely at "
        "the first results.",
        f"Use it: peftseg apply --adapter {adapter} --input SCAN --out FOLDER",
    ]


def test_an_estimate_is_told_with_the_value_of_every_scan(adapter, capsys):
    job = AdaptJob("brain-t1", SCANS, BOTH, adapter, estimate="loo")
    estimate = {"hippocampus": [0.8, None, 0.9], "amygdala": [None, None, None]}
    choice = {"label": "LoRA, rank 16", "why": ["It was best in all scans."]}
    said = told(job, {**ADAPTED, "adapter": adapter, "estimate": estimate, "choice": choice}, capsys)
    assert "The method was chosen by trying: LoRA, rank 16. It was best in all scans." in said
    assert (
        "On scans left out of training, one at a time, it has a Dice of 0.85 for hippocampus on average (scan 1: 0.80, scan 3: "
        "0.90)."
    ) in said
    assert not any("amygdala on average" in line for line in said)


def test_a_site_adaptation_tells_the_verdict_first_and_what_to_do_when_it_is_refused(adapter, capsys):
    job = SiteAdaptJob("brain-t1", ("a", "b"), adapter)
    matched = "Grey values stay as they are: they are usual."
    facts = {"preset": "adabn", "scans": 2, "agreement": 0.9, "recalibrated": 7, "early_head": None}
    facts["grey_values"] = matched
    verdict = {"status": "refused", "reasons": ["It looks worse."], "facts": {}}
    ending = {**ADAPTED, **facts, "verdict": verdict, "adapter": None, "ranks": {}, "loss": None}
    assert told(job, ending, capsys) == [
        "The adaptation is refused: keep the base model.",
        "  It looks worse.",
        "It took 2 scans without labels and 3 min (preset adabn; 120 epochs; agreement of the early and the final result "
        "0.90 of 1).",
        matched,
        "It holds 1,000 trained values, 1 % of the model's 100,000.",
        "The statistics of 7 layers were measured anew on these scans.",
        "No adapter was written. To look at it all the same, run it again with --keep-refused.",
    ]
    accepted = {**ending, "verdict": {**verdict, "status": "accepted"}, "adapter": adapter}
    assert f"version 2, to {adapter}" in told(job, accepted, capsys)[-2]


def test_results_are_told_with_volumes_what_to_look_at_and_what_failed(capsys):
    job = ApplyJob("a", None, ("s1", "s2"), "out")
    ending = {
        "outputs": ["/o/s1_seg.nii.gz"],
        "inputs": ["s1"],
        "volumes_ml": {"s1_seg.nii.gz": {"liver": 1543.2, "spleen": 98.76, "kidney": 0.0}},
        "checks": {"s1_seg.nii.gz": {"liver": ["touches the border"], "spleen": [], "kidney": ["not found"]}},
        "doubt": {"s1_seg.nii.gz": {"liver": 0.4, "spleen": 0.1, "kidney": 1.0}},
        "failed": [{"input": "s2", "message": "It is empty.", "remedy": "Give another."}],
        "provenance": BY_ADAPTER,
        "seconds": 0.4,
    }
    assert told(job, ending, capsys) == [
        "Segmented 1 study in less than a second; 1 could not be segmented.",
        "/o/s1_seg.nii.gz: liver 1,543 ml and spleen 98.8 ml.",
        "  Look at liver: touches the border.",
        "  Look at kidney: not found.",
        "  The doubt is 1.00 for kidney, the highest (0: as expected, to 1).",
        "Not segmented: s2. It is empty. Give another.",
        f"Made by adapter site A, version 2, of brain-t1. {DRAFT}",
    ]


def test_a_batch_is_told_in_numbers_with_what_to_look_at_first(capsys):
    job = ApplyJob(None, "m", ("in",), "out", batch=True)
    ending = {
        "done": 98,
        "skipped": 1,
        "failed_count": 1,
        "failed": [{"study": "x", "name": "study-1", "message": "It is cut off.", "remedy": "Export it again."}],
        "manifest": "/o/manifest.jsonl",
        "measurements": "/o/measurements.csv",
        "report": "/o/report.html",
        "left_out": ["a", "b"],
        "provenance": {"base": "brain-t1"},
        "seconds": 600.0,
    }
    assert told(job, ending, capsys) == [
        "Segmented 98 studies in 10 min; 1 were done before; 1 could not be segmented.",
        "Not segmented: study-1. It is cut off. Export it again.",
        "Run the same command again to try these once more; what is done stays.",
        "The series rules left out 2 series; the reasons are above.",
        "Look at /o/report.html first: the most doubtful studies are on top.",
        "Volumes and grey values are in /o/measurements.csv, one line a study in /o/manifest.jsonl.",
        f"Made by brain-t1 as it is. {DRAFT}",
    ]
    quiet = {
        **ending,
        "failed_count": 0,
        "failed": [],
        "skipped": 0,
        "left_out": [],
        "report": None,
        "measurements": None,
    }
    assert len(told(job, quiet, capsys)) == 2


def test_a_check_tells_the_match_the_cost_and_what_is_wrong(capsys):
    job = CheckJob("m", SCANS, BOTH)
    ending = {
        "warnings": ["Scan 1: look at it."],
        "problems": [{"scan": 2, "message": "It is empty.", "remedy": "Leave it out."}],
        "base_match": {"hippocampus": [0.9, None, 0.7]},
        "already_matches": False,
        "seconds": 240.0,
        "memory_gb": 0.01,
        "free_gb": 16.2,
        "device": "cpu",
        "plan": "Plan: up to 200 epochs.",
        "recipe_changes": [],
    }
    assert told(job, ending, capsys) == [
        "Warning: Scan 1: look at it.",
        "Scan 2 cannot be used: It is empty. Leave it out.",
        "The model as it is, before adapting, has a Dice of 0.80 for hippocampus on average (scan 1: 0.90, scan 3: 0.70).",
        "Adapting to 2 scans would take about 4 min on cpu, and 0.1 of the 16.2 GB of memory that are free.",
        "Plan: up to 200 epochs.",
    ]
    nothing = {**ending, "seconds": None, "base_match": {}}
    assert told(job, nothing, capsys)[-1] == "No scan can be used, so there is no plan."


def test_a_ranking_names_the_scan_to_label_next(capsys):
    job = RankJob(None, "m", ("a.nii.gz", "b.nii.gz", "c.nii.gz"))
    rows = [{"input": 1, "score": 0.9, "uncertainty": 1, "distance": 1, "reason": "It is unlike the others."}]
    ending = {"ranking": rows, "failed": [{"input": 2, "message": "It is empty.", "remedy": ""}]}
    said = told(job, ending, capsys)
    assert said[1].split("  ")[0] == "1"
    assert said[2:] == [
        "Not ranked: c.nii.gz. It is empty.",
        "Label b.nii.gz next; the score runs from 0 to 1 (label it first).",
    ]


def test_a_new_model_is_told_with_what_it_learnt(capsys):
    job = PretrainJob(SCANS, BOTH[:1], "/m/brain", "brain", "Brain")
    ending = {"model": "/m/brain", "epochs": 1, "seconds": 7200.0, "loss": 0.5, "early_level": 1}
    assert told(job, ending, capsys) == [
        "Wrote the model 'brain' to /m/brain.",
        "It learnt hippocampus from 3 labelled scans in 2.0 h (1 epoch; training loss 0.5 at the end).",
        "Its early segmentation head is at level 1.",
        "Adapt it: peftseg adapt --model /m/brain --support DIR --structures ... --out FILE",
    ]


def test_scores_of_files_come_to_a_sentence_a_structure():
    rows = [{"structure": s, "dice": d} for s, d in (("liver", 0.9), ("liver", 0.7), ("2", math.nan), ("spleen", 1.0))]
    assert evaluated(rows) == [
        "The Dice of liver is 0.800 on average, from 0.700 to 0.900 in 2 files.",
        "label 2 is in no file, so there is no Dice.",
        "The Dice of spleen is 1.000 in one file.",
        "A Dice of 1 means the same voxels, 0 none in common.",
    ]


def test_other_kinds_of_job_have_no_sentences_and_words_are_counted(tmp_path):
    assert show_for(ExportDicomJob("a", ("b",), BOTH, {}, "c")) is None
    assert listed([]) == ""
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed("abcdefghijkl") == "a, b, c, d, e, f, g, h and 4 more"
    assert (counted(1, "study", "studies"), counted(1200, "study", "studies")) == ("1 study", "1,200 studies")
    assert size_of(tmp_path / "nowhere") == ""
    (tmp_path / "small").write_bytes(b"1")
    assert size_of(tmp_path / "small") == "1 kB"
