"""What becomes of a request after its training: look into adapters, merge, take back, hand out.

  show WORK_DIR | ADAPTER         groups, norms and sizes
  merge WORK_DIR --out FILE       the original with the requests in force (up to --through K)
  add ADAPTER CHECKPOINT --out FILE   a copy of the base with one adapter merged in
  revoke WORK_DIR K               the model without request K, measured and recorded
  export WORK_DIR --out FILE      what is handed out: plain, torchvision or ONNX; --seal, --final

An adapter kept beside its base only hides a class: leave the adapter off, and the class is back.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config
from rich.table import Table

import mmgslora.register  # noqa: F401  the families are known
from mmgslora.command import plain_ending
from mmgslora.errors import ForgettingError
from mmgslora.lora.folder import weights_of
from mmgslora.lora.stored import StoredAdapter
from mmgslora.report.format import terminal
from mmgslora.requests import RequestSequence, add, contents, export, merge, revoke
from mmgslora.requests.contents import held_whole, weight_file_size
from mmgslora.requests.export import FORMS, HIDES, files_to_destroy


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    of_run = argparse.ArgumentParser(add_help=False)
    of_run.add_argument('work_dir', help='folder of the run, with forgetting.json')
    of_run.add_argument('--base', help='the original model, if it is not where it was')
    of_run.add_argument('--config', help="the run's config; by default the one in the work_dir")
    writes = argparse.ArgumentParser(add_help=False)
    writes.add_argument('--out', required=True, help='file to write')

    shown = commands.add_parser('show', help='groups, norms and sizes')
    shown.add_argument('folder', help='a work_dir or an adapter folder')
    merged = commands.add_parser('merge', parents=[of_run, writes], help='merge the requests')
    merged.add_argument('--through', type=int, help='the last request to merge; default: all')
    added = commands.add_parser('add', parents=[writes], help='merge one adapter into its base')
    added.add_argument('adapter', help='an adapter folder')
    added.add_argument('checkpoint', help='the plain checkpoint that it was trained on')
    revoked = commands.add_parser('revoke', parents=[of_run], help='take a request back')
    revoked.add_argument('request', type=int, help='its number, from 1')
    exported = commands.add_parser('export', parents=[of_run, writes], help='hand the model out')
    exported.add_argument('--form', choices=FORMS, default='checkpoint')
    exported.add_argument('--seal', action='store_true', help='the head cannot name what is gone')
    exported.add_argument('--final', action='store_true', help='list what must be destroyed')
    exported.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='image size, for ONNX'
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.command == 'show':
        show(Path(args.folder))
    elif args.command == 'add':
        print(add(StoredAdapter.read(args.adapter), args.checkpoint, args.out))
        print(HIDES)
    else:
        of_sequence(args)


def of_sequence(args: argparse.Namespace) -> None:
    sequence = RequestSequence(args.work_dir, args.base)
    cfg = Config.fromfile(args.config) if args.config else None
    if args.command == 'merge':
        through = sequence.tasks[-1] if args.through is None else args.through
        if through not in sequence.tasks:
            raise ForgettingError(
                f'--through is {through}; the run has the requests {_numbers(sequence.tasks)}.'
            )
        print(merge(sequence, [task for task in sequence.in_force if task <= through], args.out))
        print(HIDES)
    elif args.command == 'revoke':
        entry = revoke(sequence, args.request, cfg)
        print(
            f'{sequence.work_dir / entry["files"]["merged"]["path"]}: {", ".join(entry["classes"])}'
            f' are named again; requests in force: {_numbers(entry["in_force"])}.'
        )
        for name, value in entry['metrics'].items():
            if '/' not in name and value is not None:
                print(f'{name}: {value:.2f}')
        original = sequence.run.record['pretrained'].get('per_class') or {}
        for name in entry['classes']:
            values = entry['metrics'].get(f'per_class/{name}'), original.get(name)
            now, before = ('unknown' if v is None else f'{v:.2f}' for v in values)
            print(f'{name}: {now}, before any forgetting {before}')
    else:
        print_export(sequence, args, cfg)


def print_export(sequence: RequestSequence, args: argparse.Namespace, cfg: Config | None) -> None:
    entry = export(sequence, args.out, args.form, args.seal, args.final, args.size, cfg)
    print(f'{args.out}: requests {_numbers(entry["in_force"])}, {entry["form"]}.')
    if args.seal:
        print('Sealed: its head cannot name a forgotten class. That is no evidence of forgetting.')
    print(HIDES)
    if args.final:
        print('To fulfil the requests, destroy, with every copy and backup of it:')
        for path, why in files_to_destroy(sequence, args.seal).items():
            print(f'  {path}: {why}')
        print('and the training images of the classes where the request covers them.')


def show(folder: Path) -> None:
    console = terminal()
    if (folder / 'forgetting.json').is_file():
        console.print(_requests(RequestSequence(folder)))
        console.print(HIDES)
    elif (folder / weights_of(folder)).is_file():
        console.print(_groups(StoredAdapter.read(folder)))
    else:
        raise ForgettingError(
            f'{str(folder)!r} is neither the work_dir of a run, with forgetting.json, nor the '
            'folder of an adapter, such as WORK_DIR/adapters/task_01.'
        )


def _requests(sequence: RequestSequence) -> Table:
    table = Table(title=f'Requests of {os.path.relpath(sequence.work_dir)}')
    for column in ('request', 'forgets', 'state', 'groups', 'norm of sBA', 'bytes', 'of the model'):
        table.add_column(column)
    for place, task in enumerate(sequence.tasks):
        adapter = sequence.adapter(task)
        groups, whole = contents(adapter), held_whole(adapter).values()
        tensors, numbers = map(sum, zip((0, 0), *whole))
        changed = f'{sum(group.norm_b > 0 for group in groups)}/{len(groups)}'
        size = weight_file_size(adapter)
        model = sequence.work_dir / sequence.merged(place)
        table.add_row(
            str(task),
            ', '.join(sequence.classes([task])),
            'taken back' if task in sequence.taken_back else 'in force',
            changed if groups else f'{tensors} tensors, {numbers:,} numbers',
            f'{sum(group.norm_update**2 for group in groups) ** 0.5:.3f}' if groups else '',
            f'{size:,}',
            f'{100 * size / model.stat().st_size:.2f} %' if model.is_file() else '',
        )
    return table


def _groups(adapter: StoredAdapter) -> Table:
    metadata = adapter.metadata
    classes = ', '.join(metadata.get('classes') or []) or 'unknown'
    table = Table(title=f'{adapter.folder}: task {metadata.get("task", "?")}, forgets {classes}')
    for column in ('group', 'layers', 'norm of B', 'norm of sBA', 'numbers'):
        table.add_column(column)
    for group in contents(adapter):
        table.add_row(
            group.name,
            f'{group.kept}/{group.layers}',
            f'{group.norm_b:.3f}' if group.kept else 'zero',
            f'{group.norm_update:.3f}' if group.kept else 'zero',
            f'{group.parameters:,}',
        )
    for name, (tensors, numbers) in held_whole(adapter).items():
        what = f'{name or "trained themselves"} ({tensors} tensors, whole)'
        table.add_row(what, '', '', '', f'{numbers:,}')
    base, result = (str(metadata.get(key) or 'unknown')[:12] for key in ('base', 'result'))
    table.caption = f'{weight_file_size(adapter):,} bytes; base {base}, result {result}'
    return table


def _numbers(tasks: list[int]) -> str:
    return ', '.join(map(str, tasks)) or 'none'


if __name__ == '__main__':
    with plain_ending():
        main()
