"""The authors' 7 x 10 protocol and single steps on eighty generated classes: rows and table.

    python benchmarks/eighty.py [--only NAME ...] [--seeds 0]

Every run is one call of tools/train.py and lies in work_dirs/compare; one that is finished is not
repeated. Rows, one per task, go to docs/results/eighty.json, where those that are not made again
stay as they were; the table goes to docs/results/eighty.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from statistics import fmean

from compare import (
    GS,
    GS_PP,
    HEAD_ONLY,
    grouped,
    markdown,
    replaced,
    rows_of,
    run,
    spread,
    stored,
    write,
)

from mmgslora.datasets.scenes import neighbours
from mmgslora.evaluation import harmonic_mean
from mmgslora.records.record import mean_before, values_before

OURS = 'configs/gslora_eighty_forget.py'
THEIRS = 'configs/gslora_eighty_forget_paper.py'
OTHERS = 'configs/baselines/retain_only_eighty_forget.py'


def single_step(classes: int) -> list[str]:
    """Options of one request; steps and distillation as docs/your_data.md says."""
    steps = round(max(216, 43.2 * classes))
    options = [f'train_cfg.protocol.sizes=[{classes}]', f'train_cfg.steps_per_task={steps}']
    return options if classes > 5 else [*options, 'model.method.distill_weight=10']


# Where every block stays at work a request takes as long as three of ours: the first alone.
FIRST = ['train_cfg.protocol.sizes=[10]']
# Names -> method, classes of a request, config and options: seven requests of ten, or one of as
# many as the number says. The authors' beta of a task is the last of those found for the demo.
RUNS = {
    'ours': ('ours', 10, OURS, []),
    'head only': ('head only', 10, OTHERS, HEAD_ONLY),
    'retain only': ('retain only', 10, OTHERS, FIRST),
    'GS-LoRA': ('GS-LoRA', 10, OTHERS, [*GS, *FIRST]),
    'GS-LoRA, their schedule': ('GS-LoRA, 30 epochs', 10, THEIRS, FIRST),
    'GS-LoRA++': ('GS-LoRA++', 10, OTHERS, [*GS_PP, *FIRST]),
    **{f'80-{n}': ('ours, single step', n, OURS, single_step(n)) for n in (1, 10, 40, 70)},
}
SHOWN = ('AP_f', 'AP_o', 'AP_r', 'H')


def shares_kept(record: dict, task: dict, names: Iterable[str]) -> list[float]:
    """What each class keeps of its own pre-trained AP, in percent, lowest first."""
    before, now = values_before(record), task['per_class']
    return sorted(100 * now[n] / before[n] for n in names if before.get(n) and n in now)


def task_rows(record: dict, method: str, sizes: int, seed: int) -> list[dict]:
    """The rows of one run."""
    rows = []
    for row, task in zip(rows_of(record, method, '', seed), record['tasks']):
        ideal = harmonic_mean(
            row['pretrained_AP_r'], mean_before(record, task['forget'], gone=True)
        )
        kept = shares_kept(record, task, task['retain'])
        near = {other for name in task['forget'] for other in neighbours(name)}
        close = shares_kept(record, task, near & set(task['retain']))
        row.update(
            sizes=sizes,
            share_of_ideal=100 * row['H'] / ideal,
            hardest_tenth=fmean(kept[: math.ceil(len(kept) / 10)]),
            neighbours=fmean(close) if close else None,
            steps=task['steps'],
            seconds=row.pop('train_seconds') + (task.get('prepare_seconds') or 0),
        )
        del row['setting']
        rows.append({key: value for key, value in row.items() if not key.endswith('AP_m')})
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: one line per method, size of a request, and task."""
    columns = [
        *((key, key, '', 1) for key in SHOWN),
        ('H / ideal', 'share_of_ideal', '%', 1),
        ('hardest tenth kept', 'hardest_tenth', '%', 1),
        ('neighbours kept', 'neighbours', '%', 1),
        ('zero groups', 'zero_group_ratio', '', 2),
        ('steps', 'steps', '', 0),
        ('seconds', 'seconds', '', 0),
    ]
    head = ['method', 'classes', 'task', *(title for title, *_ in columns), 'AP_r kept']
    lines = []
    for key, same in grouped(rows, 'method', 'sizes', 'task').items():
        cells = [str(value) for value in key]
        cells += [spread([r[name] for r in same], unit, n) for _, name, unit, n in columns]
        cells.append(spread([100 * r['AP_r'] / r['pretrained_AP_r'] for r in same], '%'))
        lines.append(cells)
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', choices=RUNS, nargs='+', default=list(RUNS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    args = parser.parse_args()
    order = [(method, sizes) for method, sizes, *_ in RUNS.values()]
    for name in args.only:
        method, sizes, config, options = RUNS[name]
        for seed in args.seeds:
            made = task_rows(run(config, seed, options), method, sizes, seed)
            rows = replaced(stored('eighty'), made, order, 'method', 'sizes')
            write('eighty', rows, table=table(rows))


if __name__ == '__main__':
    main()
