"""What the pre-trained model could do, remembered for the whole run.

Drop is measured from the pre-trained model, which is evaluated once, before the first task. Its
values lie in MMEngine's message hub, are saved with every checkpoint, and so survive a resume.

The paper's protocol makes the AP of a class depend on the images it is measured on, those of the
task's classes. A class is asked to go in one task only, so one number per class is enough for all
tasks, provided the tasks are known when the pre-trained model is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmengine.logging import MessageHub

from mmgslora.datasets.protocol import ClassPartition

_METRICS_KEY = 'pretrained'
_TASKS_KEY = 'pretrained_tasks'


def publish_tasks(tasks: Iterable[Iterable[str]]) -> None:
    """Say, before the pre-trained model is evaluated, which classes each task will forget."""
    MessageHub.get_current_instance().update_info(_TASKS_KEY, [list(task) for task in tasks])


def published_tasks() -> list[list[str]]:
    """The tasks that :func:`publish_tasks` gave; empty where there are none."""
    return MessageHub.get_current_instance().get_info(_TASKS_KEY, [])


def remember_pretrained(metrics: Mapping[str, float]) -> None:
    """Keep the metrics of the pre-trained model, as the evaluator returned them."""
    MessageHub.get_current_instance().update_info(_METRICS_KEY, dict(metrics))


def pretrained_values(prefix: str) -> dict[str, float] | None:
    """The remembered metrics whose keys start with ``prefix``, under the rest of their keys.

    Args:
        prefix: Such as ``'per_class/'``; the rest of the key is then the class name.

    Returns:
        The values, or None where the pre-trained model was not evaluated yet.
    """
    metrics = MessageHub.get_current_instance().get_info(_METRICS_KEY)
    if metrics is None:
        return None
    return {k[len(prefix) :]: value for k, value in metrics.items() if k.startswith(prefix)}


def labels_measured_whole() -> list[int]:
    """Labels of the classes of which AP must count every prediction, whatever its score.

    Those that must be gone at the moment; in the evaluation of the pre-trained model those of all
    published tasks. Empty outside a forgetting run.
    """
    partition = ClassPartition.current()
    if partition is None:
        return []
    names = {*partition.forget, *partition.old}
    if pretrained_values('') is None:
        names.update(name for task in published_tasks() for name in task)
    return sorted(partition.classes.index(name) for name in names)
