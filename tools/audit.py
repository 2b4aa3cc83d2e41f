"""Audit a finished forgetting run: are the classes gone, or only hidden?

Measures the last task's merged model (or another task's), the original and, if given, the oracle,
a model of the same config trained without the forgotten classes. Everything goes into
WORK_DIR/audit.json after each step; an audit that was stopped goes on where it was. The config of
the run is executed, as in training.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope

import mmgslora.register  # noqa: F401  puts compat in place
from mmgslora.audit.measures import MEASURES, Audit, Settings
from mmgslora.audit.record import AuditRecord
from mmgslora.audit.rows import HEAD_ONLY, ORACLE, ORIGINAL, UNLEARNED, UNSEEN, is_oracle
from mmgslora.audit.table import audit_lines, audit_table
from mmgslora.audit.verdict import limits_of
from mmgslora.command import plain_ending
from mmgslora.errors import ForgettingError
from mmgslora.families import family_of
from mmgslora.families.audited_model import AuditedModel, Images, same_inside, without_rows
from mmgslora.families.checkpoint import class_names, without_extras
from mmgslora.loading import read_checkpoint
from mmgslora.records.finished_run import FinishedRun, find_file, sha256
from mmgslora.records.record import mean_before, merged_file, values_before
from mmgslora.records.schema import Audit as AuditFile
from mmgslora.records.schema import read_json
from mmgslora.report.format import terminal

_UNSEEN_PARTS = ('train', 'held_out')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='work_dir of a finished forgetting run')
    parser.add_argument(
        '--oracle',
        nargs='+',
        default=[],
        help='checkpoint of the model trained without the classes, or those of several trainings',
    )
    parser.add_argument(
        '--unseen',
        metavar='CONFIG',
        help='where there is no oracle: a config whose unseen.train and unseen.held_out are data '
        'sets of other classes, under the labels of the forgotten ones',
    )
    parser.add_argument('--base', help='the original model, if it is not where it was')
    parser.add_argument('--task', type=int, help='forgetting task, from 1; the last by default')
    parser.add_argument('--seeds', type=int, nargs='+', help='repetitions; 0 1 2 by default')
    parser.add_argument(
        '--measures',
        nargs='+',
        default=list(MEASURES),
        help=f'{" ".join(MEASURES)}, or of relearning one number of images, relearning/k16',
    )
    parser.add_argument(
        '--models',
        nargs='+',
        metavar='MODEL',
        help="measure these alone, 'unlearned', 'original', 'oracle', 'oracle 2', ...; all by "
        'default. A verdict needs unlearned and a reference',
    )
    parser.add_argument(
        '--known',
        nargs='+',
        default=[],
        metavar='AUDIT',
        help='audit.json of other runs: what they measured of the same models, such as original '
        'and oracle, on the same data with the same settings is taken from there',
    )
    parser.add_argument(
        '--head-only',
        action='store_true',
        help='measure a control too: the original without the rows of the classes, nothing trained',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help="override the config's audit settings, e.g. relearning_lr=1e-4",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    run = FinishedRun(args.work_dir)
    task = _task(run, args.task)
    unseen = _unseen(args.unseen) if args.unseen else None
    if run.config_path is None:
        raise ForgettingError(
            f'{args.work_dir!r} holds no config (one .py file) that says what was trained on what; '
            'put the config of the run there.'
        )
    cfg = Config.fromfile(run.config_path)
    settings = _settings(cfg.get('audit'), args.cfg_options, args.seeds)
    paths = _paths(run, task, args.oracle, args.base)
    files = {role: dict(path=str(path), sha256=sha256(path)) for role, path in paths.items()}
    _check_files(run, task, files)
    files['config'] = dict(path=str(run.config_path), sha256=sha256(run.config_path))
    if args.unseen:
        files[UNSEEN] = dict(path=args.unseen, sha256=sha256(Path(args.unseen)))
    if args.head_only:
        files[HEAD_ONLY] = files[ORIGINAL]
    gone = [*task['old'], *task['forget']]
    for path in args.known:
        if not Path(path).is_file() or not read_json(Path(path), AuditFile).get('units'):
            raise ForgettingError(
                f'--known {path!r} is no audit.json, which holds what it measured.'
            )
    limits, path = limits_of(run.thresholds), run.work_dir / 'audit.json'
    data = _data(cfg, run, task)
    record = AuditRecord(
        path, run.record, task, files, settings, limits, data, args.known, run.unfit
    )
    audit = _audit(cfg, paths, run, task, files, settings, unseen)
    console = terminal()

    def measure(unit: str, model: str) -> None:
        if record.has(unit, model):
            return
        started = time.perf_counter()
        rows = audit.measure(unit, model, record.rate(unit, model))
        if unit == 'output' and is_oracle(model):
            before = mean_before(run.record, gone, gone=True)
            _check_oracle(rows, str(paths[model]), audit, before)
        record.nearest = audit.nearest or record.nearest
        record.add(unit, model, rows, time.perf_counter() - started)
        console.print(f'{unit} of {model}: {record.units[f"{unit}:{model}"]["seconds"]} s')

    asked = args.models or list(audit.models)
    if unknown := [model for model in asked if model not in audit.models]:
        raise ForgettingError(
            f'--models {unknown[0]!r} is not in this audit; there are {", ".join(audit.models)}.'
        )
    # The output comes with every audit: no verdict without it.
    for unit, model in audit.units(['output', *args.measures]):
        if model in asked:
            measure(unit, model)
    for unit, model in record.further_draws(asked):
        measure(unit, model)
    record.write()
    console.print(audit_table(record))
    for line in audit_lines(record):
        console.print(line)
    console.print(f'Results: {record.path}')


def _task(run: FinishedRun, number: int | None) -> dict:
    numbers = [task['task'] for task in run.tasks]
    if number is not None and number not in numbers:
        raise ForgettingError(
            f'--task is {number}; {str(run.work_dir)!r} has finished task'
            f'{"s" if len(numbers) > 1 else ""} {", ".join(map(str, numbers))}.'
        )
    return run.tasks[-1 if number is None else numbers.index(number)]


def _settings(
    config: Mapping | None, overrides: Mapping | None, seeds: Sequence[int] | None
) -> Settings:
    """The config's ``audit`` over the defaults, the command line over both."""
    wishes = {**(config or {}), **(overrides or {}), **({'seeds': seeds} if seeds else {})}
    known = [field.name for field in fields(Settings)]
    unknown = [name for name in wishes if name not in known]
    if unknown:
        raise ForgettingError(
            f'The audit has no setting {unknown[0]!r}; allowed are {", ".join(known)}.'
        )
    return replace(Settings(), **wishes)


def _paths(
    run: FinishedRun, task: Mapping, oracles: Sequence[str], base: str | None
) -> dict[str, Path]:
    original = base or run.original
    if original is None:
        raise ForgettingError(
            f'The record in {str(run.work_dir)!r} names no original model (load_from), which the '
            'audit compares with; name it with --base.'
        )
    wanted = {UNLEARNED: merged_file(task['task']), ORIGINAL: original}
    for number, path in enumerate(oracles, 1):
        wanted[ORACLE if number == 1 else f'{ORACLE} {number}'] = path
    found = {role: find_file(path, run.work_dir) for role, path in wanted.items()}
    for role, path in found.items():
        if path is None:
            raise ForgettingError(
                f'The {"forgotten" if role == UNLEARNED else role} model {wanted[role]!r} does not '
                'exist; a relative path starts in the work_dir or in the current folder'
                f'{", and --base names another file" if role == ORIGINAL else ""}.'
            )
    return found


def _check_files(run: FinishedRun, task: Mapping, files: Mapping[str, Mapping]) -> None:
    """Refuse files that are not those of the run."""
    recorded = (task.get('merged') or {}).get('sha256')
    if recorded not in (None, files[UNLEARNED]['sha256']):
        raise ForgettingError(
            f'{merged_file(task["task"])!r} in {str(run.work_dir)!r} was changed after the run had '
            'measured it: its hash is not that of forgetting.json; put the file of the run back.'
        )
    if run.record.get('original_sha256') not in (None, files[ORIGINAL]['sha256']):
        raise ForgettingError(
            f'{files[ORIGINAL]["path"]!r} is not the original that the run began with: its hash is '
            'not that of forgetting.json; name the file with --base.'
        )


def _data(cfg: Config, run: FinishedRun, task: Mapping) -> str:
    """Hash of all that an audit reads from a config: what it must be, to be the same audit."""
    family = family_of(cfg.model)
    loader, train = cfg[f'{run.split}_dataloader'], cfg.train_dataloader.dataset.dataset
    seen = family.images.seen_through
    held_out = dict(data=loader.dataset, evaluator=cfg[f'{run.split}_evaluator'])
    parts = dict(
        model=cfg.model[family.name],
        train={name: train[name] for name in train if name != seen},  # seen as the held-out ones
        held_out=dict(held_out, batch_size=loader.batch_size),
        missing=task.get('missing'),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _audit(
    cfg: Config,
    paths: Mapping[str, Path],
    run: FinishedRun,
    task: Mapping,
    files: Mapping[str, Mapping],
    settings: Settings,
    new_data: Mapping | None,
) -> Audit:
    MMLogger.get_instance('audit', log_level='ERROR')
    DefaultScope.get_instance('audit', scope_name=cfg.get('default_scope') or 'mmengine')
    family = family_of(cfg.model)
    # As the run measures: with another batch size or padding the numbers would be others.
    loader, evaluator = cfg[f'{run.split}_dataloader'], cfg[f'{run.split}_evaluator']
    size, seen_through = loader.batch_size, loader.dataset.get(family.images.seen_through)
    held_out = family.images(loader.dataset, batch_size=size, evaluator=evaluator)
    train = family.images(cfg.train_dataloader.dataset.dataset, seen_through, size)
    plain = cfg.model[family.name]
    models = {
        role: family.audited(_load(plain, path, role, train), train.classes, config=plain)
        for role, path in paths.items()
    }
    labels = [train.classes.index(name) for name in [*task['old'], *task['forget']]]
    missing = [train.classes.index(name) for name in task.get('missing') or []]
    _check_subjects(models, paths, labels)
    if HEAD_ONLY in files:
        models[HEAD_ONLY] = without_rows(models[ORIGINAL], labels)
    known = _known(run, task, files)
    unseen = None
    if new_data is not None:
        unseen = tuple(family.images(new_data[part], seen_through, size) for part in _UNSEEN_PARTS)
        _check_unseen(unseen, train.classes, labels)
    return Audit(models, train, held_out, labels, settings, missing, known, unseen)


def _unseen(path: str) -> Mapping:
    """The data sets of a config of classes that were never seen."""
    is_config = Path(path).is_file() and Path(path).suffix in ('.py', '.json', '.yaml', '.yml')
    found = Config.fromfile(path).get('unseen') if is_config else None
    if not isinstance(found, Mapping) or not all(part in found for part in _UNSEEN_PARTS):
        raise ForgettingError(
            f'--unseen {path!r} is no config file with the data sets unseen.train and '
            'unseen.held_out.'
        )
    return found


def _check_unseen(unseen: Sequence[Images], classes: Sequence[str], labels: Sequence[int]) -> None:
    """Refuse data in which other labels than those of the forgotten classes are of new ones."""
    wanted = ', '.join('NEW' if i in labels else name for i, name in enumerate(classes))
    for images in unseen:
        new = {name for i, name in enumerate(images.classes) if i in labels}
        old = [name for i, name in enumerate(classes) if i not in labels]
        if [n for n in images.classes if n not in new] != old or new & {*classes}:
            raise ForgettingError(
                f'The data sets of --unseen have the classes {", ".join(images.classes)}; in this '
                f'order they must be {wanted}, the new ones being classes that the original has '
                'never seen.'
            )


def _check_subjects(
    models: Mapping[str, AuditedModel], paths: Mapping[str, Path], labels: Sequence[int]
) -> None:
    """Refuse models whose verdict would say nothing."""
    oracles = [role for role in models if is_oracle(role)]
    for role in (UNLEARNED, *oracles):
        if not any(w[labels].any() for w, _ in models[role].class_rows):
            raise _sealed(role, paths[role])
    for number, oracle in enumerate(oracles):
        for role in (UNLEARNED, ORIGINAL, *oracles[:number]):
            if same_inside(models[oracle], models[role]):
                what = 'no second' if is_oracle(role) else 'no'
                raise ForgettingError(
                    f'{str(paths[oracle])!r} is {what} oracle: it has the weights of the {role} '
                    'model; give a model trained without these classes.'
                )


def _sealed(role: str, path: Path) -> ForgettingError:
    return ForgettingError(
        f'The {role} {str(path)!r} is sealed: its rows of the classes are taken away, which is no '
        'evidence of forgetting; give the model as it was trained.'
    )


def _known(
    run: FinishedRun, task: Mapping, files: Mapping[str, Mapping]
) -> dict[str, dict[str, float]]:
    """What the run measured of the very files, so that one thing has one number."""
    strict, gone = values_before(run.record, gone=True), [*task['old'], *task['forget']]
    before = {n: strict[n] if n in gone else v for n, v in values_before(run.record).items()}
    recorded = {
        UNLEARNED: ((task.get('merged') or {}).get('sha256'), task['per_class']),
        ORIGINAL: (run.record.get('original_sha256'), before),
    }
    return {
        role: per_class
        for role, (measured, per_class) in recorded.items()
        if measured is not None and measured == files[role]['sha256']
    }


def _load(config: Mapping, path: Path, role: str, data: Images) -> torch.nn.Module:
    """The plain model with the weights of a checkpoint, which must be just its own."""
    model = MODELS.build(copy.deepcopy(config))
    checkpoint = read_checkpoint(str(path), f'The {role}')
    classes = class_names(checkpoint)
    if classes and classes != data.classes:
        raise ForgettingError(
            f'The {role} {str(path)!r} knows the classes {", ".join(classes)}; it must know those '
            f'of the run in the same order, {", ".join(data.classes)} (an oracle has just not '
            'seen objects of some).'
        )
    own = model.state_dict()
    state = without_extras(checkpoint.get('state_dict', checkpoint), own)
    if any(name.endswith('.sealed') for name in state):
        raise _sealed(role, path)
    wrong = sorted(own.keys() ^ state.keys()) or [
        name for name, value in own.items() if value.shape != state[name].shape
    ]
    if wrong:
        raise ForgettingError(
            f'The {role} {str(path)!r} is of another architecture than the run: the first of '
            f'{len(wrong)} weights that differ is {wrong[0]!r}.'
        )
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ForgettingError(
                f'The {role} {str(path)!r} holds NaN or infinite values in {name!r}; give a model '
                'whose training went well.'
            )
    model.load_state_dict(state)
    return model.to(get_device())


def _check_oracle(rows: Sequence[Mapping], path: str, audit: Audit, original: float | None) -> None:
    """Refuse a model that was trained with the classes.

    AP is a ranking, so that a class without a single example can have some; half of what the
    original has is beyond that.
    """
    metric = f'{audit.models[ORACLE].metric}_gone'
    found = next(row['value'] for row in rows if row['measure'] == f'output/{metric}')
    if original is not None and found > original / 2:
        raise ForgettingError(
            f'{path!r} is no oracle: its {metric} is {found:.1f} %, the original has '
            f'{original:.1f} %; give a model trained without these classes.'
        )


if __name__ == '__main__':
    with plain_ending():
        main()
