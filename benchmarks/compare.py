"""Run a comparison over several seeds and write its rows and its table.

    python benchmarks/compare.py STUDY [--seeds 0 1 2] [--only METHOD ...]

Every run is one call of tools/train.py and lies in work_dirs/compare; a run that is finished is not
repeated. Rows go to docs/results/STUDY.json, where those that are not made again stay as they were;
in docs/results/STUDY.md what stands between the two marks is replaced by the table: mean and, in
brackets, lowest and highest value over the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from mmgslora.evaluation import harmonic_mean
from mmgslora.records.record import mean_before, metric_prefix, values_before

ROOT = Path(__file__).parents[1]
KINDS = ('f', 'r', 'o', 'm')  # AP_f or Acc_f, ...
# The configs of the demo set nothing of their method, so that another type may take its place. The
# authors' beta of three tasks, from the values that were tried (docs/results/search.md).
GS = ['model.method.type=GSLoRA', 'model.method.beta=[0.015,0.03,0.14]']
GS_PP = ['model.method.type=GSLoRAPlusPlus', 'model.method.beta=[0.15,0.15,0.35]']
RETAIN_ONLY = ['model.method.type=RetainOnly']
# Without a teacher to hold on to, images to retain that are drawn once are learned by heart.
ANEW = ['train_dataloader.dataset.redraw=True']
# Nothing is learned, and the head's rows of the classes are taken away.
HEAD_ONLY = ['model.method.type=HeadOnly', 'train_cfg.seal=True']
HEAD_ONLY += ['train_cfg.epochs_per_task=1', 'train_cfg.steps_per_task=1']
PENALTY = ['model.method.sparsity.mode=penalty', 'model.method.sparsity.alpha=3e-4']


def side_by_side(setting: str, others: Sequence[str] = ()) -> list[tuple]:
    """Rows of controls, the authors' methods and ours; ``others`` are options of what rehearses."""
    return [
        ('head only', setting, HEAD_ONLY),
        ('retain only', setting, [*RETAIN_ONLY, *others]),
        ('GS-LoRA', setting, [*GS, *others]),
        ('GS-LoRA++', setting, [*GS_PP, *others]),
        ('ours', setting, []),
    ]


# Study -> config, and for every row of the table: method, setting, options on top of the config,
# and the config where it is another one. "GS-LoRA" and "GS-LoRA++" are the authors'.
STUDIES: dict[str, tuple[str, list[tuple]]] = {
    'default': ('configs/gslora_shapes_forget.py', side_by_side('10 % of the images', ANEW)),
    'few_shot': ('configs/gslora_shapes_few_shot.py', side_by_side('4-shot')),
    'missing': (
        'configs/gslora_shapes_missing.py',
        [
            *side_by_side('2 missing', ANEW),
            ('ours, teacher not distilled', '2 missing', ['model.method.distill_weight=0']),
        ],
    ),
    'bccd': ('configs/gslora_bccd_forget.py', side_by_side('all images', ANEW)),
    'ablation': (
        'configs/gslora_shapes_forget.py',
        [
            ('ours', 'the default', []),
            ('ours', 'background not held', ['model.method.background_weight=0']),
            ('ours', 'teacher not distilled', ['model.method.distill_weight=0']),
            ('ours', 'penalty instead of the proximal step', PENALTY),
        ],
    ),
    **{
        family: (
            config,
            [
                ('head only', share, HEAD_ONLY, f'configs/baselines/retain_only_{name}.py'),
                ('retain only', share, [], f'configs/baselines/retain_only_{name}.py'),
                ('GS-LoRA', share, [], f'configs/baselines/gs_lora_{name}.py'),
                ('ours', share, []),
            ],
        )
        for family, name, config, share in (
            (
                'classification',
                'classification_forget',
                'configs/classification/gslora_classification_forget.py',
                '20 % of the images',
            ),
            ('face', 'face_forget', 'configs/face/gslora_face_forget.py', '50 % of the images'),
        )
    },
}


def folder_of(config: str, seed: int, options: list[str]) -> Path:
    """Where a run lies; it is named by what it is, so that studies share equal runs."""
    pairs = [option.partition('=') for option in options]
    changes = [f'{key.split(".")[-1]}={value}' for key, _, value in pairs]
    name = '_'.join([Path(config).stem, *changes, f'seed{seed}'])
    return ROOT / 'work_dirs' / 'compare' / name


def run(config: str, seed: int, options: list[str], unnamed: list[str] | None = None) -> dict:
    """The record of one run, trained if it is not there yet.

    ``unnamed`` are options that follow from the others, and do not name its folder.
    """
    folder = folder_of(config, seed, options)
    command = [sys.executable, 'tools/train.py', config, '--work-dir', str(folder), '--resume']
    command += ['--cfg-options', f'randomness.seed={seed}', f'train_dataloader.dataset.seed={seed}']
    if not (folder / 'done').exists():
        subprocess.run([*command, *options, *(unnamed or [])], cwd=ROOT, check=True)
        (folder / 'done').touch()
    return json.loads((folder / 'forgetting.json').read_text())


def rows_of(record: dict, method: str, setting: str, seed: int) -> list[dict]:
    """One row per task."""
    before, prefix = values_before(record), metric_prefix(record)
    rows = []
    for task in record['tasks']:
        row = dict(method=method, setting=setting, seed=seed, task=task['task'])
        metrics = _sealed(task, record) if method == 'head only' else task['metrics']
        row.update({key: metrics.get(key) for key in (*(prefix + kind for kind in KINDS), 'H')})
        for key, names in ((f'{prefix}r', task['retain']), (f'{prefix}m', task['missing'])):
            row[f'pretrained_{key}'] = fmean(before[n] for n in names) if names else None
        row['zero_group_ratio'] = task['zero_group_ratio']
        row['train_seconds'] = task['train_seconds']
        rows.append(row)
    return rows


def _sealed(task: dict, record: dict) -> dict:
    """The metrics of what a task would hand out, as those of the model are."""
    prefix = metric_prefix(record)
    metrics = {prefix + kind: task['metrics'].get(f'sealed/{prefix}{kind}') for kind in KINDS}
    drop = mean_before(record, task['forget'], gone=True) - metrics[f'{prefix}f']
    kept = [task['per_class'][name] for name in task['missing']]
    return {
        **metrics,
        f'{prefix}m': fmean(kept) if kept else None,  # sealing leaves the other classes alone
        'H': harmonic_mean(metrics[f'{prefix}r'], drop),
    }


def table(rows: list[dict]) -> str:
    """Markdown: one line per method, setting and task."""
    suffixes = tuple(f'_{kind}' for kind in KINDS)
    shown = [
        key
        for key in rows[0]
        if (key == 'H' or key.endswith(suffixes))
        and not key.startswith('pretrained')
        and any(row[key] is not None for row in rows)
    ]
    kept = [key for key in shown if key[-2:] in ('_r', '_m')]
    head = ['method', 'setting', 'task', *shown, *(f'{key} kept' for key in kept), 'zero groups']
    lines = []
    for key, same in grouped(rows, 'method', 'setting', 'task').items():
        cells = [str(value) for value in key]
        cells += [spread([row[key] for row in same]) for key in shown]
        cells += [
            spread([100 * row[key] / row[f'pretrained_{key}'] for row in same], '%') for key in kept
        ]
        cells.append(spread([row['zero_group_ratio'] for row in same], digits=2))
        lines.append(cells)
    return markdown(head, lines)


def grouped(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """The rows that have the same values under these keys, in the order in which they come."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table of these cells."""
    rows = [f'| {" | ".join(cells)} |\n' for cells in (head, *lines)]
    return rows[0] + '|' + '---|' * len(head) + '\n' + ''.join(rows[1:])


def spread(
    values: list[float | None], unit: str = '', digits: int = 1, mean: float | None = None
) -> str:
    """Mean, that of the values if none is given, and, in brackets, lowest and highest value."""
    if None in values:
        return '-'
    mean = fmean(values) if mean is None else mean
    mean, low, high = (f'{x:.{digits}f}' for x in (mean, min(values), max(values)))
    return f'{mean}{unit} ({low} to {high})' if len(values) > 1 else f'{mean}{unit}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('study', choices=STUDIES)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--only', nargs='+', help='methods; all by default')
    args = parser.parse_args()
    config, variants = STUDIES[args.study]
    order = [(method, setting) for method, setting, *_ in variants]
    for seed in args.seeds:
        for method, setting, options, *own in variants:
            if args.only is None or method in args.only:
                made = rows_of(run(*own or [config], seed, options), method, setting, seed)
                rows = replaced(stored(args.study), made, order, 'method', 'setting')
                write(args.study, rows, table=table(rows))


def stored(study: str) -> list[dict]:
    """The rows of docs/results/STUDY.json; none where there is no such file yet."""
    path = ROOT / 'docs' / 'results' / f'{study}.json'
    return json.loads(path.read_text()) if path.exists() else []


def replaced(rows: list[dict], made: list[dict], order: list[tuple], *keys: str) -> list[dict]:
    """These rows with those of one run in the place of its earlier ones.

    Args:
        rows: What there is.
        made: The rows of the run.
        order: Values of the keys in the order of the table; rows of others are dropped.
        keys: What, beside the seed, tells runs apart.
    """
    run_of = {(tuple(row[key] for key in keys), row['seed']) for row in made}
    kept = [row for row in rows if (tuple(row[key] for key in keys), row['seed']) not in run_of]
    known = [row for row in (*kept, *made) if tuple(row[key] for key in keys) in order]
    return sorted(
        known, key=lambda r: (order.index(tuple(r[k] for k in keys)), r['task'], r['seed'])
    )


def write(study: str, rows: list[dict], **tables: str) -> None:
    """docs/results/STUDY.json, and in STUDY.md each table between the marks of its name."""
    results = ROOT / 'docs' / 'results'
    (results / f'{study}.json').write_text(json.dumps(rows, indent=1) + '\n')
    page = results / f'{study}.md'
    text = page.read_text() if page.exists() else ''
    for name, lines in tables.items():
        first, last = f'<!-- {name} -->\n', f'<!-- end of {name} -->\n'
        before, _, rest = text.partition(first)
        text = before + first + lines + last + rest.partition(last)[2]
    page.write_text(text)


if __name__ == '__main__':
    main()
