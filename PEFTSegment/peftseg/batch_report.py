"""What a batch leaves for people: measurements.csv, and report.html with a small picture a study, the doubtful ones first.

Torch-free, and drawn without matplotlib: a picture is a few slices of the scan with the structures' outlines, written by
zlib. All is made from the manifest, so it can be made again at any time.
"""

from __future__ import annotations

import csv
import html
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftseg.manifest import Line, Manifest
from peftseg.models import Structure
from peftseg.paths import atomic_write
from peftseg.report import NOTICE, PLANES, slices_through, to_ras
from peftseg.volume import Volume

MEASUREMENTS, REPORT, PICTURES = "measurements.csv", "report.html", "pictures"
HEIGHT = 144  # of a picture, pixels
WIDEST = 320
TINT = 0.35  # of a structure's colour inside of its outline
COLUMNS = (
    "study structure voxels volume_ml mean sd min max extent_lr_mm extent_ap_mm extent_hf_mm centre_r_mm centre_a_mm "
    "centre_s_mm doubt flags adapter adapter_hash"
)


def write_measurements(manifest: Manifest, folder: Path) -> Path:
    """Write measurements.csv: one row a structure and study that is done; empty cells where it was not found.

    `study` is the name of the study's results. Lengths in mm along left-right, front-back, head-foot; centres are RAS.
    """
    path = folder / MEASUREMENTS
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS.split())
        for line in manifest.last_lines():
            if line["state"] == "done":
                writer.writerows(_rows(line))
    return path


def _rows(line: Line) -> Iterable[list[Any]]:
    for name, found in line.get("measurements", {}).items():
        grey = [found[key] for key in ("mean", "sd", "low", "high")]
        places = [*(found["extent_mm"] or [None] * 3), *(found["centre_mm"] or [None] * 3)]
        flags = "; ".join(line.get("flags", {}).get(name, ()))
        doubt = line.get("doubt", {}).get(name)
        row = [line["name"], name, found["voxels"], found["volume_ml"], *grey, *places, doubt, flags]
        yield [_cell(value) for value in (*row, line.get("adapter"), line.get("adapter_hash"))]


def _cell(value: Any) -> Any:
    """A value of the table; text that a spreadsheet would run as a formula is quoted."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write_report(manifest: Manifest, folder: Path, facts: Sequence[str]) -> Path:
    """Write report.html: studies sorted by doubt, then those that failed. Pictures lie in `pictures/` beside it.

    Parameters
    ----------
    facts : sequence of str
        Sentences about the batch.
    """
    done, failed = [], []
    for line in manifest.last_lines():
        if line["state"] == "done":
            done.append((-float(line.get("study_doubt") or 0), line["name"], line["study"], _card(line)))
        elif line["state"] != "started":
            failed.append(_failure(line))
    body = "\n".join(card for *_, card in sorted(done)) or "<p>No study is done.</p>"
    if failed:
        head = "<tr><th>Study</th><th>State</th><th>What happened</th><th>What to do</th></tr>"
        body += f"\n<h2>Not segmented ({len(failed)})</h2>\n<table>{head}\n" + "\n".join(failed) + "\n</table>"
    said = "\n".join(f"<p>{html.escape(fact)}</p>" for fact in facts)
    path = folder / REPORT
    with atomic_write(path) as temporary:
        text = _PAGE.format(notice=html.escape(NOTICE), facts=said, count=len(done), body=body)
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def _card(line: Line) -> str:
    """One study: its picture, linked to the result, and what stands out."""
    result = html.escape(line["outputs"][0]["file"], quote=True)
    name = html.escape(line["name"])
    links = " ".join(f'<a href="{_link(o["file"])}">{html.escape(o["file"])}</a>' for o in line["outputs"])
    if line.get("input"):
        links += f' <a href="{html.escape(Path(line["input"]).as_uri(), quote=True)}">scan</a>'
    flags = [f"{structure}: {text}" for structure, sentences in line.get("flags", {}).items() for text in sentences]
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in (*flags, *_doubts(line)))
    volumes = ", ".join(
        f"{structure} {volume:g} ml" for structure, volume in line.get("volumes_ml", {}).items() if volume
    )
    picture = line.get("picture")
    image = f'<img loading="lazy" alt="{name}" src="{_link(picture)}">' if picture else result
    doubt = float(line.get("study_doubt") or 0)
    return (
        f'<div class="card"><a href="{_link(line["outputs"][0]["file"])}">{image}</a>'
        f'<h3>{name} <span class="doubt">doubt {doubt:.2f}</span></h3><ul>{notes}</ul>'
        f"<p>{html.escape(volumes)}</p><p>{links}</p></div>"
    )


def _doubts(line: Line) -> list[str]:
    """Structures that are doubted most, in words."""
    worst = sorted(((value, name) for name, value in line.get("doubt", {}).items() if value >= 0.5), reverse=True)
    return [f"{name}: doubt {value:.2f}" for value, name in worst[:5]]


def _failure(line: Line) -> str:
    state = "to be retried" if line["state"] == "retry" else "failed"
    cells = (line["name"], state, line.get("message", ""), line.get("remedy", ""))
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _link(file: str) -> str:
    from urllib.parse import quote

    return html.escape(quote(file), quote=True)


def thumbnail(volume: Volume, result: np.ndarray, structures: Sequence[Structure]) -> bytes:
    """An axial and a coronal slice with the structures in their colours, side by side, as PNG.

    Each goes through the slice with most of what was found, seen as radiologists do (the patient's right on the left).

    Parameters
    ----------
    volume : Volume
    result : array
        (I, J, K) label map or (C, I, J, K) bool masks.
    """
    labels = result if result.ndim == 3 else _flat(result, structures)
    scan, spacing = to_ras(volume.array, volume.grid)
    turned, _ = to_ras(labels, volume.grid)
    where = slices_through(turned > 0, turned.shape)
    sample = volume.array[tuple(slice(None, None, 1 + n // 64) for n in volume.array.shape)]
    low, high = (float(p) for p in np.percentile(sample, (1, 99.5)))
    panels = []
    for across, up, through in (PLANES["axial"], PLANES["coronal"]):
        grey, marks = (np.take(array, where[through], axis=through).T[::-1, ::-1] for array in (scan, turned))
        rows, columns = _sizes(grey.shape, (spacing[up], spacing[across]))
        picks = np.ix_(_picks(grey.shape[0], rows), _picks(grey.shape[1], columns))
        panels.append(_painted(grey[picks], marks[picks], (low, high), structures))
    gap = np.zeros((HEIGHT, 4, 3), np.uint8)
    return png(np.concatenate([panels[0], gap, panels[1]], axis=1))


def png(pixels: np.ndarray) -> bytes:
    """An (H, W, 3) uint8 image as a PNG file."""
    height, width = pixels.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0 a row
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _flat(masks: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    """One label a voxel; later structures lie on top."""
    labels = np.zeros(masks.shape[1:], np.uint16)
    for mask, structure in zip(masks, structures, strict=True):
        labels[mask] = structure.value
    return labels


def _sizes(shape: tuple[int, ...], spacing: Sequence[float]) -> tuple[int, int]:
    """Rows and columns of the picture: true to scale, as high as all others."""
    width = shape[1] * spacing[1] / (shape[0] * spacing[0]) * HEIGHT
    return HEIGHT, int(np.clip(round(width), 24, WIDEST))


def _picks(size: int, wanted: int) -> np.ndarray:
    return np.minimum((np.arange(wanted) + 0.5) * size / wanted, size - 1).astype(int)


def _painted(
    grey: np.ndarray, marks: np.ndarray, window: tuple[float, float], structures: Sequence[Structure]
) -> np.ndarray:
    """(H, W, 3) uint8: grey values with tinted structures and full outlines."""
    low, high = window
    level = np.clip((grey - low) / max(high - low, 1e-6), 0, 1) * 255
    pixels = np.repeat(level[..., None], 3, axis=2)
    for structure in structures:
        mask = marks == structure.value
        if mask.any():
            colour = np.array(structure.colour, dtype=np.float64)
            pixels[mask] = (1 - TINT) * pixels[mask] + TINT * colour
            pixels[mask & ~_inner(mask)] = colour
    return pixels.astype(np.uint8)


def _inner(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours belong to the mask."""
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Batch of segmentations</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 80rem; margin: 1.5rem auto; padding: 0 1rem; color: #222; }}
.notice {{ background: #fff3cd; border: 1px solid #e0c36a; padding: .5rem .8rem; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }}
.card {{ border: 1px solid #ccc; border-radius: 4px; padding: .6rem; overflow-wrap: anywhere; }}
.card img {{ max-width: 100%; background: #000; }} .card h3 {{ margin: .3rem 0; font-size: 1rem; }}
.card p, .card ul {{ margin: .2rem 0; font-size: .85rem; }} .doubt {{ color: #8a2d00; font-weight: normal; }}
table {{ border-collapse: collapse; }} th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #ccc; text-align: left; }}
h2, .cards > table, .cards > p {{ grid-column: 1 / -1; }}
</style>
</head>
<body>
<h1>Batch of segmentations</h1>
<p class="notice">{notice}</p>
{facts}
<p>{count} studies, the most doubtful ones first. A picture opens its result.</p>
<div class="cards">
{body}
</div>
</body>
</html>
"""
