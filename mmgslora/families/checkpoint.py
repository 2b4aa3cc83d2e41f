"""What of a checkpoint belongs to a plain model, whoever wrote the file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from mmengine.logging import print_log
from torch import Tensor

from mmgslora.errors import ForgettingError

# What MMDetection leaves out as well: the normalisation, which every config sets itself; the
# averaged copy that mmcv's EMAHook kept among the weights, a buffer's name having no dots; and the
# counters of batch norm.
_NO_WEIGHTS = re.compile(r'(data_preprocessor)\..+|(ema_)[^.]+|(?:.+\.)?(num_batches_tracked)')
_MARKS = {'module.': 'DistributedDataParallel', '_orig_mod.': 'torch.compile'}
_COMPILED = re.compile(r'(?<![^.])_orig_mod\.')  # of a part of the model, too


def class_names(checkpoint: Mapping) -> tuple[str, ...]:
    """The classes a checkpoint says it knows, in its order; empty where it does not say.

    MMDetection 3 writes ``meta['dataset_meta']['classes']``, its release candidates ``CLASSES``
    there, and MMDetection 2 ``meta['CLASSES']``. A single class may be a string.
    """
    meta = checkpoint.get('meta') or {}
    for holder in (meta.get('dataset_meta') or {}, meta):
        names = {key.lower(): value for key, value in holder.items()}.get('classes')
        if names:
            return (names,) if isinstance(names, str) else tuple(names)
    return ()


def without_extras(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], wrappers: Iterable[str] = ()
) -> dict[str, Tensor]:
    """The state dict of a file without what MMDetection would ignore in it, said in one log line.

    Ignored are ``data_preprocessor.*``, the copies ``ema_*`` of mmcv's EMAHook (MMEngine's has them
    outside the state dict) and counters ``num_batches_tracked`` of batch norm, unless the model has
    them; counters that the file lacks stay the model's. The names ``module.`` of a model trained on
    several GPUs and ``_orig_mod.`` of a compiled one go, which is said in a line, too, and so does
    that of a wrapper where every weight has it.

    Args:
        state: State dict of the file.
        own: State dict of the plain model.
        wrappers: Names that wrappers have for the plain model. Defaults to none.

    Raises:
        ForgettingError: Every weight has one more part before its name in the model.
    """
    state = _unwrapped(_unmarked(state, own), own, wrappers)
    if prefix := _prefix(state, own):
        raise ForgettingError(
            f'Every weight in the checkpoint has {prefix!r} before its name in the configured '
            'model; write the file anew without it, {key.removeprefix('
            f'{prefix!r}): value for key, value in state.items()}}.'
        )
    ignored: Counter[str] = Counter()
    for key in state.keys() - own.keys():
        found = _NO_WEIGHTS.fullmatch(key)
        if found:
            ignored[found[found.lastindex]] += 1
            del state[key]
    if ignored:
        kinds = ', '.join(f'{kind} ({count})' for kind, count in sorted(ignored.items()))
        print_log(f'Ignored in the checkpoint, as by MMDetection: {kinds}.', logger='current')
    for key, value in own.items():
        if key.endswith('num_batches_tracked'):
            state.setdefault(key, value)
    return state


def _unmarked(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what PyTorch's wrappers put before names, where the model itself has no such part."""
    names = {
        key: key if key in own else _COMPILED.sub('', key).removeprefix('module.') for key in state
    }
    longer = [key for key, name in names.items() if key != name]
    if longer:
        marks = [mark for mark in _MARKS if any(mark in key for key in longer)]
        said = ' and '.join(f'{mark!r} of {_MARKS[mark]}' for mark in marks)
        print_log(f'Names in the checkpoint are taken without {said}.', logger='current')
    return {names[key]: value for key, value in state.items()}


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """What is before the names of all weights and makes them the model's when it goes."""
    weights = [key for key in state if not _NO_WEIGHTS.fullmatch(key)]
    for dot in re.finditer(r'\.', weights[0] if weights else ''):
        prefix = weights[0][: dot.end()]
        if all(key.startswith(prefix) and key.removeprefix(prefix) in own for key in weights):
            return None if own.keys() >= {*weights} else prefix
    return None


def _unwrapped(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], wrappers: Iterable[str]
) -> dict[str, Tensor]:
    """With the plain model's names. A network's own part may be called as a wrapper calls it."""
    weights = {key for key in state if not _NO_WEIGHTS.fullmatch(key)}
    for name in wrappers:
        prefix = f'{name}.'
        if all(key.startswith(prefix) for key in weights) and not weights <= own.keys():
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def fitting_weights(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    model: str,
    added: Callable[[str], bool],
    wrappers: Iterable[str] = (),
) -> dict[str, Tensor]:
    """The weights of a file, checked to be just those that a model with adapters needs.

    MMEngine would drop and leave out weights with no more than a warning. Adapters that the file
    lacks stay as they are in the model.

    Args:
        state: State dict of the file, of the plain model or of one of its wrappers.
        own: State dict of the plain model with what a tuner added.
        model: What the model is, for errors, such as 'DeformableDETR of 80 classes'.
        added: Whether an entry was added by a tuner, see :meth:`~mmgslora.tuning.Tuner.owns`.
        wrappers: Names that wrappers have for the plain model. Defaults to none.

    Returns:
        A state dict with the keys of ``own``.

    Raises:
        ForgettingError: A weight is missing, has another shape, or is of another architecture.
    """
    state = without_extras(state, own, wrappers)
    for key in sorted(state.keys() - own.keys()):
        if added(key):
            raise ForgettingError(
                f'The checkpoint has the adapter {key!r}, for which the configured {model} has no '
                'place; set tune as in the run that wrote it, or take a merged checkpoint.'
            )
        raise ForgettingError(
            f'The checkpoint has {key!r}, which the configured {model} lacks; it belongs to '
            'another architecture.'
        )
    for key, value in own.items():
        if added(key):
            state.setdefault(key, value)
        if key not in state:
            raise ForgettingError(
                f'The checkpoint has no {key!r}, which the configured {model} needs; it belongs '
                'to another architecture.'
            )
        if state[key].shape != value.shape:
            raise ForgettingError(
                f'{key!r} is {tuple(state[key].shape)} in the checkpoint and '
                f'{tuple(value.shape)} in the configured {model}; use the checkpoint of this very '
                'model.'
            )
    return state
