"""Time a step, a request, a long sequence and the merged model; write ratios, tables and a plot.

    python benchmarks/speed.py [--only NAME ...] [--every 6]

All that is compared is timed in one run, in turns and on the same batches (race.py, contenders.py).
Everything goes to docs/results/speed.json; in docs/results/speed.md what stands between two marks
is replaced by a table; the parts of a step are drawn in docs/images/speed_parts.png. What is not
measured again with --only stays as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import tempfile
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import torch
from compare import write
from contenders import AuthorsWay, Finetuning, Peft, plain_model
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, load_checkpoint
from race import OURS, Race, RequestClock, over_request, step_ratio
from stopwatch import OTHER, now
from subjects import ROOT, SEQUENCE, SUBJECTS, Subject

from mmgslora.env import versions
from mmgslora.preflight import prepare

RESULTS = ROOT / 'docs' / 'results' / 'speed.json'
PLOT = ROOT / 'docs' / 'images' / 'speed_parts.png'
MAIN = 'small detector'
"""The subject whose numbers stand at the top of the file."""

CONTENDERS = dict(reference=AuthorsWay, finetune=Finetuning, peft=Peft)
PARTS = ('data', 'trunk', 'encoder', 'decoder', 'teacher', 'matching', 'losses', 'backward')
PARTS += ('optimizer', OTHER)
# What must hold: the most a ratio may be, by subject where that differs.
LIMITS: dict[str, float | dict[str, float]] = {
    'step_vs_reference': 0.5,
    'step_vs_finetune': {MAIN: 0.4, 'R50 at 256 x 256': 0.5},
    'step_vs_peft': 0.7,
    'memory_vs_finetune': 0.5,
    'request_vs_retrain': {MAIN: 1 / 25},
    'request_vs_paper': {MAIN: 1 / 5},
    'task20_vs_task1': 1.05,
    'merged_vs_original': 1.0,
    'sparsity_share_of_step': 0.01,
}


def build_runner(cfg: Config, folder: Path, name: str) -> Runner:
    """The run of a config in a folder of its own, checked as tools/train.py would."""
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.experiment_name = str(folder / name), f'speed_{name}_{os.getpid()}'
    prepare(cfg)
    return Runner.from_cfg(cfg)


def run_race(
    cfg: Config, folder: Path, name: str, contenders: dict[str, type], every: int
) -> tuple[Runner, Race]:
    """Run a config with contenders beside it."""
    runner = build_runner(cfg, folder, name)
    built = {key: kind(cfg) for key, kind in contenders.items()}
    for contender in built.values():
        contender.model.to(next(runner.model.parameters()).device)
    race = Race(built, every)
    runner.register_hook(race)
    runner.train()
    return runner, race


def measure(name: str, subject: Subject, folder: Path, every: int) -> dict:
    """All numbers of one subject: ratios, seconds per request, and what they were made of."""
    cfg = subject.load(folder)
    first = copy.deepcopy(cfg)
    first.train_cfg.protocol['tasks'] = cfg.train_cfg.protocol['tasks'][:1]
    runner, race = run_race(first, folder, f'{name}_race', CONTENDERS, every)
    loop, seconds = runner.train_loop, race.tasks[0]
    step = {key: over_request(values) for key, values in seconds.items()}
    record = json.loads(Path(runner.work_dir, 'forgetting.json').read_text())['tasks'][0]
    merged = Path(runner.work_dir, 'merged', 'task_01.pth')
    ratios = {f'step_vs_{key}': step_ratio(seconds, key) for key in CONTENDERS}
    ratios['memory_vs_finetune'] = race.peak[OURS] / race.peak['finetune']
    ratios.update(request_vs_retrain=None, request_vs_paper=None, task20_vs_task1=None)
    ratios['merged_vs_original'] = inference_ratio(runner, Path(cfg.load_from), merged)
    ratios['sparsity_share_of_step'] = race.sparsity[0] / race.sparsity[1]
    clock = None
    if subject.plain:  # without one it is a random model, whose requests mean nothing
        clock = time_requests(cfg, folder, name)
        work = median(all_ - part for all_, part in zip(clock.seconds, clock.evaluation))
        (epochs, share), views = subject.paper, loop.views
        batches = len(views.base) / loop.dataloader.batch_size
        retraining = subject.retraining_epochs * batches * (step['data'] + step['finetune'])
        authors = epochs * share / views.data_ratio * len(loop.dataloader)
        authors *= step['data'] + step['reference']
        ratios.update(request_vs_retrain=work / retraining, request_vs_paper=work / authors)
    total = sum(race.parts.seconds.values())
    return dict(
        ratios=ratios,
        seconds_per_request=clock and sum(clock.seconds) / len(clock.seconds),
        requests=clock and dict(seconds=clock.seconds, evaluation=clock.evaluation),
        step_seconds=step,
        peak_bytes=dict(race.peak),
        parts={part: race.parts.seconds.get(part, 0.0) / total for part in PARTS},
        raced_steps=len(seconds[OURS]),
        request_steps=record['steps'],
        batch_size=loop.dataloader.batch_size,
        zero_group_ratio=record['zero_group_ratio'],
    )


def time_requests(cfg: Config, folder: Path, name: str) -> RequestClock:
    """Serve all requests of a config with nothing beside them."""
    clock = RequestClock()
    runner = build_runner(cfg, folder, f'{name}_requests')
    runner.register_hook(clock)
    runner.train()
    return clock


@torch.no_grad()
def inference_ratio(runner: Runner, original: Path, merged: Path) -> float:
    """Seconds of a prediction by the merged plain model over those of the original one."""
    batch = next(iter(runner.train_loop.evaluation_loop.dataloader))
    models = {}
    for path in (original, merged):
        models[path] = plain_model(runner.cfg).to(next(runner.model.parameters()).device).eval()
        load_checkpoint(models[path], str(path), map_location='cpu', logger='silent')
    seconds: dict[Path, list[float]] = {path: [] for path in models}
    for number in range(13):  # the first does not count
        order = list(models) if number % 2 else list(models)[::-1]
        for path in order:
            since = now()
            models[path].test_step(batch)
            seconds[path].append(now() - since)
    return median(seconds[merged][1:]) / median(seconds[original][1:])


def last_over_first(folder: Path) -> float:
    """A step of ours in the last task of the long sequence over one in its first.

    Both in units of a fine-tuning step of the same minute, for minutes lie between them.
    """
    _, race = run_race(SEQUENCE.load(folder), folder, 'sequence', dict(finetune=Finetuning), 4)
    return step_ratio(race.tasks[-1], 'finetune') / step_ratio(race.tasks[0], 'finetune')


def machine() -> dict:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    load = os.getloadavg()[0]
    return dict(
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        load=round(load, 2),
        gpu=gpu,
        versions=versions(),
    )


def ratio_table(found: dict[str, dict]) -> str:
    """Markdown: every ratio of every subject, and the most it may be."""
    lines = ['| ratio | ' + ' | '.join(found) + ' | at most |']
    lines.append('|---' * (len(found) + 2) + '|')
    for key, limit in LIMITS.items():
        by_name = limit if isinstance(limit, dict) else dict.fromkeys(found, limit)
        cells = [_cell(one['ratios'][key], by_name.get(name)) for name, one in found.items()]
        most = ', '.join(f'{x:.3g}' for x in dict.fromkeys(by_name.values()))
        lines.append(f'| `{key}` | ' + ' | '.join(cells) + f' | {most} |')
    cells = [_seconds(one['seconds_per_request']) for one in found.values()]
    lines.append('| seconds per request, with evaluation | ' + ' | '.join(cells) + ' | |')
    return '\n'.join(lines) + '\n'


def _cell(value: float | None, most: float | None) -> str:
    if value is None:
        return ''
    text = f'{value:.2f}' if value >= 0.1 else f'{value:.4f}'
    # Merged and original are the same network, and no clock says exactly 1.
    return text if most is None or value <= most + 0.02 * (most == 1) else f'**{text}**'


def step_table(found: dict[str, dict]) -> str:
    """Markdown: milliseconds and memory of a step of each contender."""
    names = [OURS, *CONTENDERS]
    lines = ['| | ' + ' | '.join(names) + ' | batch | steps | zero groups |']
    lines.append('|---' * (len(names) + 4) + '|')
    for name, one in found.items():
        cells = [
            f'{1000 * one["step_seconds"][key]:.0f} ms, {one["peak_bytes"][key] / 2**20:.0f} MB'
            for key in names
        ]
        cells += [str(one['batch_size']), str(one['request_steps'])]
        cells.append(f'{one["zero_group_ratio"]:.2f}')
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _seconds(value: float | None) -> str:
    return '' if value is None else f'{value:.1f}'


def plot(found: dict[str, dict]) -> None:
    """A stacked bar per subject: the parts of a step of ours, in steps of fine-tuning."""
    height = max(3.2, 1.2 + 0.7 * len(found))  # the legend's, or a bar's for each
    figure, axis = plt.subplots(figsize=(10, height), layout='constrained')
    for row, one in enumerate(found.values()):
        length = (one['step_seconds']['data'] + one['step_seconds'][OURS]) / one['step_seconds'][
            'finetune'
        ]
        left = 0.0
        for number, part in enumerate(PARTS):
            width = one['parts'][part] * length
            label = part if row == 0 else None
            axis.barh(row, width, left=left, color=plt.cm.tab10(number), label=label)
            left += width
    axis.axvline(1, color='black', linewidth=0.8, linestyle=':')
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xlabel('one step of ours with its data, in steps of plain fine-tuning')
    figure.legend(loc='outside right center')
    figure.savefig(PLOT, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', nargs='+', choices=[*SUBJECTS, 'sequence'])
    parser.add_argument('--every', type=int, default=6, help='steps of a round, see race.py')
    args = parser.parse_args()
    wanted = args.only or [*SUBJECTS, 'sequence']
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = {MAIN: before, **before.pop('others', {})} if before else {}
    if MAIN not in wanted and not before:
        parser.error(f'{RESULTS.name} does not exist yet; measure {MAIN!r} first.')
    task20 = before.get('ratios', {}).get('task20_vs_task1')
    os.chdir(ROOT)  # configs name their data and checkpoints from here
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(DefaultScope.overwrite_default_scope('mmdet'))
        if 'sequence' in wanted:
            task20 = last_over_first(Path(folder))
        for name in SUBJECTS:
            if name in wanted:
                found[name] = measure(name, SUBJECTS[name], Path(folder), args.every)
                found[name]['machine'] = machine()
    found = {name: found[name] for name in SUBJECTS if name in found}
    found[MAIN]['ratios']['task20_vs_task1'] = task20
    main_numbers, others = found[MAIN], {k: v for k, v in found.items() if k != MAIN}
    write(
        'speed',
        dict(main_numbers, others=others),
        ratios=ratio_table(found),
        steps=step_table(found),
    )
    plot(found)
    print(ratio_table(found))


if __name__ == '__main__':
    main()
