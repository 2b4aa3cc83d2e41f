import base64
from itertools import cycle, pairwise
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmgslora.audit.rows import AuditRows
from mmgslora.report import charts
from mmgslora.report.blocks import group_map, short_group_names
from mmgslora.report.charts import (
    apart,
    as_svg,
    as_text,
    classes_figure,
    forgetting_figure,
    outcomes_figure,
    probe_figure,
    relearning_figure,
    write_image,
)

from .records import COCO_TASKS, detr_groups, make_record, shapes_record
from .runs import audit_of


def zero_marks(figure):
    """(row, column) of every cell drawn as untouched."""
    return {
        (round(patch.get_y() + 0.5), round(patch.get_x() + 0.5))
        for axes in figure.axes
        for patch in axes.patches
        if patch.get_gid() == 'zero group'
    }


def tick_boxes(axes, which):
    labels = getattr(axes, f'get_{which}ticklabels')()
    return [label.get_window_extent() for label in labels if label.get_text()]


def test_the_map_holds_norms_shares_and_exact_zeros():
    blocks = group_map(shapes_record())
    assert blocks.groups[0] == 'encoder.layers.0.ffn' and blocks.tasks == [1, 2]
    np.testing.assert_allclose(blocks.norms[:, 0], [0.0, 0.0, 3.2, 0.8, 0.0])
    np.testing.assert_allclose(blocks.relative[:, 0], [0.0, 0.0, 1.0, 0.25, 0.0])
    np.testing.assert_allclose(blocks.relative[:, 1], [1.0, 0.25, 0.0, 2.5e-10, 0.5])
    assert blocks.zero.sum(axis=0).tolist() == [3, 1]
    assert not blocks.zero[3, 1]  # 1e-9 is small, and not zero


def test_the_map_survives_a_task_that_touched_nothing_and_a_group_that_came_later():
    record = make_record([['a'], ['b']], ['c'], {'x.0': [0.0, 1.0], 'x.1': [0.0, 2.0]})
    del record['tasks'][0]['groups']['x.1']
    blocks = group_map(record)
    assert np.isnan(blocks.norms[1, 0]) and not blocks.zero[1, 0]
    assert blocks.relative[0].tolist() == [0.0, 0.5]
    assert zero_marks(forgetting_figure(record)) == {(0, 0)}


def test_exactly_the_zero_groups_are_drawn_as_zero():
    record = shapes_record()
    figure = forgetting_figure(record)
    assert zero_marks(figure) == set(zip(*np.nonzero(group_map(record).zero)))
    axes = figure.axes[1]
    assert [text.get_text() for text in axes.texts] == ['0'] * 4
    shown = axes.images[0].get_array()
    assert (np.ma.getmaskarray(shown) == group_map(record).zero).all()


def test_lines_start_at_the_pretrained_values_of_task_one():
    figure = forgetting_figure(shapes_record())
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines['AP_f'], [80.0, 1.0, 1.0])
    np.testing.assert_allclose(lines['AP_r'], [65.0, 56.0, 48.0])
    np.testing.assert_allclose(lines['AP_o'], [np.nan, np.nan, 0.7])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {'AP_f 1.0\nforgotten now', 'AP_r 48.0\nretained'} <= set(texts)


def test_other_prefixes():
    figure = forgetting_figure(shapes_record(prefix='Acc_', missing=('ring',)))
    labels = {line.get_label() for line in figure.axes[0].get_lines()}
    assert {'Acc_f', 'Acc_r', 'Acc_o', 'Acc_m'} <= labels
    assert figure.axes[0].get_ylabel() == 'Acc (%)'


def test_without_groups_only_the_metrics_are_drawn():
    record = make_record([['a']], ['b'], {})
    assert len(forgetting_figure(record).axes) == 1


@pytest.mark.parametrize(
    ('tasks', 'groups'),
    [
        (1, detr_groups(1, 3)),
        (7, detr_groups(7)),
        (20, {f'backbone.stages.{i % 4}.blocks.{i}.ffn': [0.0] * 20 for i in range(24)}),
    ],
)
def test_labels_stand_apart(tasks, groups):
    forget = [[f'{name}{task}' for name in COCO_TASKS[0]] for task in range(tasks)]
    figure = forgetting_figure(make_record(forget, ['person', 'dog'], groups))
    FigureCanvasAgg(figure).draw()
    page = figure.bbox
    for axes in figure.axes[:2]:
        for which in 'xy':
            boxes = tick_boxes(axes, which)
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]), (
                which
            )
            assert all(box.x0 >= page.x0 and box.x1 <= page.x1 for box in boxes)
    named = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(named) for b in named[i + 1 :])
    # The names of the lines end before the names of the groups begin.
    names = tick_boxes(figure.axes[1], 'y')
    assert max(box.x1 for box in named) < min(box.x0 for box in names)


def test_the_file_is_an_image_of_sensible_size(tmp_path):
    path = tmp_path / 'report' / 'forgetting.png'
    write_image(path, lambda: forgetting_figure(shapes_record()))
    height, width, _ = cv2.imread(str(path)).shape
    assert 900 < width < 3000 and 500 < height < 2000
    assert path.stat().st_size < 400_000
    assert [p.name for p in path.parent.iterdir()] == ['forgetting.png']


def test_a_failed_write_leaves_the_old_file_and_one_line(tmp_path, monkeypatch, caplog):
    path = tmp_path / 'forgetting.png'
    path.write_bytes(b'the old image')

    def half_written(self, target, **kwargs):
        target.write_bytes(b'\x89PNG')
        raise OSError('disk\nfull')

    said = []
    monkeypatch.setattr(charts, 'print_log', lambda text, **_: said.append(text))
    monkeypatch.setattr(Figure, 'savefig', half_written)
    write_image(path, Figure)
    assert said == [f'{path} was not drawn: disk full']
    assert path.read_bytes() == b'the old image'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ('groups', 'expected'),
    [
        (['encoder.layers.0.ffn', 'decoder.layers.1.ffn'], ['encoder 0', 'decoder 1']),
        (['vit.blocks.0.mlp', 'vit.blocks.10.mlp'], ['blocks 0', 'blocks 10']),
        (
            ['backbone.stages.0.blocks.1.ffn', 'backbone.stages.2.blocks.17.ffn'],
            ['stages 0 blocks 1', 'stages 2 blocks 17'],
        ),
        (['transformer.layers.0.1.fn', 'transformer.layers.1.1.fn'],
         ['transformer 0', 'transformer 1']),
        (['layers.0', 'layers.1'], ['layer 0', 'layer 1']),
        (['only.one'], ['only.one']),
        (['a', 'a.layers'], ['a', 'a.layers']),
    ],
)  # fmt: skip
def test_group_names_lose_what_they_share(groups, expected):
    assert short_group_names(groups) == expected


def test_apart_keeps_order_and_distance():
    assert apart([80.0, 0.5, 0.3], 10.0, 2.0, 96.0) == [80.0, 12.0, 2.0]
    assert apart([95.0, 96.0], 10.0, 2.0, 96.0) == [86.0, 96.0]


def test_the_title_says_which_run_it_is():
    record = shapes_record()
    del record['method']  # as older records are
    assert forgetting_figure(record).get_suptitle().endswith('forget.py, seed 3')
    record['method'] = dict(type='GSLoRA')
    record['config'] = 'configs/$my_x$.py'
    figure = forgetting_figure(record)
    assert figure.get_suptitle() == '$my_x$.py, GSLoRA, seed 3'
    FigureCanvasAgg(figure).draw()


def bars(axes):
    """(middle, height, colour) of every bar, from left to right."""
    return [
        (b.get_x() + b.get_width() / 2, b.get_height(), b.get_facecolor()) for b in axes.patches
    ]


def class_bars(axes):
    """The same of a chart of classes, whose bars are the paths of two collections."""
    return [
        (path.get_extents().x0 + path.get_extents().width / 2, path.get_extents().y1, tuple(colour))
        for drawn in axes.collections
        for path, colour in zip(drawn.get_paths(), cycle(drawn.get_facecolor()))
    ]


def test_every_class_has_its_bars_after_every_task():
    record = shapes_record()
    order = ['circle', 'square', 'star', 'triangle', 'cross', 'hexagon']
    first, second = classes_figure(record, order).axes
    assert [text.get_text() for text in second.get_xticklabels()] == order
    for axes, now in ((first, [1, 1, 80, 57, 57, 30]), (second, [1, 1, 1, 57, 57, 30])):
        drawn = class_bars(axes)
        assert [height for _, height, _ in drawn] == [80, 80, 80, 60, 60, 60, *now]
        assert [round(x) for x, _, _ in drawn] == [*range(6), *range(6)]
    kinds = [[colour for *_, colour in class_bars(axes)[6:]] for axes in (first, second)]
    # Forgotten now, then forgotten earlier; star is retained first and forgotten then.
    assert kinds[0][0] == kinds[1][2] != kinds[1][0] and kinds[0][2] == kinds[0][5] == kinds[1][5]
    texts = [text.get_text() for text in classes_figure(record, order).legends[0].get_texts()]
    assert texts == ['pre-trained', 'retained', 'forgotten now', 'forgotten earlier']


def test_a_class_that_gained_in_a_later_task_stays_within_its_chart():
    record = shapes_record()
    record['tasks'][1]['per_class']['cross'] = 99.0
    for axes in classes_figure(record, ['circle', 'square', 'cross', 'hexagon']).axes:
        low, high = axes.get_ylim()
        assert low == 0 and 99 < high < 110


def test_a_thousand_classes_are_drawn_at_once_and_their_names_can_be_read():
    """One class in 12 is named, 84 in all; a bar or a tick of its own each took half a minute."""
    names = [f'class {number}' for number in range(1000)]
    record = make_record([names[:2], names[2:4]], names[4:], {'a.0': [1.0, 1.0]})
    figure = classes_figure(record, names)
    FigureCanvasAgg(figure).draw()
    last = figure.axes[-1]
    assert [text.get_text() for text in last.get_xticklabels()] == names[::12]
    assert last.get_xlabel() == 'one class in 12 is named'
    boxes = tick_boxes(last, 'x')
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert len(class_bars(last)) == 2000
    assert sum(len(axes.findobj()) for axes in figure.axes) < 2000


@pytest.fixture(scope='module')
def audit():
    return AuditRows(audit_of(shapes_record()))


def test_the_probe_chart_has_the_means_and_the_spread_of_the_seeds(audit):
    (axes,) = probe_figure(audit, audit.of('probe')).axes
    heights = sorted(height for _, height, _ in bars(axes))
    assert heights == sorted([95, 94, 94, 91, 70, 82])
    lines = [path.vertices[:, 1].tolist() for c in axes.collections for path in c.get_paths()]
    assert [90, 92] in lines and [80, 84] in lines
    assert [t.get_text() for t in axes.get_xticklabels()] == ['encoder', 'decoder.2']


def test_a_control_classes_never_seen_and_four_oracles_are_told_apart():
    models = ['original', 'unlearned', 'head only', 'unseen', 'oracle']
    models += ['oracle 2', 'oracle 3', 'oracle 4']
    rows = [dict(model=model, measure='probe/last', value=50.0) for model in models]
    (axes,) = probe_figure(AuditRows(dict(rows=rows)), ['probe/last']).axes
    assert len({colour for *_, colour in bars(axes)}) == len(models)


def test_the_relearning_chart_has_a_curve_per_model(audit):
    (axes,) = relearning_figure(audit).axes
    curves = [container.lines[0] for container in axes.containers]
    assert axes.get_title(loc='left') == '16 images'
    assert [line.get_xydata().tolist() for line in curves] == [
        [[0, pytest.approx(0.1)], [20, 61]],
        [[0, 0], [20, 40.5]],
    ]


@pytest.mark.parametrize('value', [44.949, 98.338])
def test_draws_that_agree_have_a_mean_and_no_spread(value):
    """The mean of three 44.949 is rounded to less, that of three 98.338 to more than each."""
    measures = ('probe/decoder.2', 'relearning/k16/step20')
    same = [dict(model='unlearned', measure=m, value=value) for m in measures for _ in range(3)]
    audit = AuditRows(dict(rows=same))
    assert bars(probe_figure(audit, audit.of('probe')).axes[0])[0][1] == value
    (curve,) = relearning_figure(audit).axes[0].containers
    assert curve.lines[0].get_ydata().tolist() == [value]


def test_the_outcomes_chart_stacks_to_what_there_is(audit):
    (axes,) = outcomes_figure(audit).axes
    shown = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert shown == [[5, 1], [0, 0], [30, 20], [65, 79]]
    assert axes.get_legend_handles_labels()[1][0] == 'found'


@pytest.mark.parametrize('name', ['$', '$\\frac{1}$ _x', '\\$', '<b>&amp;', '犬', 'a\'b"c'])
def test_a_class_name_is_shown_as_it_is(name):
    record = make_record([[name]], ['stays'], {'a.0': [1.0]})
    figure = classes_figure(record, [name, 'stays'])
    text = base64.b64decode(as_svg(figure).partition(',')[2]).decode()
    shown = [node.text for node in ElementTree.fromstring(text).iter() if node.tag.endswith('text')]
    assert name in shown
    written = Figure().text(0, 0, as_text(name))
    assert written._preprocess_math(written.get_text()) == (name, False)
