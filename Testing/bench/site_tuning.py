"""Options of adaptation without labels, chosen at made-up sites that nothing is judged by.

    python Testing/bench/site_tuning.py run
    python Testing/bench/site_tuning.py table

Base `brain-t1-bn`. Each way to adapt is run at sites of the families that set the gate's limits
(`site_gate.FAMILIES_SET`), with a seed that neither the gate's trials nor the results use, on support scans without their
labels, and scored on the support scans. The best mean change of Dice is the default of `site_options`; where two tie, the
simpler one. Resumable. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

from pathlib import Path

from runs import run_or_print
from site_gate import Job, Way, read_trials, run_missing

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "Docs" / "results" / "site_tuning.csv"
SITES = [(family, strength) for strength in (0.6, 1.0, 0.3) for family in ("contrast", "noise", "field_of_view")]
SEED = 100
BEST = "convlora_adabn"
WAYS = {
    "AdaBN": Way("adabn"),
    "AdaBN, half": Way("adabn", {"source_weight": 0.5}),
    **{
        f"ConvLoRA + AdaBN, rate {rate:g}": Way(BEST, {"lr_adapter": rate, "lr_norm": rate})
        for rate in (1e-4, 3e-4, 1e-3, 3e-3)
    },
    "ConvLoRA + AdaBN, rate 0.0001, 20 epochs": Way(BEST, {"lr_adapter": 1e-4, "lr_norm": 1e-4}, 20),
    "ConvLoRA + AdaBN, rate 0.0001, level 0": Way(BEST, {"lr_adapter": 1e-4, "level": 0}),
    "ConvLoRA + AdaBN, rate 0.0001, level 2": Way(BEST, {"lr_adapter": 1e-4, "level": 2}),
    "ConvLoRA + AdaBN, rate 0.001, frozen teacher": Way(
        BEST, {"lr_adapter": 1e-3, "lr_norm": 1e-3, "teacher": "frozen"}
    ),
    "ConvLoRA + AdaBN, rate 0.001, hard targets at 0.9": Way(
        BEST, {"lr_adapter": 1e-3, "lr_norm": 1e-3, "targets": "hard", "confidence": 0.9}
    ),
    "ConvLoRA + AdaBN, rate 0.001, through the final head": Way(
        BEST, {"lr_adapter": 1e-3, "lr_norm": 1e-3, "through": "final", "targets": "hard", "confidence": 0.9}
    ),
    "self-training, rate 1e-5": Way("self_training"),
    "self-training, rate 1e-4": Way("self_training", {"lr_body": 1e-4, "lr_norm": 1e-3}),
    "UDAS": Way("udas", {}, 10),
}


def all_jobs(data: Path) -> list[Job]:
    """Sites outermost, so that an early end is fair to all ways."""
    return [Job(family, strength, SEED, name, data, way) for family, strength in SITES for name, way in WAYS.items()]


def print_table(path: Path) -> None:
    """Mean change of Dice by way, over the sites that all ways were tried at, and at each."""
    from peftseg.compare_report import markdown
    from peftseg.compare_rows import mean_of

    base: dict[str, float] = {}
    gains: dict[str, dict[str, float]] = {}
    for row in read_trials(path):
        if row["gain"]:  # an adapter came of it
            site = f"{row['family']} {row['strength']}"
            base[site] = float(row["dice_before"])
            gains.setdefault(row["way"], {})[site] = float(row["gain"])
    common = [site for site in base if all(site in own for own in gains.values())]
    means = f"{mean_of([base[site] for site in common]):.3f}"
    body = [["model as it is: Dice", means, "", *(f"{dice:.3f}" for dice in base.values())]]
    for way, own in gains.items():
        told = [f"{own[site]:+.3f}" if site in own else "" for site in base]
        body.append([way, f"{mean_of([own[s] for s in common]):+.3f}", f"{min(own.values()):+.3f}", *told])
    print(markdown(["way", f"mean change ({' and '.join(common)})", "worst", *base], body))


def main() -> None:
    """Parse the command line and run a stage."""
    run_or_print(__doc__, ROWS, lambda a: run_missing(all_jobs(a.data), a.rows, a.workers), print_table)


if __name__ == "__main__":
    main()
