"""Everything that can be known of a run before it starts, in one pass that reports all it finds."""

from __future__ import annotations

from mmengine.config import Config

from mmgslora.errors import ForgettingError
from mmgslora.preflight import checkpoint, data, resume, settings, work_dir
from mmgslora.preflight.plan import Plan
from mmgslora.preflight.resume import HUB_KEY, made_with

__all__ = ['HUB_KEY', 'Plan', 'begin', 'examine', 'made_with', 'prepare']

_SETTINGS = ('model_settings', 'data_settings', 'training_settings', 'protocol_settings')
_DATA = ('top_level', 'data_settings', 'training_settings', 'protocol_settings', 'files')

# In the order in which they are reported, each with those whose problems leave it nothing to say.
CHECKS = (
    (work_dir.holder, ()),
    (settings.top_level, ()),
    (settings.model_settings, ()),
    (settings.training_settings, ('top_level',)),
    (settings.data_settings, ()),
    (settings.protocol_settings, ('top_level',)),
    (settings.hooks, ()),
    (settings.evaluators, ('top_level', 'model_settings', 'training_settings')),
    (data.files, ('data_settings',)),
    (data.workers, _DATA),
    (data.evaluated_files, ('data_settings',)),
    (checkpoint.model, ('model_settings',)),
    (checkpoint.optimizer, ('top_level', 'training_settings', 'model', 'model_settings')),
    (checkpoint.method_epochs, ('top_level', 'training_settings', 'model', 'model_settings')),
    (checkpoint.start, ('model', 'model_settings', *_DATA)),
    (resume.resume, _DATA),
    (data.classes, ('model', 'model_settings', *_DATA)),
    (data.protocol, ('classes', 'resume', *_DATA)),
    (data.measured_images, ('classes', *_DATA)),
    (checkpoint.method_files, ('model', 'model_settings', 'protocol', 'resume', *_DATA)),
    (data.images, _DATA),
    (work_dir.work_dir, ('holder', 'protocol', *_DATA)),
    (work_dir.disk_space, ('model', 'hooks', 'protocol', *_SETTINGS, *_DATA)),
)


def examine(cfg: Config, restart: bool = False, every_image: bool = False) -> Plan:
    """Look at everything a forgetting run needs to begin, or to go on. Nothing is written.

    Args:
        cfg: The whole config, with ``work_dir``. One of another training has nothing to look at.
        restart: Whether a killed run that has no checkpoint yet may start again in its work_dir.
            Defaults to False.
        every_image: Whether every image is opened, and not only looked for. Defaults to False.

    Returns:
        The plan, with its problems and notes, and what was built to find them.
    """
    plan = Plan(cfg, restart, every_image)
    return plan.run(CHECKS) if plan.forgets else plan


def prepare(cfg: Config, restart: bool = False, every_image: bool = False) -> Plan:
    """:func:`examine` a run that is about to start, and hold its work_dir for this process.

    For scripts, before MMEngine's Runner writes its config into the work_dir. The loop of the run
    takes the plan over.

    Raises:
        ForgettingError: There is a reason not to start; one sentence each, a line each.
    """
    plan = begin(cfg, restart, every_image)
    _prepared.append(plan)
    return plan


def begin(cfg: Config, restart: bool = False, every_image: bool = False) -> Plan:
    """What :func:`prepare` has found for this very config, or else the same: files are read once.

    Raises:
        ForgettingError: See :func:`prepare`.
    """
    while _prepared:
        plan = _prepared.pop()
        if plan.cfg.to_dict() == cfg.to_dict():
            return plan
    plan = examine(cfg, restart, every_image)
    if plan.sentences:
        raise ForgettingError('\n'.join(plan.sentences)) from plan.error
    if plan.forgets and work_dir.is_first(cfg):
        work_dir.hold(plan.work_dir, made_with(cfg, plan.protocol))
    plan.forget_files()
    return plan


_prepared: list[Plan] = []
