"""Pictures with the name a classifier gave them before forgetting and the one it gives now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmgslora.report.format import for_matplotlib
from mmgslora.report.png import write_png

_COLUMNS = 6
_FORGOTTEN = '#b3261e'
_STAYS = '#1b5e20'


def draw_labels(
    images: Sequence[np.ndarray],
    truth: Sequence[int],
    before: Sequence[dict],
    after: Sequence[dict],
    classes: Sequence[str],
    forget: Collection[str],
    path: str | Path,
) -> None:
    """Write one picture: every image with its true class and both predictions below it.

    Args:
        images: (H, W, 3) uint8 RGB.
        truth: True label of each.
        before, after: ``label`` and ``score`` (0 to 1) of each, by the pre-trained model and now.
        classes: Class names in label order.
        forget: Classes forgotten so far; their true names are red, the others' green.
        path: PNG to write.
    """
    classes, forget = ([for_matplotlib(name) for name in names] for names in (classes, forget))
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.6 * rows), layout='constrained')
    for place, (image, label, then, now) in enumerate(zip(images, truth, before, after), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(image)
        axes.set_xticks([])
        axes.set_yticks([])
        gone = classes[label] in forget
        title = f'{classes[label]} (forgotten)' if gone else classes[label]
        axes.set_title(title, fontsize=9, color=_FORGOTTEN if gone else _STAYS)
        lines = [
            f'{when}: {classes[x["label"]]} {x["score"]:.2f}'
            for when, x in (('before', then), ('now', now))
        ]
        axes.set_xlabel('\n'.join(lines), fontsize=8)
    write_png(figure, path)
