"""Made-up abdominal anatomy as smooth implicit shapes in RAS millimetres. Torch-free; used by `phantom.py`.

Every shape is an approximate signed distance in mm (below 0 is inside), evaluated at the voxel centres of a grid in
the body's own frame: x to the right, y to the front, z to the head, origin in the middle of the trunk.
Sizes and positions are typical adult values, rounded; nothing here comes from a real scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

Point = tuple[float, float, float]
PEAK = 60.0  # mm between the control points of the smooth random fields


@dataclass(frozen=True)
class Body:
    """One made-up person, evaluated on a grid.

    Attributes
    ----------
    regions : dict of str to ndarray
        (X, Y, Z) bool masks that do not overlap, organs and tissues, in the order in which they claim voxels.
    depth : dict of str to ndarray
        (X, Y, Z) float32, mm; the signed distance of regions whose inside is layered (kidneys, stomach, spine).
    front : ndarray
        (X, Y, Z) float32, mm; the body frame's y, e.g. for gas that rises to the front of a supine patient.
    """

    regions: dict[str, np.ndarray]
    depth: dict[str, np.ndarray]
    front: np.ndarray


def smooth_noise(rng: np.random.Generator, axes: tuple[np.ndarray, ...], grain: float) -> np.ndarray:
    """Smooth random field with mean 0 and standard deviation near 1.

    Parameters
    ----------
    rng : Generator
        Source of the control values.
    axes : tuple of ndarray
        Coordinates of the grid along x, y, z in mm; the field depends on them only, not on the voxel size.
    grain : float
        Distance of the control points in mm.

    Returns
    -------
    ndarray, (X, Y, Z) float32
    """
    reach = int(np.ceil(200.0 / grain))
    knots = np.arange(-reach, reach + 1) * grain
    values = rng.standard_normal((len(knots),) * 3)
    for axis, positions in enumerate(axes):
        weights = np.exp(-0.5 * ((positions[:, None] - knots) / (0.7 * grain)) ** 2)
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return values.astype(np.float32)


def ellipsoid(at: np.ndarray, centre: Point, radii: Point, turn: Point = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Signed distance (approximate, mm) of an ellipsoid.

    Parameters
    ----------
    at : ndarray
        (3, X, Y, Z) coordinates in mm.
    centre, radii : tuple of float
        In mm.
    turn : tuple of float
        Rotation about x, y, z in degrees, applied in this order.
    """
    local = np.stack([at[i] - np.float32(centre[i]) for i in range(3)])
    if any(turn):
        local = np.tensordot(rotation(turn).T.astype(np.float32), local, axes=1)
    scaled = sum((local[i] / np.float32(radii[i])) ** 2 for i in range(3))
    return (np.sqrt(scaled) - 1.0) * np.float32(np.prod(radii) ** (1 / 3))


def rotation(turn: Point) -> np.ndarray:
    """(3, 3) rotation matrix about x, then y, then z; angles in degrees."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def blend(first: np.ndarray, second: np.ndarray, softness: float) -> np.ndarray:
    """Union of two shapes with a rounded seam `softness` mm wide (polynomial smooth minimum)."""
    share = np.clip(0.5 + 0.5 * (second - first) / softness, 0, 1).astype(np.float32)
    return second + (first - second) * share - softness * share * (1 - share)


def tube(at: np.ndarray, path: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Signed distance (mm) of a tube of changing radius; `path` is (N, 3) mm, `radii` (N,) mm."""
    best = np.full(at.shape[1:], np.inf, np.float32)
    for (start, end), (r0, r1) in zip(pairwise(path), pairwise(radii), strict=True):
        step = (end - start).astype(np.float32)
        local = [at[i] - np.float32(start[i]) for i in range(3)]
        along = np.clip(sum(local[i] * step[i] for i in range(3)) / max(float(step @ step), 1e-6), 0, 1)
        gap = np.sqrt(sum((local[i] - along * step[i]) ** 2 for i in range(3)))
        np.minimum(best, gap - np.float32(r0) - along * np.float32(r1 - r0), out=best)
    return best


def build_body(rng: np.random.Generator, axes: tuple[np.ndarray, ...]) -> Body:
    """Make up one person.

    Parameters
    ----------
    rng : Generator
        Decides shapes, sizes and pose; the same state gives the same person at any voxel size.
    axes : tuple of ndarray
        Voxel centres along x, y, z in mm.
    """
    at = _body_frame(rng, axes)
    skin, cavity, wall = _trunk(rng, at)
    lung, heart = _chest(rng, at)
    spine, canal = _spine(rng, at)
    shapes = {
        "spine": np.maximum(spine, -canal),
        "canal": canal,
        **_vessels(rng, at),
        "gallbladder": _gallbladder(rng, at),
        **_kidneys(rng, at),
        "pancreas": _pancreas(rng, at),
        "spleen": _spleen(rng, at),
        "stomach": _stomach(rng, at),
        "liver": _liver(rng, at),
        "psoas": _psoas(rng, at),
        "heart": heart,
        "bowel": _bowel(rng, at),
    }
    for name, amount in _WOBBLE.items():
        shapes[name] = shapes[name] + np.float32(amount) * smooth_noise(rng, axes, 28.0)
    regions = _claim(shapes, skin, cavity, lung)
    regions |= _wall(rng, at, skin, wall, regions)
    depth = {name: shapes[name] for name in ("right kidney", "left kidney", "stomach", "spine")}
    return Body(regions, depth, at[1])


# How far (mm, standard deviation) the outline of each organ wanders.
_WOBBLE = {
    "gallbladder": 0.8,
    "right kidney": 1.2,
    "left kidney": 1.2,
    "pancreas": 1.5,
    "spleen": 2.0,
    "stomach": 2.5,
    "liver": 3.0,
    "bowel": 3.0,
}


def _body_frame(rng: np.random.Generator, axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """(3, X, Y, Z) float32 coordinates in the frame of this person: pose, size, and a smooth warp undone."""
    at = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    turn = tuple(rng.normal(0, (2.0, 1.5, 3.0)))
    size = rng.uniform((0.92, 0.92, 0.92), (1.07, 1.08, 1.08))
    linear = np.diag(1 / size) @ rotation(turn).T
    warped = np.tensordot(linear.astype(np.float32), at, axes=1)
    for i in range(3):
        warped[i] += 3.5 * smooth_noise(rng, axes, PEAK)
    return warped


def _near(rng: np.random.Generator, centre: Point, spread: float) -> Point:
    """A point near `centre`; `spread` is the standard deviation in mm, cut at two of them."""
    return tuple(float(c) for c in np.asarray(centre) + np.clip(rng.normal(0, spread, 3), -2 * spread, 2 * spread))


def _sized(rng: np.random.Generator, radii: Point, spread: float = 0.1) -> Point:
    """Radii scaled by one common and three own random factors of relative `spread`."""
    factors = 1 + np.clip(rng.normal(0, spread, 4), -2 * spread, 2 * spread)
    return tuple(float(r) for r in np.asarray(radii) * factors[0] * (1 + (factors[1:] - 1) / 2))


def _trunk(rng: np.random.Generator, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signed distances of the skin, of the abdominal cavity and of the muscular wall around it."""
    half_x, half_y = rng.uniform(99, 107), rng.uniform(70, 77)
    muscle, fat = rng.uniform(8, 13), rng.uniform(7, 22)

    def oval(margin: float, back: float) -> np.ndarray:
        x, y = half_x + margin, half_y + margin
        behind = np.where(at[1] < 0, y + back, y)
        return ((np.abs(at[0] / x) ** 2.3 + np.abs(at[1] / behind) ** 2.3) ** (1 / 2.3) - 1) * np.float32((x + y) / 2)

    return oval(muscle + fat, 6).astype(np.float32), oval(0, 0).astype(np.float32), oval(muscle, 8).astype(np.float32)


def _chest(rng: np.random.Generator, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances of the lungs above the two domes of the diaphragm, and of the heart on top of it."""
    domes = []
    for side, height in ((1, rng.uniform(84, 98)), (-1, rng.uniform(78, 92))):
        away = ((at[0] - side * 46) / 62) ** 2 + ((at[1] - 8) / 66) ** 2
        domes.append(height - 46 * away)
    lung = np.maximum(*domes) - at[2]
    heart = ellipsoid(at, _near(rng, (-18, 30, 118), 4), (52, 38, 40))
    return lung, heart


def _spine(rng: np.random.Generator, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances of the spine (bodies, arch and processes) and of its canal."""
    bend = rng.normal(0, 3) * np.sin(at[2] / 70) + rng.normal(0, 1.0)
    sway = 5 * np.cos(at[2] / 80 + rng.normal(0, 0.3))
    x, y = at[0] - bend, at[1] + 44 - sway
    level = 0.5 * (1 + np.cos(2 * np.pi * (at[2] + rng.uniform(-15, 15)) / 33))  # 1 in the middle of a vertebra
    body = (np.hypot(x / 21, y / 16) - 1) * 18 + 1.5 * level
    canal = np.hypot(x / 9, (y + 24) / 7) * 8 - 8
    arch = np.hypot(x / 16, (y + 25) / 13) * 14 - 14
    process = np.maximum(np.maximum(np.abs(x) - 4, np.abs(y + 42) - 12), 9 - 16 * level)
    sides = np.maximum(np.maximum(np.abs(x) - 34, np.abs(y + 24) - 4), 11 - 16 * level)
    bone = np.minimum(np.minimum(body, arch), np.minimum(process, sides))
    return bone.astype(np.float32), canal.astype(np.float32)


def _vessels(rng: np.random.Generator, at: np.ndarray) -> dict[str, np.ndarray]:
    heights = np.array([-160.0, -60, 0, 60, 160])
    sway = rng.normal(0, 2.0, (2, 5, 2))
    left = np.column_stack([-9 + sway[0, :, 0], [-16, -14, -15, -18, -24] + sway[0, :, 1], heights])
    right = np.column_stack([17 + sway[1, :, 0], [-17, -16, -13, -8, 0] + sway[1, :, 1], heights])
    return {
        "aorta": tube(at, left, rng.uniform(9, 12) * np.array([0.85, 0.92, 1, 1.05, 1.1])),
        "inferior vena cava": tube(at, right, rng.uniform(9, 12.5) * np.array([0.9, 1, 1, 1, 1.05])),
    }


def _gallbladder(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    centre = np.array(_near(rng, (45, 40, -14), 4))
    lean = rotation((float(rng.normal(-28, 8)), float(rng.normal(12, 8)), 0.0))
    length, width = rng.uniform(20, 28), rng.uniform(13, 18)
    fundus, neck = centre + lean @ [0, 0, -length * 0.5], centre + lean @ [0, 0, length]
    return tube(at, np.stack([fundus, centre, neck]), np.array([1.0, 0.9, 0.35]) * width)


def _kidneys(rng: np.random.Generator, at: np.ndarray) -> dict[str, np.ndarray]:
    kidneys = {}
    for name, side, height in (("right kidney", 1, -26.0), ("left kidney", -1, -12.0)):
        centre = _near(rng, (side * 58, -36, height), 4)
        radii = _sized(rng, (25, 24, 50))
        turn = (float(rng.normal(8, 4)), side * float(rng.normal(-12, 4)), side * float(rng.normal(25, 8)))
        inward = (centre[0] - side * 21, centre[1] + 9, centre[2] + 2)
        sinus = ellipsoid(at, inward, _sized(rng, (14, 10, 17)), turn)
        kidneys[name] = np.maximum(ellipsoid(at, centre, radii, turn), -sinus)
    return kidneys


def _pancreas(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    path = np.array([(33, 6, -34), (30, 10, -14), (10, 16, -2), (-14, 13, 8), (-44, -2, 20), (-70, -16, 30)], float)
    path += np.clip(rng.normal(0, 3, path.shape), -6, 6)
    return tube(at, path, rng.uniform(0.85, 1.2) * np.array([10.0, 14, 10, 9.5, 10, 7]))


def _spleen(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    centre = _near(rng, (-80, -22, 40), 4)
    turn = (float(rng.normal(15, 8)), float(rng.normal(-12, 6)), float(rng.normal(20, 8)))
    whole = ellipsoid(at, centre, _sized(rng, (30, 42, 46), 0.13), turn)
    hollow = ellipsoid(at, (centre[0] + 40, centre[1] + 12, centre[2] - 4), (30, 40, 44), turn)
    return np.maximum(whole, -hollow)


def _stomach(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    path = np.array([(-44, 0, 66), (-54, 22, 40), (-50, 38, 10), (-28, 48, -12), (0, 46, -10), (20, 36, -2)], float)
    path += np.clip(rng.normal(0, 5, path.shape), -10, 10)
    return tube(at, path, rng.uniform(0.75, 1.15) * np.array([26.0, 28, 23, 19, 15, 11]))


def _liver(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    right = ellipsoid(at, _near(rng, (55, -6, 26), 4), _sized(rng, (54, 68, 70)), (0.0, float(rng.normal(-8, 5)), 0.0))
    left = ellipsoid(
        at, _near(rng, (2, 40, 48), 6), _sized(rng, (62, 28, 30), 0.15), (0.0, float(rng.normal(12, 6)), 0.0)
    )
    hollow = ellipsoid(at, _near(rng, (14, 0, -30), 4), (42, 46, 52))
    return np.maximum(blend(right, left, 22.0), -hollow)


def _psoas(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    thick = rng.uniform(0.8, 1.2)
    pair = []
    for side in (1, -1):
        path = np.array([(side * 22, -40, 10), (side * 32, -40, -50), (side * 46, -30, -160)], float)
        pair.append(tube(at, path, thick * np.array([5.0, 13, 20])))
    return np.minimum(*pair)


def _bowel(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    """Loops in the front and lower half, and the two sides of the large bowel; they fill what the organs leave free."""
    shape = np.full(at.shape[1:], np.inf, np.float32)
    for side in (1, -1):
        path = np.array([(side * 78, 2, -150), (side * 80, 0, -70), (side * 76, 18, -35)], float)
        shape = np.minimum(shape, tube(at, path + rng.normal(0, 4, path.shape), rng.uniform(15, 20, 3)))
    start = np.array(_near(rng, (0, 30, -75), 8))
    for _ in range(4):
        path = start + np.cumsum(rng.normal(0, 1, (5, 3)) * (32, 20, 24), axis=0)
        path = np.clip(path, (-70, -5, -140), (70, 58, -35))
        shape = np.minimum(shape, tube(at, path, rng.uniform(9, 13, 5)))
    return shape


def _claim(
    shapes: dict[str, np.ndarray], skin: np.ndarray, cavity: np.ndarray, lung: np.ndarray
) -> dict[str, np.ndarray]:
    """Masks without overlap: each shape takes the voxels that no earlier one has; soft organs stay in the cavity."""
    regions: dict[str, np.ndarray] = {}
    free = skin < 0
    for name, distance in shapes.items():
        inside = (distance < 0) & free
        if name not in ("spine", "canal"):
            inside &= cavity < -2
        if name not in ("spine", "canal", "aorta", "inferior vena cava", "heart"):
            inside &= lung > 0
        if name not in ("bowel", "psoas"):
            inside = _largest_part(inside)
        regions[name] = inside
        free &= ~inside
    regions["lung"] = (lung < -4) & (cavity < 0) & free & (np.abs(shapes["heart"]) > 4)
    regions["diaphragm"] = (lung < 0) & (cavity < 0) & free & ~regions["lung"]
    regions["inner fat"] = free & (cavity < 0) & ~regions["lung"] & ~regions["diaphragm"]
    return regions


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part: an organ that the random outline or the diaphragm cut apart stays in one piece."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _wall(
    rng: np.random.Generator, at: np.ndarray, skin: np.ndarray, wall: np.ndarray, regions: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Ribs and muscles around the cavity, and the fat under the skin."""
    taken = np.logical_or.reduce(list(regions.values()))
    angle = np.abs(np.arctan2(at[0], at[1] + 20))  # 0 at the front, pi at the back
    rung = (at[2] - 34 * angle + rng.uniform(0, 30)) % 31
    rib = (wall < -1) & (np.abs(rung - 5) < 4.5) & (at[2] > -45 + 55 * np.cos(angle)) & (angle > 0.5)
    free = (wall < 0) & ~taken
    return {"rib": free & rib, "muscle": free & ~rib, "skin fat": (skin < 0) & ~taken & ~free}
