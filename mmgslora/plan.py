"""What a forgetting run will take, before it begins: ``python -m mmgslora.plan CONFIG``.

Prints, for every task, its images, steps, seconds, and what it leaves on the disk. Nothing is
written; only a generated data set that is not there yet is made, as by the run itself.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import LOOPS, MODELS, DefaultScope
from mmengine.runner import Runner, TestLoop
from rich.table import Table

import mmgslora.register  # noqa: F401
from mmgslora.command import plain_ending
from mmgslora.errors import ForgettingError
from mmgslora.families.registry import family_of
from mmgslora.families.untrained import without_checkpoints
from mmgslora.methods.prototypes import Prototypes
from mmgslora.preflight.config import load_config
from mmgslora.preflight.options import Options
from mmgslora.preflight.work_dir import kept_checkpoints, nearest_there, size_of
from mmgslora.report.format import DASH, terminal

try:
    import resource
except ImportError:  # Windows
    resource = None

_TIMED_STEPS = 4
_NUMBER = 4  # bytes


@dataclass(frozen=True)
class TaskPlan:
    """What one task will take.

    Attributes:
        number: Of the task, from 1.
        forget: The classes to forget.
        forget_images, retain_images: Training images of the two views.
        steps: Training steps.
        seconds: Of all steps, at the pace of the first ones of the first task; None if not timed.
        evaluation: Seconds to predict the images that are measured on; None if not timed.
    """

    number: int
    forget: tuple[str, ...]
    forget_images: int
    retain_images: int
    steps: int
    seconds: float | None = None
    evaluation: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        tasks: Its tasks.
        task_bytes: What each task leaves: adapter and merged checkpoint, and the sealed one.
        resume_bytes: The checkpoints to resume from that are kept.
        memory: Most bytes that timing took, of the GPU or, without one, of the process; None if
            not timed.
        notes: What else there is to know, a sentence each.
    """

    tasks: list[TaskPlan]
    task_bytes: int
    resume_bytes: int
    memory: int | None = None
    notes: list[str] = field(default_factory=list)


@LOOPS.register_module()
class NoEvaluation(TestLoop):
    """Has the data to measure on, and measures nothing."""

    def run(self) -> dict[str, float]:
        return {}


def make_plan(cfg: Config, timed_steps: int = _TIMED_STEPS) -> Plan:
    """Work out what a forgetting run will take, with its own data, model and loop.

    Steps are timed in the first task, where every transformer block is at work; later ones are
    never slower. A model whose checkpoint is not at hand gets random weights, which cost the same.

    Args:
        cfg: The config of the run.
        timed_steps: How many steps are timed, after one that is not; 0 times nothing. Defaults
            to 4.

    Raises:
        ForgettingError: The config is not one of a forgetting run, or cannot be run.
    """
    if (cfg.get('train_cfg') or {}).get('type') != 'ContinualForgettingLoop':
        raise ForgettingError(
            f'The config {cfg.filename!r} does not forget anything: its train_cfg is not a '
            'ContinualForgettingLoop.'
        )
    disk = nearest_there(Path(cfg.get('work_dir') or '.'))  # which must have room for the run
    with (
        tempfile.TemporaryDirectory(dir=disk) as folder,
        DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')),
    ):
        quiet, notes = _rehearsal(cfg, Path(folder))
        runner = Runner.from_cfg(quiet)
        loop = runner.train_loop
        seconds = evaluation = memory = None
        images = []
        for number in range(1, len(loop.protocol) + 1):
            partition = loop.protocol.partition(number)
            loop.views.set_partition(partition)
            images.append((number, partition.forget, loop.views.num_forget, loop.views.num_retain))
        if timed_steps:
            seconds = _seconds_of_a_step(runner, timed_steps)
            evaluation = _seconds_of_a_prediction(runner) * len(loop.evaluation_loop.dataloader)
            memory = _peak_memory()
        task_bytes, resume_bytes = _disk(runner, cfg)
    tasks = [
        TaskPlan(*about, steps, seconds and steps * seconds, evaluation)
        for about, steps in zip(images, loop.steps_per_task)
    ]
    return Plan(tasks, task_bytes, resume_bytes, memory, notes)


def _rehearsal(cfg: Config, folder: Path) -> tuple[Config, list[str]]:
    """The config with all that is written in a folder, nothing measured, and weights to load."""
    cfg, notes = copy.deepcopy(cfg), []
    cfg.work_dir, cfg.experiment_name = str(folder), folder.name
    cfg.resume, cfg.launcher, cfg.log_level = False, 'none', 'ERROR'
    # Visualizers are kept by name: the run's own must not learn of this folder.
    cfg.visualizer = dict(type='Visualizer', name=folder.name, vis_backends=[])
    for split in ('val', 'test'):
        if cfg.get(f'{split}_cfg'):
            cfg[f'{split}_cfg'] = dict(type='NoEvaluation')
    hooks = cfg.get('custom_hooks') or []
    # Those that show images to the model before a task have no part in a step.
    cfg.custom_hooks = [x for x in hooks if 'Image' not in str(x['type'])]
    if cfg.get('load_from') and not Path(cfg.load_from).is_file():
        notes.append(
            f'The checkpoint to start from, {cfg.load_from!r}, is not on this disk: random '
            'weights were timed, and classes that it has forgotten already are not known.'
        )
        name = family_of(cfg.model).name
        plain = cfg.model[name] = ConfigDict(without_checkpoints(cfg.model[name]))
        cfg.load_from = str(folder / 'random.pth')
        model = MODELS.build(copy.deepcopy(plain))
        model.init_weights()
        torch.save(dict(state_dict=model.state_dict(), meta={}), cfg.load_from)
    return cfg, notes


class _Enough(Exception):
    """Ends a run whose first steps were all that was wanted."""


class _Pace(Hook):
    """Times the steps of a run, and ends the run after some."""

    priority = 'VERY_HIGH'

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: list[float] = []
        self._since = 0.0

    def before_train_epoch(self, runner) -> None:
        self._since = _now()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        at = _now()
        self.seconds.append(at - self._since)
        self._since = at
        if len(self.seconds) > self.steps:
            raise _Enough

    def before_merge(self, runner) -> None:
        raise _Enough  # the task has fewer steps than that


def _seconds_of_a_step(runner: Runner, steps: int) -> float:
    """The median of some first steps with their batches; the very first does not count."""
    loop = runner.train_loop
    # What a method does before a task, it does with few images, or without any.
    images = (steps + 1) * (loop.dataloader.batch_size or 1)
    loop.views.data_ratio = min(loop.views.data_ratio, images / len(loop.views.base))
    loop.views.min_images = 1
    for part in loop.model.method.parts:
        if isinstance(part, Prototypes):
            part.source, part.file = 'head', None
    pace = _Pace(steps)
    runner.register_hook(pace)
    with contextlib.suppress(_Enough):
        runner.train()
    return median(pace.seconds[1:] or pace.seconds)


@torch.no_grad()
def _seconds_of_a_prediction(runner: Runner) -> float:
    """Seconds of one batch of the data to measure on, the second time."""
    runner.model.eval()
    batch = next(iter(runner.train_loop.evaluation_loop.dataloader))
    for _ in range(2):
        since = _now()
        runner.model.test_step(copy.deepcopy(batch))
    return _now() - since


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_memory() -> int | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak


def _disk(runner: Runner, cfg: Config) -> tuple[int, int]:
    """Bytes that each task leaves, and bytes of the checkpoints to resume from."""
    loop, model = runner.train_loop, runner.train_loop.model
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad) * _NUMBER
    plain, whole = (size_of(x) for x in (model.tune.plain_state_dict(), model.state_dict()))
    kept = kept_checkpoints(cfg, loop.max_epochs)
    # The second term are Adam's two moments.
    return learned + plain * (2 if loop.seal else 1), kept * (whole + 2 * learned)


def plan_table(plan: Plan) -> Table:
    """One row per task, and their sum."""
    table = Table(title='What each task will take', title_justify='left')
    table.add_column('task', justify='right')
    table.add_column('to forget')
    for header in ('forget\nimages', 'retain\nimages', 'steps', 'training', 'prediction', 'disk'):
        table.add_column(header, justify='right')
    for task in plan.tasks:
        table.add_row(
            str(task.number),
            ', '.join(task.forget),
            f'{task.forget_images:,}',
            f'{task.retain_images:,}',
            f'{task.steps:,}',
            _duration(task.seconds),
            _duration(task.evaluation),
            _size(plan.task_bytes),
        )
    table.add_section()
    table.add_row(
        '', 'all', '', '',
        f'{sum(task.steps for task in plan.tasks):,}',
        _duration(_sum([task.seconds for task in plan.tasks])),
        _duration(_sum([task.evaluation for task in plan.tasks])),
        _size(len(plan.tasks) * plan.task_bytes),
    )  # fmt: skip
    return table


def plan_lines(plan: Plan) -> list[str]:
    """What stands below the table."""
    lines = [f'Checkpoints to resume from: {_size(plan.resume_bytes)} of disk.']
    if plan.memory is not None:
        where = 'the GPU' if torch.cuda.is_available() else 'the process'
        lines.append(f'Memory of {where} in the steps that were timed: {_size(plan.memory)}.')
    if plan.tasks[0].seconds is not None:
        lines.append(
            'Training is at most this, at the pace of the first steps on this machine as it is '
            'now. Not counted: start-up, prototypes, loading and scoring the images to measure '
            'on, drawing.'
        )
    return lines + plan.notes


def _sum(values: list[float | None]) -> float | None:
    return None if None in values else sum(values)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    if seconds < 120:
        return f'{seconds:.1f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


def _size(number: int) -> str:
    return f'{number / 1e9:.1f} GB' if number >= 1e9 else f'{number / 1e6:.1f} MB'


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m mmgslora.plan', description=__doc__)
    parser.add_argument('config', help='config file of a forgetting run')
    parser.add_argument('--no-timing', action='store_true', help='run no step')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        help='override settings of the config, as for tools/train.py',
    )
    args = parser.parse_args(arguments)
    cfg = load_config(args.config, options=args.cfg_options)
    with contextlib.redirect_stdout(io.StringIO()):  # what data sets and Runner have to say
        plan = make_plan(cfg, 0 if args.no_timing else _TIMED_STEPS)
    console = terminal()
    console.print(plan_table(plan))
    for line in plan_lines(plan):
        console.print(line)


if __name__ == '__main__':
    with plain_ending():
        main()
