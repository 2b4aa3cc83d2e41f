"""Audit what methods leave, over several seeds; write rows, tables and a plot.

    python benchmarks/audit.py shapes|classification [--seeds 0 1 2] [--only MODEL ...]

Runs are those of compare.py and their deepened copies (UNDO), trained if they are not there yet.
Ours and the deepened copy have one run per seed, what stands beside them one of the first seed.
Every model is attacked with the same three draws, a run and the oracles with the same two more
where that was close; original and oracles (trained if they are not there) are attacked once. Rows
go to docs/results/audit.json; in docs/results/audit.md what stands between the two marks of the
subject is replaced by a table: the mean of the runs' means, however many draws each has, and, in
brackets, lowest and highest value over runs and draws.
The table is also drawn, docs/images/audit_SUBJECT.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
from compare import GS, GS_PP, RETAIN_ONLY, ROOT, folder_of, markdown, run, spread, stored, write

from mmgslora.audit.rows import HEAD_ONLY, ORIGINAL, UNLEARNED, is_oracle
from mmgslora.records.record import metric_prefix, share_kept

OURS, DEEPENED = 'ours', 'deepened'
MEASURES = ('outcomes', 'localisation', 'probe', 'relearning', 'new_head')
ATTACKS = {
    'new head': 'new_head/k16/step20',
    'relearned, 16': 'relearning/k16/step20',
    'relearned, 64': 'relearning/k64/step20',
}


@dataclass(frozen=True)
class Subject:
    """A model family that is audited.

    Attributes:
        forget: The config of our default.
        deepen: The config of its deepened copy.
        oracle: The config of the model that never saw the classes; one is trained per seed.
        others: What is audited beside them: name -> options on top of ``forget``, and the config
            where it is another one.
    """

    forget: str
    deepen: str
    oracle: str
    others: dict[str, tuple]


SUBJECTS = {
    'shapes': Subject(
        'configs/gslora_shapes_forget.py',
        'configs/undo_shapes_forget.py',
        'configs/shapes/deformable-detr_shapes_oracle.py',
        {'GS-LoRA': (GS,), 'GS-LoRA++': (GS_PP,), 'retain only': (RETAIN_ONLY,)},
    ),
    'classification': Subject(
        'configs/classification/gslora_classification_forget.py',
        'configs/classification/undo_classification_forget.py',
        'configs/classification/vit_shapes_oracle.py',
        {
            'GS-LoRA': ([], 'configs/baselines/gs_lora_classification_forget.py'),
            'retain only': ([], 'configs/baselines/retain_only_classification_forget.py'),
        },
    ),
}


def oracles(subject: Subject, count: int) -> list[str]:
    """Checkpoints of the oracle's trainings, seeds 0 and up."""
    found = []
    for seed in range(count):
        folder = ROOT / 'work_dirs' / f'{Path(subject.oracle).stem}{f"_seed{seed}" * bool(seed)}'
        if not (folder / 'epoch_24.pth').exists():
            command = [sys.executable, 'tools/train.py', subject.oracle, '--work-dir', str(folder)]
            command += ['--resume', '--cfg-options', f'randomness.seed={seed}']
            subprocess.run(command, cwd=ROOT, check=True)
        found.append(str(folder / 'epoch_24.pth'))
    return found


def deepened(subject: Subject, seed: int) -> Path:
    """The folder of a deepened copy of ours, both trained if they are not there yet."""
    run(subject.forget, seed, [])
    teacher = folder_of(subject.forget, seed, []) / 'merged/task_03.pth'
    run(subject.deepen, seed, [], [f'model.method.teacher={teacher}'])
    return folder_of(subject.deepen, seed, [])


def rows_of(folder: Path, name: str, seed: int, flags: list[str]) -> list[dict]:
    """The rows of one run: of its audit, and what its record says of its last task."""
    command = [sys.executable, 'tools/audit.py', str(folder), '--measures', *MEASURES]
    subprocess.run([*command, '--seeds', '0', '1', '2', *flags], cwd=ROOT, check=True)
    audit = json.loads((folder / 'audit.json').read_text())
    rows = []
    for row in audit['rows']:
        if '/per_class/' not in row['measure'] and row['value'] is not None:
            own = row['model'] == UNLEARNED
            rows.append(
                dict(
                    model=name if own else row['model'],
                    run=seed if own else None,
                    draw=row['seed'],
                    measure=row['measure'],
                    value=row['value'],
                )
            )
    record = json.loads((folder / 'forgetting.json').read_text())
    last, prefix = record['tasks'][-1], metric_prefix(record)
    cost = record.get('original_training') or {}
    took = [task['train_seconds'] + (task.get('prepare_seconds') or 0) for task in record['tasks']]
    said = {
        f'{prefix}r kept': 100 * share_kept(record, last),
        f'{prefix}f': last['metrics'][f'{prefix}f'],
        'seconds': sum(took),
        'seconds of training the original': cost.get('seconds'),
        'verdict': audit['verdict']['verdict'],
    }
    return rows + [
        dict(model=name, run=seed, draw=None, measure=key, value=value)
        for key, value in said.items()
    ]


def values_of(rows: list[dict]) -> dict[str, dict[str, dict[int | None, list]]]:
    """Measure -> model -> run -> the value of each draw."""
    found: dict[str, dict[str, dict[int | None, list]]] = {}
    for row in rows:
        runs = found.setdefault(row['measure'], {}).setdefault(row['model'], {})
        runs.setdefault(row['run'], []).append(row['value'])
    return found


def mean_of(runs: dict[int | None, list[float]]) -> float:
    """The mean over runs, of which those that were close have more draws and count no more."""
    return fmean(map(fmean, runs.values()))


def table(rows: list[dict]) -> str:
    """Markdown: one line per model, what a verdict rests on in columns."""
    found = values_of(rows)
    probes = [measure for measure in found if measure.startswith('probe/')]
    prefix = next(m for m in found if m.endswith('r kept')).removesuffix('r kept')
    columns = {f'{prefix}gone': f'output/{prefix}gone', f'{prefix}r kept': f'{prefix}r kept'}
    columns |= {m.replace('/', ' '): m for m in probes} | ATTACKS | {'s': 'seconds'}
    models = list(dict.fromkeys(row['model'] for row in rows))
    first = [m for m in (ORIGINAL, HEAD_ONLY, OURS, DEEPENED) if m in models]
    last = sorted(filter(is_oracle, models))
    lines = []
    for model in (*first, *(m for m in models if m not in (*first, *last)), *last):
        cells = [found.get(measure, {}).get(model) for measure in columns.values()]
        said = dict.fromkeys(chain(*found['verdict'].get(model, {}).values()))
        shown = [spread([*chain(*x.values())], mean=mean_of(x)) if x else '' for x in cells]
        lines.append([model, *shown, ', '.join(said)])
    return markdown(['model', *columns, 'verdict'], lines)


def plot(name: str, rows: list[dict]) -> None:
    """docs/images/audit_NAME.png: what each model still gives away against what it keeps."""
    found = values_of(rows)
    kept = next(measure for measure in found if measure.endswith('r kept'))
    probe = [measure for measure in found if measure.startswith('probe/')][-1]
    shown = {probe: probe, **{f'{title} images': m for title, m in list(ATTACKS.items())[1:]}}
    figure, axes = plt.subplots(1, len(shown), figsize=(13, 4), layout='constrained')
    for axis, (title, measure) in zip(axes, shown.items()):
        highest = max(mean_of(runs) for m, runs in found[measure].items() if is_oracle(m))
        for model, runs in found[kept].items():
            if model in found[measure]:
                at = mean_of(runs), mean_of(found[measure][model]) - highest
                mark = '*' if model in (OURS, DEEPENED) else 'o'
                axis.plot(*at, mark, markersize=9, label=model)
        axis.axhline(0, color='black', linewidth=0.8)
        axis.axvline(97, color='black', linewidth=0.8, linestyle=':', label='97 % kept')
        axis.set(xlabel=f'{kept} (%)', ylabel='points above the highest oracle', title=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center')
    figure.savefig(ROOT / 'docs' / 'images' / f'audit_{name}.png', dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('subject', choices=SUBJECTS)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--oracles', type=int, default=2, help='trainings of the oracle')
    parser.add_argument('--only', nargs='+', help='models; all by default')
    args = parser.parse_args()
    subject = SUBJECTS[args.subject]
    flags, known = ['--oracle', *oracles(subject, args.oracles)], []
    models = {DEEPENED: args.seeds, OURS: args.seeds, **dict.fromkeys(subject.others, [0])}
    for name, seeds in models.items():
        for seed in seeds if args.only is None or name in args.only else ():
            if name == DEEPENED:
                folder = deepened(subject, seed)
            else:
                options, *other = subject.others.get(name, ([],))
                run(*other or [subject.forget], seed, options)
                folder = folder_of(*other or [subject.forget], seed, options)
            found = rows_of(folder, name, seed, flags + known)
            known = known or ['--known', str(folder / 'audit.json')]
            made = [dict(row, subject=args.subject) for row in found]
            key = [(row['subject'], row['model'], row['run']) for row in made]
            kept = [r for r in stored('audit') if (r['subject'], r['model'], r['run']) not in key]
            rows = [row for row in kept + made if row['subject'] == args.subject]
            write('audit', kept + made, **{args.subject: table(rows)})
            plot(args.subject, rows)


if __name__ == '__main__':
    main()
