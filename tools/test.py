"""Evaluate a checkpoint: the flags of MMDetection's tools/test.py that a forgetting run needs.

Takes a detector's config with a plain checkpoint, or a forgetting config with a plain, a merged or
a training checkpoint. With a forgetting config, --task says which task's classes count as
forgotten, retained and old. With --forget-eval the second argument is no checkpoint but the result
file that MMDetection's own tools/test.py wrote with --out; it is only regrouped.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mmengine.config import DictAction
from mmengine.fileio import load
from mmengine.runner import Runner
from train import load_config

from mmgslora.datasets.protocol import Protocol, category_ids_of
from mmgslora.engine.start_check import forgotten_in
from mmgslora.errors import ForgettingError
from mmgslora.requests.measure import build_runner, testing_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or result file (.pkl)')
    parser.add_argument('--forget-eval', action='store_true', help='regroup a result file')
    parser.add_argument('--task', type=int, help='forgetting task, from 1; the last by default')
    parser.add_argument('--work-dir', help='folder for logs; by default test/ below the run')
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
    if args.work_dir is None:
        # MMEngine writes the config there: a finished run's own must stay as it is.
        cfg.work_dir = str(Path(cfg.work_dir) / 'test')
    cfg.load_from = None if args.forget_eval else args.checkpoint
    protocol = cfg.train_cfg.get('protocol')
    runner = build_runner(testing_config(cfg))
    if protocol is not None:
        dataset = runner.test_loop.dataloader.dataset
        ids = category_ids_of(dataset)
        protocol = Protocol(dataset.metainfo['classes'], category_ids=ids, **protocol)
        if not args.forget_eval:  # what was gone before the first task is old in every task
            asked = {name for task in protocol.tasks for name in task}
            earlier = [name for name in forgotten_in(args.checkpoint) if name not in asked]
            protocol.forgotten = tuple(earlier)
        protocol.partition(args.task or len(protocol)).publish()
    if args.forget_eval:
        for name, value in regroup(runner, args.checkpoint).items():
            print(f'{name}: {value:.4f}')
    else:
        runner.test()


def regroup(runner: Runner, results: str) -> dict[str, float]:
    """Metrics of a result file of MMDetection's tools/test.py, on the test data of the config."""
    if not Path(results).is_file():
        raise ForgettingError(
            f'Result file {results!r} does not exist; make it with --out of tools/test.py.'
        )
    predictions = load(results)
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
    try:
        main()
    except ForgettingError as error:
        sys.exit(f'error: {error}')
