"""The ledger of a run: every request that was forgotten, taken back, sealed or exported.

show WORK_DIR               its lines
verify WORK_DIR             recompute everything; the first line that does not fit is named
    --head HASH             what the last line's hash must be, from where you kept it
    --base FILE             the original model, if it is not where it was
"""

from __future__ import annotations

import argparse

import mmgslora.register  # noqa: F401  the families are known
from mmgslora.command import plain_ending
from mmgslora.errors import ForgettingError
from mmgslora.requests import Ledger, verify


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('command', choices=['show', 'verify'])
    parser.add_argument('work_dir', help='folder of the run, with ledger.jsonl')
    parser.add_argument('--head', help='the hash that the last line must have')
    parser.add_argument('--base', help='the original model')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.command == 'verify':
        for line in verify(args.work_dir, args.head, args.base):
            print(line)
        return
    ledger = Ledger(args.work_dir)
    if not ledger.entries:
        raise ForgettingError(f'There is no {str(ledger.path)!r}; give the folder of a run.')
    for entry in ledger.entries:
        request = f' request {entry["task"]}' if 'task' in entry else ''
        print(
            f'{entry["number"]}  {entry["time"]}  {entry["event"]}{request}: '
            f'{", ".join(entry["classes"])}'
        )
    print(f'Head: {ledger.head}')


if __name__ == '__main__':
    with plain_ending():
        main()
