"""The one verdict on a request: its limits, its checks and what they say together.

``audit.json``, the certificates and the report all show what :func:`judge_request` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from mmgslora.audit.rows import AuditRows, is_oracle
from mmgslora.errors import ForgettingError
from mmgslora.records.record import (
    NAME_RATE,
    hardest_hit,
    merged_file,
    metric_prefix,
    number,
    share_kept,
    values_before,
)
from mmgslora.settings import Share, problems

Percent = Annotated[float, Field(ge=0, le=100, description='a number from 0 to 100')]


@dataclass(frozen=True)
class Limits:
    """What a request must keep to; all defaults are ours.

    Attributes:
        forgotten_max: Highest mean AP (or accuracy) of the forgotten classes, in %. It gives way
            to the oracle's on the same classes where that was measured and is higher, and to that
            of a random order of all queries (``random/AP_f`` of the run): AP is a ranking, and a
            class without a single example can have some.
        forgotten_class_max: Highest AP of any one of them, of detectors alone (the accuracy of a
            person of two test images is 0, 50 or 100), so that a class which is still there does
            not hide behind nine that are not. It gives way in the same way, to the oracle's on that
            class, and to the highest that it has in a random order.
        forgotten_name_max: Highest share, in %, of the images of all classes forgotten by then that
            get the name of any of them (``forgotten_name_rate``, of classifiers): two classes that
            have swapped their names have an accuracy of 0. It gives way to the limit of the mean.
        retained_min_share: Smallest share of their own value that retained classes keep, and
            missing ones.
        retained_class_min_share: Smallest share that any one of them keeps of its own, of those
            that the original has more of than ``forgotten_class_max``. Of detectors, too; a class
            with few objects can lose some of its AP by chance.
        probe_gap_max: Most points by which a probe may name more than the oracle's, in any decoder
            layer or block.
        relearning_gap_max: Most points by which relearning may lead the oracle.
    """

    forgotten_max: Percent = 2.0
    forgotten_class_max: Percent = 5.0
    forgotten_name_max: Percent = 5.0
    retained_min_share: Share = 0.95
    retained_class_min_share: Share = 0.5
    probe_gap_max: Percent = 2.0
    relearning_gap_max: Percent = 0.0


RELEARNING_POINT = (16, 20)
"""Images and steps at which relearning is compared."""
RELEARNING_MEASURE = 'relearning/k16/step20'
NEW_HEAD_MEASURE = 'new_head/k16/step20'
"""The same by an attacker who starts the head's rows anew."""
ATTACKS = (NEW_HEAD_MEASURE, RELEARNING_MEASURE, 'relearning/k64/step20')
"""What an adversary would choose from; the largest lead counts. The last is for who has so many
images, and may be left out."""
_BELOW = ('probe/neck', 'probe/encoder')  # maps of an image, in which nothing stands for an object

NOT_FORGOTTEN = 'not forgotten'
CAME_BACK = 'came back in part'
HIDDEN = 'hidden, not forgotten'
TOO_COSTLY = 'at too high a price'
NOT_SHOWN = 'not shown'
OUTPUT_ONLY = 'gone from the output; whether it is only hidden cannot be judged'
FORGOTTEN = 'forgotten'

PASSED, FAILED, INCOMPLETE, NOT_MEASURED = 'passed', 'failed', 'incomplete', 'not measured'

# Verdict -> result and sentence, the worst first.
_SAYS = {
    NOT_FORGOTTEN: (
        FAILED,
        'Not forgotten: the model still recognises what it was asked to forget.',
    ),
    CAME_BACK: (
        FAILED,
        'Came back in part: forgotten at first, but the last model of the run recognises these '
        'classes more than is allowed.',
    ),
    HIDDEN: (
        FAILED,
        'Hidden, not forgotten: the model no longer names the classes, but more of them is left '
        'inside it than in a model that never saw them.',
    ),
    TOO_COSTLY: (FAILED, 'At too high a price: what had to stay lost more than was allowed.'),
    NOT_SHOWN: (INCOMPLETE, 'Not shown: a value that decides was not measured.'),
    OUTPUT_ONLY: (
        INCOMPLETE,
        'No longer recognised. Whether the classes are gone from inside the model, or only '
        'hidden, has not been shown.',
    ),
    FORGOTTEN: (PASSED, 'Forgotten, by every threshold that was set.'),
}
_TOO_EASY = (
    'the original itself would pass, which knows the classes, or was not measured; take classes '
    'never seen that are as hard'
)
_UNSAID = 'the run did not record it'
_GRADED = 'AP_'  # what of a single class is held against a limit of its own
# Where these pass, the means that stand beside them say more.
_OF_ONE = ('forgotten_class_max', 'forgotten_name_max', 'retained_class_min_share')
# A share of 0.95 that comes out as 0.9499999999 of floating point has not failed.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What is said of one request, and what it rests on.

    Attributes:
        task: Number of the request's task.
        verdict: One of the seven constants of this module.
        result: 'passed', 'failed' or 'incomplete'.
        sentence: The verdict in plain words.
        reason: The numbers that decided, in one sentence.
        checks: What was compared with which limit, each with ``threshold``, ``measure``,
            ``value``, ``limit``, ``model``, ``result`` and, where it was not measured, ``reason``.
    """

    task: int
    verdict: str
    result: str
    sentence: str
    reason: str
    checks: list[dict[str, Any]]


def limits_of(thresholds: Mapping[str, Any] | None) -> dict[str, float]:
    """The user's thresholds over the defaults of :class:`Limits`.

    Raises:
        ForgettingError: A name is unknown, or a value is no number or out of range.
    """
    if not isinstance(thresholds, (Mapping, type(None))):
        allowed = ', '.join(asdict(Limits()))
        raise ForgettingError(f'thresholds is {thresholds!r}; it must be a dict with {allowed}.')
    if wrong := problems(Limits, thresholds or {}, 'thresholds'):
        raise ForgettingError(' '.join(wrong))
    return asdict(Limits(**{name: float(value) for name, value in (thresholds or {}).items()}))


def judge_request(
    record: Mapping[str, Any],
    task: Mapping[str, Any],
    limits: Mapping[str, float],
    audit: AuditRows | None = None,
    reason: str = '',
    unfit: Mapping[int, str] | None = None,
) -> Verdict:
    """Judge one request of a run.

    - 'not forgotten': AP_f (Acc_f) after its task is above the limit, the oracle's and that of a
      random order, the AP of one of the classes is above its own, or they still get each other's
      names; or in the last model of the run, if it was not measured before.
    - 'came back in part': it was not, but in the last model of the run it is.
    - 'hidden, not forgotten': the output does not name the classes, but the probe of a decoder
      layer or block, or one of the :data:`ATTACKS`, finds more than in the oracle. One gap above
      its limit is enough, even where others were not measured.
    - 'at too high a price': the retained classes kept too little, or one of them did.
    - 'not shown': one of the values of the run was not measured, or not on the file that is there.
    - 'gone from the output; ...': no audit with an oracle, or classes never seen, looked inside,
      or one of the attacks was left out.
    - 'forgotten': every limit holds.

    Args:
        record: The content of ``forgetting.json``.
        task: The request's entry in it.
        limits: From :func:`limits_of`.
        audit: The audit, where it counts for this request. Defaults to None.
        reason: Why there is none. Defaults to '', for an audit.
        unfit: Task number -> why its merged file is not the one that the run measured. Defaults
            to None: all are.
    """
    checks = _checks(record, task, limits, audit, reason, unfit or {})
    results = {part: [c['result'] for c in checks if c['threshold'] == part] for part in limits}
    of_output = [c for c in checks if c['threshold'].startswith('forgotten')]
    output = [check['result'] for check in of_output]
    first = merged_file(task['task'])
    at_first = {check['result'] for check in of_output if check['model'] == first}
    retained = [*results['retained_min_share'], *results['retained_class_min_share']]
    inside = [*results['probe_gap_max'], *results['relearning_gap_max']]
    if FAILED in output:  # it came back only if it is known to have been gone
        verdict = CAME_BACK if at_first == {PASSED} else NOT_FORGOTTEN
    elif FAILED in inside:
        verdict = HIDDEN
    elif FAILED in retained:
        verdict = TOO_COSTLY
    elif NOT_MEASURED in (*output, *retained):
        verdict = NOT_SHOWN
    elif NOT_MEASURED in inside:
        verdict = OUTPUT_ONLY
    else:
        verdict = FORGOTTEN
    return Verdict(task['task'], verdict, *_SAYS[verdict], _reason(checks), checks)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that a run as a whole deserves: that of its worst request."""
    return min(verdicts, key=lambda verdict: list(_SAYS).index(verdict.verdict))


def _checks(
    record: Mapping[str, Any],
    task: Mapping[str, Any],
    limits: Mapping[str, float],
    audit: AuditRows | None,
    reason: str,
    unfit: Mapping[int, str],
) -> list[dict[str, Any]]:
    """What is compared with which limit: the output, once or twice; what stays; the inside."""
    rows = audit or AuditRows({})
    probes = [x for x in rows.of('probe') if not x.startswith(_BELOW)] or ['probe']
    return [
        *_of_forgotten(record, task, limits, rows, unfit),
        *_of_retained(record, task, limits, unfit),
        _of_gap(rows, 'probe_gap_max', probes, probes, limits, audit, reason),
        _of_gap(rows, 'relearning_gap_max', ATTACKS, ATTACKS[:2], limits, audit, reason),
    ]


def _of_forgotten(
    record: Mapping[str, Any],
    task: Mapping[str, Any],
    limits: Mapping[str, float],
    rows: AuditRows,
    unfit: Mapping[int, str],
) -> Iterator[dict[str, Any]]:
    """The classes together, and of several the one that is furthest above what it may have."""
    prefix, n, last = metric_prefix(record), task['task'], record['tasks'][-1]
    names = task['forget']
    at_random = number(task['metrics'].get(f'random/{prefix}f')) or 0.0
    allowed = max(limits['forgotten_max'], at_random)
    # Of a record that does not say it by class: none can have more than all of them together.
    lucky = dict.fromkeys(names, len(names) * at_random)
    lucky.update(task['metrics'].get('random/per_class', {}))
    of_class = {name: max(limits['forgotten_class_max'], lucky[name]) for name in names}
    for oracle in filter(is_oracle, rows.models):  # the highest that one of them has
        of_it = {name: rows.value(f'output/per_class/{name}', oracle) for name in names}
        if None not in of_it.values():
            allowed = max(allowed, fmean(value.mean for value in of_it.values()))
            of_class = {name: max(of_class[name], of_it[name].mean) for name in names}
    # At the end of the task, and again in the last model of the run. Where no image to measure on
    # shows one of the classes, nothing is known of the request, whatever the others say.
    for m, now in {n: task, last['task']: last}.items():
        values = {name: number(now['per_class'].get(name)) for name in names}
        known = None not in values.values()
        mean = fmean(values.values()) if known else None
        if known and m == n:
            mean = number(task['metrics'].get(f'{prefix}f'))
        what = f'{prefix}{"f" if m == n else "o of these classes"} after task {m}'
        yield _check('forgotten_max', what, mean, allowed, m, unfit.get(m))
        if known and len(names) > 1 and prefix == _GRADED:
            most = max(names, key=lambda x: values[x] - of_class[x])
            what = f'{prefix.rstrip("_")} of {most} after task {m}'
            one = values[most], of_class[most], m, unfit.get(m)
            yield _check('forgotten_class_max', what, *one)
        if NAME_RATE in now['metrics']:
            named, what = number(now['metrics'][NAME_RATE]), f'{NAME_RATE} after task {m}'
            most = max(limits['forgotten_name_max'], allowed)
            yield _check('forgotten_name_max', what, named, most, m, unfit.get(m))


def _of_retained(
    record: Mapping[str, Any],
    task: Mapping[str, Any],
    limits: Mapping[str, float],
    unfit: Mapping[int, str],
) -> Iterator[dict[str, Any]]:
    """The mean of the classes that must stay, and the one of them that has lost most."""
    n = task['task']
    # Classes with and without training data both must stay. Those that have kept less count, and
    # what is not known of the one does not hide that the others kept too little.
    stay = {'retained': task['retain'], 'missing': task.get('missing') or []}
    shares = {kind: share_kept(record, task, x) for kind, x in stay.items() if x}
    least = limits['retained_min_share']
    unknown = least - _ROUNDING
    kind = min(
        shares, key=lambda x: unknown if shares[x] is None else shares[x], default='retained'
    )
    classes = f'{len(stay[kind])} {kind} class{"es" * (len(stay[kind]) != 1)}'
    what = f'share of their pre-trained mean kept by {classes}'
    before = {number(values_before(record).get(name)) for name in stay[kind]}
    nothing = 'the original has 0 there, of which nothing can be kept' if before == {0} else _UNSAID
    yield _check('retained_min_share', what, shares.get(kind), least, n, unfit.get(n), nothing)
    hit = hardest_hit(record, task, known_from=limits['forgotten_class_max'])
    if hit and sum(map(len, stay.values())) > 1 and metric_prefix(record) == _GRADED:
        what = f'share of its own that {hit["name"]} has kept'
        least = limits['retained_class_min_share']
        yield _check('retained_class_min_share', what, hit['share'], least, n, unfit.get(n))


def _of_gap(
    rows: AuditRows,
    threshold: str,
    measures: Sequence[str],
    needed: Sequence[str],
    limits: Mapping[str, float],
    audit: AuditRows | None,
    reason: str,
) -> dict[str, Any]:
    """How far the model is above the reference where it is furthest; one measure is enough to fail,
    and none that is needed may be missing to pass.
    """
    limit = limits[threshold]
    gaps = {name: rows.gap(name) for name in measures}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    missing = [name for name in needed if name not in known]
    measure = max(reversed(known), key=known.get, default=measures[-1])
    gap, nothing = known.get(measure), 'the audit has no oracle to compare with'
    if gap is None or gap <= limit + _ROUNDING:
        if missing:
            gap, measure = None, missing[-1]
        elif not rows.finds_out(measure if measure in ATTACKS else measures[-1], limit):
            gap, nothing = None, _TOO_EASY  # of probes the last layer's, which knows most
        if missing and rows.reference_name:
            nothing = f'the audit has no such comparison with {rows.reference_name}'
    name = f'{measure}, above {rows.reference_name or "the oracle"}'
    model, why = (audit.task, None) if audit else (None, reason)
    return _check(threshold, name, gap, limit, model, why, nothing)


def _check(
    threshold: str,
    measure: str,
    value: float | None,
    limit: float,
    task: int | None,
    why: str | None,
    missing: str = _UNSAID,
) -> dict[str, Any]:
    """One value held against its limit; ``why`` says what makes it worthless, if anything."""
    value, model = None if why is not None else value, task and merged_file(task)
    check = dict(threshold=threshold, measure=measure, value=value, limit=limit, model=model)
    if value is None:
        return dict(check, result=NOT_MEASURED, reason=why or missing)
    least = threshold.endswith('min_share')
    fits = value >= limit - _ROUNDING if least else value <= limit + _ROUNDING
    return dict(check, result=PASSED if fits else FAILED, reason=None)


def _reason(checks: Sequence[Mapping[str, Any]]) -> str:
    """What failed; where nothing did, the means, the inside, and what was not measured."""
    failed = [check for check in checks if check['result'] == FAILED]
    shown = failed or [check for check in checks if check['threshold'] not in _OF_ONE]
    said = [_in_words(check) for check in shown if check['value'] is not None]
    missing = [check for check in checks if check['result'] == NOT_MEASURED]
    said += [f'{check["measure"]}: {check["reason"]}' for check in missing if not failed]
    return f'{"; ".join(said)}.'


def figures(check: Mapping[str, Any]) -> tuple[str, str]:
    """Value and limit of a check as text, shares in percent.

    Of one that failed they are never the same, however close the value is.
    """
    share = check['threshold'].endswith('min_share')
    value, limit = (100 * x if share else x for x in (check['value'], check['limit']))
    for digits in range(3, 18):
        said = f'{value:.{digits - 2}f}' if share else f'{value:.{digits}g}'
        allowed = f'{limit:.{digits}g}'
        if check['result'] != FAILED or float(said) != float(allowed):
            break
    return said, allowed


def _in_words(check: Mapping[str, Any]) -> str:
    said, allowed = figures(check)
    if check['threshold'].endswith('min_share'):
        return f'{check["measure"]}: {said} % (at least {allowed} %)'
    return f'{check["measure"]}: {said} (allowed: {allowed})'
