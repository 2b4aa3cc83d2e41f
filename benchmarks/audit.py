"""Audit the default recipe and its baselines over several seeds; write rows and table.

    python benchmarks/audit.py [--seeds 0 1 2] [--baseline-seeds 0]

Runs are those of compare.py (trained if they are not there yet); each is audited with its own seed
against the demo's oracle, which make audit trains. Rows go to docs/results/audit.json; in
docs/results/audit.md what stands between the two marks is replaced by the table: mean and, in
brackets, lowest and highest value over the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from compare import GS, MARKS, PAPER, ROOT, folder_of, run, spread

CONFIG = 'configs/gslora_shapes_forget.py'
ORACLE = 'work_dirs/deformable-detr_shapes_oracle/epoch_24.pth'
BASELINES = {'GS-LoRA': [GS], 'GS-LoRA, paper recipe': [GS, PAPER]}
# Of the baselines, what the verdict rests on.
SOME = ['--measures', 'old_rows', 'whereabouts', 'probe', 'relearning', 'new_head']
SOME += ['--cfg-options', 'relearning_images=[16]']


def rows_of(seed: int, options: list[str], flags: list[str]) -> list[dict]:
    """The rows of one run's audit, under the seed of the run."""
    run(CONFIG, seed, options)
    folder = folder_of(CONFIG, seed, options)
    command = [sys.executable, 'tools/audit.py', str(folder), '--oracle', ORACLE]
    subprocess.run([*command, '--seeds', str(seed), *flags], cwd=ROOT, check=True)
    rows = json.loads((folder / 'audit.json').read_text())['rows']
    return [dict(row, seed=seed) for row in rows]


def table(rows: list[dict]) -> str:
    """Markdown: one line per measure, one column per model."""
    cells: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if '/per_class/' not in row['measure'] and row['value'] is not None:
            of_measure = cells.setdefault(row['measure'], {})
            of_measure.setdefault(row['model'], []).append(row['value'])
    models = ['original', 'oracle', 'ours', *BASELINES]
    models = [model for model in models if any(model in found for found in cells.values())]
    lines = ['| measure | ' + ' | '.join(models) + ' |', '|---' * (len(models) + 1) + '|']
    for measure, found in cells.items():
        digits = 3 if measure.startswith(('membership', 'divergence')) else 1
        values = [spread(found[m], digits=digits) if m in found else '' for m in models]
        lines.append(f'| {measure} | ' + ' | '.join(values) + ' |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--baseline-seeds', type=int, nargs='*', default=[0])
    args = parser.parse_args()
    rows: list[dict] = []
    for seed in args.seeds:
        rows += rows_of(seed, [], [])
        write(rows)
    for name, options in BASELINES.items():
        for seed in args.baseline_seeds:
            found = rows_of(seed, options, SOME)
            rows += [dict(row, model=name) for row in found if row['model'] == 'ours']
            write(rows)


def write(rows: list[dict]) -> None:
    results = ROOT / 'docs' / 'results'
    (results / 'audit.json').write_text(json.dumps(rows, indent=1) + '\n')
    page = results / 'audit.md'
    text = page.read_text() if page.exists() else ''.join(MARKS)
    before, _, rest = text.partition(MARKS[0])
    page.write_text(before + MARKS[0] + table(rows) + MARKS[1] + rest.partition(MARKS[1])[2])


if __name__ == '__main__':
    main()
