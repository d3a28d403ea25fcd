"""What a command says to people when its job has finished: sentences, with the numbers in them. Torch-free.

Every function takes the job and the `finished` event, and gives lines. `--json` prints the event itself instead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peftseg import config
from peftseg.cli_progress import duration, table
from peftseg.events import Event
from peftseg.models import Structure

MOST_NAMES = 8  # structures of a study that are told one by one
MOST_FAILED = 20  # studies
VERDICTS = {
    "accepted": "accepted",
    "warning": "accepted with a warning",
    "refused": "refused: keep the base model",
}
SCALE = "A Dice of 1 means the same voxels, 0 none in common."


def show_for(job: config.Job) -> Callable[[Event], None] | None:
    """What prints the ending of such a job; None where there are no sentences for its kind."""
    tell = _ENDINGS.get(type(job))
    return partial(_show, tell, job) if tell is not None else None


def _show(tell: Callable[[Any, Event], list[str]], job: config.Job, ending: Event) -> None:
    print("\n".join(tell(job, ending)))


def adapted(job: config.AdaptJob, ending: Event) -> list[str]:
    """Of `peftseg adapt`."""
    lines = [_wrote_adapter(ending), _learnt(job.structures, len(job.support), ending), *_trained(ending)]
    if choice := ending.get("choice"):
        lines.append(f"The method was chosen by trying: {choice['label']}. {' '.join(choice['why'])}")
    return [*lines, *_estimated(ending["estimate"], (ending.get("patients") or 0) > 1), _how_to_apply(ending)]


def site_adapted(job: config.SiteAdaptJob, ending: Event) -> list[str]:
    """Of `peftseg site-adapt`: the verdict first."""
    verdict, agreement = ending["verdict"], ending["agreement"]
    lines = [f"The adaptation is {VERDICTS[verdict['status']]}.", *(f"  {reason}" for reason in verdict["reasons"])]
    facts = [f"preset {ending['preset']}", counted(ending["epochs"], "epoch")]
    if ending["loss"] is not None:
        facts.append(f"training loss {ending['loss']:.3g} at the end")
    if agreement is not None:
        facts.append(f"agreement of the early and the final result {agreement:.2f} of 1")
    scans = counted(ending["scans"], "scan")
    lines.append(f"It took {scans} without labels and {spent(ending['seconds'])} ({'; '.join(facts)}).")
    if ending["grey_values"]:
        lines.append(ending["grey_values"])
    lines += _trained(ending)
    if ending["recalibrated"]:
        lines.append(f"The statistics of {counted(ending['recalibrated'], 'layer')} were measured anew on these scans.")
    if early := ending["early_head"]:
        how = "was fitted for it" if early["fitted"] else "came with the model"
        lines.append(f"It learnt from an early head at level {early['level']}, which {how}.")
    if ending["adapter"] is None:
        return [*lines, "No adapter was written. To look at it all the same, run it again with --keep-refused."]
    return [*lines, _wrote_adapter(ending), _how_to_apply(ending)]


def applied(job: config.ApplyJob, ending: Event) -> list[str]:
    """Of `peftseg apply`, with and without a batch."""
    if "manifest" in ending:
        return _batch(ending)
    done, failed = ending["outputs"], ending["failed"]
    lines = [_segmented(len(done), ending["seconds"], failed=len(failed))]
    for output in done:
        name = Path(output).name
        volumes = ending["volumes_ml"].get(name, {})
        lines.append(f"{output}: {_volumes(volumes)}.")
        lines += [
            f"  Look at {structure}: {'; '.join(said)}."
            for structure, said in ending["checks"].get(name, {}).items()
            if said
        ]
        if doubt := ending.get("doubt", {}).get(name):
            most = max(doubt, key=doubt.__getitem__)
            lines.append(
                f"  The doubt is {doubt[most]:.2f} for {most}{', the highest' * (len(doubt) > 1)} (0: as expected, to 1)."
            )
    lines += [_failed(f"Not segmented: {entry['input']}.", entry) for entry in failed]
    lines += [f"Left out: {text}" for text in ending.get("left_out", ())]
    return [*lines, _made_by(ending["provenance"])]


def _batch(ending: Event) -> list[str]:
    failed = ending["failed_count"]
    lines = [_segmented(ending["done"], ending["seconds"], ending["skipped"], failed)]
    lines += [_failed(f"Not segmented: {entry['name']}.", entry) for entry in ending["failed"][:MOST_FAILED]]
    if failed:
        lines.append("Run the same command again to try these once more; what is done stays.")
    if left_out := len(ending["left_out"]):
        lines.append(f"The series rules left out {left_out} series; the reasons are above.")
    if page := ending["report"]:
        lines.append(f"Look at {page} first: the most doubtful studies are on top.")
    if ending["measurements"]:
        lines.append(
            f"Volumes and grey values are in {ending['measurements']}, one line a study in {ending['manifest']}."
        )
    return [*lines, _made_by(ending["provenance"])]


def checked(job: config.CheckJob, ending: Event) -> list[str]:
    """Of `peftseg check`."""
    lines = [f"Warning: {text}" for text in ending["warnings"]]
    lines += [_failed(f"Scan {problem['scan']} cannot be used:", problem) for problem in ending["problems"]]
    lines += _dices("The model as it is, before adapting, has a Dice of", ending["base_match"])
    if ending["already_matches"]:
        lines.append("It matches your labels already: adapting would hardly help.")
    if ending["seconds"] is None:
        return [*lines, "No scan can be used, so there is no plan."]
    lines += ending["recipe_changes"]
    usable = counted(len(job.support) - len(ending["problems"]), "scan")
    cost = f"{spent(ending['seconds'])} on {ending['device']}, and {max(ending['memory_gb'], 0.1):.1f} of"
    lines.append(
        f"Adapting to {usable} would take about {cost} the {ending['free_gb']:.1f} GB of memory that are free."
    )
    return [*lines, ending["plan"]]


def ranked(job: config.RankJob, ending: Event) -> list[str]:
    """Of `peftseg rank`."""
    rows = [
        {"rank": place, "scan": job.inputs[row["input"]], "score": row["score"], "why": row["reason"]}
        for place, row in enumerate(ending["ranking"], start=1)
    ]
    lines = [table(rows)] if rows else []
    lines += [_failed(f"Not ranked: {job.inputs[entry['input']]}.", entry) for entry in ending["failed"]]
    if rows:
        lines.append(f"Label {rows[0]['scan']} next; the score runs from 0 to 1 (label it first).")
    return lines


def pretrained(job: config.PretrainJob, ending: Event) -> list[str]:
    """Of `peftseg pretrain`."""
    lines = [
        f"Wrote the model '{job.id}' to {ending['model']}.",
        _learnt(job.structures, len(job.data), ending),
    ]
    if ending["early_level"] is not None:
        lines.append(f"Its early segmentation head is at level {ending['early_level']}.")
    return [*lines, f"Adapt it: peftseg adapt --model {ending['model']} --support DIR --structures ... --out FILE"]


def evaluated(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table of `peftseg evaluate` comes to."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["structure"], []).append(row["dice"])
    lines = []
    for structure, values in scores.items():
        name = f"label {structure}" if structure.isdigit() else structure
        known = [value for value in values if not math.isnan(value)]
        if not known:
            lines.append(f"{name} is in no file, so there is no Dice.")
            continue
        spread = (
            f", from {min(known):.3f} to {max(known):.3f} in {len(known)} files" if len(known) > 1 else " in one file"
        )
        lines.append(f"The Dice of {name} is {statistics.fmean(known):.3f}{' on average' * (len(known) > 1)}{spread}.")
    return [*lines, SCALE]


def listed(names: Iterable[str], most: int = MOST_NAMES) -> str:
    """Names as people list them: "liver, spleen and 7 more"."""
    names = list(names)
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(number: int, what: str, more: str = "") -> str:
    """A number with its noun: "1 scan", "5 scans"."""
    return f"{number:,} {what if number == 1 else more or f'{what}s'}"


def spent(seconds: float) -> str:
    """A time that something took, in words."""
    return duration(seconds) if seconds >= 1 else "less than a second"


def size_of(path: str | Path) -> str:
    """The size of a file in words; "" where it is gone."""
    try:
        size = Path(path).stat().st_size
    except OSError:
        return ""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{max(1, round(size / 1e3))} kB"


def _wrote_adapter(ending: Event) -> str:
    size = size_of(ending["adapter"])
    library = f" It is in the library as {ending['ref']}." if ending.get("ref") else ""
    facts = ", ".join(part for part in (size, f"hash {ending['hash'][:12]}") if part)
    return (
        f"Wrote the adapter '{ending['name']}', version {ending['version']}, to {ending['adapter']} ({facts}).{library}"
    )


def _learnt(structures: Sequence[Structure], scans: int, ending: Event) -> str:
    return (
        f"It learnt {listed(s.name for s in structures)} from {counted(scans, 'labelled scan')} in "
        f"{spent(ending['seconds'])} ({counted(ending['epochs'], 'epoch')}; training loss {ending['loss']:.3g} at the end)."
    )


def _failed(what: str, entry: Mapping[str, Any]) -> str:
    return f"{what} {entry['message']} {entry['remedy']}".rstrip()


def _trained(ending: Event) -> list[str]:
    """How much of the network was trained."""
    share = dict(ending["trained_share"])
    total = share.pop("base_total", 0)
    trained = sum(share.values())
    if not trained or not total:
        return []
    ranks = [rank for rank in ending["ranks"].values() if isinstance(rank, int)]
    which = (
        f"rank {min(ranks)}" if len(set(ranks)) == 1 else f"ranks from {min(ranks)} to {max(ranks)}" if ranks else ""
    )
    kept = f", with {which} in {counted(len(ranks), 'layer')}" if ranks else ""
    return [f"It holds {trained:,} trained values, {100 * trained / total:.3g} % of the model's {total:,}{kept}."]


def _estimated(estimate: Mapping[str, Sequence[float | None]] | None, by_patient: bool) -> list[str]:
    if estimate is None:
        return [
            "How good it is on other scans was not estimated (--estimate loo does it, from three scans on): look closely at "
            "the first results."
        ]
    how = "with all scans of the same patient" if by_patient else "one at a time"
    return [*_dices(f"On scans left out of training, {how}, it has a Dice of", estimate), SCALE]


def _dices(what: str, values: Mapping[str, Sequence[float | None]]) -> list[str]:
    """A sentence for each structure, with the value of every scan."""
    lines = []
    for name, found in values.items():
        each = [f"scan {n}: {value:.2f}" for n, value in enumerate(found, start=1) if value is not None]
        if each:
            mean = statistics.fmean(value for value in found if value is not None)
            lines.append(f"{what} {mean:.2f} for {name} on average ({', '.join(each)}).")
    return lines


def _how_to_apply(ending: Event) -> str:
    return f"Use it: peftseg apply --adapter {ending['adapter']} --input SCAN --out FOLDER"


def _segmented(done: int, seconds: float, skipped: int = 0, failed: int = 0) -> str:
    more = [f"{skipped:,} were done before"] * bool(skipped) + [f"{failed:,} could not be segmented"] * bool(failed)
    return f"Segmented {counted(done, 'study', 'studies')} in {spent(seconds)}{''.join(f'; {part}' for part in more)}."


def _volumes(volumes: Mapping[str, float]) -> str:
    found = {name: value for name, value in volumes.items() if value > 0}
    if not found:
        return "nothing was found"
    return listed(
        f"{name} {value:,.0f} ml" if value >= 100 else f"{name} {value:.3g} ml" for name, value in found.items()
    )


def _made_by(provenance: Mapping[str, str]) -> str:
    if "adapter" in provenance:
        who = f"adapter {provenance['adapter']}, version {provenance['adapter_version']}, of {provenance['base']}"
    else:
        who = f"{provenance['base']} as it is"
    return f"Made by {who}. For research use only: these are drafts until a person has reviewed them."


_ENDINGS: dict[type, Callable[[Any, Event], list[str]]] = {
    config.AdaptJob: adapted,
    config.SiteAdaptJob: site_adapted,
    config.ApplyJob: applied,
    config.CheckJob: checked,
    config.RankJob: ranked,
    config.PretrainJob: pretrained,
}
