"""A data set that the package draws: objects of six classes on busy backgrounds, in VOC's layout.

Each photo has one to three objects with soft light and a shadow. They overlap each other and distractors with the same
colours and inner textures. A class is recognised by its silhouette and texture, not by a colour: the hues of classes
overlap, and backgrounds have all of them. A photo depends only on (seed, split, index).
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from wsseg_ray.datasets import Layout, Listing, voc
from wsseg_ray.datasets.pixels import encode_mask
from wsseg_ray.recipe import DatasetSection

TRAIN_PHOTOS = 320
VAL_PHOTOS = 80
SPLITS = {"train_aug": ("train", TRAIN_PHOTOS), "val": ("val", VAL_PHOTOS)}  # split: word in the ids, photos
MIN_VISIBLE = 150  # pixels of every object that no later object covers
DARK, PALE = (38, 30, 44), (250, 244, 228)
ANY_HUE = [(0.0, 1.0)]
ZOOM = 3  # shapes are drawn this much larger and then reduced, to smooth their edges

Colour = tuple[int, int, int]
Shape = tuple[list[np.ndarray], list[tuple[np.ndarray, Colour]]]  # silhouette polygons, painted polygons inside them


def _tint(rng: np.random.Generator, hues: list[tuple[float, float]], dull: float = 0.0) -> Colour:
    low, high = hues[rng.integers(len(hues))]
    return _hsv(rng.uniform(low, high), rng.uniform(0.5, 0.9) * (1 - dull), rng.uniform(0.6, 0.95) * (1 - dull / 3))


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    red, green, blue = (round(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    return _turn(np.stack([rx * np.cos(t), ry * np.sin(t)], axis=1), angle) + np.array([x, y])


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _polar(radius: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return radius(t)[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)


def _stroke(start: tuple[float, float], end: tuple[float, float], width: float) -> np.ndarray:
    """A straight stroke as a polygon, half as wide at its end."""
    a, b = np.array(start), np.array(end)
    along = b - a
    across = np.array([-along[1], along[0]]) / max(np.hypot(*along), 1e-9) * width / 2
    return np.array([a + across, b + across / 2, b - across / 2, a - across])


def _flip(points: np.ndarray) -> np.ndarray:
    return points * (-1, 1)


# The shapes: unit-sized, y down, each with its own proportions.


def _butterfly(rng: np.random.Generator, base: Colour, accent: Colour) -> Shape:
    rim, spread = _mix(base, DARK, rng.uniform(0.65, 0.9)), rng.uniform(-0.15, 0.15)
    wings, details = [], []
    for x, y, rx, ry, angle in (
        (0.49, -0.36, 0.56, rng.uniform(0.32, 0.42), -0.65 + spread),
        (0.37, 0.38, 0.44, rng.uniform(0.27, 0.36), 0.75 + spread),
    ):
        spot_x, spot_y = np.array([x, y]) * rng.uniform(1.05, 1.25)
        size = rng.uniform(0.1, 0.16)
        for side in (lambda p: p, _flip):
            wings.append(side(_ellipse(x, y, rx, ry, angle)))
            details.append((side(_ellipse(x, y, rx, ry, angle)), rim))
            details.append((side(_ellipse(x * 0.95, y * 0.95, rx * 0.76, ry * 0.74, angle)), base))
            for turn in (-0.35, 0.0, 0.35):
                tip = _turn(np.array([[x, y]]) * 1.9, turn)[0]
                details.append((side(_stroke((0.02, y / 4), tuple(tip), 0.05)), rim))
            details.append((side(_ellipse(spot_x, spot_y, size, size)), accent))
            details.append((side(_ellipse(spot_x, spot_y, size * 0.5, size * 0.5)), rim))
    body = _ellipse(0, 0.02, 0.085, 0.55)
    feelers = [_stroke((0, -0.4), (x, -0.92), 0.09) for x in (-0.2, 0.2)]
    return [*wings, body, *feelers], [*details, *((part, DARK) for part in (body, *feelers))]


def _donut(rng: np.random.Generator, base: Colour, accent: Colour) -> Shape:
    hole, waves, phase = rng.uniform(0.3, 0.42), rng.integers(6, 10), rng.uniform(0, 6)
    dough = _hsv(rng.uniform(0.07, 0.11), rng.uniform(0.4, 0.65), rng.uniform(0.6, 0.85))

    def ring(inner: float, outer: float, wave: float) -> np.ndarray:
        edge = _polar(lambda t: outer + wave * np.sin(waves * t + phase))
        rim = _polar(lambda t: inner - wave * np.sin(waves * t))
        return np.vstack([edge, edge[:1], rim[:1], rim[::-1]])

    details = [(ring(hole, 1, 0), dough), (ring(hole + 0.09, 0.86, 0.045), base)]
    for angle in np.arange(0, 2 * np.pi, 0.3) + rng.uniform(-0.1, 0.1, 21):
        middle = rng.uniform(hole + 0.2, 0.76) * np.array([np.cos(angle), np.sin(angle)])
        half = 0.075 * _turn(np.array([[1.0, 0.0]]), rng.uniform(0, np.pi))[0]
        details.append((_stroke(middle - half, middle + half, 0.075), (accent, PALE, DARK)[rng.integers(3)]))
    return [ring(hole, 1, 0)], details


def _fish(rng: np.random.Generator, base: Colour, accent: Colour) -> Shape:
    height, bars = rng.uniform(0.4, 0.54), rng.integers(3, 5)
    band = _mix(_mix(base, accent, 0.3), (PALE, DARK)[rng.integers(2)], 0.75)
    u = np.linspace(0, 1, 24)
    back = np.stack([0.95 - 1.45 * u, -height * np.sin(np.pi * u**0.85) ** 0.75], axis=1)
    body = np.vstack([back, back[::-1] * (1, -1)])
    tail = np.array([(-0.38, 0), (-0.7, -0.3), (-1, -0.5), (-0.86, 0), (-1, 0.5), (-0.7, 0.3)]) * (1, height / 0.45)
    fins = [
        np.array([(0.4, -0.6), (0.05, -1.45), (-0.35, -1.3), (-0.3, -0.4)]) * (1, height),
        np.array([(0.15, 0.7), (-0.2, 1.4), (-0.25, 0.6)]) * (1, height),
    ]
    details = [(part, _mix(base, accent, 0.7)) for part in (tail, *fins)]
    details += [(body, base), (np.vstack([back[::-1] * (1, -1), back * (1, -0.3)]), _mix(base, PALE, 0.4))]
    bow = np.array([0.1, 0.04, 0, 0.04, 0.1])
    for x in np.linspace(0.4, -0.4, bars):
        y = np.linspace(-height, height, 5)
        width = 0.42 / bars
        bar = np.vstack([np.stack([x - bow, y], axis=1), np.stack([x - bow - width, y], axis=1)[::-1]])
        details.append((bar, band))
    details += [(_ellipse(0.68, -0.1, 0.1, 0.1), PALE), (_ellipse(0.7, -0.1, 0.055, 0.055), DARK)]
    return [body, tail, *fins], details


def _leaf(rng: np.random.Generator, base: Colour, accent: Colour) -> Shape:
    width, teeth, bend = rng.uniform(0.38, 0.56), rng.integers(5, 9), rng.uniform(-0.25, 0.25)
    u = np.linspace(0, 1, 64)

    def curve(u: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([1.7 * u - 0.7, y + bend * np.sin(np.pi * u)], axis=1)

    edge = width * np.sin(np.pi * u**0.75) ** 0.9 * (1 - 0.16 * (teeth * u % 1))
    blade = np.vstack([curve(u, edge), curve(u, -edge)[::-1]])
    stem = _stroke((-0.65, 0), (-1, rng.uniform(-0.1, 0.1)), 0.13)
    vein = _mix(_mix(base, accent, 0.35), PALE, 0.55)
    shaded = np.vstack([curve(u, edge), curve(u, 0 * u)[::-1]])
    details = [(blade, base), (shaded, _mix(base, DARK, 0.25)), (stem, vein)]
    for start in np.linspace(0.12, 0.72, teeth):
        root = curve(np.array([start]), np.zeros(1))[0]
        for side in (-1, 1):
            details.append((_stroke(root, root + np.array([0.32, side * width * 0.85]), 0.055), vein))
    rib = np.vstack([curve(u, 0.045 * (1.2 - u)), curve(u, 0.045 * (u - 1.2))[::-1]])
    return [blade, stem], [*details, (rib, vein)]


def _mushroom(rng: np.random.Generator, base: Colour, accent: Colour) -> Shape:
    top, width = rng.uniform(0.75, 1.0), rng.uniform(0.2, 0.3)
    t = np.linspace(0, np.pi, 40)
    dome = np.stack([0.95 * np.cos(t), -top * np.sin(t) ** 0.85], axis=1)
    brim = np.stack([-0.95 * np.cos(t), 0.24 * np.sin(t)], axis=1)
    cap = np.vstack([dome, brim])
    y = np.linspace(0, 1, 12)
    half = width * (0.85 + 0.5 * y**3)
    stem = np.vstack([np.stack([half, y * 0.98], axis=1), np.stack([-half, y * 0.98], axis=1)[::-1]])
    flesh = _mix(PALE, accent, rng.uniform(0.05, 0.3))
    details = [(stem, flesh), (_ellipse(0, 0.3, width * 1.35, 0.09), _mix(flesh, DARK, 0.3))]
    details += [(cap, base), (np.vstack([brim, brim[::-1] * (1, -0.35)]), _mix(flesh, DARK, 0.2))]
    for x in np.linspace(-0.8, 0.8, 13):
        details.append((_stroke((x * 0.8, -0.03), (x * 0.95, 0.24 * (1 - x**2) ** 0.5), 0.03), _mix(flesh, DARK, 0.55)))
    for x in np.linspace(-0.62, 0.62, rng.integers(3, 5)):
        for level in (0.35, 0.75):
            centre = x + rng.uniform(-0.12, 0.12)
            height = -top * level * (1 - centre**2) ** 0.5 + rng.uniform(-0.06, 0.06)
            size = rng.uniform(0.07, 0.14)
            details.append((_ellipse(centre, height, size * (1 - 0.5 * abs(centre)), size), flesh))
    return [stem, cap], details


def _starfish(rng: np.random.Generator, base: Colour, accent: Colour) -> Shape:
    core, twist, power = rng.uniform(0.3, 0.4), rng.uniform(-0.35, 0.35), rng.uniform(1.2, 1.8)
    star = _polar(lambda t: core + (1 - core) * ((1 + np.cos(5 * t)) / 2) ** power)
    bead, ridge = _mix(base, PALE, rng.uniform(0.5, 0.8)), _mix(base, accent, 0.6)
    details = [(star, base), (star * 0.72, _mix(base, ridge, 0.5))]
    for arm in range(5):
        direction = np.array([np.cos(0.4 * np.pi * arm), np.sin(0.4 * np.pi * arm)])
        for distance in np.linspace(0.26, 0.86, 5):
            size = 0.085 - 0.05 * distance
            x, y = distance * direction
            details.append((_ellipse(x, y, size, size), bead))
    details += [(_ellipse(0, 0, 0.16, 0.16), ridge), (_ellipse(0, 0, 0.08, 0.08), bead)]

    def bent(points: np.ndarray) -> np.ndarray:
        angle = np.arctan2(points[:, 1], points[:, 0]) + twist * np.hypot(*points.T)
        return np.hypot(*points.T)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    return [bent(star)], [(bent(polygon), colour) for polygon, colour in details]


def _distractor(rng: np.random.Generator, base: Colour, accent: Colour) -> Shape:
    """A pebble, a lump or a splinter: no silhouette of a class, but the classes' stripes, spots and veins."""
    if rng.random() < 0.3:
        count = rng.integers(4, 7)
        angles = (np.arange(count) + rng.uniform(0, 0.6, count)) * 2 * np.pi / count
        outline = rng.uniform(0.7, 1, count)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        (a, b), (p, q) = rng.uniform(0, 0.14, 2), rng.uniform(0, 6, 2)
        outline = _polar(lambda t: 1 + a * np.sin(2 * t + p) + b * np.sin(3 * t + q)) * (1, rng.uniform(0.5, 1))
    details, mark = [(outline, base)], _mix(base, (accent, PALE, DARK)[rng.integers(3)], 0.6)
    texture = rng.integers(4)
    if texture == 0:
        for x in np.linspace(-0.8, 0.8, rng.integers(4, 8)):
            details.append((_stroke((x, -1), (x + 0.2, 1), 0.16), mark))
    elif texture == 1:
        for x, y in rng.uniform(-0.8, 0.8, (rng.integers(8, 16), 2)):
            size = rng.uniform(0.05, 0.12)
            details.append((_ellipse(x, y, size, size), mark))
    elif texture == 2:
        for x in np.linspace(-0.7, 0.7, 6):
            details += [(_stroke((x, 0), (x + 0.3, y), 0.06), mark) for y in (-0.8, 0.8)]
    return [outline], details


KINDS: dict[str, tuple[Callable[..., Shape], list[tuple[float, float]], float]] = {
    # class: shape, families of hues, largest tilt in radians
    "butterfly": (_butterfly, [(0.50, 0.72), (0.05, 0.17), (0.80, 0.95)], 0.8),
    "donut": (_donut, [(0.85, 0.98), (0.03, 0.10), (0.42, 0.55)], np.pi),
    "fish": (_fish, [(0.02, 0.15), (0.48, 0.66)], 0.5),
    "leaf": (_leaf, [(0.20, 0.40), (0.98, 1.13)], np.pi),
    "mushroom": (_mushroom, [(0.96, 1.12), (0.70, 0.85)], 0.45),
    "starfish": (_starfish, [(0.98, 1.12), (0.60, 0.78)], np.pi),
}
CLASSES = list(KINDS)


def draw_photo(seed: int, index: int, split: str = "train_aug") -> tuple[np.ndarray, np.ndarray]:
    """Draw one photo and its true mask.

    Arguments:
        seed, index: the photo is a function of both and of the split.
        split: `train_aug` or `val`.
    Returns the photo, (H, W, 3) uint8 with sides of 88 to 112 px, and the mask, (H, W) uint8: 0 for background,
    i + 1 for CLASSES[i]. At least 150 px and half of every object are visible. The first object is of class
    `index % 6`, so that any six consecutive photos show every class. Costs about 8 ms.
    """
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    height, width = rng.integers(88, 113, 2).tolist()
    side = min(height, width)
    light = rng.uniform(-2.4, -0.7)  # direction of the light, in radians; -pi/2 is above
    photo = _ground(rng, height, width)
    for _ in range(rng.integers(1, 4)):
        shape = _distractor(rng, _tint(rng, ANY_HUE, rng.uniform(0, 0.5)), _tint(rng, ANY_HUE))
        extent = rng.uniform(0.12, 0.38) * side
        room = 0.3 * extent
        centre = rng.uniform((room, room), (width - room, height - room))
        shape = _place(shape, rng.uniform(0, 2 * np.pi), extent, centre)
        _paint(photo, shape, _silhouette(shape, height, width), extent, light)

    objects = np.zeros((height, width), np.uint8)  # 0, or the number of the visible object
    least: dict[int, float] = {}  # pixels of an object that must stay visible
    kinds = [index % len(CLASSES), *rng.integers(len(CLASSES), size=rng.choice(3, p=[0.45, 0.35, 0.2]))]
    for number, kind in enumerate(kinds, start=1):
        draw_shape, hues, tilt = KINDS[CLASSES[kind]]
        base = _tint(rng, hues, rng.uniform(0, 0.35))
        shape = draw_shape(rng, base, _tint(rng, ANY_HUE))
        angle, mirror = rng.uniform(-tilt, tilt), rng.random() < 0.5
        for _ in range(30):  # a later object without a place after 30 draws is left out
            extent = rng.uniform(0.4, 0.65) * side
            room = 0.4 * extent
            centre = rng.uniform((room, room), (width - room, height - room))
            placed = _place(shape, angle, extent, centre, mirror)
            silhouette = _silhouette(placed, height, width)
            shown = np.where(np.asarray(silhouette) >= 128, np.uint8(number), objects)
            visible = np.bincount(shown.ravel(), minlength=number + 1)
            needed = {**least, number: max(MIN_VISIBLE, visible[number] / 2)}
            if all(visible[n] >= pixels for n, pixels in needed.items()):
                _paint(photo, placed, silhouette, extent, light)
                objects, least = shown, needed
                break
    grain = rng.normal(0, 4, (height, width, 1))
    mask = np.array([0, *(kind + 1 for kind in kinds)], np.uint8)[objects]
    return (photo + grain).clip(0, 255).round().astype(np.uint8), mask


def draw(folder: Path, seed: int, limit: int | None) -> None:
    """Draw the data set in VOC's layout; does nothing if it was already drawn with this seed and limit.

    Writes JPEGImages, SegmentationClass, ImageSets/Main (one list per class), ImageSets/Segmentation and classes.txt.
    The photos of a smaller limit are the first photos of a larger limit. Photos from an earlier call with another limit
    stay, but are in no list. Costs about 10 ms per photo.

    Arguments:
        folder: created if missing.
        limit: photos per split at most; None draws TRAIN_PHOTOS and VAL_PHOTOS.
    """
    counts = {split: count if limit is None else min(limit, count) for split, (_, count) in SPLITS.items()}
    marker = folder / "drawn.txt"
    drawn = f"seed {seed}: {counts}\n"
    if marker.is_file() and marker.read_text() == drawn:
        return
    marker.unlink(missing_ok=True)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split, count in counts.items():
        labels = {}
        for index in range(count):
            image_id = f"demo_{SPLITS[split][0]}_{index:05d}"
            photo, mask = draw_photo(seed, index, split)
            Image.fromarray(photo).save(folder / "JPEGImages" / f"{image_id}.jpg", quality=92)
            (folder / "SegmentationClass" / f"{image_id}.png").write_bytes(encode_mask(mask))
            labels[image_id] = np.unique(mask)
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{i}\n" for i in labels))
        for value, name in enumerate(CLASSES, start=1):
            lines = [f"{image_id} {1 if value in shown else -1:2d}\n" for image_id, shown in labels.items()]
            (folder / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text("".join(lines))
    marker.write_text(drawn)


def _place(shape: Shape, angle: float, extent: float, centre: np.ndarray, mirror: bool = False) -> Shape:
    """The shape turned, scaled so that its longer side is `extent` px, and moved to `centre`, in ZOOMed pixels."""
    outlines, details = shape

    def turn(points: np.ndarray) -> np.ndarray:
        return _turn(_flip(points) if mirror else points, angle)

    corners = turn(np.vstack(outlines))
    low, high = corners.min(axis=0), corners.max(axis=0)

    def move(points: np.ndarray) -> np.ndarray:
        return ZOOM * ((turn(points) - (low + high) / 2) * extent / (high - low).max() + centre)

    return [move(p) for p in outlines], [(move(p), colour) for p, colour in details]


def _silhouette(shape: Shape, height: int, width: int) -> Image.Image:
    """How much of every pixel the placed shape covers, 0 to 255."""
    large = Image.new("L", (width * ZOOM, height * ZOOM))
    for outline in shape[0]:
        ImageDraw.Draw(large).polygon(outline.ravel().tolist(), fill=255)
    return large.reduce(ZOOM)


def _paint(photo: np.ndarray, shape: Shape, silhouette: Image.Image, extent: float, light: float) -> None:
    """Put the placed shape on the photo (H, W, 3): its shadow, its colours, and light on its relief."""
    box = silhouette.getbbox()
    assert box is not None  # every shape is larger than a pixel
    x0, y0, x1, y1 = box
    margin = round(0.2 * extent)  # the shadow falls beside the shape
    x0, y0 = max(x0 - margin, 0), max(y0 - margin, 0)
    window = silhouette.crop((x0, y0, min(x1 + margin, silhouette.width), min(y1 + margin, silhouette.height)))
    large = Image.new("RGB", (window.width * ZOOM, window.height * ZOOM))
    draw = ImageDraw.Draw(large)
    for polygon, colour in shape[1]:
        draw.polygon((polygon - (x0 * ZOOM, y0 * ZOOM)).ravel().tolist(), fill=colour)
    colours = np.asarray(large.reduce(ZOOM), np.float32)

    away = -np.cos(light), -np.sin(light)  # x, y
    shadow = Image.new("L", window.size)
    shadow.paste(window, (round(0.06 * extent * away[0]), round(0.06 * extent * away[1])))
    shade = 0.45 / 255 * np.asarray(shadow.filter(ImageFilter.GaussianBlur(0.04 * extent)), np.float32)
    relief = np.asarray(window.filter(ImageFilter.GaussianBlur(0.09 * extent)), np.float32) / 255
    down, right = np.gradient(relief)
    lit = (1 + 0.1 * extent * (right * away[0] + down * away[1])).clip(0.55, 1.35)
    alpha = np.asarray(window, np.float32) / 255
    patch = photo[y0 : y0 + window.height, x0 : x0 + window.width]
    patch *= ((1 - shade) * (1 - alpha))[..., None]
    patch += colours * (lit * alpha)[..., None]


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A background: a noisy gradient of two tints under one of four kinds of litter, (H, W, 3) float32."""
    tints = np.array([_tint(rng, ANY_HUE, rng.uniform(0.3, 0.8)) for _ in range(2)], np.float32)
    ys, xs = np.mgrid[:height, :width].astype(np.float32) / 100
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * xs + np.sin(angle) * ys
    share = 0.5 + 0.5 * np.sin(rng.uniform(1, 4) * along + rng.uniform(0, 6))
    octaves = (_noise(rng, height, width, cells, 0.5**octave) for octave, cells in enumerate((4, 9, 22)))
    mottle = sum(octaves, np.zeros((height, width), np.float32))
    ground = tints[0] + (tints[1] - tints[0]) * share[..., None] + 26 * mottle[..., None]

    large = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    large = large.resize((width * ZOOM, height * ZOOM), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(large)
    colours = [_mix(tuple(tints[n % 2]), _tint(rng, ANY_HUE, 0.4), rng.uniform(0.15, 0.55)) for n in range(6)]
    litter = (_blades, _pebbles, _stripes, _confetti)[rng.integers(4)]
    for polygon, n in litter(rng):
        draw.polygon((polygon * (width * ZOOM, height * ZOOM)).ravel().tolist(), fill=colours[n % 6])
    return np.array(large.reduce(ZOOM), np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, cells: int, weight: float) -> np.ndarray:
    """Smooth noise of about `cells` bumps per side, (H, W) float32."""
    coarse = Image.fromarray(rng.normal(0, weight, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


# Kinds of litter: polygons over the unit square, each with the number of its colour.

Litter = Iterator[tuple[np.ndarray, int]]


def _blades(rng: np.random.Generator) -> Litter:
    lean, length = rng.uniform(-0.25, 0.25), rng.uniform(0.15, 0.4)
    for n, (x, y) in enumerate(rng.uniform((0, 0.1), (1, 1.3), (70, 2))):
        tip = (x + lean + rng.normal(0, 0.06), y - length * rng.uniform(0.6, 1.2))
        yield _stroke((x, y), tip, rng.uniform(0.012, 0.035)), n


def _pebbles(rng: np.random.Generator) -> Litter:
    for n, (x, y) in enumerate(rng.uniform(0, 1, (45, 2))):
        rx, ry = rng.uniform(0.02, 0.075, 2)
        yield _ellipse(x, y, rx, ry, rng.uniform(0, np.pi)), n


def _stripes(rng: np.random.Generator) -> Litter:
    angle, count, share = rng.uniform(0, np.pi), rng.integers(6, 13), rng.uniform(0.3, 0.6)
    for n, x in enumerate(np.linspace(-0.8, 0.8, count)):
        bar = np.array([(x, -1), (x, 1), (x + share * 1.6 / count, 1), (x + share * 1.6 / count, -1)])
        yield _turn(bar, angle) + 0.5, n % 2


def _confetti(rng: np.random.Generator) -> Litter:
    for n, centre in enumerate(rng.uniform(0, 1, (40, 2))):
        yield centre + rng.uniform(-0.07, 0.07, (rng.integers(3, 6), 2)), n


def _read(section: DatasetSection, seed: int) -> Listing:
    """The drawn photos; draws them into the section's root if necessary."""
    draw(Path(section.root or "."), seed, section.limit)
    return voc.read(section)


LAYOUT = Layout(_read, draws=True)
