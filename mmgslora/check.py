"""Say what keeps a config from running, all of it, and write nothing.

python -m mmgslora.check CONFIG [--work-dir DIR] [--resume] [--check-data] [--cfg-options ...]
"""

from __future__ import annotations

import argparse
import sys

import mmgslora.register  # noqa: F401  the classes that configs name
from mmgslora.command import plain_ending
from mmgslora.errors import ForgettingError
from mmgslora.preflight import examine
from mmgslora.preflight.config import add_config_arguments, load_config
from mmgslora.preflight.resume import resume_in


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('python -m mmgslora.check', description=__doc__.split('\n')[0])
    add_config_arguments(parser)
    parser.add_argument('--resume', nargs='?', const='auto', help='as for tools/train.py')
    parser.add_argument('--check-data', action='store_true', help='open every image')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command; it exits with 1 where there is a problem.

    Args:
        arguments: Those of the command line by default.
    """
    args = parse_args(arguments)
    with plain_ending(args.debug):
        cfg = load_config(args.config, args.work_dir, args.cfg_options)
        restart = resume_in(cfg, args.resume)
        plan = examine(cfg, restart, args.check_data)
        if not plan.forgets:
            raise ForgettingError(
                f'{args.config!r} is no forgetting run: train_cfg.type is '
                f'{(cfg.get("train_cfg") or {}).get("type")!r} and not ContinualForgettingLoop.'
            )
        for note in plan.notes:
            print(f'note: {note}')
        if plan.sentences:
            raise ForgettingError('\n'.join(plan.sentences)) from plan.error
        print(f'{args.config} can run in {cfg.work_dir}.')


if __name__ == '__main__':
    sys.exit(main())
