"""Records as a run writes them, made by hand: every number is known to the tests."""

from __future__ import annotations

from typing import Any

COCO_TASKS = [
    [
        'microwave',
        'skateboard',
        'parking meter',
        'baseball glove',
        'dining table',
        'refrigerator',
        'traffic light',
        'tennis racket',
        'fire hydrant',
        'potted plant',
    ],
    *[[f'baseball glove {task}{i}' for i in range(10)] for task in range(2, 8)],
]


def make_record(
    forget: list[list[str]],
    stay: list[str],
    groups: dict[str, list[float]],
    prefix: str = 'AP_',
    missing: tuple[str, ...] = (),
    recall: bool = True,
) -> dict[str, Any]:
    """Forgotten classes go from 80 to 1, retained ones from 60 to 57, the last one to 30.

    Args:
        forget: The classes of every task.
        stay: The classes that are retained throughout.
        groups: The norms of every group, one per task.
        prefix: What the metrics' names begin with.
        missing: Classes without training data; they go from 50 to 40.
        recall: Whether a recall of forgotten objects was measured.
    """
    asked = [name for task in forget for name in task]
    before = {**dict.fromkeys(asked, 80.0), **dict.fromkeys(stay, 60.0)}
    before.update(dict.fromkeys(missing, 50.0))
    tasks = []
    for index, names in enumerate(forget):
        old = [name for task in forget[:index] for name in task]
        later = [name for task in forget[index + 1 :] for name in task]
        now = dict(before)
        now.update(dict.fromkeys(old + names, 1.0))
        now.update(dict.fromkeys(stay, 57.0), **{stay[-1]: 30.0})
        now.update(dict.fromkeys(missing, 40.0))
        retain = later + stay
        kept = sum(now[name] for name in retain) / len(retain)
        metrics = {
            f'{prefix}f': 1.0,
            f'{prefix}r': kept,
            'Drop': 79.0,
            'H': 2 * kept * 79.0 / (kept + 79.0),
            f'paper/{prefix}f': 0.4,
            f'paper/{prefix}r': 55.5,
        }
        if old:
            metrics[f'{prefix}o'] = 0.7
        if missing:
            metrics[f'{prefix}m'] = 40.0
        if recall:
            metrics.update({'AR_f@0.3': 2.3, 'AR_f@0.05': 14.6, 'random/AP_f': 0.8 + 0.1 * index})
        norms = {name: values[index] for name, values in groups.items()}
        tasks.append(
            {
                'task': index + 1,
                'forget': names,
                'retain': retain,
                'old': old,
                'missing': list(missing),
                'metrics': metrics,
                'per_class': now,
                'groups': norms,
                'trainable_params': 12_345,
                'total_params': 1_234_500,
                'train_images': {'forget': 160, 'retain': 200},
                'steps': 30,
                'train_seconds': 8.6,
                'eval_seconds': 3.2,
            }
        )
    return {
        'config': 'configs/shapes/forget.py',
        'seed': 3,
        'original': 'original.pth',
        'family': 'detector',
        'method': {'type': 'GSLoRA', 'beta': 0.5},
        'schedule': {'epochs_per_task': 6},
        'protocol': {'tasks': [list(names) for names in forget], 'missing': list(missing)},
        'versions': {},
        'pretrained': {'per_class': before, 'mAP': sum(before.values()) / len(before)},
        'tasks': tasks,
    }


def detr_groups(tasks: int, layers: int = 6) -> dict[str, list[float]]:
    """An encoder whose even layers are never touched and a decoder that always is."""
    encoder = {
        f'encoder.layers.{i}.ffn': [0.0 if i % 2 == 0 else 0.5] * tasks for i in range(layers)
    }
    return {**encoder, **{f'decoder.layers.{i}.ffn': [2.0] * tasks for i in range(layers)}}


def shapes_record(**changes: Any) -> dict[str, Any]:
    """Two tasks on shapes with five groups, three of them zero in task 1 and one in task 2."""
    return make_record(
        [['circle', 'square'], ['star']],
        ['triangle', 'cross', 'hexagon'],
        {
            'encoder.layers.0.ffn': [0.0, 4.0],
            'encoder.layers.1.ffn': [0.0, 1.0],
            'decoder.layers.0.ffn': [3.2, 0.0],
            'decoder.layers.1.ffn': [0.8, 1e-9],
            'decoder.layers.2.ffn': [0.0, 2.0],
        },
        **changes,
    )
