"""Train a detector, or make it forget: the flags of MMDetection's tools/train.py."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from mmengine.config import Config

import mmgslora  # noqa: F401  puts compat in place
from mmgslora.command import plain_ending
from mmgslora.errors import ForgettingError
from mmgslora.preflight import prepare
from mmgslora.preflight.config import add_config_arguments, load_config
from mmgslora.preflight.plan import reason
from mmgslora.preflight.resume import checkpoints_in, resume_in
from mmgslora.preflight.work_dir import LOCK
from mmgslora.processes import join_processes, leave_processes
from mmgslora.requests import continued_config
from mmgslora.requests.measure import build_runner


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or from the latest one in the work_dir',
    )
    parser.add_argument(
        '--continue-from', metavar='WORK_DIR', help='serve one more request on a finished run'
    )
    parser.add_argument('--forget', nargs='+', default=[], help='its classes')
    parser.add_argument('--check-data', action='store_true', help='open every image first')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(arguments)
    if args.continue_from and (args.work_dir or args.resume):
        parser.error('--continue-from goes on in its own WORK_DIR: leave --work-dir, --resume out')
    if args.forget and not args.continue_from:
        parser.error('--forget needs --continue-from; a first request is train_cfg.protocol.tasks')
    return args


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Put what the flags ask for into the config."""
    cfg.launcher = args.launcher
    if args.amp and isinstance(cfg.get('optim_wrapper'), dict):
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ForgettingError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config.'
            )
        cfg.auto_scale_lr.enable = True


def how_to_go_on(cfg: Config, args: argparse.Namespace) -> str:
    """The line for a run that was stopped: what is saved, and the command that goes on."""
    asked = args.resume or args.continue_from  # which goes on by itself
    if args.launcher == 'none':
        how = f'with: {shlex.join(["python", *sys.argv])}{"" if asked else " --resume"}'
    else:  # what started the processes is not known here
        how = f'with the command that started all processes{"" if asked else ", and --resume"}'
    saved = checkpoints_in(cfg.work_dir)
    what = f'{saved[0]} is saved' if saved else 'No checkpoint was saved yet'
    return f'Stopped. {what}; go on {how}'


def what_happened(error: Exception, cfg: Config, args: argparse.Namespace) -> list[str]:
    """Sentences on an error of another library in the middle of a run."""
    begun = checkpoints_in(cfg.work_dir) or Path(cfg.work_dir, LOCK).is_file()
    # What has left nothing behind is started again as it was, once its mistake is mended.
    return [
        f'{reason(error)} (--debug shows where).',
        *([how_to_go_on(cfg, args)] if begun else []),
    ]


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    with plain_ending(args.debug):
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        cfg = load_config(args.config, args.work_dir, args.cfg_options)
        apply_flags(cfg, args)
        restart = resume_in(cfg, args.resume)
        if args.continue_from:
            cfg = continued_config(args.continue_from, args.forget, cfg)
    with plain_ending(
        args.debug,
        lambda: how_to_go_on(cfg, args),
        lambda error: what_happened(error, cfg, args),
    ):
        join_processes(cfg)
        for note in prepare(cfg, restart, args.check_data).notes:
            print(f'note: {note}')
        build_runner(cfg).train()


if __name__ == '__main__':
    main()
    leave_processes()
