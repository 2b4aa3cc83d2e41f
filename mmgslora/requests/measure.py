"""A checkpoint measured as its run measures: same data, same evaluator, same original."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmgslora.datasets.protocol import Protocol, category_ids_of
from mmgslora.errors import ForgettingError
from mmgslora.evaluation import publish_tasks, remember_pretrained
from mmgslora.records.ledger import flat_metrics
from mmgslora.requests.sequence import RequestSequence


def config_of(sequence: RequestSequence) -> Config:
    """The config that the run left in its work_dir; it is Python, and is executed.

    Raises:
        ForgettingError: There is none, or it is not the one in the ledger.
    """
    entry = sequence.ledger.last('forgotten')
    if entry is not None:
        file = entry['files']['config']
        path = sequence.work_dir / file['path']
        if not path.is_file() or sequence.ledger.fact(path)['sha256'] != file['sha256']:
            why = f'{file["path"]} is missing or was changed, and a config is code'
            raise sequence.ledger.misfit(entry['number'], why)
    else:
        path = sequence.run.config_path
    if path is None:
        raise ForgettingError(
            f'{str(sequence.work_dir)!r} holds no config of the run (one .py file); put it there.'
        )
    return Config.fromfile(path)


def testing_config(cfg: Config) -> Config:
    """A forgetting config without its training side: no adapter is written, no loop is built."""
    cfg = copy.deepcopy(cfg)
    cfg.resume = False  # as the config of a resumed run says in its work_dir
    cfg.custom_hooks = []
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        cfg[key] = None
    return cfg


def build_runner(cfg: Config) -> Runner:
    """MMEngine's Runner of a config, or the one that it names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def measure(
    sequence: RequestSequence, checkpoint: Path, tasks: Sequence[int], cfg: Config | None = None
) -> dict[str, float | None]:
    """Metrics of a plain checkpoint that is to have forgotten these requests.

    Args:
        sequence: Where the requests are from. Drop and H are measured from its original.
        checkpoint: The file.
        tasks: The requests; the last counts as forgotten now, the others as old, and the classes
            of any other as retained. With none of them the values of the original are returned.
        cfg: The run's config. Defaults to None: the one in the work_dir.

    Returns:
        The metrics by their names; None for one that could not be measured.
    """
    pretrained = flat_metrics(sequence.run.record['pretrained'])
    if not tasks:
        return pretrained
    full = config_of(sequence) if cfg is None else cfg
    cfg = testing_config(full)
    cfg.update(load_from=str(checkpoint), launcher='none')
    # MMEngine writes the config there: a finished run's own must stay as it is.
    cfg.work_dir = str(sequence.work_dir / 'test')
    cfg.experiment_name = f'{sequence.work_dir.name}_{uuid.uuid4().hex}'
    runner = build_runner(cfg)
    loop = runner.test_loop if sequence.run.split == 'test' else runner.val_loop
    dataset = loop.dataloader.dataset
    asked = [sequence.classes([task]) for task in tasks]
    protocol = Protocol(
        dataset.metainfo['classes'],
        tasks=asked,
        missing=(sequence.run.record.get('protocol') or {}).get('missing') or (),
        category_ids=category_ids_of(dataset),
        forgotten=sequence.gone_before,
    )
    protocol.partition(len(protocol)).publish()
    publish_tasks(asked)
    remember_pretrained({key: float('nan') if v is None else v for key, v in pretrained.items()})
    return flat_metrics(runner.test() if sequence.run.split == 'test' else runner.val())
