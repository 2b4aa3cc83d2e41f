"""Split a COCO-format annotation file into training and validation, every class in both.

    python tools/split.py data/mine/all.json --val 0.15

writes ``all_train.json`` and ``all_val.json`` beside it, with all categories in the same order;
images without boxes are shared out as well.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmgslora.command import plain_ending
from mmgslora.datasets.split import split_coco
from mmgslora.errors import ForgettingError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('annotations', type=Path, help='COCO-format JSON')
    parser.add_argument('--val', type=float, default=0.15, help='share of images, 0.15 by default')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    parts = split_coco(args.annotations, args.val, args.seed)
    paths = [args.annotations.with_name(f'{args.annotations.stem}_{name}.json') for name in parts]
    for path in paths:
        if path.exists():
            raise ForgettingError(f'{str(path)!r} exists already; remove it to split anew.')
    print(f'{"images with":20}{"train":>8}{"val":>8}')
    for category in parts['train']['categories']:
        counts = [_images_with(part, category['id']) for part in parts.values()]
        print(f'{category["name"]:20}{counts[0]:8}{counts[1]:8}')
    for path, part in zip(paths, parts.values()):
        path.write_text(json.dumps(part))
        print(f'{path}: {len(part["images"])} images, {len(part["annotations"])} boxes')


def _images_with(part: dict, category_id: int) -> int:
    return len({a['image_id'] for a in part['annotations'] if a['category_id'] == category_id})


if __name__ == '__main__':
    with plain_ending():
        main()
