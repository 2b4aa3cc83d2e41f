"""The page is read back by Python's parser, and by Chromium where there is one."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from mmgslora.records.finished_run import FinishedRun
from mmgslora.report import charts
from mmgslora.report.page import report_page, write_report

from .records import COCO_TASKS, detr_groups, make_record, shapes_record
from .runs import ABC, CONFIG, ORACLE, audit_of, make_run, take_back, with_units

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'chrome'))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')
NASTY = '<script>boo()</script>'


@pytest.fixture
def real_charts():
    """Draws the charts, which takes most of the time; else the page has empty ones."""


@pytest.fixture(autouse=True)
def _charts(request, monkeypatch):
    if 'real_charts' not in request.fixturenames:
        monkeypatch.setattr(charts, 'as_svg', lambda figure: 'data:image/svg+xml,')


class Page(HTMLParser):
    """Tables as rows of cells, all text outside scripts and styles, all addresses, all scripts."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.addresses, self.scripts, self.styles = [], [], {}, []
        self.says, self.tags = '', []
        self._in = self._cell = None
        self.feed(text)
        self.says = re.sub(r'\s+', ' ', self.says)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.addresses += [attrs[k] for k in ('src', 'href', 'action', 'data') if attrs.get(k)]
        if tag == 'table':
            self.tables.append((attrs.get('id') or attrs.get('class'), []))
        elif tag == 'tr':
            self.tables[-1][1].append([])
        elif tag in ('td', 'th'):
            self._cell = ''
        elif tag in ('script', 'style'):
            self._in = (tag, attrs.get('id'))
        else:
            self.handle_data(' ')

    def handle_endtag(self, tag):
        if tag in ('td', 'th'):
            self.tables[-1][1][-1].append(re.sub(r'\s+', ' ', self._cell).strip())
            self._cell = None
        elif tag in ('script', 'style'):
            self._in = None

    def handle_data(self, data):
        if self._in is None:
            self.says += data
            if self._cell is not None:
                self._cell += data
        elif self._in[0] == 'style':
            self.styles.append(data)
        else:
            self.scripts.setdefault(self._in[1], []).append(data)

    def table(self, name):
        return next(rows for label, rows in self.tables if name in (label or '').split())

    def figures(self):
        """The texts of every chart, by name."""
        found = {}
        for tag, attrs in self.tags:
            if tag == 'img' and attrs.get('id', '').startswith('figure-'):
                svg = base64.b64decode(attrs['src'].removeprefix('data:image/svg+xml;base64,'))
                nodes = ElementTree.fromstring(svg.decode()).iter()
                texts = [node.text for node in nodes if node.tag.endswith('text')]
                found[attrs['id'].removeprefix('figure-')] = texts
        return found


def read(tmp_path, record=None, audit=None, config=CONFIG):
    return Page(report_page(FinishedRun(write_run(tmp_path, record, audit, config))))


def write_run(tmp_path, record=None, audit=None, config=CONFIG):
    work_dir = make_run(tmp_path, record or shapes_record(), config)
    if audit:
        (work_dir / 'audit.json').write_text(json.dumps(audit))
    return work_dir


def coco_record(**changes):
    stay = ['person', 'dog', *(f'class {i}' for i in range(6))]
    return make_record(COCO_TASKS, stay, detr_groups(7), missing=('cat', 'cow'), **changes)


def test_nothing_is_asked_of_the_network(tmp_path, real_charts):
    record = shapes_record()
    work_dir = write_run(tmp_path, record, audit_of(record))
    cv2.imwrite(str(work_dir / 'before_after.png'), np.zeros((8, 8, 3), np.uint8))
    page = Page(report_page(FinishedRun(work_dir)))
    assert page.addresses
    assert [a for a in page.addresses if not a.startswith(('#', 'data:'))] == []
    styles = ''.join(page.styles)
    assert '@import' not in styles and 'url(' not in styles
    assert not any(tag in ('link', 'iframe', 'object') for tag, attrs in page.tags
                   if attrs.get('rel') != 'icon')  # fmt: skip
    policy = next(a['content'] for t, a in page.tags if 'http-equiv' in a)
    assert policy.startswith("default-src 'none'") and 'http' not in policy


def test_the_page_runs_nothing(tmp_path):
    record = shapes_record()
    page = read(tmp_path, record, audit_of(record))
    assert not page.scripts and not any(name.startswith('on') for _, a in page.tags for name in a)
    policy = next(a['content'] for t, a in page.tags if 'http-equiv' in a)
    assert 'script' not in policy


def test_the_charts_of_run_classes_and_audit_are_in_the_page(tmp_path, real_charts):
    record = shapes_record()
    page = read(tmp_path, record, audit_of(record))
    figures = page.figures()
    assert list(figures) == [
        'forgetting', 'classes', 'audit-outcomes', 'audit-probe', 'audit-relearning',
    ]  # fmt: skip
    assert {'AP_f 1.0', 'forgotten now', 'encoder 0'} <= set(figures['forgetting'])
    assert {'circle', 'after task 2'} <= set(figures['classes'])
    assert {'called another', 'oracle (never saw them)'} <= set(figures['audit-outcomes'])
    assert 'decoder.2' in figures['audit-probe'] and '16 images' in figures['audit-relearning']


def test_the_summary_holds_the_values_beside_the_pretrained_ones(tmp_path):
    head, first, second = read(tmp_path).table('tasks-table')
    first, second = dict(zip(head, first)), dict(zip(head, second))
    assert first['AP_f'] == '1.0 of 80.0' and first['forgotten'] == 'circle, square'
    # (80 + 57 + 57 + 30) / 4 of (80 + 60 + 60 + 60) / 4.
    assert first['AP_r'] == '56.0 86 % of 65.0'
    assert second['AP_r'] == '48.0 80 % of 60.0'
    assert (first['AP_o'], second['AP_o']) == ('–', '0.7 of 80.0')
    assert first['AR_f@0.05'] == '14.6' and first['training s'] == '8.6'
    assert first['hardest hit'] == 'hexagon 30.0, 50 % of 60.0'
    assert (first['blocks untouched'], second['blocks untouched']) == ('3 of 5', '1 of 5')
    assert 'AP_m' not in head


def test_the_head_names_the_method_and_the_split_of_the_images(tmp_path):
    def html_of(folder, record):
        (tmp_path / folder).mkdir()
        work_dir = write_run(tmp_path / folder, record)
        cv2.imwrite(str(work_dir / 'before_after.png'), np.zeros((4, 4, 3), np.uint8))
        return report_page(FinishedRun(work_dir))

    method, images = dict(type='GSLoRA', beta=0.2), 'The first test images of <b>'
    html = html_of('one', dict(shapes_record(), method=method, split='test', images=images))
    assert '· GSLoRA · seed 3' in html and '<li>Method: GSLoRA(beta=0.2).</li>' in html
    assert 'The first test images of &lt;b&gt;; what came out after forgetting' in html
    older = {k: v for k, v in shapes_record().items() if k not in ('method', 'split')}
    html = html_of('other', older)
    assert 'GSLoRA' not in html.partition('</header>')[0]
    assert 'Images of the val split; what came out after forgetting played no part' in html


def test_every_class_has_its_values(tmp_path):
    page = read(tmp_path)
    head, *rows = page.table('classes-table')
    assert head == ['class', 'asked in task', 'pre-trained', 'after 1', 'after 2', 'kept']
    assert rows[0] == ['circle', '1', '80.0', '1.0', '1.0', '']
    assert rows[2] == ['star', '2', '80.0', '80.0', '1.0', '']
    assert rows[5] == ['hexagon', '', '60.0', '30.0', '30.0', '50 %']


def test_the_blocks_show_exact_zeros_and_nothing_else_as_zero(tmp_path):
    head, *rows = read(tmp_path).table('blocks-table')
    assert head == ['block', 'task 1', 'task 2']
    assert rows == [
        ['encoder 0', '0', '4.0'],
        ['encoder 1', '0', '1.0'],
        ['decoder 0', '3.2', '0'],
        ['decoder 1', '0.8', '1e-09'],
        ['decoder 2', '0', '2.0'],
    ]


def test_requests_are_shown_with_what_was_given_and_what_was_not(tmp_path):
    requests = [dict(requested_by='Ann', reason='<i>GDPR</i>')]
    page = read(tmp_path, dict(shapes_record(), requests=requests))
    head, first, second = page.table('requests-table')
    assert first[:6] == ['1', 'circle, square', 'Ann', '<i>GDPR</i>', 'not given', 'not given']
    assert second[:6] == ['2', 'star', *['not given'] * 4]
    assert first[6].startswith('failed At too high a price')


def test_what_is_checked_of_single_classes_has_columns_of_its_own(tmp_path):
    record = shapes_record()
    first = record['tasks'][0]
    first['per_class'].update(circle=8.0, square=0.0)
    first['metrics']['AP_f'] = 4.0
    head, *rows = read(tmp_path, record).table('checks-table')
    assert [re.split(' *[a-z]+_', title)[0] for title in head] == [
        'task', 'forgotten, after its task', 'forgotten, after task 2',
        'one of them, after its task', 'one of them, after task 2', 'retained', 'one of them',
        'probe, above the oracle', 'relearning, above the oracle',
    ]  # fmt: skip
    nobody = ['not measured', 'not measured']
    assert rows == [  # of 65 of the retained classes 56 are kept, then of 60 48; of hexagon's 60 30
        ['1', '4 failed', '1 passed', '8 failed', '1 passed', '86.2 % failed', '50.0 % passed',
         *nobody],
        ['2', '1 passed', '', '', '', '80.0 % failed', '50.0 % passed', *nobody],
    ]  # fmt: skip


def test_the_page_does_not_say_more_than_was_set_and_measured(tmp_path):
    record = dict(shapes_record(), thresholds=dict(forgotten_max=1.5))
    for values in (record['pretrained'], *record['tasks']):
        del values['per_class']['square']
    says = read(tmp_path, record).says
    assert 'thresholds of which the user set forgotten_max; the others are the defaults' in says
    assert 'Forgotten classes (2 of 3 measured), after the last task: mean AP 1.0 of 80.0' in says


def test_without_an_audit_the_page_says_so(tmp_path, real_charts):
    page = read(tmp_path)
    assert 'No audit was run' in page.says
    assert 'not what it still knows' in page.says
    assert not [name for name in page.figures() if 'audit' in name]
    head, first, _ = page.table('checks-table')
    assert first[-2:] == ['not measured', 'not measured']
    assert 'Not measured: there is no audit.json.' in page.says


def test_the_audit_is_shown_with_mean_and_spread_and_the_lead_over_the_oracle(tmp_path):
    page = read(tmp_path, audit=audit_of(shapes_record()))
    tables = [rows for label, rows in page.tables if label == 'audit-table']
    output, outcomes, probe, relearning, anew, membership, damage, other = tables
    assert probe[0] == [
        'measure', 'before forgetting', 'after forgetting', 'GradAscent',
        'oracle (never saw them)', 'above the oracle',
    ]  # fmt: skip
    assert probe[2] == [
        'decoder.2', '94.0 (93.0 to 95.0)', '91.0 (90.0 to 92.0)', '–', '82.0 (80.0 to 84.0)',
        '+9.0',
    ]  # fmt: skip
    assert relearning[2][2] == '61.0 (60.0 to 62.0)' and relearning[2][-1] == '+20.5'
    assert anew[1][-1] == '+6.0'
    anew = 'With new rows in the head, 20 steps on 16 images bring the forgotten classes back to '
    anew += '31.0 %'
    assert page.says.count(f'{anew}, the oracle to 25.0 %') == 2  # at the top, and in its section
    assert other[1][:4] == ['thing', '–', '0.250 (0.250 to 0.250)', '0.500 (0.500 to 0.500)']
    assert [row[0] for row in output[1:]] == ['AP_gone'] and output[1][2] == '0.8'
    assert [row[0] for row in damage[1:]] == ['hexagon (nearest: circle)', 'cross']
    assert damage[1][-1] == '+4.0' and damage[2][2] == '0.0' and damage[2][-1] == '−1.0'
    assert (
        'hexagon has lost most: 6.0 points. The class it is taken for most is circle, which '
        in (page.says)
    )
    assert (
        'After forgetting: 5.0 % found, 0.0 % low score, 30.0 % called another, 65.0 % background, '
        'most often called hexagon, 20.0 %; oracle (never saw them): 1.0 % found'
    ) in page.says
    assert (
        'From decoder.2, the probe names 91.0 % of the forgotten objects (before forgetting '
        '94.0 %), from the oracle 82.0 %: 9.0 points more than in a model that never saw them. '
        'The largest lead is at encoder, 24.0 points.'
    ) in page.says
    assert (
        '20 steps on 16 images bring the forgotten classes back to 61.0 %, the oracle to 40.5 %: '
        '20.5 points of lead'
    ) in page.says
    assert 'Nothing is known about night.' in page.says and 'No audit was run' not in page.says


def test_the_page_says_that_an_attack_had_more_draws_than_the_others(tmp_path):
    audit = audit_of(shapes_record())
    assert 'seeds 2; numbers are means' in read(tmp_path / 'two', audit=audit).says
    more = dict(measure='new_head/k16/step20', unit='new_head/k16/more:unlearned')
    audit['rows'] += [dict(more, model='unlearned', seed=2 + i, value=33.0) for i in range(2)]
    says = read(tmp_path / 'more', audit=with_units(audit)).says
    assert 'seeds 2 to 4; numbers are means' in says


def test_an_audit_without_an_oracle_concludes_nothing(tmp_path):
    page = read(tmp_path, audit=audit_of(shapes_record(), oracle=False))
    assert 'This audit has no oracle to compare with.' in page.says
    assert 'without an oracle it is not known how many would be too many' in page.says
    assert 'above the oracle' not in page.table('audit-table')[0]
    assert 'The oracle differs' not in page.says


def test_without_an_oracle_classes_never_seen_are_what_is_compared_with(tmp_path):
    audit = audit_of(shapes_record())
    for row in audit['rows']:
        if row['model'] == 'oracle':
            row.update(model='unseen', unit=row['unit'] and row['unit'].replace('oracle', 'unseen'))
    page = read(tmp_path, audit=with_units(audit))
    assert 'This audit has no oracle' not in page.says and 'had no oracle' not in page.says
    assert any(
        'probe, above classes never seen' in title for title in page.table('checks-table')[0]
    )
    assert page.table('audit-table')[0][-1] == 'above classes never seen'
    assert '20.5 points of lead are knowledge that was left behind' in page.says
    assert 'Only the lead over classes never seen is knowledge' in page.says
    assert 'by which relearning may lead classes never seen.' in page.says


def test_an_audit_of_another_file_does_not_count(tmp_path):
    audit = audit_of(shapes_record(), files={})
    page = read(tmp_path, audit=audit)
    assert 'This audit does not count for the last model of the run' in page.says
    assert 'was made of another file than merged/task_02.pth' in page.says
    assert 'hidden in this model was not audited: audit.json was made of another' in page.says
    assert page.says.count('the probe names 91.0 %') == 1  # in its section, not of this model


def test_files_are_named_with_their_hashes(tmp_path):
    page = read(tmp_path, audit=audit_of(shapes_record()))
    hashes = {what: sha for what, _, sha in page.table('files-table')[1:]}
    assert hashes['original model (load_from)'] == ABC == hashes['model after task 1']
    assert hashes['oracle, as audited'] == ORACLE
    assert re.fullmatch('[0-9a-f]{64}', hashes['audit'])


def test_the_command_starts_from_the_original_again(tmp_path):
    page = read(tmp_path)
    assert ['original model (load_from)', 'original.pth', ABC] in page.table('files-table')
    assert '--cfg-options resume=False load_from=original.pth' in page.says


def test_settings_are_those_of_the_record(tmp_path):
    page = read(tmp_path)
    assert 'method GSLoRA(beta=0.5)' in page.says and 'schedule epochs_per_task=6' in page.says


def test_the_split_is_called_by_its_name(tmp_path):
    record = shapes_record()
    assert 'Measured on the val split.' in read(tmp_path, record).says
    assert 'Measured on the test split.' in read(tmp_path / 'b', dict(record, split='test')).says


def test_an_unfinished_run_is_said_to_be_one(tmp_path):
    record = shapes_record()
    assert 'The run is unfinished' not in read(tmp_path, record).says
    del record['tasks'][1]
    page = read(tmp_path / 'b', record)
    assert page.says.count('The run is unfinished: 1 of its 2 requests is served') == 2


def test_a_request_that_was_taken_back_is_said_to_be(tmp_path):
    run = FinishedRun(write_run(tmp_path))
    assert 'taken back' not in report_page(run)
    day = take_back(run.work_dir)['time'][:10]
    said = f'was taken back on {day}; the model without it is merged/without_01.pth.'
    assert said in report_page(run)


@pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG\r\n\x1a\n\x00\x00'])
def test_a_broken_image_is_said_to_be_broken(tmp_path, content):
    work_dir = write_run(tmp_path)
    cv2.imwrite(str(work_dir / 'before_after.png'), np.zeros((64, 64, 3), np.uint8))
    whole = (work_dir / 'before_after.png').read_bytes()
    for broken in (content, whole[: len(whole) // 2]):
        (work_dir / 'before_after.png').write_bytes(broken)
        assert (
            'before_after.png cannot be read as an image'
            in Page(report_page(FinishedRun(work_dir))).says
        )


def test_sealed_rows_have_a_line_of_their_own(tmp_path):
    record = shapes_record()
    record['tasks'][1]['metrics']['sealed/AP_f'] = 0.0
    line = (
        'Task 2: sealed/AP_f 0.0. Rows removed from what is handed out; not evidence of forgetting.'
    )
    assert line in read(tmp_path, record).says


def test_a_run_without_config_and_files_is_said_to_lack_them(tmp_path):
    record = shapes_record()
    for key in ('family', 'method', 'schedule', 'protocol'):
        del record[key]
    work_dir = write_run(tmp_path, record, config='')
    shutil.rmtree(work_dir / 'merged')
    page = Page(report_page(FinishedRun(work_dir)))
    assert 'The run recorded no settings.' in page.says
    assert ['model after task 1', 'merged/task_01.pth', 'file not found, so not hashed'] in (
        page.table('files-table')
    )
    assert 'The run left no image' in page.says


def test_class_names_are_text(tmp_path, real_charts):
    record = make_record([[NASTY]], ['a&b "q"', '</script><b>'], {'a.0': [1.0]})
    page = read(tmp_path, record, audit_of(record))
    assert not any(tag == 'b' and attrs for tag, attrs in page.tags)
    assert not page.scripts
    assert page.table('classes-table')[1][0] == NASTY
    assert page.table('requests-table')[1][1] == NASTY
    assert NASTY in page.figures()['classes']


def test_a_long_run_of_many_classes(tmp_path, real_charts):
    page = read(tmp_path, coco_record())
    head, *rows = page.table('classes-table')
    assert len(head) == 3 + 7 + 1 and len(rows) == 80
    assert ['cat (no training data)', '', '50.0', *['40.0'] * 7, '80 %'] in rows
    head, *rows = page.table('tasks-table')
    assert len(rows) == 7 and rows[0][head.index('AP_m')] == '40.0 of 50.0'
    assert rows[0][1] == 'microwave, skateboard, parking meter and 7 more'
    assert len(page.table('requests-table')) == len(page.table('checks-table')) == 1 + 7
    assert {'microwave', 'cow', 'after task 7'} <= set(page.figures()['classes'])


def test_tables_of_many_tasks_come_in_pieces_that_fit_a_page(tmp_path):
    record = make_record([[f'class {i}'] for i in range(23)], ['stays'], detr_groups(23))
    page = read(tmp_path, record)
    pieces = [rows for label, rows in page.tables if 'classes-table' in (label or '')]
    assert [len(rows[0]) for rows in pieces] == [3 + 10, 3 + 10, 3 + 3 + 1]
    assert pieces[1][0][3] == '11' and pieces[2][0][-2] == 'after 23'


def test_a_classifier(tmp_path, real_charts):
    page = read(tmp_path, shapes_record(prefix='Acc_', recall=False))
    head = page.table('tasks-table')[0]
    assert {'Acc_f', 'Acc_r', 'Acc_o'} <= set(head) and 'AP_' not in page.says
    assert not [cell for cell in head if cell.startswith('AR')]
    assert 'Acc (%)' in page.figures()['forgetting']


def chromium(tmp_path, *arguments):
    return subprocess.run(
        [
            CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu',
            f'--user-data-dir={tmp_path / "profile"}', '--virtual-time-budget=20000',
            '--enable-logging=stderr', *arguments,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@needs_chromium
def test_a_browser_shows_the_page_and_complains_of_nothing(tmp_path, real_charts):
    record = make_record([['circle', NASTY]], ['star', 'heart'], {'a.0': [0.0], 'a.1': [1.0]})
    path = write_report(FinishedRun(write_run(tmp_path, record, audit_of(record))))
    result = chromium(tmp_path, '--dump-dom', path.as_uri())
    assert not [line for line in result.stderr.splitlines() if 'CONSOLE' in line]
    assert len(re.findall(r'src="data:image/svg', result.stdout)) == 5


@needs_chromium
def test_it_prints_with_its_charts_and_no_wider_than_the_paper(tmp_path, real_charts):
    path = write_report(FinishedRun(write_run(tmp_path, coco_record(), None)))
    pdf = tmp_path / 'report.pdf'
    chromium(tmp_path, '--no-pdf-header-footer', f'--print-to-pdf={pdf}', path.as_uri())
    content = pdf.read_bytes()
    assert content.startswith(b'%PDF')
    # Chromium would shrink pages with something too wide on them, and the page count tells.
    assert 5 <= len(re.findall(rb'/Type\s*/Page\b', content)) <= 12
