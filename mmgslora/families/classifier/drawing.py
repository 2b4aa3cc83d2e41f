"""Images with the name a classifier gave them before forgetting and the one it gives now."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

from matplotlib.figure import Figure
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from mmgslora.datasets.folder import read_image
from mmgslora.datasets.protocol import Protocol
from mmgslora.families.drawing import BeforeAfter, Drawing, Found
from mmgslora.report.charts import as_text

_COLUMNS = 6
_FORGOTTEN, _STAYS = '#b3261e', '#1b5e20'


class LabelDrawing(Drawing):
    """Every image with its true class and, below it, both predictions."""

    num_images = 12
    rule = 'image of each class to forget and of each class that stays, in turn'

    def choose(
        self, dataset: Dataset, protocol: Protocol, look: Callable[[int], Found], count: int
    ) -> dict[int, Found]:
        """The first image of each class to forget and of each class that stays, in turn."""
        asked = [protocol.classes.index(name) for task in protocol.tasks for name in task]
        gone = {*asked, *map(protocol.classes.index, protocol.forgotten)}
        stay = [label for label in range(len(protocol.classes)) if label not in gone]
        first: dict[int, int] = {}
        for index in range(len(dataset)):
            first.setdefault(int(dataset.get_data_info(index)['gt_label']), index)
        in_turn = [label for pair in zip_longest(asked, stay) for label in pair]
        chosen = [first[label] for label in in_turn if label in first][:count]
        return {index: look(index) for index in chosen}

    def found(self, sample: BaseDataElement) -> Found:
        scores = sample.pred_scores
        return dict(label=int(scores.argmax()), score=float(scores.max()))

    def figure(self, shown: BeforeAfter) -> Figure:
        """True names of forgotten classes are red, the others green."""
        infos, classes = shown.infos, shown.classes
        columns = min(_COLUMNS, len(infos))
        rows = -(-len(infos) // columns)
        figure = Figure(figsize=(1.9 * columns, 2.6 * rows), layout='constrained')
        for place, (info, then, now) in enumerate(zip(infos, shown.before, shown.after), 1):
            axes = figure.add_subplot(rows, columns, place)
            axes.imshow(read_image(info['img_path']))
            axes.set(xticks=[], yticks=[])
            name = classes[int(info['gt_label'])]
            gone = name in shown.forget
            title = f'{as_text(name)}{" (forgotten)" if gone else ""}'
            axes.set_title(title, fontsize=9, color=_FORGOTTEN if gone else _STAYS)
            lines = [
                f'{when}: {as_text(classes[x["label"]])} {x["score"]:.2f}'
                for when, x in (('before', then), ('now', now))
            ]
            axes.set_xlabel('\n'.join(lines), fontsize=8)
        return figure
