"""A finished run of three requests, made by hand: files and ledger, no training."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgslora.lora import fingerprint, inject_lora, lora_layers, merge_adapters, save_adapter
from mmgslora.models import ImageClassifier
from mmgslora.requests import Ledger

CLASSES = ['cat', 'dog', 'person', 'car', 'tree']
FORGET = [['cat'], ['dog'], ['person']]
CLASSIFIER = dict(
    backbone=dict(
        type='VisionTransformer',
        image_size=16,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=24,
    ),
    head=dict(type='LinearHead', embed_dims=16, num_classes=5),
)


@dataclass
class MadeRun:
    """``weights[0]`` are the original's, ``weights[t]`` those after request t, by name."""

    work_dir: Path
    base: Path
    weights: list[dict[str, Tensor]]
    pairs: list[dict[str, tuple[Tensor, Tensor, float]]]


def make_run(folder: Path, ledger: bool = True, plain: nn.Module | None = None) -> MadeRun:
    """Three adapters on random weights; the second task has one of the two blocks at zero."""
    torch.manual_seed(0)
    plain = ImageClassifier(**copy.deepcopy(CLASSIFIER)).eval() if plain is None else plain
    work_dir, base = folder / 'run', folder / 'original.pth'
    (work_dir / 'merged').mkdir(parents=True)
    torch.save(dict(state_dict=plain.state_dict(), meta={}), base)
    model = copy.deepcopy(plain)
    inject_lora(model, rank=2)
    made = MadeRun(work_dir, base, [_copy(model)], [])
    tasks = []
    for number, forget in enumerate(FORGET, 1):
        layers = lora_layers(model)
        for place, layer in enumerate(layers.values()):
            nn.init.normal_(layer.lora_B, std=0.0 if number == 2 and place < 2 else 0.3)
        made.pairs.append(
            {n: (m.lora_A.clone(), m.lora_B.clone(), m.scale) for n, m in layers.items()}
        )
        before = fingerprint(model)
        adapter = f'adapters/task_{number:02d}'
        save_adapter(model, work_dir / adapter, dict(task=number, classes=forget))
        merge_adapters(model)
        made.weights.append(_copy(model))
        merged = work_dir / f'merged/task_{number:02d}.pth'
        old = [name for earlier in FORGET[: number - 1] for name in earlier]
        meta = dict(
            dataset_meta=dict(classes=tuple(CLASSES)),
            cfg='model = dict()',
            task=number,
            forgotten=old + forget,
            seed=0,
        )
        torch.save(dict(state_dict=made.weights[-1], meta=meta), merged)
        per_class = {name: 1.5 if name in old + forget else 80.0 for name in CLASSES}
        metrics = dict(Acc_f=1.5, Acc_r=80.0, H=float('nan'))
        tasks.append(
            dict(
                task=number,
                forget=forget,
                retain=[n for n in CLASSES if n not in old + forget],
                old=old,
                missing=[],
                metrics=metrics,
                per_class=per_class,
            )
        )
        _write_record(work_dir, base, tasks)
        if ledger:
            _enter(work_dir, base, number, forget, before, fingerprint(model), metrics, per_class)
    return made


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if 'lora_' not in k}


def _write_record(work_dir: Path, base: Path, tasks: list[dict[str, Any]]) -> None:
    record = dict(
        config='configs/mine.py',
        seed=0,
        family='classifier',
        split='test',
        original=str(base),
        protocol=dict(tasks=FORGET, missing=[]),
        pretrained=dict(Acc=82.0, per_class=dict.fromkeys(CLASSES, 82.0)),
        tasks=tasks,
    )
    (work_dir / 'forgetting.json').write_text(json.dumps(record))


def _enter(
    work_dir: Path,
    base: Path,
    number: int,
    forget: list[str],
    before: str,
    after: str,
    metrics: dict[str, float],
    per_class: dict[str, float],
) -> None:
    ledger = Ledger(work_dir)
    config = work_dir / f'requests/task_{number:02d}/config.py'
    config.parent.mkdir(parents=True)
    config.write_text("model = dict(type='ForgettingClassifier')\n")
    adapter = f'adapters/task_{number:02d}'
    began_with = base if number == 1 else work_dir / f'merged/task_{number - 1:02d}.pth'
    files = dict(config=config, base=began_with, merged=work_dir / f'merged/task_{number:02d}.pth')
    files.update({f'adapter/{p.name}': p for p in sorted((work_dir / adapter).iterdir())})
    flat = {**metrics, 'H': None, **{f'per_class/{k}': v for k, v in per_class.items()}}
    ledger.append(
        'forgotten',
        task=number,
        classes=forget,
        base=before,
        result=after,
        adapters=[adapter],
        files={role: ledger.fact(path) for role, path in files.items()},
        metrics=flat,
    )
