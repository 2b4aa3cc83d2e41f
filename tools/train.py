"""Train a detector, or make it forget: the flags of MMDetection's tools/train.py."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

import mmgslora  # noqa: F401  puts compat in place
from mmgslora.engine.start_check import check_start
from mmgslora.errors import ForgettingError
from mmgslora.requests import continued_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and results')
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
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, e.g. train_cfg.epochs_per_task=2',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    if args.continue_from and (args.work_dir or args.resume):
        parser.error('--continue-from goes on in its own WORK_DIR: leave --work-dir, --resume out')
    if args.forget and not args.continue_from:
        parser.error('--forget needs --continue-from; a first request is train_cfg.protocol.tasks')
    return args


def load_config(args: argparse.Namespace) -> Config:
    """The config file with the command line's wishes merged in."""
    if not Path(args.config).is_file():
        raise ForgettingError(f'Config {args.config!r} does not exist.')
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ForgettingError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        # Killed before its first checkpoint, a run starts again from load_from.
        cfg.resume = True
        if find_latest_checkpoint(cfg.work_dir) is not None:
            cfg.load_from = None
        else:
            cfg.resume = False
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    return cfg


def start_on_cpu(cfg: Config) -> None:
    """Join the other processes where there is no accelerator: MMEngine would pick a GPU each."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=True,
    )


def leave_group() -> None:
    """End this process of several: all are done, nothing is left to be written."""
    if not torch.distributed.is_initialized():
        return
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if get_device() == 'cpu':
        # Threads of gloo may outlive the group, and an abort at exit would fail a run that is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args)
    if args.continue_from:
        cfg = continued_config(args.continue_from, args.forget, cfg)
    if args.launcher == 'pytorch' and get_device() == 'cpu':
        start_on_cpu(cfg)
    check_start(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.train()


if __name__ == '__main__':
    try:
        main()
    except ForgettingError as error:
        sys.exit(f'error: {error}')
    leave_group()
