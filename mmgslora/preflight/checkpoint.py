"""The model that a run starts from: that it can be built, and that its checkpoint is its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmgslora.errors import ForgettingError
from mmgslora.families.checkpoint import class_names
from mmgslora.loading import read_checkpoint
from mmgslora.preflight.plan import Plan, reason
from mmgslora.preflight.resume import made_by
from mmgslora.settings import unknown_names

_DEFAULT = 'DefaultOptimWrapperConstructor'
# What that reads.
_PARAMWISE = ('custom_keys', 'bypass_duplicate', 'bias_lr_mult', 'dcn_offset_lr_mult')
_PARAMWISE += tuple(f'{kind}_decay_mult' for kind in ('bias', 'norm', 'dwconv', 'flat'))


def model(plan: Plan) -> Iterator[str]:
    """The model can be built, and sealed where that is asked for."""
    try:
        built = plan.model
    except ForgettingError:
        raise
    except Exception as error:  # models of others fail in ways of their own
        yield f'model cannot be built: {reason(error)}'
        return
    if plan.plain['train_cfg'].get('seal') is True:
        with built.sealed([]):  # refuses now what it cannot seal later
            pass


def optimizer(plan: Plan) -> Iterator[str]:
    """The optimizer and its schedules can be built for the model."""
    where = 'optim_wrapper'
    try:
        wrapper = build_optim_wrapper(plan.model, copy.deepcopy(plan.cfg.optim_wrapper))
        for number, item in enumerate(plan.schedulers):
            where = f'param_scheduler[{number}]'
            PARAM_SCHEDULERS.build(item, default_args=dict(optimizer=wrapper))
    except ForgettingError:
        raise
    except Exception as error:  # those of PyTorch and MMEngine fail in ways of their own
        yield f'{where} cannot be built: {reason(error)}'
        return
    yield from _paramwise(plan, list(wrapper.optimizer.defaults))


def _paramwise(plan: Plan, of_a_group: list[str]) -> Iterator[str]:
    """Rates for parts of the model: nothing else says that a key is read by nobody."""
    given, where = plan.plain['optim_wrapper'], 'optim_wrapper.paramwise_cfg'
    paramwise = given.get('paramwise_cfg') or {}
    default = given.get('constructor', _DEFAULT) == _DEFAULT
    if default:
        yield from unknown_names(paramwise, _PARAMWISE, where)
    names = [name for name, _ in plan.model.named_parameters()]
    for key, own in (paramwise.get('custom_keys') or {}).items():
        at = f'{where}.custom_keys[{key!r}]'
        if not isinstance(own, Mapping):
            yield f'{at} is {own!r}; it can be a dict, such as dict(lr_mult=0.1).'
        elif default:
            yield from unknown_names(own, ('lr_mult', 'decay_mult', *of_a_group), at)
        if not any(key in name for name in names):
            plan.notes.append(
                f'{where}.custom_keys has {key!r}, which is in no name of a parameter of the '
                'model, and changes nothing.'
            )


def method_epochs(plan: Plan) -> Iterator[str]:
    """A task is as long as the method needs it."""
    plan.model.method.check_epochs(plan.plain['train_cfg']['epochs_per_task'])
    yield from ()


def method_files(plan: Plan) -> Iterator[str]:
    """What the method will read is there, and fits the weights that a new run starts from."""
    method, tasks = plan.model.method, len(plan.protocol)
    absent = [file for file in dict.fromkeys(method.files(tasks)) if not Path(file).is_file()]
    for file in absent:
        yield f'model.method: {file!r}, which the method reads, does not exist.'
    path = plan.cfg.get('load_from')
    loaded = isinstance(path, str) and '://' not in path and not plan.cfg.get('resume')
    if loaded and not absent:
        method.check_files(plan.model, tasks)


def start(plan: Plan) -> Iterator[str]:
    """The checkpoint that a new run starts from: whole, finite, of this model and these classes."""
    if plan.cfg.get('resume'):
        return
    path = plan.cfg.get('load_from')
    if not path:
        plain = plan.model.plain_model
        if plain.init_cfg is None and not getattr(plain, 'is_pretrained', False):
            yield (
                'No trained model is loaded, and a random one has nothing to forget; set load_from '
                'to its checkpoint.'
            )
        return
    if not isinstance(path, str):
        yield f'load_from is {path!r}; it can be the path of a checkpoint.'
        return
    if '://' in path:  # fetched when the run starts
        return
    yield from _content(plan, path)


def _content(plan: Plan, path: str) -> Iterator[str]:
    """What a checkpoint to start from holds; where it can be loaded, it is."""
    checkpoint = read_checkpoint(path, 'The checkpoint to start from, load_from,')
    if made_by(checkpoint) is not None:
        yield (
            f'load_from {path!r} is a training checkpoint of a forgetting run, which may end in '
            'the middle of a task and does not say what is to stay forgotten; take the '
            'merged/task_XX.pth beside it, or go on with that run with --resume.'
        )
        return
    plan.forgotten = forgotten_in(checkpoint)
    if plan.forgotten:
        plan.notes.append(
            f'The model to start from has forgotten {", ".join(plan.forgotten)}: classes that are '
            'old from the first task on and have no training images.'
        )
    state = checkpoint.get('state_dict', checkpoint)
    inner = [
        key
        for key, value in state.items()
        if isinstance(value, Mapping) and any(isinstance(x, torch.Tensor) for x in value.values())
    ]
    if inner:
        yield (
            f'load_from {path!r} holds weights under {", ".join(map(repr, inner))}, where MMEngine '
            f'does not look; write the state dict under {inner[0]!r} to a file of its own and take '
            'that one.'
        )
        return
    broken = [
        name
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and not value.isfinite().all()
    ]
    if broken:
        yield (
            f'load_from {path!r} has NaN or infinite values in {len(broken)} weights, the first is '
            f'{broken[0]!r}; take a checkpoint of a training that went well.'
        )
    differs = class_difference(checkpoint, plan.views.classes)
    if differs:
        yield differs
    plan.model.load_state_dict(dict(state))


def forgotten_in(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a run of ours has made a merged checkpoint forget; empty for any other."""
    return tuple((checkpoint.get('meta') or {}).get('forgotten', ()))


def class_difference(checkpoint: Mapping[str, Any], wanted: Sequence[str]) -> str | None:
    """A sentence where a checkpoint names other classes than the data, or in another order.

    Equal shapes do not make equal classes: with another order the wrong class would be forgotten.
    A checkpoint without class names has none to differ.
    """
    known = class_names(checkpoint)
    apart = first_difference(known, wanted) if known else None
    return apart and (
        f'The checkpoint to forget from has {apart[0]}, the data set {apart[1]}; it must be '
        'trained on this data set, or metainfo.classes of the data set must name its classes in '
        'its order.'
    )


def first_difference(names: Sequence[str], others: Sequence[str]) -> tuple[str, str] | None:
    """What two lists of classes have where they first differ, in words; None if they do not."""
    if tuple(names) == tuple(others):
        return None
    if len(names) != len(others):
        return f'{len(names)} class{"" if len(names) == 1 else "es"}', f'{len(others)}'
    label = next(i for i in range(len(names)) if names[i] != others[i])
    return f'{names[label]!r} as class {label}', f'{others[label]!r}'
