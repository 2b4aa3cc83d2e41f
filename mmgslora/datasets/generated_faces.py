"""Generated faces in one folder per identity: the embedded data of face recognition.

An identity is a set of numbers: the forms, places and colours of its features. An image of it
varies what differs between photographs of one person: place, size and tilt of the head, direction
of light, look, expression, clothes, background and noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS

from mmgslora.datasets.folder import FolderDataset
from mmgslora.datasets.generated import write_class_folders
from mmgslora.datasets.polygons import SUBPIXEL, fill_polygon
from mmgslora.datasets.shapes import texture

Loop = list[tuple[float, float]]
_SKIN = (
    (255, 224, 196),
    (241, 194, 155),
    (224, 172, 125),
    (190, 136, 95),
    (141, 92, 60),
    (92, 58, 40),
)
_HAIR = (
    (28, 24, 24),
    (70, 45, 30),
    (120, 78, 45),
    (205, 165, 95),
    (165, 72, 35),
    (165, 165, 165),
)
_EYES = ((80, 50, 30), (60, 105, 165), (70, 120, 75), (35, 30, 30))
_FRAMES = ((30, 30, 30), (150, 30, 40), (40, 60, 140), (200, 170, 60))
_STYLES = ('bald', 'short', 'fringe', 'parting', 'long', 'curly', 'mohawk', 'cap')
_GLASSES = ('none', 'none', 'round', 'square')
_BEARDS = ('none', 'none', 'none', 'moustache', 'full', 'goatee')


def identity(seed: int, number: int) -> dict:
    """The features of one person. Lengths are in units of half the height of the face.

    Hair style, skin, hair and eyes go through their lists with the number, so that neighbours
    never share them all; the rest is drawn.
    """
    rng = np.random.default_rng([seed, number])

    def between(low: float, high: float) -> float:
        # From integers, for the same value on every machine.
        return low + (high - low) * int(rng.integers(1001)) / 1000

    return dict(
        style=_STYLES[number % len(_STYLES)],
        skin=_SKIN[(number * 5 + number // 6) % len(_SKIN)],
        hair=_HAIR[(number * 7 + number // 8) % len(_HAIR)],
        iris=_EYES[int(rng.integers(len(_EYES)))],
        beard=_BEARDS[int(rng.integers(len(_BEARDS)))],
        glasses=_GLASSES[int(rng.integers(len(_GLASSES)))],
        frame=_FRAMES[int(rng.integers(len(_FRAMES)))],
        width=between(0.66, 0.88),
        jaw=between(0.62, 1.0),
        ears=between(0.08, 0.17),
        eye_gap=between(0.26, 0.4),
        eye_y=between(-0.22, -0.02),
        eye_width=between(0.1, 0.18),
        eye_open=between(0.4, 0.75),
        brow_lift=between(0.12, 0.24),
        brow_tilt=between(-0.5, 0.5),
        brow_thick=between(0.025, 0.075),
        nose_length=between(0.22, 0.42),
        nose_width=between(0.09, 0.2),
        mouth_y=between(0.5, 0.66),
        mouth_width=between(0.18, 0.36),
        lips=between(0.05, 0.12),
        lip_red=between(0.1, 0.7),
        mole=None if rng.integers(3) else (between(-0.4, 0.4), between(0.2, 0.45)),
    )


def draw_face(rng: np.random.Generator, person: dict, size: int = 56) -> np.ndarray:
    """Draw one image of a person.

    Args:
        rng: Source of everything that is not the person's.
        person: See :func:`identity`.
        size: Side of the image in pixels. Defaults to 56.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    big = 2 * size  # drawn at twice the size, then averaged
    canvas = texture(rng, big)

    def between(low: float, high: float) -> float:
        return low + (high - low) * int(rng.integers(1001)) / 1000

    unit = big * between(0.36, 0.42)
    x0, y0 = big * between(0.45, 0.55), big * between(0.48, 0.56)
    tilt = math.radians(between(-9, 9))
    turn = between(-0.08, 0.08)  # features move sideways as the head turns
    cos, sin = math.cos(tilt), math.sin(tilt)

    def paint(loops: list[Loop], colour: tuple[int, ...]) -> None:
        corners = [
            [
                (
                    round((x0 + unit * (x * cos - y * sin)) * SUBPIXEL),
                    round((y0 + unit * (x * sin + y * cos)) * SUBPIXEL),
                )
                for x, y in loop
            ]
            for loop in loops
        ]
        canvas[fill_polygon(corners, big)] = colour

    smile, opened = between(-0.25, 0.6), between(0, 0.6)
    gaze, blink = between(-0.3, 0.3), between(0.7, 1.1)
    lifted = between(-0.03, 0.03)
    clothes = [int(v) for v in rng.integers(20, 236, 3)]
    p = person
    skin, hair = p['skin'], p['hair']
    shade, dark = _mix(skin, (60, 20, 10), 0.22), _mix(skin, (40, 10, 10), 0.5)
    head = _head(p['width'], p['jaw'])

    paint([_ellipse(0, 1.75, 1.25, 0.75)], clothes)
    if p['style'] == 'long':
        paint([_ellipse(0, 0.1, p['width'] + 0.26, 1.12)], hair)
    elif p['style'] == 'curly':
        curls = [(0.98 * math.sin(a), -0.98 * math.cos(a)) for a in _angles(-110, 111, 20)]
        for x, y in curls:
            paint([_ellipse(x * (p['width'] + 0.08), y - 0.08, 0.3, 0.3)], hair)
    paint([[(-0.3, 0.6), (0.3, 0.6), (0.36, 1.3), (-0.36, 1.3)]], shade)
    for side in (-1, 1):
        paint([_ellipse(side * (p['width'] + 0.02), 0.02, p['ears'], 0.2)], shade)
    paint([head], skin)
    _paint_beard(paint, p, head, turn)
    _paint_hair(paint, p, head)

    _paint_eyes(paint, p, shade, turn, gaze, blink, lifted)
    _paint_nose(paint, p, shade, dark, turn)
    _paint_mouth(paint, p, turn, smile, opened)
    if p['mole']:
        paint([_ellipse(p['mole'][0] + turn, p['mole'][1], 0.04, 0.04)], dark)
    _paint_glasses(paint, p, turn)

    return _in_light(rng, canvas)


def _angles(start: int, stop: int, step: int) -> list[float]:
    return [math.radians(a) for a in range(start, stop, step)]


def _ellipse(x: float, y: float, wide: float, high: float) -> Loop:
    return [(x + wide * math.sin(a), y - high * math.cos(a)) for a in _angles(0, 360, 15)]


def _bar(left: float, right: float, y: float, high: float) -> Loop:
    return [(left, y - high), (right, y - high), (right, y + high), (left, y + high)]


def _head(width: float, jaw: float) -> Loop:
    """A half circle above; below, sides that come together the more the smaller ``jaw`` is."""
    low = [
        (
            width * (jaw + (1 - jaw) * math.sin(a)) * math.sin(a) ** (0.55 + 0.45 * (1 - jaw)),
            -math.cos(a),
        )
        for a in _angles(90, 181, 10)
    ]
    high = [(width * math.sin(a), -math.cos(a)) for a in _angles(0, 90, 10)]
    right = high + low
    return right + [(-x, y) for x, y in reversed(right)]


def _mix(one: tuple[int, ...], other: tuple[int, ...], share: float) -> tuple[int, ...]:
    part = round(share * 256)
    return tuple((a * (256 - part) + b * part) // 256 for a, b in zip(one, other))


def _above(head: Loop, edge: list[tuple[float, float]], grow: float) -> Loop:
    """The part of the head above a line of points from left to right, a little larger."""
    line = edge[0][1]
    top = [(x * grow, y * grow) for x, y in head if y <= line]
    return sorted(top) + list(reversed(edge))


def _paint_hair(paint: Callable, p: dict, head: Loop) -> None:
    wide, style, hair = p['width'] * 1.06, p['style'], p['hair']
    edges = {
        'short': [(-wide, -0.3), (-0.55, -0.62), (0.55, -0.62), (wide, -0.3)],
        'fringe': [(-wide, -0.12), (-0.6, -0.38), (0.6, -0.38), (wide, -0.12)],
        'parting': [(-wide, -0.2), (-0.35, -0.85), (0.2, -0.5), (wide, -0.2)],
        'long': [(-wide, -0.1), (-0.5, -0.6), (0, -0.8), (0.5, -0.6), (wide, -0.1)],
        'curly': [(-wide, -0.35), (-0.4, -0.55), (0.4, -0.55), (wide, -0.35)],
    }
    if style in edges:
        paint([_above(head, edges[style], 1.08)], hair)
    elif style == 'mohawk':
        paint([_ellipse(0, -0.88, 0.2, 0.36)], hair)
    elif style == 'cap':
        brim = [(-wide * 1.05, -0.42), (wide * 1.05, -0.42)]
        paint([_above(head, brim, 1.12)], p['frame'])
        paint([_ellipse(0.1, -0.42, wide * 1.1, 0.08)], _mix(p['frame'], (0, 0, 0), 0.4))


def _paint_beard(paint: Callable, p: dict, head: Loop, turn: float) -> None:
    if p['beard'] == 'full':
        low = [(x, y) for x, y in head if y >= 0.25]
        paint([[*low, (-0.45, 0.42), (0, 0.36), (0.45, 0.42)]], p['hair'])
    elif p['beard'] == 'goatee':
        paint([_ellipse(turn, p['mouth_y'] + 0.24, 0.2, 0.17)], p['hair'])
    if p['beard'] in ('moustache', 'full'):
        y = p['mouth_y'] - 0.1
        paint(
            [[(turn, y - 0.06), (turn + 0.3, y + 0.06), (turn, y + 0.05), (turn - 0.3, y + 0.06)]],
            p['hair'],
        )


def _paint_eyes(
    paint: Callable,
    p: dict,
    shade: tuple[int, ...],
    turn: float,
    gaze: float,
    blink: float,
    lifted: float,
) -> None:
    """Eyes, and the brows above them."""
    for side in (-1, 1):
        x, y = side * p['eye_gap'] + turn, p['eye_y']
        wide, high = p['eye_width'], p['eye_width'] * p['eye_open'] * blink
        paint([_ellipse(x, y, wide * 1.12, high * 1.25)], shade)
        paint([_ellipse(x, y, wide, high)], (245, 243, 240))
        pupil = x + gaze * wide
        paint([_ellipse(pupil, y, min(high, wide * 0.55), min(high, wide * 0.55))], p['iris'])
        paint([_ellipse(pupil, y, wide * 0.22, min(high, wide * 0.22))], (12, 12, 12))
        inner, outer = x - side * wide * 1.1, x + side * wide * 1.3
        level = y - p['brow_lift'] - lifted
        rise, thick = p['brow_tilt'] * 0.12, p['brow_thick']
        brow = [(inner, level + rise), (x, level - 0.03), (outer, level - rise)]
        paint(
            [brow + [(a, b + 2 * thick) for a, b in reversed(brow)]],
            _mix(p['hair'], (30, 20, 20), 0.4),
        )


def _paint_nose(
    paint: Callable, p: dict, shade: tuple[int, ...], dark: tuple[int, ...], turn: float
) -> None:
    tip = p['eye_y'] + 0.1 + p['nose_length']
    nose = 1.5 * turn
    paint([[(turn - 0.03, p['eye_y'] + 0.08), (nose + p['nose_width'], tip), (nose, tip)]], shade)
    paint([_ellipse(nose, tip, p['nose_width'], 0.07)], shade)
    for side in (-1, 1):
        paint([_ellipse(nose + side * p['nose_width'] * 0.5, tip + 0.02, 0.035, 0.025)], dark)


def _paint_mouth(paint: Callable, p: dict, turn: float, smile: float, opened: float) -> None:
    lips = _mix(p['skin'], (190, 30, 50), 0.3 + 0.5 * p['lip_red'])
    steps = [i / 6 for i in range(-6, 7)]

    def band(thick: float) -> Loop:
        middle = [
            (turn + p['mouth_width'] * (1 + 0.15 * smile) * s, p['mouth_y'] - 0.12 * smile * s * s)
            for s in steps
        ]
        return [(x, y - thick * (1 - s * s)) for (x, y), s in zip(middle, steps)] + [
            (x, y + thick * (1 - s * s)) for (x, y), s in reversed(list(zip(middle, steps)))
        ]

    paint([band(p['lips'] * (1 + 0.5 * opened))], lips)
    paint([band(0.012 + p['lips'] * 0.8 * opened)], (70, 20, 25))


def _paint_glasses(paint: Callable, p: dict, turn: float) -> None:
    if p['glasses'] == 'none':
        return
    gap, y, wide, high, rim = p['eye_gap'], p['eye_y'] + 0.01, 0.24, 0.19, 0.035
    for side in (-1, 1):
        x = side * gap + turn
        if p['glasses'] == 'round':
            glass = [_ellipse(x, y, wide - cut, 1.15 * high - cut) for cut in (0, rim)]
        else:
            glass = [_bar(x - w, x + w, y, h) for w, h in ((wide, high), (wide - rim, high - rim))]
        paint(glass, p['frame'])
        paint([_bar(x + side * wide, side * p['width'], y, 0.02)], p['frame'])
    inner = max(gap - wide, 0.02)
    paint([_bar(turn - inner, turn + inner, y, 0.02)], p['frame'])


def _in_light(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Light from a side, a tone and noise on a canvas, which is averaged to half its size."""
    light = [int(v) for v in rng.integers(-60, 61, 2)]
    tone = 256 + int(rng.integers(-50, 51)) + rng.integers(-12, 13, 3)
    size = len(canvas) // 2
    at = np.arange(len(canvas)) - size
    slope = (at[:, None] * light[0] + at * light[1])[..., None] // size
    lit = canvas * (tone + slope) // 256
    small = lit.reshape(size, 2, size, 2, 3).sum((1, 3)) // 4
    return (small + rng.integers(-9, 10, small.shape)).clip(0, 255).astype(np.uint8)


def face_classes(identities: int) -> tuple[str, ...]:
    """Names of the identities: person_01, person_02, ..."""
    return tuple(f'person_{number:02d}' for number in range(1, identities + 1))


def write_faces(
    root: str | Path,
    identities: int = 24,
    train: int = 60,
    val: int = 20,
    test: int = 20,
    size: int = 56,
    seed: int = 0,
) -> None:
    """Write generated faces as class folders; the same numbers give the same images.

    See :func:`mmgslora.datasets.generated.write_class_folders`.

    Args:
        root: Folder to make.
        identities: Number of persons, up to 99. Defaults to 24.
        train, val, test: Images per person of each split. Defaults to 60, 20, 20.
        size: Side of the images in pixels. Defaults to 56.
        seed: Seed of all choices. Defaults to 0.

    Raises:
        ForgettingError: The folder exists and is not this data set.
    """
    recipe = dict(identities=identities, train=train, val=val, test=test, size=size, seed=seed)
    people = [identity(seed, number) for number in range(identities)]

    def draw(rng: np.random.Generator, label: int) -> np.ndarray:
        return draw_face(rng, people[label], size)

    write_class_folders(root, 'generated_faces', recipe, face_classes(identities), draw)


@DATASETS.register_module()
class GeneratedFacesDataset(FolderDataset):
    """The generated faces as a :class:`FolderDataset`; its folder is made when it is missing.

    Args:
        data_root: Folder of the data set.
        generate: Arguments of :func:`write_faces`. Defaults to its defaults.
        **kwargs: As :class:`FolderDataset`.
    """

    makes_its_files = True

    def __init__(self, data_root: str, generate: dict | None = None, **kwargs) -> None:
        write_faces(data_root, **(generate or {}))
        super().__init__(data_root=data_root, **kwargs)
