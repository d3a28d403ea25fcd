"""Made-up abdominal CT with exact labels: for the bundled model, the demo and the tests. Torch-free.

One seed is one person; a `Site` is a scanner with its contrast phase, noise, voxel size and axis order. The same seed
at two sites is the same person scanned twice. No patient data was used: shapes and Hounsfield units are from textbooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from peftseg.anatomy import Body, build_body, smooth_noise
from peftseg.errors import BadInput, unknown_name
from peftseg.models import Structure
from peftseg.volume import Grid, Volume, write_segmentation, write_volume

Range = tuple[float, float]

BASE_STRUCTURES = (
    Structure("liver", 1, (221, 130, 101), "SCT^10200004^Liver"),
    Structure("spleen", 2, (157, 108, 162), "SCT^78961009^Spleen"),
    Structure("right kidney", 3, (185, 102, 83), "SCT^9846003^Right kidney"),
    Structure("left kidney", 4, (212, 126, 105), "SCT^18639004^Left kidney"),
    Structure("stomach", 5, (216, 132, 105), "SCT^69695003^Stomach"),
    Structure("aorta", 6, (224, 97, 76), "SCT^15825003^Aorta"),
    Structure("inferior vena cava", 7, (0, 151, 206), "SCT^64131007^Inferior vena cava"),
    Structure("spine", 8, (226, 202, 134), "SCT^421060004^Vertebral column"),
)
NOVEL_STRUCTURES = (
    Structure("gallbladder", 9, (139, 150, 98), "SCT^28231008^Gallbladder"),
    Structure("pancreas", 10, (249, 180, 111), "SCT^15776009^Pancreas"),
)
STRUCTURES = BASE_STRUCTURES + NOVEL_STRUCTURES

# Hounsfield units by contrast phase.
PHASES = {
    "native": {
        "liver": 58, "liver vessel": 42, "spleen": 48, "cortex": 34, "medulla": 30, "stomach wall": 42, "aorta": 42,
        "inferior vena cava": 40, "pancreas": 40, "gallbladder": 8, "bowel wall": 40, "heart": 42, "muscle": 52,
    },
    "arterial": {
        "liver": 70, "liver vessel": 88, "spleen": 128, "cortex": 175, "medulla": 80, "stomach wall": 78, "aorta": 290,
        "inferior vena cava": 75, "pancreas": 105, "gallbladder": 10, "bowel wall": 80, "heart": 240, "muscle": 60,
    },
    "venous": {
        "liver": 112, "liver vessel": 158, "spleen": 122, "cortex": 180, "medulla": 160, "stomach wall": 75,
        "aorta": 150, "inferior vena cava": 142, "pancreas": 92, "gallbladder": 10, "bowel wall": 82, "heart": 145,
        "muscle": 62,
    },
}  # fmt: skip


def _axes_of(codes: str) -> list[tuple[int, int]]:
    """For each file axis: the RAS axis and the sign, +1 where it runs to right, front or head."""
    where = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    axes = [where[c] for c in codes if c in where]
    if len(codes) != 3 or sorted(axis for axis, _ in axes) != [0, 1, 2]:
        raise BadInput(f"Axis codes '{codes}' are not valid.", "Use one letter of each of RL, AP and SI, such as LPS.")
    return axes


@dataclass(frozen=True)
class Site:
    """A made-up scanner. Ranges are (low, high) of a uniform draw for each scan.

    Attributes
    ----------
    phases : tuple of str
        Contrast phases; a scan shows a random mixture of them.
    spacing, field : tuple of float
        Voxel size and field of view in mm along left-right, back-front, feet-head.
    orientation : str
        Axis codes of the files, e.g. "LPS".
    gain, shift : Range
        Grey value = Hounsfield units x gain + shift.
    noise : Range
        Standard deviation in grey values.
    blur : Range
        Standard deviation of the blur in mm, on top of the averaging over a voxel.
    bias : Range
        Relative strength of a smooth brightness error (beam hardening).
    spread : float
        Standard deviation of each tissue's Hounsfield units between patients.
    """

    name: str
    phases: tuple[str, ...]
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)
    field: tuple[float, float, float] = (288.0, 240.0, 216.0)
    orientation: str = "RAS"
    gain: Range = (1.0, 1.0)
    shift: Range = (0.0, 0.0)
    noise: Range = (10.0, 10.0)
    blur: Range = (1.0, 1.0)
    bias: Range = (0.0, 0.0)
    spread: float = 6.0

    def __post_init__(self) -> None:
        for phase in self.phases:
            if phase not in PHASES:
                raise unknown_name("contrast phase", phase, PHASES)
        _axes_of(self.orientation)


SITE_A = Site(
    "A", ("native", "venous"), gain=(0.94, 1.06), shift=(-12, 12), noise=(8, 28), blur=(0.8, 2.2), bias=(0.0, 0.03),
    spread=9.0,
)  # fmt: skip
SITE_B = Site(
    "B", ("arterial",), spacing=(3.2, 3.2, 4.2), field=(288.0, 240.0, 210.0), orientation="LPS", gain=(0.88, 0.94),
    shift=(10, 22), noise=(28, 40), blur=(1.8, 2.6), bias=(0.01, 0.03),
)  # fmt: skip
SITES = {site.name: site for site in (SITE_A, SITE_B)}


@dataclass(frozen=True)
class PhantomCase:
    """One made-up scan: `labels` is (I, J, K) uint8 on the volume's grid, values as in `structures`."""

    volume: Volume
    labels: np.ndarray
    structures: tuple[Structure, ...]


def make_case(seed: int, site: Site = SITE_A) -> PhantomCase:
    """Make up one person and scan it.

    Parameters
    ----------
    seed : int
        The person (and, with the site, the noise); the same seed gives the same case on every machine (up to rounding).
    site : Site
        The scanner.

    Returns
    -------
    PhantomCase
        Volume of float32 grey values near Hounsfield units, and labels of all `STRUCTURES`.
    """
    if seed < 0:
        raise BadInput(f"Seed {seed} is negative; expected 0 or more.", "Choose another seed.")
    shape = tuple(round(f / s) for f, s in zip(site.field, site.spacing, strict=True))
    scan = np.random.default_rng([seed, 2, *site.name.encode()])
    middle = scan.uniform((-4, -4, -9), (4, 4, 9))
    axes = tuple((np.arange(n) - (n - 1) / 2) * s + m for n, s, m in zip(shape, site.spacing, middle, strict=True))
    body = build_body(np.random.default_rng([seed, 1]), axes)
    labels = np.zeros(shape, np.uint8)
    for structure in STRUCTURES:
        labels[body.regions[structure.name]] = structure.value
    image = _scan(_paint(scan, body, axes, site), scan, axes, site)
    affine = np.diag([*site.spacing, 1.0])
    affine[:3, 3] = [a[0] for a in axes] + scan.uniform(-60, 60, 3)
    image, grid = _reorient(image, affine, site.orientation)
    labels, _ = _reorient(labels, affine, site.orientation)
    return PhantomCase(Volume(image, grid, case_name(seed, site)), labels, STRUCTURES)


def case_name(seed: int, site: Site) -> str:
    """File name without suffix of a case, e.g. "phantom-B-0007"."""
    return f"phantom-{site.name}-{seed:04d}"


def structures_named(names: Iterable[str] | None) -> tuple[Structure, ...]:
    """The phantom's structures with these names (all for None); BadInput lists the valid ones otherwise."""
    known = {s.name: s for s in STRUCTURES}
    if names is None:
        return STRUCTURES
    chosen = tuple(names)
    for name in chosen:
        if name not in known:
            raise unknown_name("phantom structure", name, known)
    return tuple(known[name] for name in chosen)


def write_dataset(
    folder: Path, seeds: Iterable[int], site: Site = SITE_A, structures: Iterable[str] | None = None
) -> list[str]:
    """Write cases as `images/NAME.nii.gz` and `labels/NAME.nii.gz`.

    Parameters
    ----------
    folder : Path
        Is made where it is missing.
    seeds : iterable of int
        One case each.
    site : Site
        The scanner.
    structures : iterable of str or None
        Names of what is labelled; the rest becomes background. None labels everything. Values stay as in `STRUCTURES`.

    Returns
    -------
    list of str
        The cases' names, in the order of the seeds.
    """
    chosen = structures_named(structures)
    kept = np.zeros(256, np.uint8)
    for structure in chosen:
        kept[structure.value] = structure.value
    for part in ("images", "labels"):
        (Path(folder) / part).mkdir(parents=True, exist_ok=True)

    def write(seed: int) -> str:
        case = make_case(seed, site)
        file = f"{case.volume.name}.nii.gz"
        write_volume(Path(folder) / "images" / file, case.volume.array, case.volume.grid)
        provenance = {"made_by": "peftseg.phantom", "seed": seed, "site": site.name}
        path = Path(folder) / "labels" / file
        write_segmentation(path, kept[case.labels], case.volume.grid, chosen, provenance)
        return case.volume.name

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(write, seeds))


def _paint(rng: np.random.Generator, body: Body, axes: tuple[np.ndarray, ...], site: Site) -> np.ndarray:
    """(X, Y, Z) float32 Hounsfield units without noise."""
    mixture = rng.dirichlet(np.ones(len(site.phases)))
    hu = {
        tissue: sum(w * PHASES[p][tissue] for w, p in zip(mixture, site.phases, strict=True))
        + rng.normal(0, site.spread)
        for tissue in PHASES[site.phases[0]]
    }
    texture = smooth_noise(rng, axes, 9.0)
    image = np.full(body.front.shape, -1000.0, np.float32)
    regions = dict(body.regions)
    _fill_tissues(image, rng, regions, hu, texture)
    _fill_kidneys(image, body, hu, texture)
    _fill_hollow(image, rng, body, axes, hu)
    vessels = smooth_noise(rng, axes, 20.0) ** 2 + smooth_noise(rng, axes, 20.0) ** 2 < 0.03
    image[regions["liver"] & vessels] = hu["liver vessel"]
    bone = body.depth["spine"][regions["spine"]]
    image[regions["spine"]] = np.where(bone > -3, 380, 190) + 25 * texture[regions["spine"]]
    return image


def _fill_tissues(
    image: np.ndarray,
    rng: np.random.Generator,
    regions: dict[str, np.ndarray],
    hu: dict[str, float],
    texture: np.ndarray,
) -> None:
    """Tissues of one value each, with a little texture."""
    outer = rng.normal(-105, 5)
    values = {
        **{name: hu[name] for name in ("liver", "spleen", "aorta", "inferior vena cava", "pancreas", "gallbladder")},
        **dict.fromkeys(("muscle", "psoas", "diaphragm"), hu["muscle"]),
        "heart": hu["heart"],
        "canal": 30.0,
        "rib": rng.normal(330, 30),
        "lung": rng.normal(-820, 25),
        "inner fat": outer + 8,
        "skin fat": outer,
    }
    rough = {
        "lung": 30.0,
        "rib": 60.0,
        "pancreas": 14.0,
        "inner fat": 9.0,
        "muscle": 9.0,
        "psoas": 5.0,
        "gallbladder": 1.0,
    }
    for name, value in values.items():
        where = regions[name]
        image[where] = value + rough.get(name, 4.0) * texture[where]


def _fill_kidneys(image: np.ndarray, body: Body, hu: dict[str, float], texture: np.ndarray) -> None:
    """Bright cortex outside, pyramids of medulla inside."""
    for name in ("right kidney", "left kidney"):
        where = body.regions[name]
        inner = (body.depth[name] < -6) & (texture > -0.4)
        image[where] = np.where(inner[where], hu["medulla"], hu["cortex"]) + 3 * texture[where]


def _fill_hollow(
    image: np.ndarray, rng: np.random.Generator, body: Body, axes: tuple[np.ndarray, ...], hu: dict[str, float]
) -> None:
    """Stomach and bowel: wall, contents, and gas, which rises to the front of a patient lying on the back."""
    where = body.regions["stomach"]
    contents = rng.uniform(5, 45) + rng.uniform(5, 18) * smooth_noise(rng, axes, 10.0)
    filled = np.where(body.depth["stomach"] > -4, hu["stomach wall"], contents)
    if where.any():
        level = np.quantile(body.front[where], rng.uniform(0.7, 1.0))
        filled[(body.front > level) & (body.depth["stomach"] < -2)] = -850
    image[where] = filled[where]
    where = body.regions["bowel"]
    kind = smooth_noise(rng, axes, 24.0)
    loops = np.select([kind > 1.1, kind < -1.3], [-500.0, 160.0], hu["bowel wall"] - 25 * (kind > 0))
    image[where] = (loops + 18 * smooth_noise(rng, axes, 8.0))[where]


def _scan(image: np.ndarray, rng: np.random.Generator, axes: tuple[np.ndarray, ...], site: Site) -> np.ndarray:
    """Blur, brightness error, noise and grey scale of the site."""
    blur = rng.uniform(*site.blur)
    sigma = [np.hypot(blur, 0.29 * s) / s for s in site.spacing]  # 0.29 = standard deviation of a box one voxel wide
    image = ndimage.gaussian_filter(image, sigma)
    image += (image + 1000) * np.float32(rng.uniform(*site.bias)) * smooth_noise(rng, axes, 110.0)
    grain = ndimage.gaussian_filter(rng.standard_normal(image.shape).astype(np.float32), (0.6, 0.6, 0.3))
    image += grain * np.float32(rng.uniform(*site.noise) / grain.std())
    image = np.maximum(image * np.float32(rng.uniform(*site.gain)) + np.float32(rng.uniform(*site.shift)), -1024)
    return np.round(image).astype(np.float32)


def _reorient(array: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, Grid]:
    """The RAS array and its affine with axes permuted and flipped to `codes`; the geometry in space stays."""
    order = _axes_of(codes)
    turned = np.transpose(array, [axis for axis, _ in order])
    matrix = np.eye(4)
    matrix[:, 3] = affine[:, 3]
    for i, (axis, sign) in enumerate(order):
        matrix[:3, i] = sign * affine[:3, axis]
        if sign < 0:
            turned = np.flip(turned, axis=i)
            matrix[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
    return np.ascontiguousarray(turned), Grid(turned.shape, matrix)
