"""Evaluate a checkpoint: the flags of MMDetection's tools/test.py that a forgetting run needs.

Takes a detector's config with a plain checkpoint, or a forgetting config with a plain, a merged or
a training checkpoint. With a forgetting config, --task says which task's classes count as
forgotten, retained and old.
"""

from __future__ import annotations

import argparse
import os
import sys

from mmengine.config import DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from train import load_config

from mmgslora.datasets.protocol import Protocol, category_ids_of
from mmgslora.errors import ForgettingError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--task', type=int, help='forgetting task, from 1; the last by default')
    parser.add_argument('--work-dir', help='folder for logs')
    parser.add_argument('--amp', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    args.auto_scale_lr, args.resume = False, None
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    # A test must not meet the training side: no adapters are written, no loop is built.
    cfg.custom_hooks = []
    protocol = cfg.train_cfg.get('protocol')
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        cfg[key] = None
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if protocol is not None:
        dataset = runner.test_loop.dataloader.dataset
        ids = category_ids_of(dataset)
        protocol = Protocol(dataset.metainfo['classes'], category_ids=ids, **protocol)
        protocol.partition(args.task or len(protocol)).publish()
    runner.test()


if __name__ == '__main__':
    try:
        main()
    except ForgettingError as error:
        sys.exit(f'error: {error}')
