"""Keys and ranges of every block of a config, from the signatures of the classes they name."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from mmengine.device import get_device
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    Registry,
)
from mmengine.runner import Runner
from pydantic import Field
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from mmgslora.datasets.protocol import Protocol
from mmgslora.datasets.views import ForgettingViews, PairedSampler
from mmgslora.families.registry import family_of
from mmgslora.methods.base import METHODS, Method
from mmgslora.methods.served import Served
from mmgslora.methods.sparsity import Sparsity
from mmgslora.preflight.plan import Plan, as_mapping, find_class
from mmgslora.settings import (
    Count,
    NonNegative,
    NonNegativeCount,
    Positive,
    nearest,
    problems,
    settings_of,
    unknown_names,
    wrong_values,
)
from mmgslora.tuning.base import TUNERS

# Read by the tools, the reports and MMEngine's config system, beside what the Runner takes.
TOP_LEVEL = {'auto_scale_lr', 'custom_imports', 'runner_type', 'requests', 'thresholds', 'audit'}
TOP_LEVEL |= {'tta_model', 'compile', 'vis_backends', 'work_dir'}
TOP_LEVEL |= {'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn'}  # of several processes
TOP_LEVEL |= set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}

_NEEDED = ('MethodHook', 'AdapterHook', 'RecordHook')
_LOADER = (*inspect.signature(DataLoader).parameters, 'num_batch_per_epoch')
_LOADER += ('disable_subprocess_warning',)
_CLIP = dict(norm=clip_grad_norm_, value=clip_grad_value_)
_PASSED_ON = ('type', '_scope_', 'priority')


# What the numbers of blocks may be whose classes are MMEngine's or PyTorch's.
def _loader(batch_size: Count, num_workers: NonNegativeCount = 0) -> None: ...


def _optimizer(lr: Positive, weight_decay: NonNegative = 0.0, momentum: NonNegative = 0.0): ...


def _wrapper(accumulative_counts: Count = 1, clip_grad: dict | None = None) -> None: ...


def _clip(
    max_norm: Positive, norm_type: Positive = 2.0, type: Literal['norm', 'value'] = 'norm'
) -> None: ...


def _schedule(T_max: Count | None = None) -> None: ...


def _checkpoints(
    interval: Count = 1,
    max_keep_ckpts: Count | Literal[-1] = -1,
    by_epoch: Literal[True] = True,  # a task ends with an epoch
    save_best: None = None,  # the last weights of a task are its result
) -> None: ...


def _randomness(
    seed: Annotated[int, Field(ge=0, lt=2**31, description='a whole number from 0 to 2147483647')]
    | None = None,
    diff_rank_seed: bool = False,
    deterministic: bool = False,
) -> None: ...


def top_level(plan: Plan) -> Iterator[str]:
    """Keys that nobody reads: misspelt ones, and those set in a config file to no effect."""
    needed = ('model', 'train_cfg', 'train_dataloader', 'optim_wrapper')
    for key in needed:
        if not isinstance(plan.plain.get(key), Mapping):
            yield f'{key} is {plan.plain.get(key)!r}; a forgetting run needs a dict there.'
    if plan.plain.get('compile'):
        yield (
            f'compile is {plan.plain["compile"]!r}; leave it out: a step keeps features in Python '
            'dicts, which torch.compile cannot trace.'
        )
    unused = _unused_names(plan.cfg.filename, set(plan.plain))
    for key in plan.plain:
        if key in TOP_LEVEL:
            continue
        near = difflib.get_close_matches(key, TOP_LEVEL, n=1, cutoff=0.8)
        if near:
            yield f'The config has the key {key!r}, which nothing reads; did you mean {near[0]!r}?'
        elif key in unused:
            yield (
                f'The config sets {key!r}, which nothing reads: it is no setting, and no other '
                f'line of {Path(plan.cfg.filename).name!r} uses it.'
            )


def model_settings(plan: Plan) -> Iterator[str]:
    """The wrapper, its method and what it trains."""
    model = plan.plain.get('model')
    if not isinstance(model, Mapping):
        return
    yield from _of_class(model, 'model', MODELS)
    method = as_mapping(model.get('method'))
    if method:
        yield from _of_class(method, 'model.method', METHODS)
    if isinstance(method.get('sparsity'), Mapping):
        yield from problems(Sparsity, method['sparsity'], 'model.method.sparsity')
    if as_mapping(model.get('tune')):
        yield from _of_class({'type': 'LoRA', **model['tune']}, 'model.tune', TUNERS)


def data_settings(plan: Plan) -> Iterator[str]:
    """The data loaders: two views in pairs, and batches that hold as many of each."""
    for split, loader in plan.loaders.items():
        where = f'{split}_dataloader'
        if not isinstance(loader, Mapping) or not isinstance(loader.get('dataset'), Mapping):
            yield f'{where} is {loader!r}; it can be a dict with a dataset.'
            continue
        yield from unknown_names(loader, _LOADER, where)
        yield from wrong_values(_loader, loader, where)
        dataset, of = loader['dataset'], f'{where}.dataset'
        while dataset is not None:
            yield from _of_class(dataset, of, DATASETS)
            dataset, of = as_mapping(dataset).get('dataset'), f'{of}.dataset'
        yield from _of_class(
            loader.get('sampler') or {}, f'{where}.sampler', DATA_SAMPLERS, ('dataset',)
        )
    loader = plan.loaders.get('train')
    if not isinstance(loader, Mapping):
        return
    for key, registry, wanted in (
        ('dataset', DATASETS, ForgettingViews),
        ('sampler', DATA_SAMPLERS, PairedSampler),
    ):
        if not loader.get(key):
            yield f'train_dataloader has no {key}; give it a {wanted.__name__}.'
            continue
        kind = find_class(loader[key].get('type'), registry)
        if kind is not None and not issubclass(kind, wanted):
            yield (
                f'train_dataloader.{key}.type is {kind.__name__!r}; a forgetting run needs '
                f'{wanted.__name__!r}, which keeps the forget view and the retain view apart.'
            )
    size = loader.get('batch_size')
    if isinstance(size, int) and size % 2:
        yield (
            f'train_dataloader.batch_size is {size}; it can be an even number, for a batch holds '
            'as many images of the forget view as of the retain view.'
        )


def training_settings(plan: Plan) -> Iterator[str]:
    """The loop, the optimizer, its schedule, and the seed."""
    loop = plan.plain['train_cfg']
    yield from _of_class(loop, 'train_cfg', LOOPS, ('runner', 'dataloader'))
    steps, epochs = loop.get('steps_per_task'), loop.get('epochs_per_task')
    if isinstance(steps, int) and isinstance(epochs, int):
        if steps < epochs:
            yield (
                f'steps_per_task is {steps}; it must be at least epochs_per_task, {epochs}, for '
                'every epoch has a step.'
            )
        elif epochs > 0 and steps % epochs:
            plan.notes.append(
                f'steps_per_task is {steps}: {epochs} epochs of {steps // epochs} steps are '
                f'{steps - steps % epochs}, and no more are trained.'
            )
    yield from _served(plan, loop.get('served'))
    measured = loop.get('evaluate_on', 'test')
    for key in ('dataloader', 'evaluator', 'cfg'):
        if measured in ('val', 'test') and not plan.plain.get(f'{measured}_{key}'):
            yield (
                f'evaluate_on is {measured!r} and the config has no {measured}_{key}; give it, '
                'or evaluate on another split.'
            )
    for split in {'val', 'test'} - {measured}:
        keys = [f'{split}_{key}' for key in ('dataloader', 'evaluator', 'cfg')]
        absent = [key for key in keys if plan.plain.get(key) is None]
        if 0 < len(absent) < len(keys):
            yield (
                f'The config has no {" and no ".join(absent)}; MMEngine takes {", ".join(keys)} '
                'together, or all of them None.'
            )
    yield from _optim_wrapper(plan.plain.get('optim_wrapper'))
    for number, item in enumerate(plan.schedulers):
        where = f'param_scheduler[{number}]'
        yield from _of_class(item, where, PARAM_SCHEDULERS, ('optimizer', 'param_name'))
        yield from wrong_values(_schedule, as_mapping(item), where)
    seeds = plan.plain.get('randomness', {})
    if not isinstance(seeds, Mapping):
        yield f'randomness is {seeds!r}; it can be a dict, such as dict(seed=0).'
    else:
        yield from unknown_names(seeds, inspect.signature(_randomness).parameters, 'randomness')
        yield from wrong_values(_randomness, seeds, 'randomness')
    several = plan.cfg.get('launcher', 'none') != 'none' and not plan.cfg.get('model_wrapper_cfg')
    if several and not plan.cfg.get('find_unused_parameters'):
        yield (
            f'launcher is {plan.cfg.launcher!r} and find_unused_parameters is not set: the first '
            'group that is held at zero would stop the run; set find_unused_parameters=True, as '
            'configs/_base_/forgetting.py does.'
        )


def _optim_wrapper(wrapper: Any) -> Iterator[str]:
    if not isinstance(wrapper, Mapping):
        return
    built_from = ('constructor', 'paramwise_cfg')
    settings = {key: value for key, value in wrapper.items() if key not in built_from}
    yield from _of_class({'type': 'OptimWrapper', **settings}, 'optim_wrapper', OPTIM_WRAPPERS)
    yield from wrong_values(_wrapper, wrapper, 'optim_wrapper')
    clip = dict(as_mapping(wrapper.get('clip_grad')))
    yield from wrong_values(_clip, clip, 'optim_wrapper.clip_grad')
    if clip.setdefault('type', 'norm') in _CLIP:
        allowed = [*inspect.signature(_CLIP[clip.pop('type')]).parameters][1:]
        yield from unknown_names(clip, allowed, 'optim_wrapper.clip_grad')
    optimizer = wrapper.get('optimizer')
    if not isinstance(optimizer, Mapping):
        yield f'optim_wrapper.optimizer is {optimizer!r}; it can be a dict with a type.'
    else:
        where = 'optim_wrapper.optimizer'
        yield from _of_class(optimizer, where, OPTIMIZERS, ('params',))
        yield from wrong_values(_optimizer, optimizer, where)
    if str(wrapper.get('type')).startswith('Amp') and get_device() == 'cpu':
        yield (
            f'optim_wrapper.type is {wrapper["type"]!r} (--amp), which needs a GPU, and there '
            "is none; leave --amp out, or set 'OptimWrapper'."
        )


def _served(plan: Plan, limits: Any) -> Iterator[str]:
    if not isinstance(limits, Mapping):
        return
    yield from problems(Served, limits, 'train_cfg.served')
    kind = as_mapping(as_mapping(plan.plain.get('model')).get('method')).get('type')
    method = METHODS.get(kind) if isinstance(kind, str) else None
    if method is not None and not method.teachers:
        yield (
            f'train_cfg.served compares with the teacher of the method, and {kind} has none; leave '
            'train_cfg.served=None.'
        )
    elif method is not None and method.sides_of is not Method.sides_of:
        yield (
            f'train_cfg.served compares both views over a pass, and {kind} is shown one at a time; '
            'leave train_cfg.served=None.'
        )


def protocol_settings(plan: Plan) -> Iterator[str]:
    """The keys of the protocol; its classes are looked at beside the data."""
    protocol = plan.plain['train_cfg'].get('protocol')
    if not isinstance(protocol, Mapping):
        yield f'train_cfg.protocol is {protocol!r}; it can be a dict, such as dict(tasks=[[...]]).'
        return
    supplied = ('classes', 'category_ids', 'forgotten')
    yield from problems(Protocol, protocol, 'train_cfg.protocol', supplied)


def hooks(plan: Plan) -> Iterator[str]:
    """Every hook's settings, and the hooks without which a run leaves nothing behind."""
    defaults = as_mapping(plan.plain.get('default_hooks'))
    custom = plan.plain.get('custom_hooks') or []
    there = []
    for where, hook in [
        *((f'default_hooks.{name}', hook) for name, hook in defaults.items()),
        *((f'custom_hooks[{number}]', hook) for number, hook in enumerate(custom)),
    ]:
        if isinstance(hook, Mapping):
            yield from _of_class(hook, where, HOOKS)
            there.append(find_class(hook.get('type'), HOOKS))
    yield from wrong_values(
        _checkpoints, as_mapping(defaults.get('checkpoint')), 'default_hooks.checkpoint'
    )
    interval = as_mapping(defaults.get('checkpoint')).get('interval', 1)
    if isinstance(interval, int) and interval > 1:
        plan.notes.append(
            f'default_hooks.checkpoint.interval is {interval}: a run that is killed goes on from '
            f'up to {interval} epochs before; 1 saves after each.'
        )
    names = {base.__name__ for kind in there if kind for base in kind.__mro__}
    if 'EMAHook' in names:
        yield (
            'EMAHook would have its average measured and other weights saved; take AveragingHook, '
            'whose average is what a task leaves.'
        )
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        yield (
            f'custom_hooks lacks {", ".join(missing)}, without which the run would not do or leave '
            'what it should; take them from configs/_base_/forgetting.py.'
        )


def evaluators(plan: Plan) -> Iterator[str]:
    """What measures: settings, and that its numbers are those a forgetting run is read by."""
    for split in ('val', 'test'):
        given = plan.plain.get(f'{split}_evaluator') or []
        given = [given] if isinstance(given, Mapping) else given
        found = []
        for item in given:
            yield from _of_class(item, f'{split}_evaluator', METRICS)
            found.append(find_class(item.get('type'), METRICS))
        if split != plan.measured_on or not found or None in found:
            continue
        wanted = family_of(plan.plain['model']).metric
        ours = [item for item, kind in zip(given, found) if issubclass(kind, wanted)]
        if prefixes := [item['prefix'] for item in ours if item.get('prefix')]:
            yield (
                f'{split}_evaluator.prefix is {prefixes[0]!r}; leave it out: a run reads the '
                f'numbers of {wanted.__name__} by their own names.'
            )
        if not ours:
            yield (
                f'{split}_evaluator.type is {found[0].__name__!r}; a forgetting run needs '
                f'{wanted.__name__!r}, which measures every class by itself.'
            )


def _of_class(
    config: Any, where: str, registry: Registry, supplied: tuple[str, ...] = ()
) -> Iterator[str]:
    """What is wrong with the settings of a class; of the values only ours say what they may be."""
    if not isinstance(config, Mapping) or ('type' not in config and config):
        yield f'{where} is {config!r}; it can be a dict with a type.'
        return
    if not config:
        return
    kind = find_class(config['type'], registry)
    if kind is None:
        yield f'{where}.type is {config["type"]!r}{_known(config["type"], registry)}.'
        return
    given = {key: value for key, value in config.items() if key not in _PASSED_ON}
    ours = kind.__module__.startswith('mmgslora.')
    if ours:
        yield from problems(kind, given, where, supplied)
    elif _is_closed(kind):
        allowed = [name for name in settings_of(kind) if name not in supplied]
        yield from unknown_names(given, allowed, where)


def _known(kind: Any, registry: Registry) -> str:
    with registry.switch_scope_and_registry(None) as scoped:
        names = {*scoped.module_dict, *registry.module_dict}
    if len(names) <= 20:
        return nearest(kind, sorted(names))
    near = difflib.get_close_matches(str(kind), names, n=1)
    return f', which is unknown; did you mean {near[0]!r}?' if near else ', which is unknown'


def _is_closed(kind: type) -> bool:
    """Whether a class says all of its settings, and hands none on to somewhere unseen."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for owner in kind.__mro__:
        if owner is object:
            return False
        if '__init__' in vars(owner):
            signature = inspect.signature(owner.__init__)
            if not any(p.kind in variable for p in signature.parameters.values()):
                return True
    return False


def _unused_names(file: str | None, names: set[str]) -> set[str]:
    """Names that a config file with a base sets and does not use itself."""
    path = Path(file or '')
    if path.suffix != '.py' or not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding='utf-8'))
    kinds: dict[type, set[str]] = {ast.Store: set(), ast.Load: set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and type(node.ctx) in kinds:
            kinds[type(node.ctx)].add(node.id)
    if '_base_' not in kinds[ast.Store]:
        return set()  # a dumped config keeps the names that its bases used
    return (kinds[ast.Store] - kinds[ast.Load]) & names
