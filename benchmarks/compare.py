"""Run a comparison over several seeds and write its rows and its table.

    python benchmarks/compare.py STUDY [--seeds 0 1 2]

Every run is one call of tools/train.py and lies in work_dirs/compare; a run that is finished is not
repeated. Rows go to docs/results/STUDY.json; in docs/results/STUDY.md what stands between the two
marks is replaced by the table: mean and, in brackets, lowest and highest value over the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[1]
NUMBERS = ('AP_f', 'AP_r', 'AP_o', 'AP_m', 'H')
GS = 'configs/gslora_shapes_forget_paper.py'
GS_PP = 'configs/gslora_pp_shapes_forget_paper.py'
# The demo's config sets nothing of its method, so that another type may take its place.
RETAIN_ONLY = ['configs/gslora_shapes_forget.py', 'model.method.type=RetainOnly']
NO_PROTOTYPES = ['model.method.prototype_weight=0', 'model.method.feature_distill_weight=0']
# What gslora_shapes_few_shot.py and gslora_shapes_missing.py change but for the method.
FEW_SHOT = [
    'train_dataloader.dataset.few_shot=4',
    'train_cfg.epochs_per_task=40',
    'param_scheduler.1.T_max=40',
    'default_hooks.checkpoint.interval=20',
]
MISSING = ['train_cfg.protocol.missing=[cross,heart]']
PLAIN = 'configs/gslora_shapes_few_shot_plain.py'
PENALTY = ['model.method.sparsity.mode=penalty', 'model.method.sparsity.alpha=3e-4']

# Study -> config, and for every row of the table: method, setting, options on top of the config
# (or another config). "GS-LoRA" and "GS-LoRA++" are the authors'.
STUDIES: dict[str, tuple[str, list[tuple[str, str, list[str]]]]] = {
    'few_shot': (
        'configs/gslora_shapes_few_shot.py',
        [
            ('GS-LoRA', '4-shot', [GS, *FEW_SHOT]),
            ('GS-LoRA++', '4-shot', [GS_PP, *FEW_SHOT]),
            ('ours', '4-shot', []),
            ('ours, no prototypes', '4-shot', [PLAIN]),
            ('retain only', '4-shot', [*RETAIN_ONLY, *FEW_SHOT]),
        ],
    ),
    'missing': (
        'configs/gslora_shapes_missing.py',
        [
            ('GS-LoRA', '2 missing', ['configs/gslora_shapes_missing_paper.py']),
            ('GS-LoRA++', '2 missing', [GS_PP, *MISSING]),
            ('ours', '2 missing', []),
            ('ours, no prototypes', '2 missing', NO_PROTOTYPES),
            (
                'ours, teacher not distilled',
                '2 missing',
                ['model.method.distill_weight=0', 'model.method.feature_distill_weight=0'],
            ),
            ('retain only', '2 missing', [*RETAIN_ONLY, *MISSING]),
        ],
    ),
    'ablation': (
        'configs/gslora_shapes_few_shot.py',
        [
            ('ours', 'embeddings moved and held', []),
            ('ours', 'moved', ['model.method.feature_distill_weight=0']),
            ('ours', 'held', ['model.method.prototype_weight=0']),
            ('ours', 'neither', NO_PROTOTYPES),
            ('ours', 'no prototypes, proximal', [PLAIN]),
            ('ours', 'no prototypes, penalty', [PLAIN, *PENALTY]),
            ('ours', 'teacher not distilled', ['model.method.distill_weight=0']),
            ('ours', 'averaging', ['configs/gslora_shapes_few_shot_averaging.py']),
            ('GS-LoRA', 'penalty', [GS, *FEW_SHOT]),
            (
                'GS-LoRA',
                'proximal',
                [
                    GS,
                    *FEW_SHOT,
                    'model.method.sparsity.mode=proximal',
                    'model.method.sparsity.alpha=0.3',
                ],
            ),
        ],
    ),
    'default': (
        'configs/gslora_shapes_forget.py',
        [
            ('GS-LoRA', '10 % of the images', [GS]),
            ('GS-LoRA++', '10 % of the images', [GS_PP]),
            ('ours', '10 % of the images', []),
            ('ours, no prototypes', '10 % of the images', NO_PROTOTYPES),
            ('retain only', '10 % of the images', RETAIN_ONLY),
        ],
    ),
}  # fmt: skip


def folder_of(config: str, seed: int, options: list[str]) -> Path:
    """Where a run lies; it is named by what it is, so that studies share equal runs."""
    if options and options[0].endswith('.py'):
        config, *options = options
    pairs = [option.partition('=') for option in options]
    changes = [f'{key.split(".")[-1]}={value}' for key, _, value in pairs]
    name = '_'.join([Path(config).stem, *changes, f'seed{seed}'])
    return ROOT / 'work_dirs' / 'compare' / name


def run(config: str, seed: int, options: list[str]) -> dict:
    """The record of one run, trained if it is not there yet."""
    folder = folder_of(config, seed, options)
    if options and options[0].endswith('.py'):
        config, *options = options
    command = [sys.executable, 'tools/train.py', config, '--work-dir', str(folder), '--resume']
    command += ['--cfg-options', f'randomness.seed={seed}', f'train_dataloader.dataset.seed={seed}']
    if not (folder / 'done').exists():
        subprocess.run([*command, *options], cwd=ROOT, check=True)
        (folder / 'done').touch()
    return json.loads((folder / 'forgetting.json').read_text())


def rows_of(record: dict, method: str, setting: str, seed: int) -> list[dict]:
    """One row per task."""
    before = record['pretrained']['per_class']
    rows = []
    for task in record['tasks']:
        row = dict(method=method, setting=setting, seed=seed, task=task['task'])
        row.update({key: task['metrics'].get(key) for key in NUMBERS})
        for key, names in (('AP_r', task['retain']), ('AP_m', task['missing'])):
            row[f'pretrained_{key}'] = fmean(before[n] for n in names) if names else None
        row['zero_group_ratio'] = task['zero_group_ratio']
        row['train_seconds'] = task['train_seconds']
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: one line per method, setting and task."""
    shown = [key for key in NUMBERS if any(row[key] is not None for row in rows)]
    kept = [key for key in ('AP_r', 'AP_m') if key in shown]
    head = ['method', 'setting', 'task', *shown, *(f'{key} kept' for key in kept), 'zero groups']
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row['method'], row['setting'], row['task']), []).append(row)
    for (method, setting, task), same in groups.items():
        cells = [method, setting, str(task)]
        cells += [spread([row[key] for row in same]) for key in shown]
        cells += [
            spread([100 * row[key] / row[f'pretrained_{key}'] for row in same], '%') for key in kept
        ]
        cells.append(spread([row['zero_group_ratio'] for row in same], digits=2))
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def spread(values: list[float | None], unit: str = '', digits: int = 1) -> str:
    """Mean and, in brackets, lowest and highest value."""
    if None in values:
        return '-'
    mean, low, high = (f'{x:.{digits}f}' for x in (fmean(values), min(values), max(values)))
    return f'{mean}{unit} ({low} to {high})' if len(values) > 1 else f'{mean}{unit}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('study', choices=STUDIES)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    config, variants = STUDIES[args.study]
    rows = []
    for seed in args.seeds:
        for method, setting, options in variants:
            record = run(config, seed, options)
            rows += rows_of(record, method, setting, seed)
            order = {(m, s): i for i, (m, s, _) in enumerate(variants)}
            rows.sort(key=lambda r: (order[r['method'], r['setting']], r['task'], r['seed']))
            write(args.study, rows, table=table(rows))


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
