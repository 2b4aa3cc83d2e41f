"""From the measures to one of a few verdicts, against limits that the user sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

NOT_FORGOTTEN = 'not forgotten'
HIDDEN = 'hidden, not forgotten'
FORGOTTEN = 'forgotten'
OUTPUT_ONLY = 'gone from the output; whether it is only hidden cannot be judged'

LIMITS = dict(forgotten_max=2.0, probe_gap_max=2.0, relearning_gap_max=0.0)
"""``forgotten_max``: AP_f or Acc_f in percent, or the oracle's where that is higher, for AP is a
ranking and a class without a single example can have some. ``probe_gap_max``: points by which a
probe of what the head reads names more forgotten objects than the oracle's.
``relearning_gap_max``: points by which relearning leads the oracle. All defaults are ours."""

# Limits come with one decimal; a gap of 1e-12 is rounding.
_ROUNDING = 1e-9


@dataclass
class Verdict:
    """The verdict and what it rests on.

    Attributes:
        verdict: One of the four constants of this module.
        reason: One sentence with the numbers that decided.
        values: What was compared, None where it was not measured.
        limits: What it was compared with.
    """

    verdict: str
    reason: str
    values: dict[str, float | None]
    limits: dict[str, float]

    def as_dict(self) -> dict:
        return asdict(self)


def judge(
    forgotten: float,
    probe_gap: float | None,
    relearning_gap: float | None,
    limits: Mapping[str, float] | None = None,
    oracle_forgotten: float | None = None,
) -> Verdict:
    """Judge one model.

    - 'not forgotten': the output still names the classes, more than the limit and the oracle's.
    - 'hidden, not forgotten': the output does not, but probe or relearning finds more than in the
      oracle. One gap above its limit is enough, even where the other was not measured.
    - 'forgotten': neither does.
    - otherwise the output alone was judged.

    Args:
        forgotten: AP_f or Acc_f of all forgotten classes, in percent.
        probe_gap: Probe accuracy on forgotten objects minus the oracle's, in points; None where
            there is no oracle or it was not measured.
        relearning_gap: AP_f or Acc_f after relearning minus the oracle's, in points, or None.
        limits: Overrides of :data:`LIMITS`. Defaults to None.
        oracle_forgotten: AP_f or Acc_f of the oracle, in percent. Defaults to None: no oracle.
    """
    limits = {**LIMITS, **(limits or {})}
    limits = {name: limits[name] for name in LIMITS}
    values = dict(
        forgotten=forgotten,
        oracle_forgotten=oracle_forgotten,
        probe_gap=probe_gap,
        relearning_gap=relearning_gap,
    )
    allowed = max(limits['forgotten_max'], oracle_forgotten or 0.0)
    above = [
        f'{what} {values[name]:.1f} points above the oracle (allowed: {limits[limit]:g})'
        for what, name, limit in (
            ('a probe is', 'probe_gap', 'probe_gap_max'),
            ('relearning is', 'relearning_gap', 'relearning_gap_max'),
        )
        if values[name] is not None and values[name] > limits[limit] + _ROUNDING
    ]
    missing = [name for name in ('probe_gap', 'relearning_gap') if values[name] is None]
    output = f'AP_f or Acc_f is {forgotten:.1f} % (allowed: {allowed:.3g})'
    if forgotten > allowed + _ROUNDING:
        verdict, reason = NOT_FORGOTTEN, f'{output}.'
    elif above:
        verdict, reason = HIDDEN, f'{output}, but {" and ".join(above)}.'
    elif missing:
        verdict = OUTPUT_ONLY
        reason = f'{output}; not compared with an oracle: {", ".join(missing).replace("_", " ")}.'
    else:
        verdict = FORGOTTEN
        reason = (
            f'{output}; from the oracle, a probe is {probe_gap:+.1f} '
            f'and relearning {relearning_gap:+.1f} points away.'
        )
    return Verdict(verdict, reason, values, limits)
