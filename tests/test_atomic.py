import pytest

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


def test_a_folder_replaces_a_folder(tmp_path):
    folder = tmp_path / 'task_01'
    for text in ('one', 'two'):
        with replacing(folder) as draft:
            draft.mkdir()
            (draft / 'a').write_text(text)
        assert (folder / 'a').read_text() == text
    with pytest.raises(RuntimeError), replacing(folder) as draft:
        draft.mkdir()
        raise RuntimeError
    assert (folder / 'a').read_text() == 'two'
    assert list(tmp_path.iterdir()) == [folder]
