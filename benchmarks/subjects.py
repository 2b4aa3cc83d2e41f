"""What is timed: the demo's detector, R50 at 256 x 256, a classifier, and a long sequence."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from contenders import plain_model
from mmengine.config import Config
from mmengine.registry import DefaultScope

import mmgslora.register  # noqa: F401
from mmgslora.datasets.generated import SPLITS
from mmgslora.datasets.shapes import SHAPES, write_shapes

ROOT = Path(__file__).parents[1]
# A task of the authors: epochs, and the share of the images; configs/_base_/methods/gs_lora_coco.py
# and configs/face/gslora_casia100_forget_paper.py.
_DETECTION, _CLASSIFICATION = (30, 0.1), (100, 0.1)


@dataclass(frozen=True)
class Subject:
    """A forgetting config to time.

    Attributes:
        config: The config file.
        plain: The config that trains its plain model from nothing, for what retraining costs;
            None where that is not worked out.
        paper: The epochs of a task in the authors' recipe, and the share of the images it uses.
        options: Settings on top of the config.
        image_size: (w, h) of the generated images that a random detector sees, and is timed with;
            None takes data and checkpoint of the config.
    """

    config: str
    plain: str | None
    paper: tuple[int, float]
    options: dict[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None

    def load(self, folder: Path) -> Config:
        """The config to run, with its data and its checkpoint below a folder, if not elsewhere."""
        cfg = Config.fromfile(ROOT / self.config)
        cfg.merge_from_dict(self.options)
        cfg.default_hooks.checkpoint.interval = 10_000  # nothing of these runs is resumed
        cfg.log_level = 'WARNING'
        # Which blocks random weights leave at work is chance, and with it what a step costs.
        cfg.randomness = dict(seed=0)
        if self.image_size is not None:
            _randomise(cfg, folder, self.image_size)
        return cfg

    @property
    def retraining_epochs(self) -> int | None:
        """How long the plain model was trained."""
        return self.plain and Config.fromfile(ROOT / self.plain).train_cfg.max_epochs


_R50 = {
    'train_cfg.protocol.tasks': [['circle 1', 'square 1']],
    'train_cfg.epochs_per_task': 3,
    'train_cfg.steps_per_task': 72,  # every third with a step of each of three others
    'train_dataloader.batch_size': 4,
    'train_dataloader.dataset.data_ratio': 1.0,
    'train_dataloader.num_workers': 0,
}
SUBJECTS = {
    'small detector': Subject(
        'configs/gslora_shapes_forget.py', 'configs/shapes/deformable-detr_shapes.py', _DETECTION
    ),
    'R50 at 256 x 256': Subject(
        'configs/gslora_coco_forget.py', None, _DETECTION, _R50, (256, 256)
    ),
    'classifier': Subject(
        'configs/classification/gslora_classification_forget.py',
        'configs/classification/vit_shapes.py',
        _CLASSIFICATION,
    ),
}
if torch.cuda.is_available():
    SUBJECTS['R50 at 800 x 1333 in bfloat16'] = replace(
        SUBJECTS['R50 at 256 x 256'],
        image_size=(1333, 800),
        options={
            **_R50, 'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16',
        },
    )  # fmt: skip
# Twenty requests of one class each. No group goes to zero, so that every task has the same work.
SEQUENCE = Subject(
    'configs/gslora_shapes_forget.py',
    None,
    _DETECTION,
    {
        'model.method.sparsity': dict(alpha=0.0),
        'optim_wrapper.optimizer.lr': 1e-4,
        'param_scheduler': [],
        'train_cfg.protocol.tasks': [[f'{shape} {i}'] for i in (1, 2) for shape in SHAPES],
        'train_cfg.epochs_per_task': 2,
        'train_cfg.steps_per_task': None,
        'train_dataloader.dataset.data_ratio': 1.0,
    },
    image_size=(128, 128),
)


def _randomise(cfg: Config, folder: Path, scale: tuple[int, int]) -> None:
    """Give a detector's config generated images of one size and a checkpoint of random weights."""
    side = min(256, *scale)
    root = folder / f'shapes_{side}'
    names = write_many_shapes(root, side)
    cfg.model.detector.bbox_head.num_classes = len(names)
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    resize = dict(type='Resize', scale=scale, keep_ratio=False)
    pack = dict(type='PackDetInputs', meta_keys=meta)
    flip = dict(type='RandomFlip', prob=0.5)
    data = dict(_scope_='mmdet', type='CocoDataset', data_root=f'{root}/')
    data['metainfo'] = dict(classes=names)
    train = dict(data, ann_file='annotations/train.json', data_prefix=dict(img='train/'))
    train['pipeline'] = [*load, resize, flip, dict(type='PackDetInputs')]
    cfg.train_dataloader.dataset.dataset = train
    for split in ('val', 'test'):
        held_out = dict(data, ann_file=f'annotations/{split}.json', test_mode=True)
        held_out.update(
            data_prefix=dict(img=f'{split}/'), pipeline=[load[0], resize, load[1], pack]
        )
        cfg[f'{split}_dataloader'].update(dataset=held_out, num_workers=0)
        cfg[f'{split}_dataloader'].persistent_workers = False
        cfg[f'{split}_evaluator'].ann_file = f'{root}/annotations/{split}.json'
    cfg.train_dataloader.persistent_workers = False
    cfg.custom_hooks = [x for x in cfg.custom_hooks if 'Image' not in x['type']]
    cfg.model.detector.backbone.init_cfg = None
    cfg.load_from = str(folder / f'{Path(cfg.filename).stem}_random.pth')
    if not Path(cfg.load_from).exists():
        with DefaultScope.overwrite_default_scope('mmdet'):
            torch.manual_seed(0)
            torch.save(dict(state_dict=plain_model(cfg).state_dict(), meta={}), cfg.load_from)


def write_many_shapes(root: Path, size: int) -> list[str]:
    """The generated shapes with three classes of each shape, told apart by nothing.

    Returns:
        The names of the classes, 'circle 1' to 'heart 3'.
    """
    names = [f'{shape} {kind}' for kind in (1, 2, 3) for shape in SHAPES]
    if (root / 'shapes.json').exists():
        return names
    draft = root.with_name(f'{root.name}_draft')
    write_shapes(draft, train=60, val=40, test=40, size=size)
    for split in SPLITS:
        path = draft / 'annotations' / f'{split}.json'
        content = json.loads(path.read_text())
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
        for number, item in enumerate(content['annotations']):
            item['category_id'] += len(SHAPES) * (number % 3)
        path.write_text(json.dumps(content))
    draft.rename(root)
    return names
