import json

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.lora import fingerprint
from mmgslora.requests import Ledger, RequestSequence, revoke, verify
from mmgslora.requests.checkpoint import read_checkpoint, write_checkpoint


def test_a_run_that_fits(made):
    found = verify(made.work_dir)
    for line in (1, 2, 3):
        assert (
            f'Line {line}: base and 1 adapter give merged/task_0{line}.pth, bit for bit.' in found
        )
    assert 'The metrics of 3 requests are those in forgetting.json.' in found
    head = Ledger(made.work_dir).head
    assert verify(made.work_dir, head=head)[-1] == f'Head: {head}, which is the one that was kept.'
    first = Ledger(made.work_dir).entries[0]['sha256']
    with pytest.raises(ForgettingError, match='that is line 1, which is as .* then; 2 came after'):
        verify(made.work_dir, head=first)


def change(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ('file', 'line'),
    [
        ('requests/task_02/config.py', 2),
        ('merged/task_01.pth', 1),
        ('merged/task_03.pth', 3),
        ('adapters/task_02/adapter_model.safetensors', 2),
        ('adapters/task_03/metadata.json', 3),
        ('../original.pth', 1),
    ],
)
def test_the_first_line_that_does_not_fit_is_named(made, file, line):
    path = made.work_dir / file
    change(path)
    with pytest.raises(ForgettingError, match=f'Line {line} of .*/{path.name} is another file'):
        verify(made.work_dir)
    path.unlink()
    if 'original' in file:
        assert any('original.pth is not here' in sentence for sentence in verify(made.work_dir))
    else:
        with pytest.raises(ForgettingError, match=f'Line {line} of .*/{path.name} is missing'):
            verify(made.work_dir)


def test_a_chain_rewritten_as_a_whole_still_has_to_fit_the_weights(made):
    """Somebody swaps the last merged file for the one before and rewrites the line and its hash."""
    ledger = Ledger(made.work_dir)
    kept = ledger.head
    entry = ledger.entries[-1]
    merged = made.work_dir / 'merged/task_03.pth'
    before = read_checkpoint(made.work_dir / 'merged/task_02.pth')
    write_checkpoint(merged, before['state_dict'], before['meta'])
    entry['files']['merged'] = ledger.fact(merged)
    entry['result'] = fingerprint(made.weights[2])
    lines = ledger.path.read_text().splitlines(keepends=True)[:2]
    ledger.path.write_text(''.join(lines))
    facts = {
        k: v
        for k, v in entry.items()
        if k not in ('number', 'previous', 'time', 'versions', 'command', 'sha256', 'event')
    }
    Ledger(made.work_dir).append('forgotten', **facts)
    with pytest.raises(ForgettingError, match='Line 3 of .* do not give the merged weights'):
        verify(made.work_dir)
    # Where nothing of the weights is left to compare, the head that was kept tells.
    ledger.path.write_text(lines[0])
    record = json.loads((made.work_dir / 'forgetting.json').read_text())
    record['tasks'] = record['tasks'][:1]
    (made.work_dir / 'forgetting.json').write_text(json.dumps(record))
    verify(made.work_dir)
    with pytest.raises(ForgettingError, match='Line 1 of .* not the one that was kept'):
        verify(made.work_dir, head=kept)


def test_metrics_and_requests_are_those_of_the_record(made):
    path = made.work_dir / 'forgetting.json'
    text = path.read_text()
    path.write_text(text.replace('"Acc_f": 1.5', '"Acc_f": 0.5', 1))
    with pytest.raises(ForgettingError, match='Line 1 of .* metrics are not those'):
        verify(made.work_dir)
    shorter = json.loads(text)
    del shorter['tasks'][1]
    path.write_text(json.dumps(shorter))
    with pytest.raises(ForgettingError, match='Line 2 of .* request 2, which forgetting.json does'):
        verify(made.work_dir)
    path.write_text(text)
    lines = Ledger(made.work_dir).path.read_text().splitlines(keepends=True)
    Ledger(made.work_dir).path.write_text(''.join(lines[:2]))
    with pytest.raises(ForgettingError, match='Line 3 of .* has request 3, and there is no line'):
        verify(made.work_dir)


def test_what_a_resumed_run_did_again_counts_as_it_is_now(made):
    """The same request twice, the files replaced in between: only the later line names them."""
    ledger = Ledger(made.work_dir)
    merged = made.work_dir / 'merged/task_03.pth'
    content = torch.load(merged)
    torch.save(dict(content, meta=dict(content['meta'], seed=1)), merged)
    facts = {k: ledger.entries[-1][k] for k in ('task', 'classes', 'base', 'result', 'adapters')}
    files = dict(ledger.entries[-1]['files'], merged=ledger.fact(merged))
    ledger.append('forgotten', **facts, files=files, metrics=ledger.entries[-1]['metrics'])
    found = verify(made.work_dir)
    assert not any(sentence.startswith('Line 3:') for sentence in found)
    assert any(sentence.startswith('Line 4: base and 1 adapter') for sentence in found)


def test_a_line_of_another_event_does_not_excuse_a_changed_file(made):
    """Anybody can append one; without a head that was kept nothing else would tell."""
    merged = made.work_dir / 'merged/task_03.pth'
    merged.write_bytes((made.work_dir / 'merged/task_02.pth').read_bytes())
    ledger = Ledger(made.work_dir)
    ledger.append('exported', classes=['cat'], files=dict(exported=ledger.fact(merged)))
    with pytest.raises(ForgettingError, match='Line 3 of .*/task_03.pth is another file'):
        verify(made.work_dir)


def test_a_later_line_about_a_note_does_not_spare_the_weights(made):
    """Annotations, say, to which the next request has added images."""
    config = made.work_dir / 'requests/task_01/config.py'
    config.write_text(config.read_text() + '\n')
    ledger = Ledger(made.work_dir)
    last = ledger.entries[-1]
    facts = {k: last[k] for k in ('task', 'classes', 'base', 'result', 'adapters', 'metrics')}
    ledger.append('forgotten', **facts, files=dict(last['files'], config=ledger.fact(config)))
    assert any(line.startswith('Line 1: base and 1 adapter') for line in verify(made.work_dir))


def test_taken_back_requests_are_worked_out_again(made):
    entry = revoke(RequestSequence(made.work_dir), 2, measure=lambda *_: {'Acc_f': 1.0})
    assert any(
        'Line 4: base and 2 adapters give merged/without_02.pth' in s for s in verify(made.work_dir)
    )
    change(made.work_dir / entry['files']['merged']['path'])
    with pytest.raises(ForgettingError, match='Line 4 of'):
        verify(made.work_dir)


def test_no_ledger(tmp_path):
    with pytest.raises(ForgettingError, match='has no ledger'):
        verify(tmp_path)
