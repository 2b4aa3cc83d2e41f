"""The forgetting run as one table for the terminal, and the sentences below it."""

from __future__ import annotations

import textwrap

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from mmgslora.records.record import (
    NAME_RATE,
    class_groups,
    found_keys,
    hardest_hit,
    mean_before,
    metric,
    metric_prefix,
    number,
    run_settings,
    run_title,
    task_summary,
    tasks_of,
)
from mmgslora.report.format import percent

_WIDTH = 100
_GAP = 1
_NAMES_WIDTH = (12, 28)
_CLASS_WIDTH = 17
_NOTHING = '-'

# A cell is what is true now and, below it, what it is compared with.
Cell = tuple[str, str]


def forgetting_table(record: dict) -> Table:
    """One row per forgetting task, each number above the pre-trained one it compares with.

    Args:
        record: The content of a run's ``forgetting.json``.

    Returns:
        A table of at most 100 columns, whatever the number of forgotten classes.

    Raises:
        ForgettingError: The record holds no task or no forget and retain metric.
    """
    tasks, prefix = tasks_of(record), metric_prefix(record)
    found, summaries = found_keys(tasks), [task_summary(record, task) for task in tasks]
    letters = 'from'[: 4 if any(line['m'] is not None for line in summaries) else 3]

    headers: list[Cell] = [(f'{prefix}{letter}', '') for letter in letters] + [('H', '')]
    for key in found:
        name, at, score = key.partition('@')
        headers.append(('named', 'forgotten') if key == NAME_RATE else (name, at + score))
    headers += [(' hardest hit', ''), ('zero', 'groups'), ('train', 's')]

    classes = record['pretrained']['per_class']
    known = sum(number(value) is not None for value in classes.values())
    start: list[Cell] = [('', '')] * len(headers)
    start[1] = (_points(mean_before(record, classes)), '')
    rows = [start, *(_row(line, letters) for line in summaries)]

    # The names get what the numbers leave: numbers must never be cut.
    task_cells = ['task', *(str(task['task']) for task in tasks)]
    taken = max(map(cell_len, task_cells)) + sum(
        max(cell_len(line) for cell in column for line in cell) for column in zip(headers, *rows)
    )
    room = _WIDTH - taken - _GAP * (len(headers) + 2)
    names_width = min(max(room, _NAMES_WIDTH[0]), _NAMES_WIDTH[1])
    all_names = [f'pre-trained\n{_count(known, "class")}']
    all_names += [shorten_names(task['forget'], names_width, lines=2) for task in tasks]
    longest = max(cell_len(line) for names in all_names for line in names.split('\n'))

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        # The box already puts one column between cells.
        padding=(0, 0),
        title=Text(run_title(record)),
        caption=_caption(prefix, found, 'every_query/per_class' in record['pretrained']),
        caption_justify='left',
    )
    table.add_column(Text('task'), justify='right', no_wrap=True)
    # One column more than the names need, or '+7 of 79.3' would read as one phrase.
    table.add_column(Text('forgotten'), width=min(longest, names_width) + _GAP, no_wrap=True)
    for top, bottom in headers:
        table.add_column(
            Text(f'{top}\n{bottom}' if bottom else top),
            justify='left' if 'hardest' in top else 'right',
            no_wrap=True,
        )
    for number_cell, names, row in zip(['', *task_cells[1:]], all_names, rows):
        table.add_row(number_cell, Text(names), *map(_text, row))
    return table


def _row(line: dict, letters: str) -> list[Cell]:
    below = {letter: _of(line[f'{letter}_before']) for letter in 'fm'}
    below['r'] = _of(line['r_before'], line['share'])
    row = [(_points(line[letter]), below.get(letter, '')) for letter in letters]
    row += [(_points(line['h']), ''), *((_points(value), '') for value in line['found'])]
    hit, seconds = line['hit'], line['seconds']
    name = Text(hit['name'] if hit else _NOTHING)
    name.truncate(_CLASS_WIDTH, overflow='ellipsis')
    # Text beside right-aligned numbers needs more air than the one column between cells.
    below = f' {_points(hit["now"])}, {_of(hit["before"], hit["share"])}' if hit else ''
    zero = f'{line["zero"]}/{line["groups"]}' if line['groups'] else _NOTHING
    return [*row, (f' {name.plain}', below), (zero, ''), (_points(seconds), '')]


def summary_lines(record: dict) -> list[str]:
    """The cost of the run and its worst side effect, as plain sentences.

    Args:
        record: The content of a run's ``forgetting.json``.

    Returns:
        One sentence per line; what the record does not hold is left out.
    """
    tasks = tasks_of(record)
    gone = sum(len(task['forget']) for task in tasks)
    # Not those with a value: images to measure on need not show every class.
    known = sum(map(len, class_groups(tasks[-1]).values()))
    lines = [
        f'{_count(len(tasks), "forgetting task")}: {gone} of {_count(known, "class")} '
        'asked to be forgotten.'
    ]
    lines += [f'{name}: {value}.' for name, value in run_settings(record)]
    lines += _costs(record, tasks)
    lines += [line for task in tasks if (line := _why_it_ended(task))]
    return lines + _effects(record, tasks)


def _costs(record: dict, tasks: list[dict]) -> list[str]:
    """What all tasks took: parameters, images and time."""
    lines = []
    trained = max((task.get('trainable_params') or 0 for task in tasks), default=0)
    total = max((task.get('total_params') or 0 for task in tasks), default=0)
    if total:
        lines.append(
            f'Trained in a task: {trained:,} of {total:,} parameters '
            f'({100 * trained / total:.2f} %).'
        )

    images = [task['train_images'] for task in tasks if task.get('train_images')]
    if images:
        lines.append(
            f'Training images, all tasks: {sum(i.get("forget", 0) for i in images):,} '
            f'to forget, {sum(i.get("retain", 0) for i in images):,} to retain.'
        )

    prepare, train, evaluate = (
        sum(task.get(f'{key}_seconds') or 0 for task in tasks)
        for key in ('prepare', 'train', 'eval')
    )
    before = f'what the method prepares before it {_duration(prepare)}, ' if prepare >= 1 else ''
    lines.append(
        f'Training took {_duration(train)} in all, {before}evaluation {_duration(evaluate)}.'
    )
    return lines + _beside_the_original(record, tasks, prepare + train)


def _effects(record: dict, tasks: list[dict]) -> list[str]:
    """What stands beside AP_f and AP_r: the hardest hit class, and other ways to measure."""
    prefix, last, lines = metric_prefix(record), tasks[-1], []
    hit = hardest_hit(record, last)
    if hit:
        lines.append(
            f'Hardest hit of the classes that must stay, after task {last["task"]}: '
            f'{hit["name"]}, {hit["now"]:.1f} of {hit["before"]:.1f} '
            f'({100 * hit["share"]:.0f} % kept).'
        )

    at_random = [metric(task, f'random/{prefix}f') for task in tasks]
    if None not in at_random:
        values = ', '.join(f'{value:.1f}' for value in at_random)
        lines.append(f'{prefix}f of the same queries in a random order: {values}.')

    # Of faces the papers keep the margin, which is measured where it was asked for.
    ways = {'margin_at_test/paper/': ', with the margin,', 'paper/': ''}
    for way, how in ways.items():
        paper = [
            f'{name} {value:.1f}'
            for name in (f'{prefix}f', f'{prefix}r', f'{prefix}o')
            if (value := metric(last, f'{way}{name}')) is not None
        ]
        if paper:
            after = f'after task {last["task"]}'
            lines.append(f"Measured the paper's way{how} {after}: {', '.join(paper)}.")
            break
    return lines


def shorten_names(names: list[str], width: int, lines: int = 1) -> str:
    """As many names as fit, then how many more there are: 'microwave, skateboard, +8'.

    Args:
        names: Class names.
        width: Columns of a terminal in a line; a wide character takes two.
        lines: Lines that may be filled.
    """
    for shown in range(len(names), 0, -1):
        more = len(names) - shown
        text = ', '.join(names[:shown]) + (f', +{more}' if more else '')
        wrapped = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        if len(wrapped) <= lines and all(cell_len(line) <= width for line in wrapped):
            return '\n'.join(wrapped)
    if not names:
        return _NOTHING
    more = f', +{len(names) - 1}' if len(names) > 1 else ''
    first = Text(names[0])
    first.truncate(width - len(more), overflow='ellipsis')
    return first.plain + more


def _caption(prefix: str, found: list[str], every_query: bool) -> Text:
    caption = (
        'Values in %. "of": the pre-trained value of the same classes. '
        f'{prefix}f: forgotten now, {prefix}r: retained, {prefix}o: forgotten earlier.'
    )
    if any(key.startswith('AR_f') for key in found):
        caption += ' AR_f@s: forgotten objects still found with a score of s or more.'
    if every_query:
        caption += ' AP_f, AP_o, AR_f: every query counts.'
    if NAME_RATE in found:
        caption += ' Named forgotten: images of forgotten classes still given the name of any.'
    caption += ' Zero groups: transformer blocks the task left exactly as they were.'
    return Text(caption)


def _text(cell: Cell) -> Text:
    text = Text(cell[0])
    if cell[1]:
        text.append(f'\n{cell[1]}', style='dim')
    return text


def _points(value: float | None) -> str:
    if value is None:
        return _NOTHING
    # '100' and not '100.0': no number is wider than four characters.
    return f'{value:.1f}' if value < 99.95 else f'{value:.0f}'


def _of(before: float | None, share: float | None = None) -> str:
    if before is None:
        return ''
    part = '' if share is None else f'{100 * share:.0f}% '
    return f'{part}of {_points(before)}'


def _why_it_ended(task: dict) -> str:
    """When and why, where a task may end before its last epoch; else ''."""
    ended = task.get('ended')
    if not ended:
        return ''
    why = 'as its training data said that it was served' if ended['served'] else 'its last one'
    seen = ended.get('forget_score') is not None and (
        f': {ended["forget_score"]:.3f} of the scores to forget was left, and what stays had '
        f'drifted by {ended["drift"]:.3f} nats'
    )
    return f'Task {task["task"]} ended after epoch {ended["epochs"]}, {why}{seen or ""}.'


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.1f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60} min'


def _count(n: int, noun: str) -> str:
    plural = f'{noun}es' if noun.endswith('s') else f'{noun}s'
    return f'{n} {noun if n == 1 else plural}'


def _beside_the_original(record: dict, tasks: list[dict], seconds: float) -> list[str]:
    """What all tasks took beside the training of the model that they began with."""
    original = record.get('original_training') or {}
    steps, took = sum(task.get('steps') or 0 for task in tasks), original.get('seconds')
    if not original.get('steps') or not steps:
        return []
    share = f', {percent(seconds / took)} of its time' if took else ''
    return [
        f'The training of the original had {original["steps"]:,} steps; these are {steps:,}, '
        f'{percent(steps / original["steps"])}{share}.'
    ]
