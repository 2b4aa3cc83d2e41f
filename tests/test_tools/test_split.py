"""tools/split.py as a user runs it."""

import json
import runpy
import subprocess
import sys


def test_one_command_writes_two_files_mmdetection_reads(repo_root, tmp_path, monkeypatch, capsys):
    from mmdet.datasets import CocoDataset

    images = [dict(id=i, file_name=f'{i}.jpg', width=9, height=9) for i in range(20)]
    boxes = [
        dict(id=i, image_id=i, category_id=1 + i % 2, bbox=[1, 1, 5, 5], area=25, iscrowd=0)
        for i in range(20)
    ]
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    content = dict(images=images, annotations=boxes, categories=categories)
    (tmp_path / 'all.json').write_text(json.dumps(content))
    command = ['tools/split.py', str(tmp_path / 'all.json'), '--val', '0.2']
    monkeypatch.setattr(sys, 'argv', command)
    runpy.run_path(str(repo_root / 'tools/split.py'))['main']()
    assert 'all_train.json: 16 images, 16 boxes' in capsys.readouterr().out
    for name, count in (('train', 16), ('val', 4)):
        dataset = CocoDataset(
            ann_file=str(tmp_path / f'all_{name}.json'),
            data_prefix=dict(img=''),
            metainfo=dict(classes=('cat', 'dog')),
            pipeline=[],
        )
        labels = [dataset.get_data_info(i)['instances'][0]['bbox_label'] for i in range(count)]
        assert len(dataset) == count and labels.count(0) == labels.count(1) == count // 2
    again = subprocess.run(
        [sys.executable, *command], cwd=repo_root, capture_output=True, text=True
    )
    assert again.returncode == 1 and "all_train.json' exists already" in again.stderr
    assert 'Traceback' not in again.stderr
