"""What is handed out, and what has to be destroyed before a request is fulfilled."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.families.registry import family_of
from mmgslora.lora import fingerprint
from mmgslora.records.record import sealed_file
from mmgslora.requests.checkpoint import (
    read_checkpoint,
    refuse_to_overwrite,
    write_checkpoint,
)
from mmgslora.requests.measure import config_of
from mmgslora.requests.onnx_file import write_onnx
from mmgslora.requests.sequence import RequestSequence

FORMS = ('checkpoint', 'torchvision', 'onnx')
HIDES = (
    'An adapter kept beside its base only hides a class: leave the adapter off, and the class is '
    'back. A request is fulfilled when nothing that can bring the class back is left.'
)

# Below the work_dir, and why the request is not fulfilled while they are there.
_TELLING = {
    'adapters/task_*': 'an adapter: what it added can be taken away again',
    'epoch_*.pth': 'a training checkpoint: weights, teacher and optimizer of the sequence',
    'iter_*.pth': 'a training checkpoint: weights, teacher and optimizer of the sequence',
    'prototypes.safetensors': 'the class means of the original model',
    'before_after.png': 'images of forgotten classes with what the original saw in them',
    'report.html': 'images of forgotten classes with what the original saw in them',
}
_ORIGINAL = 'the original model: it knows every class'
_BEFORE = 'the model before this run; the run that made it has a list of its own'
_TEACHER = 'a model that this one learnt from: inside it the classes may be left'


def export(
    sequence: RequestSequence,
    out: str | Path,
    form: str = 'checkpoint',
    seal: bool = False,
    final: bool = False,
    size: Sequence[int] | None = None,
    cfg: Config | None = None,
) -> dict[str, Any]:
    """Write the model with all requests in force as a file of its own.

    Args:
        sequence: The requests.
        out: The file; it must not exist.
        form: 'checkpoint', a plain MMDetection (or classifier's) checkpoint with its config;
            'torchvision', the bare state dict of torchvision's VisionTransformer; 'onnx', for
            images as the data preprocessor leaves them. Defaults to 'checkpoint'.
        seal: Whether the head cannot name a forgotten class any more. It is no evidence of
            forgetting. Defaults to False.
        final: Whether the ledger also lists what has to be destroyed. Defaults to False.
        size: (H, W) of the images in pixels, for ONNX. Defaults to the classifier's.
        cfg: The run's config. Defaults to None: the one in the work_dir.

    Returns:
        The line of the ledger; ``to_destroy`` has the paths, with ``final``.

    Raises:
        ForgettingError: The form is unknown, not possible for this model or not that of the file's
            name, the file exists, the model is not the one in the ledger, or the head cannot be
            sealed.
    """
    out = Path(out)
    if form not in FORMS:
        raise ForgettingError(f'The form is {form!r}; it can be {", ".join(FORMS)}.')
    if out.suffix == '.onnx' and form != 'onnx':
        raise ForgettingError(
            f"{str(out)!r} would be no ONNX file: the form is {form!r}; give the form 'onnx', or "
            'another name.'
        )
    refuse_to_overwrite(out)
    checkpoint = read_checkpoint(sequence.current_file)
    state, meta = checkpoint['state_dict'], checkpoint['meta']
    entry = next((e for e in reversed(sequence.ledger.entries) if 'result' in e), None)
    if entry is not None and entry['result'] != fingerprint(state):
        raise sequence.ledger.misfit(entry['number'], f'{sequence.current_file} was changed')
    gone = [*sequence.gone_before, *sequence.classes(sequence.in_force)]
    if seal or form == 'onnx':
        cfg = config_of(sequence) if cfg is None else cfg
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            if seal:
                state = _sealed_state(
                    cfg, state, [meta['dataset_meta']['classes'].index(name) for name in gone]
                )
            if form == 'onnx':
                write_onnx(_plain_model(cfg, state), family_of(cfg.model).name, out, size)
    kept = {key: meta[key] for key in ('dataset_meta', 'cfg') if key in meta}
    if form == 'checkpoint':
        sealed = dict(sealed=gone) if seal else {}
        write_checkpoint(out, state, dict(kept, forgotten=gone, **sealed))
    elif form == 'torchvision':
        write_torchvision(out, state)
    facts = dict(to_destroy=list(files_to_destroy(sequence, seal))) if final else {}
    try:
        return sequence.ledger.append(
            'exported',
            classes=gone,
            in_force=sequence.in_force,
            form=form,
            seal=seal,
            final=final,
            files=dict(exported=sequence.ledger.fact(out)),
            **facts,
        )
    except BaseException:  # what no line speaks of is not handed out
        out.unlink()
        raise


def files_to_destroy(sequence: RequestSequence, sealed: bool = False) -> dict[str, str]:
    """The files of a run, and its original, that can bring a forgotten class back.

    Args:
        sequence: The requests.
        sealed: Whether what was handed out is sealed; the same model unsealed is then one of them.

    Returns:
        Path (below the work_dir, or as the config had it) -> why. Copies that lie elsewhere,
        backups and the training images are not known here.
    """
    found = {}
    for path in filter(None, (sequence.run.original, sequence.base)):
        found[str(path)] = _BEFORE if sequence.gone_before else _ORIGINAL
    found.update(_teachers(sequence))
    for pattern, why in _TELLING.items():
        found.update(dict.fromkeys(sequence.below(pattern), why))
    current = sequence.current_file.relative_to(sequence.work_dir).as_posix()
    for path in sequence.below('merged/*.pth'):
        if path != current:
            found[path] = 'a model from before a later request, or without one'
        elif sealed:
            found[path] = 'the model that was handed out, but with rows for the forgotten classes'
    last = sealed_file(sequence.tasks[-1])
    for path in sequence.below('sealed/*.pth'):
        if path != last:
            found[path] = 'a model from before a later request'
    return found


def _teachers(sequence: RequestSequence) -> dict[str, str]:
    """The models that a run of UNDO has read, and what the runs that made them have left."""
    teacher = (sequence.run.record.get('method') or {}).get('teacher')
    found = {}
    for task in sequence.tasks if teacher else ():
        path = Path(teacher.format(task=task))
        found[path.as_posix()] = _TEACHER
        run = path.parent.parent
        if (run / 'forgetting.json').is_file():
            for pattern, why in {'*/*.pth': _TEACHER, **_TELLING}.items():
                found.update(dict.fromkeys((p.as_posix() for p in sorted(run.glob(pattern))), why))
    return found


def write_torchvision(out: Path, state: Mapping[str, Tensor]) -> None:
    """Write an image classifier as torchvision's VisionTransformer names its weights.

    Raises:
        ForgettingError: The model is no VisionTransformer of torchvision with a linear head.
    """
    if {'class_token', 'heads.head.weight'} <= state.keys():  # it has these names already
        write_checkpoint(out, state, None)
        return
    names = {'head.weight': 'heads.head.weight', 'head.bias': 'heads.head.bias'}
    names.update({k: k.removeprefix('backbone.') for k in state if k.startswith('backbone.')})
    if names.keys() != state.keys() or 'class_token' not in names.values():
        raise ForgettingError(
            'The model is no VisionTransformer of torchvision with a LinearHead; the form can be '
            "'checkpoint' or 'onnx'."
        )
    write_checkpoint(out, {names[key]: value for key, value in state.items()}, None)


def _plain_model(cfg: Config, state: Mapping[str, Tensor]) -> nn.Module:
    model = MODELS.build(copy.deepcopy(cfg.model[family_of(cfg.model).name]))
    model.load_state_dict(state)
    return model.eval()


def _sealed_state(
    cfg: Config, state: Mapping[str, Tensor], labels: Sequence[int]
) -> dict[str, Tensor]:
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.load_state_dict(dict(state))
    with model.sealed(labels):
        return {key: value.clone() for key, value in model.tune.plain_state_dict().items()}
