"""Evaluate a checkpoint: the flags of MMDetection's tools/test.py that a forgetting run needs.

Takes a detector's config with a plain checkpoint, or a forgetting config with a plain, a merged or
a training checkpoint. With a forgetting config, --task says which task's classes count as
forgotten, retained and old. With --forget-eval the second argument is no checkpoint but the result
file that MMDetection's own tools/test.py wrote with --out; it is only regrouped.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmgslora.command import plain_ending
from mmgslora.datasets.protocol import Protocol, category_ids_of
from mmgslora.errors import ForgettingError
from mmgslora.loading import read_checkpoint, read_results
from mmgslora.preflight import Plan
from mmgslora.preflight.checkpoint import forgotten_in
from mmgslora.preflight.config import add_config_arguments, load_config
from mmgslora.processes import join_processes, leave_processes
from mmgslora.requests.measure import build_runner, testing_config


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser, work_dir='folder for logs; by default test/ below the run')
    parser.add_argument('checkpoint', help='checkpoint file, or result file (.pkl)')
    parser.add_argument('--forget-eval', action='store_true', help='regroup a result file')
    parser.add_argument('--task', type=int, help='forgetting task, from 1; the last by default')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    with plain_ending(args.debug):
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        test(args)


def test(args: argparse.Namespace) -> None:
    """Evaluate the checkpoint, or regroup the result file."""
    cfg = load_config(args.config, args.work_dir, args.cfg_options)
    cfg.launcher = args.launcher
    # Before anything is written: what is read must be what it is said to be.
    read = (read_results if args.forget_eval else read_checkpoint)(args.checkpoint)
    if args.work_dir is None:
        # MMEngine writes the config there: a finished run's own must stay as it is.
        cfg.work_dir = str(Path(cfg.work_dir) / 'test')
    cfg.load_from = None if args.forget_eval else args.checkpoint
    settings = (cfg.get('train_cfg') or {}).get('protocol')
    if args.task is not None and settings is None:
        raise ForgettingError(f'--task needs a forgetting config; {args.config!r} has no protocol.')
    cfg = testing_config(cfg)
    partition = None
    if settings is not None:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            dataset = Plan(cfg).dataset('test')
        ids = category_ids_of(dataset)
        protocol = Protocol(dataset.metainfo['classes'], category_ids=ids, **settings)
        if not args.forget_eval:  # what was gone before the first task is old in every task
            asked = {name for task in protocol.tasks for name in task}
            protocol.forgotten = tuple(name for name in forgotten_in(read) if name not in asked)
        partition = protocol.partition(len(protocol) if args.task is None else args.task)
    join_processes(cfg)
    runner = build_runner(cfg)
    if partition is not None:
        partition.publish()
    if args.forget_eval:
        for name, value in regroup(runner, read, args.checkpoint).items():
            print(f'{name}: {value:.4f}')
    else:
        runner.test()


def regroup(runner: Runner, predictions: Sequence[Mapping], results: str) -> dict[str, float]:
    """Metrics of a result file of MMDetection's tools/test.py, on the test data of the config."""
    if not (isinstance(predictions, Sequence) and all('img_id' in p for p in predictions)):
        raise ForgettingError(f'{results!r} holds no results of images; make it with --out.')
    dataset = runner.test_loop.dataloader.dataset
    known = {dataset.get_data_info(i)['img_id'] for i in range(len(dataset))}
    foreign = [p['img_id'] for p in predictions if p['img_id'] not in known]
    if foreign or len(predictions) != len(known):
        raise ForgettingError(
            f'{results!r} holds results of {len(predictions)} images, {len(foreign)} of them '
            f'unknown here; the test data of the config are {len(known)} images, and a result '
            'file must hold just these.'
        )
    return runner.test_loop.evaluator.offline_evaluate(predictions)


if __name__ == '__main__':
    main()
    leave_processes()
