"""From one value per class to the numbers of the papers' tables: f, r, o, m, Drop and H."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mmgslora.datasets.protocol import ClassPartition


def harmonic_mean(retained: float, drop: float) -> float:
    """H, which is high only if much is kept and much is forgotten.

    .. math:: H = \\frac{2 \\cdot AP_r \\cdot Drop}{AP_r + Drop}

    Args:
        retained: AP_r or Acc_r in percent.
        drop: Drop in percentage points.

    Returns:
        H in percent; 0 where nothing is kept (``retained`` = 0) or nothing was forgotten
        (``drop`` <= 0), where the formula has no meaning.
    """
    if retained <= 0 or drop <= 0:
        return 0.0
    return 2 * retained * drop / (retained + drop)


def group_by_partition(
    per_class: dict[str, float],
    partition: ClassPartition,
    pretrained: dict[str, float] | None = None,
    prefix: str = 'AP',
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Group one value per class (AP or accuracy) by what each class is at the moment.

    With ``AP_g`` the mean over the classes of group g that have a value:

    .. math::
        Drop = AP_f(\\text{pre-trained model}) - AP_f, \\qquad
        H = \\frac{2 \\cdot AP_r \\cdot Drop}{AP_r + Drop}

    This is the form of the tables of GS-LoRA (arXiv 2403.11530) and GS-LoRA++ (arXiv
    2501.09705); their code measures Drop from the start of the task instead, which differs from
    the second task on. Two things are settled here: AP_r is over the retain classes alone, where
    the missing-class tables join them with the missing ones, and H is 0 where Drop <= 0 or
    AP_r = 0.

    Args:
        per_class: Percent by class name; a class without ground truth is absent or NaN.
        partition: The partition of the moment.
        pretrained: The same of the pre-trained model. Defaults to None: no Drop, no H.
        prefix: 'AP' or 'Acc'. Defaults to 'AP'.
        weights: How much each class counts in the means, such as its number of images. Defaults to
            None: all classes count the same.

    Returns:
        Percent under ``{prefix}_f``, ``_r``, ``_o``, ``_m``, ``Drop`` and ``H``. What cannot be
        known is left out: a group without any value, and Drop and H where a forgotten class has
        no pre-trained value.
    """
    values = {name: value for name, value in per_class.items() if not math.isnan(value)}

    def mean(of: dict[str, float], names: Iterable[str]) -> float:
        shares = {name: 1 if weights is None else weights[name] for name in names}
        total = sum(shares.values())
        return math.fsum(n * of.get(name, math.nan) for name, n in shares.items()) / total

    grouped = {}
    for letter, names in partition.groups().items():
        known = [name for name in names if name in values]
        if known:
            grouped[f'{prefix}_{letter}'] = mean(values, known)

    forgotten, retained = grouped.get(f'{prefix}_f'), grouped.get(f'{prefix}_r')
    if pretrained is None or forgotten is None:
        return grouped
    before = mean(pretrained, [name for name in partition.forget if name in values])
    if not math.isnan(before):
        grouped['Drop'] = before - forgotten
        if retained is not None:
            grouped['H'] = harmonic_mean(retained, grouped['Drop'])
    return grouped
