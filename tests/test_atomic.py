import shutil
import sys
from pathlib import Path

import pytest

from mmgslora import atomic
from mmgslora.atomic import replacing, write_text


def test_a_file_appears_whole_and_an_error_leaves_the_old_one(tmp_path):
    path = tmp_path / 'new' / 'record.json'
    write_text(path, 'old')
    with pytest.raises(RuntimeError), replacing(path) as draft:
        draft.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old'
    write_text(path, 'new')
    assert path.read_text() == 'new'
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('exchange', [True, False])
def test_a_folder_replaces_a_folder(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, '_exchanged', lambda *_: False)
    folder = tmp_path / 'task_01'
    for text in ('one', 'two'):
        with replacing(folder) as draft:
            draft.mkdir()
            (draft / 'a').write_text(text)
        assert (folder / 'a').read_text() == text
    with pytest.raises(RuntimeError), replacing(folder) as draft:
        draft.mkdir()
        raise RuntimeError
    with pytest.raises(FileNotFoundError), replacing(folder):
        pass  # nothing was written
    assert (folder / 'a').read_text() == 'two'
    assert list(tmp_path.iterdir()) == [folder]


def test_stopped_between_two_renames_the_old_folder_comes_back(tmp_path, monkeypatch):
    folder = tmp_path / 'task_01'
    folder.mkdir()
    (folder / 'a').write_text('old')

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, '_exchanged', lambda *_: False)
    monkeypatch.setattr(Path, 'replace', stopped)
    with pytest.raises(KeyboardInterrupt), replacing(folder) as draft:
        draft.mkdir()
    assert (folder / 'a').read_text() == 'old'
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(sys.platform != 'linux', reason='folders change places in one step there')
def test_a_folder_is_never_away(tmp_path, monkeypatch):
    """Whatever else is renamed or removed, it finds a folder of that name."""
    folder, found = tmp_path / 'task_01', []

    def watched(function):
        def call(*args, **how):
            found.append(folder.is_dir())
            return function(*args, **how)

        return call

    folder.mkdir()
    for name in ('rename', 'replace'):
        monkeypatch.setattr(Path, name, watched(getattr(Path, name)))
    monkeypatch.setattr(shutil, 'rmtree', watched(shutil.rmtree))
    with replacing(folder) as draft:
        draft.mkdir()
    assert found and all(found)
