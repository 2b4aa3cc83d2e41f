import io
import math
import re

import pytest
from rich.console import Console

from mmgslora.errors import ForgettingError
from mmgslora.report.table import forgetting_table, shorten_names, summary_lines

from .records import COCO_TASKS, detr_groups, make_record, shapes_record


def printed(record, width=160):
    out = io.StringIO()
    # Wider than allowed: the table itself has to stay narrow, not be squeezed by the terminal.
    Console(file=out, width=width).print(forgetting_table(record))
    return out.getvalue()


def widest(text):
    return max(len(line.rstrip()) for line in text.splitlines())


def test_every_number_stands_in_the_table():
    record = shapes_record()
    text = printed(record)
    lines = [line for line in text.splitlines() if line.strip().startswith(('1 ', '2 '))]
    first, second = (line.split() for line in lines)
    assert first[:3] == ['1', 'circle,', 'square']
    # AP_f, AP_r (star stays at 80, hexagon fell to 30), AP_o, H, both recalls.
    assert first[3:9] == ['1.0', '56.0', '-', '65.5', '2.3', '14.6']
    assert first[-3:] == ['hexagon', '3/5', '8.6']
    assert second[:2] == ['2', 'star']
    assert second[2:8] == ['1.0', '48.0', '0.7', '59.7', '2.3', '14.6']
    assert second[-2:] == ['1/5', '8.6']
    assert 'of 80.0' in text  # AP_f before
    assert '86% of 65.0' in text  # 56 of (80 + 3 * 60) / 4
    assert '80% of 60.0' in text
    assert '30.0, 50% of 60.0' in text
    assert 'pre-trained' in text and '70.0' in text  # the mean over all six classes
    assert 'forget.py, GSLoRA, seed 3' in text


def test_forgotten_classes_compare_with_every_query_of_the_pretrained_model():
    record = shapes_record()
    assert 'every query' not in printed(record)
    # COCO's numbers stay those of the classes that are retained now and forgotten later.
    record['pretrained']['every_query/per_class'] = dict(circle=84.0, square=82.0, star=91.0)
    text = ' '.join(printed(record).split())
    assert 'of 83.0' in text and 'of 91.0' in text
    assert '86% of 65.0' in text and '80% of 60.0' in text
    assert 'AP_f, AP_o, AR_f: every query counts.' in text


def test_ten_coco_names_and_seven_tasks_fit():
    record = make_record(COCO_TASKS, ['person', 'baseball glove'], detr_groups(7))
    text = printed(record)
    assert widest(text) <= 100
    assert 'microwave' in text
    assert re.search(r', \+[678]\b', text)
    assert text.count('3/12') == 7
    assert text.count('30.0, 50% of 60.0') == 7
    assert '…' not in text


def test_the_widest_numbers_fit_and_none_is_cut():
    stay = ['a very long class name of a detector', 'another very long class name']
    groups = {f'blocks.{i}.mlp': [0.0] * 7 for i in range(24)}
    record = make_record(COCO_TASKS, stay, groups, missing=('cat', 'dog'))
    record['pretrained']['per_class'] = dict.fromkeys(record['pretrained']['per_class'], 99.0)
    for task in record['tasks']:
        task['task'] += 13
        task['metrics'] = dict.fromkeys(task['metrics'], 100.0)
        task['per_class'] = dict.fromkeys(task['per_class'], 100.0)
        task['train_seconds'] = 98_765.4
    text = printed(record)
    assert widest(text) <= 100
    assert text.count('24/24') == text.count('98765') == 7
    assert text.count('100, 101% of 99.0') == 7
    assert printed(record, width=100).count('101% of 99.0') == text.count('101% of 99.0') == 14


def test_other_prefixes_and_no_recall():
    text = printed(shapes_record(prefix='Acc_', recall=False))
    assert 'Acc_f' in text and 'Acc_r' in text and 'Acc_o' in text
    assert 'AP_' not in text and 'AR_f' not in text
    record = shapes_record(prefix='Acc_', recall=False)
    for task in record['tasks']:
        task['metrics']['forgotten_name_rate'] = 7.7
    named = printed(record)
    assert named.count('7.7') == len(record['tasks']) and 'Named forgotten: images of' in named
    assert 'Named' not in text and 'named' not in text
    assert 'Acc_f 0.4' in '\n'.join(summary_lines(shapes_record(prefix='Acc_')))


def test_missing_classes_get_their_column_only_when_there_are_some():
    assert 'AP_m' not in printed(shapes_record())
    text = printed(shapes_record(missing=('ring',)))
    assert 'AP_m' in text and '40.0' in text and 'of 50.0' in text


def test_nothing_measured_is_a_dash_not_a_zero():
    record = shapes_record()
    metrics = record['tasks'][0]['metrics']
    metrics['AP_f'], metrics['H'] = math.nan, None
    record['tasks'][0]['groups'] = {}
    line = next(li for li in printed(record).splitlines() if li.strip().startswith('1 '))
    assert line.split()[3:7] == ['-', '56.0', '-', '-']
    assert line.split()[-2:] == ['-', '8.6']


def test_a_class_the_model_never_knew_is_not_the_hardest_hit():
    record = shapes_record()
    record['pretrained']['per_class']['hexagon'] = 0.0
    assert 'after task 2: triangle, 57.0 of 60.0' in '\n'.join(summary_lines(record))


def test_class_names_are_text_and_never_markup():
    record = make_record([['[red]', '[/b]']], ['[dim]'], {'a.0': [1.0]})
    text = printed(record)
    assert '[red], [/b]' in text and '[dim]' in text


def test_a_tiny_norm_is_not_counted_as_zero():
    record = make_record([['circle']], ['star'], {'a.0': [1e-30], 'a.1': [0.0]})
    assert '1/2' in printed(record)


def test_summary_says_what_share_of_the_original_training_it_was():
    record = shapes_record()
    record['original_training'] = dict(steps=1500, seconds=688.0)
    for task, steps in zip(record['tasks'], (100, 200)):
        task.update(steps=steps)
    lines = summary_lines(record)
    seconds = sum(t.get('train_seconds') + (t.get('prepare_seconds') or 0) for t in record['tasks'])
    assert (
        f'The training of the original had 1,500 steps; these are 300, 20 %, '
        f'{100 * seconds / 688:.0f} % of its time.'
    ) in lines
    record['original_training'] = dict(steps=1500, seconds=None)
    assert 'steps; these are 300, 20 %.' in ' '.join(summary_lines(record))


def test_classes_that_no_image_to_measure_on_shows_are_counted_too():
    record = shapes_record()
    for values in (record['pretrained'], *record['tasks']):
        for name in ('circle', 'square', 'triangle', 'cross'):
            del values['per_class'][name]
    assert summary_lines(record)[0].startswith('2 forgetting tasks: 3 of 6 classes')


def test_summary_says_what_the_run_cost():
    text = '\n'.join(summary_lines(shapes_record()))
    assert '2 forgetting tasks: 3 of 6 classes' in text
    assert '12,345 of 1,234,500 parameters (1.00 %)' in text
    assert '320 to forget, 400 to retain' in text
    assert 'Training took 17.2 s in all, evaluation 6.4 s.' in text
    assert 'after task 2: hexagon, 30.0 of 60.0 (50 % kept)' in text
    assert 'AP_f of the same queries in a random order: 0.8, 0.9.' in text
    assert "paper's way after task 2: AP_f 0.4, AP_r 55.5" in text


def test_the_papers_way_keeps_the_margin_where_it_was_measured():
    record = shapes_record()
    metrics = {'margin_at_test/paper/AP_f': 0.1, 'margin_at_test/paper/AP_r': 44.0}
    record['tasks'][-1]['metrics'].update(metrics)
    text = '\n'.join(summary_lines(record))
    assert "paper's way, with the margin, after task 2: AP_f 0.1, AP_r 44.0." in text


@pytest.mark.parametrize(
    ('width', 'lines', 'expected'),
    [
        (30, 1, 'microwave, skateboard, +8'),
        (14, 1, 'microwave, +9'),
        (16, 2, 'microwave,\nskateboard, +8'),
        (10, 1, 'micro…, +9'),
    ],
)
def test_names_are_shortened_and_counted(width, lines, expected):
    text = shorten_names(COCO_TASKS[0], width, lines)
    assert text == expected
    assert max(map(len, text.split('\n'))) <= width


def test_of_wide_names_it_is_said_how_many_there_are():
    names = ['消火栓', '信号機', '駐車場']  # six columns each
    assert shorten_names(names, 14, 1) == '消火栓, +2'
    assert shorten_names(names, 9, 1) == '消火…, +2'


def test_a_record_without_tasks_is_refused():
    for empty in ({'tasks': []}, {}):
        with pytest.raises(ForgettingError, match='no finished forgetting task'):
            forgetting_table(empty)


def test_a_record_without_a_forget_metric_is_refused():
    record = shapes_record()
    for task in record['tasks']:
        task['metrics'] = {'H': 1.0}
    with pytest.raises(ForgettingError, match='they are: H'):
        forgetting_table(record)


def test_runs_of_different_methods_do_not_look_alike():
    record = shapes_record()
    del record['method']  # as older records are
    plain = printed(record)
    record.update(
        method=dict(type='GSLoRA', beta=0.2, sparsity=dict(mode='proximal')),
        tune=dict(type='LoRA', rank=8, targets=['encoder.layers.0.ffn']),
    )
    for task in record['tasks']:
        task['prepare_seconds'] = 45.0
    assert 'forget.py, GSLoRA, seed 3' in printed(record) and 'GSLoRA' not in plain
    lines = summary_lines(record)
    assert lines[1:3] == [
        'Method: GSLoRA(beta=0.2, sparsity=(mode=proximal)).',
        'Trained: LoRA(rank=8).',
    ]
    assert any(
        'in all, what the method prepares before it 90.0 s, evaluation' in line for line in lines
    )
