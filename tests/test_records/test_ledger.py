import hashlib
import json
import sys

import pytest

from mmgslora.errors import ForgettingError
from mmgslora.records.ledger import Ledger, flat_metrics


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append('forgotten', task=1, classes=['cat'], metrics={'AP_f': 0.5})
    ledger.append('forgotten', task=2, classes=['für'], metrics={'AP_f': None})
    ledger.append('taken back', task=1, classes=['cat'])
    return ledger


def test_the_chain_by_hand(ledger):
    lines = ledger.path.read_text().splitlines()
    previous = '0' * 64
    for number, line in enumerate(lines, 1):
        entry = json.loads(line)
        assert (entry['number'], entry['previous']) == (number, previous)
        previous = entry.pop('sha256')
        text = json.dumps(entry, sort_keys=True, separators=(',', ':')) + '\n'
        assert hashlib.sha256(text.encode()).hexdigest() == previous
    assert Ledger(ledger.work_dir).head == ledger.head == previous


def test_what_a_line_says(ledger):
    entry = Ledger(ledger.work_dir).entries[0]
    assert entry['event'] == 'forgotten' and entry['classes'] == ['cat']
    assert 'torch' in entry['versions'] and sys.argv[0] in entry['command']
    assert ledger.last('forgotten')['task'] == 2
    assert ledger.last('forgotten', 1)['number'] == 1
    assert ledger.last('sealed') is None
    ledger.append('exported', task=2)
    assert ledger.taken_back == [1]
    assert Ledger(ledger.work_dir / 'nowhere').head == '0' * 64


def test_any_changed_byte_is_seen(tmp_path, monkeypatch):
    """Each byte in turn, the line ends and the last line's own hash included."""
    monkeypatch.setattr('mmgslora.records.ledger.versions', dict)  # two short lines
    ledger = Ledger(tmp_path)
    ledger.append('forgotten', task=1)
    ledger.append('taken back', task=1)
    data = ledger.path.read_bytes()
    line = 1
    for place, byte in enumerate(data):
        # Another digit, letter or punctuation mark; a line end becomes one as well.
        ledger.path.write_bytes(data[:place] + bytes([byte ^ 1]) + data[place + 1 :])
        with pytest.raises(ForgettingError, match=rf'Line {line} of .* does not fit'):
            Ledger(ledger.work_dir)
        line += byte == ord('\n')
    assert line == 3


def test_lines_taken_away_moved_or_cut_off(ledger):
    first, second, third = ledger.path.read_bytes().splitlines(keepends=True)
    for changed, line in (
        (second + third, 1),
        (first + third, 2),
        (first + third + second, 2),
        (first + second + second + third, 3),
        (first + b'\n' + second, 2),
        (first + second[:-1], 2),
        (first + second[:40], 2),
    ):
        ledger.path.write_bytes(changed)
        with pytest.raises(ForgettingError, match=f'Line {line} of'):
            Ledger(ledger.work_dir)


def test_a_broken_ledger_is_not_continued(ledger):
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'cat', b'dog', 1))
    before = ledger.path.read_bytes()
    with pytest.raises(ForgettingError, match='Line 1 of .* it is not as it was written'):
        Ledger(ledger.work_dir).append('exported')
    assert ledger.path.read_bytes() == before


def test_what_cannot_be_written_leaves_the_file_as_it_was(ledger):
    before = ledger.path.read_bytes()
    with pytest.raises(ForgettingError, match="event is 'lost'"):
        ledger.append('lost')
    with pytest.raises(ValueError):
        ledger.append('exported', metrics={'AP_f': float('nan')})
    assert ledger.path.read_bytes() == before and len(ledger.entries) == 3
    assert [path.name for path in ledger.work_dir.iterdir()] == ['ledger.jsonl']


def test_a_write_that_is_stopped_leaves_the_old_ledger(ledger, monkeypatch):
    before = ledger.path.read_bytes()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('pathlib.Path.replace', stopped)
    with pytest.raises(KeyboardInterrupt):
        ledger.append('exported')
    assert ledger.path.read_bytes() == before and len(Ledger(ledger.work_dir).entries) == 3


def test_files_are_named_from_the_work_dir(ledger, tmp_path, monkeypatch):
    (tmp_path / 'merged').mkdir()
    (tmp_path / 'merged/a.pth').write_bytes(b'abc')
    abc = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'  # FIPS 180-2
    assert ledger.fact(tmp_path / 'merged/a.pth') == dict(path='merged/a.pth', sha256=abc)
    (tmp_path / 'cwd').mkdir()
    monkeypatch.chdir(tmp_path / 'cwd')
    other = Ledger(tmp_path / 'cwd' / 'run')
    assert other.fact(tmp_path / 'merged/a.pth')['path'] == '../merged/a.pth'


def test_flat_metrics():
    nested = {'AP_f': 1, 'H': float('nan'), 'coco/per_class': {'a': 2.0}, 'per_class': {'b': None}}
    expected = {'AP_f': 1.0, 'H': None, 'coco/per_class/a': 2.0, 'per_class/b': None}
    assert flat_metrics(nested) == expected == flat_metrics(expected)


def test_a_line_that_another_command_wrote_meanwhile_is_not_lost(ledger):
    first, second = Ledger(ledger.work_dir), Ledger(ledger.work_dir)
    first.append('exported', classes=[])
    with pytest.raises(ForgettingError, match='Another command has written to .*; start it again'):
        second.append('exported', classes=[])
    assert Ledger(ledger.work_dir).head == first.head
