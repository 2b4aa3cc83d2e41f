"""Audit the default recipe and others over several seeds; write rows and tables.

    python benchmarks/audit.py [--seeds 0 1 2]

Runs are those of compare.py (trained if they are not there yet), audited against the demo's oracle,
which make audit trains. The default recipe is trained with every seed, and the attacks on it are
drawn with the same, and so are those on the control, the original without the head's rows; of the
others one run, of the first seed, is attacked with the draws of all.
Rows go to docs/results/audit.json; in docs/results/audit.md what stands between two marks is
replaced by a table: mean and, in brackets, lowest and highest value over the seeds. The second
table is also drawn, docs/images/audit_tradeoff.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import fmean

import matplotlib.pyplot as plt
from compare import GS, GS_PP, RETAIN_ONLY, ROOT, folder_of, run, spread, write

from mmgslora.audit.rows import HEAD_ONLY

CONFIG = 'configs/gslora_shapes_forget.py'
ORACLE = 'work_dirs/deformable-detr_shapes_oracle/epoch_24.pth'
# What stands beside the default: name -> options on top of its config, or another config.
OTHERS = {
    'GS-LoRA': GS,
    'GS-LoRA++': GS_PP,
    'retain only': RETAIN_ONLY,
}
# Of the others, what the verdict rests on.
SOME = ['--measures', 'outcomes', 'localisation', 'probe', 'relearning', 'new_head']
SOME += ['--cfg-options', 'relearning_images=[16]']
COLUMNS = {
    'AP_gone': 'output/AP_gone',
    'AP_r': 'output/AP_r',
    'probe': 'probe/decoder.2',
    'probe, a layer below': 'probe/decoder.1',
    'IoU': 'localisation/forget',
    'relearned': 'relearning/k16/step20',
    'new head': 'new_head/k16/step20',
}


def rows_of(seed: int, options: list[str], draws: list[int], flags: list[str]) -> list[dict]:
    """The rows of the audit of one run, whose attacks are drawn once per seed in ``draws``."""
    run(CONFIG, seed, options)
    folder = folder_of(CONFIG, seed, options)
    command = [sys.executable, 'tools/audit.py', str(folder), '--seeds', *map(str, draws)]
    subprocess.run([*command, *flags], cwd=ROOT, check=True)
    return json.loads((folder / 'audit.json').read_text())['rows']


def values_of(rows: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Measure -> model -> the value of each seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if '/per_class/' not in row['measure'] and row['value'] is not None:
            of_measure = found.setdefault(row['measure'], {})
            of_measure.setdefault(row['model'], []).append(row['value'])
    return found


def measures(rows: list[dict]) -> str:
    """Markdown: every measure of the default recipe, one line each, beside original and oracle."""
    models = ['original', 'oracle', HEAD_ONLY, 'unlearned']
    lines = ['| measure | ' + ' | '.join(models) + ' |', '|---' * (len(models) + 1) + '|']
    for measure, found in values_of(rows).items():
        if not found.keys() & models:
            continue
        digits = 3 if measure.startswith(('membership', 'divergence')) else 1
        values = [spread(found[m], digits=digits) if m in found else '' for m in models]
        lines.append(f'| {measure} | ' + ' | '.join(values) + ' |')
    return '\n'.join(lines) + '\n'


def recipes(rows: list[dict]) -> str:
    """Markdown: what a verdict rests on, one line per model."""
    found = values_of(rows)
    lines = ['| model | ' + ' | '.join(COLUMNS) + ' |', '|---' * (len(COLUMNS) + 1) + '|']
    for model in ('original', 'oracle', HEAD_ONLY, 'unlearned', *OTHERS):
        values = [found.get(measure, {}).get(model) for measure in COLUMNS.values()]
        if any(values):
            cells = [spread(v) if v else '' for v in values]
            lines.append(f'| {model} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def plot(rows: list[dict]) -> None:
    """docs/images/audit_tradeoff.png: what each recipe still hides against what it keeps."""
    found = values_of(rows)
    before = fmean(found['output/AP_r']['original'])
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout='constrained')
    for axis, title in zip(axes, ('probe', 'new head')):
        of_models = found[COLUMNS[title]]
        oracle = fmean(of_models['oracle'])
        for model in ('unlearned', HEAD_ONLY, *OTHERS):
            if model in of_models:
                kept = 100 * fmean(found['output/AP_r'][model]) / before
                gap = fmean(of_models[model]) - oracle
                axis.plot(
                    kept, gap, '*' if model == 'unlearned' else 'o', markersize=9, label=model
                )
        axis.axhline(0, color='black', linewidth=0.8)
        axis.axvline(95, color='black', linewidth=0.8, linestyle=':')
        axis.set(xlabel='AP_r kept (%)', ylabel='points above the oracle', title=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center')
    figure.savefig(ROOT / 'docs/images/audit_tradeoff.png', dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    rows: list[dict] = []
    for seed in args.seeds:
        found = rows_of(seed, [], [seed], ['--oracle', ORACLE, '--head-only'])
        rows += [dict(row, seed=seed) for row in found]
        write('audit', rows, measures=measures(rows), recipes=recipes(rows))
    for name, options in OTHERS.items():
        found = rows_of(args.seeds[0], options, args.seeds, SOME)
        rows += [dict(row, model=name) for row in found if row['model'] == 'unlearned']
        write('audit', rows, measures=measures(rows), recipes=recipes(rows))
    plot(rows)


if __name__ == '__main__':
    main()
