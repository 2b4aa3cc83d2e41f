"""Where the loop, the hooks, the tools and the report find what belongs to a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmgslora.errors import ForgettingError

if TYPE_CHECKING:  # the families fill the registry
    from mmengine.evaluator import BaseMetric

    from mmgslora.families.audited_model import AuditedModel, Images
    from mmgslora.families.base import ForgettingModel
    from mmgslora.families.drawing import Drawing

FAMILIES: dict[str, Family] = {}
"""Every family by its name."""


def with_package(config: dict[str, Any], classes: Sequence[str]) -> None:
    """Let the config of a plain model import this package, without which it is not built."""
    config['custom_imports'] = dict(imports=['mmgslora.register'])


@dataclass(frozen=True)
class Family:
    """What is being trained: the classes that know it.

    Attributes:
        name: Its name, and the key of the plain model in the config of ``model``, in the wrapper
            and in checkpoints.
        model: The wrapper that makes the two views of a step.
        audited: The plain model under audit.
        images: The data that an audit shows it.
        drawing: What is drawn of its answers.
        metric: What measures every class of it by itself.
        plain_config: Makes of what a run's config says of its data and measuring, in place, what a
            merged file says of the plain model; it gets that and the names of the classes.
            Defaults to :func:`with_package`.
    """

    name: str
    model: type[ForgettingModel]
    audited: type[AuditedModel]
    images: type[Images]
    drawing: type[Drawing]
    metric: type[BaseMetric]
    plain_config: Callable[[dict[str, Any], Sequence[str]], None] = with_package


def register_family(family: Family) -> Family:
    """Make a family known to loop, hooks, tools and report."""
    FAMILIES[family.name] = family
    return family


def family_of(model: Mapping[str, Any]) -> Family:
    """The family that a config of ``model`` belongs to.

    Raises:
        ForgettingError: No registered family has the key of its plain model there.
    """
    for name, family in FAMILIES.items():
        if name in model:
            return family
    raise ForgettingError(
        f'The model of the run is {model.get("type")!r}; it can be that of '
        f'{" or ".join(f"a {name}" for name in FAMILIES)}.'
    )
