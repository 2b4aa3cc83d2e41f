"""Work dirs as a run leaves them, small and made by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mmgslora.audit.rows import digest, unit_key
from mmgslora.records.ledger import Ledger

# What sha256 gives for b'abc', as the standard (FIPS 180-2) prints it.
ABC = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
ORACLE = hashlib.sha256(b'oracle').hexdigest()
# A report reads a stranger's run: it must not execute what it finds there.
CONFIG = "raise SystemExit('the config of the run was executed')\n"


def make_run(folder: Path, record: dict[str, Any], config: str = CONFIG) -> Path:
    """A work_dir whose every model file holds b'abc' but the last, which holds b'last'."""
    work_dir = folder / 'run'
    work_dir.mkdir(parents=True)
    (work_dir / 'forgetting.json').write_text(json.dumps(record))
    if config:
        (work_dir / 'forget.py').write_text(config)
    (work_dir / 'original.pth').write_bytes(b'abc')
    for task in record['tasks']:
        name = f'task_{task["task"]:02d}'
        adapter = work_dir / 'adapters' / name / 'adapter_model.safetensors'
        adapter.parent.mkdir(parents=True)
        adapter.write_bytes(b'abc')
        merged = work_dir / 'merged' / f'{name}.pth'
        merged.parent.mkdir(exist_ok=True)
        merged.write_bytes(b'last' if task is record['tasks'][-1] else b'abc')
    return work_dir


def take_back(work_dir: Path) -> dict[str, Any]:
    """Request 1 taken back, as a line of the ledger."""
    merged = dict(path='merged/without_01.pth', sha256='7' * 64)
    return Ledger(work_dir).append('taken back', task=1, in_force=[2], files=dict(merged=merged))


def audit_of(record: dict[str, Any], oracle: bool = True, **changes: Any) -> dict[str, Any]:
    """An audit of the last task with two seeds.

    The probe names 90 and 92 % at the last layer, the oracle's 80 and 84 %: 9 points fewer.
    20 steps on 16 images bring back 60 and 62 %, the oracle 40 and 41 %: 20.5 points fewer.
    """
    values = {
        'probe/encoder': {'original': (95, 95), 'unlearned': (94, 94), 'oracle': (70, 70)},
        'probe/decoder.2': {'original': (93, 95), 'unlearned': (90, 92), 'oracle': (80, 84)},
        'relearning/k16/step0': {'unlearned': (0.1, 0.1), 'oracle': (0.0, 0.0)},
        'relearning/k16/step20': {'unlearned': (60, 62), 'oracle': (40, 41)},
        'new_head/k16/step20': {'original': (40, 40), 'unlearned': (30, 32), 'oracle': (25, 25)},
        'membership/loss': {'original': (56, 56), 'unlearned': (52, 52), 'oracle': (50, 50)},
        'output/AP_gone': {'original': (80,), 'unlearned': (0.8,), 'oracle': (0.0,)},
        'output/per_class/circle': {'original': (80,), 'unlearned': (0.9,)},
        'outcomes/found': {'unlearned': (5,), 'oracle': (1,)},
        'outcomes/background': {'unlearned': (65,), 'oracle': (79,)},
        'outcomes/called hexagon': {'unlearned': (20,), 'oracle': (20,)},
        'outcomes/called cross': {'unlearned': (10,)},
        'damage/cross': {'unlearned': (-0.04,), 'oracle': (1,)},
        'damage/hexagon': {'unlearned': (6,), 'oracle': (2,)},
        'invented/thing': {'unlearned': (0.25, 0.25), 'GradAscent': (0.5, 0.5)},
    }
    last = record['tasks'][-1]
    audit = dict(
        task=last['task'],
        forgotten_classes=[*last['old'], *last['forget']],
        files=dict(
            unlearned=dict(path='merged/last.pth', sha256=hashlib.sha256(b'last').hexdigest()),
            oracle=dict(path='oracle.pth', sha256=ORACLE),
        ),
        settings=dict(seeds=[0, 1]),
        rows=[
            dict(model=model, seed=seed, measure=measure, value=value, unit=unit_of(measure, model))
            for measure, models in values.items()
            for model, of_seeds in models.items()
            for seed, value in enumerate(of_seeds)
            if oracle or model != 'oracle'
        ],
        verdict=dict(verdict='hidden, not forgotten', values=dict(forgotten=0.8)),
        nearest=dict(hexagon='circle'),
        cannot_conclude=['Nothing is known about night.'],
    )
    return with_units({**audit, **changes})


def unit_of(measure: str, model: str) -> str | None:
    """The unit of work that a measure belongs to; None where it follows from others."""
    kind = measure.split('/')[0]
    return None if kind == 'damage' else f'{kind}:{model}'


def with_units(audit: dict[str, Any], split: str | None = None) -> dict[str, Any]:
    """The audit as it is written for its files, settings and rows."""
    rows: dict[str, list[dict]] = {}
    for row in audit['rows']:
        if row.get('unit'):
            rows.setdefault(row['unit'], []).append(row)
    units = {
        name: dict(key=unit_key(name, audit, split), rows=digest(of)) for name, of in rows.items()
    }
    return dict(audit, units=units)
