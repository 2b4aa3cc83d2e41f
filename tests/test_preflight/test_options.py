"""What a value on the command line becomes; numbers and lists are as MMEngine reads them."""

import pytest

from mmgslora.preflight.config import load_config
from mmgslora.preflight.options import Options


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('[[traffic light],[ stop sign ,car]]', [['traffic light'], ['stop sign', 'car']]),
        ("[['0000045'],[0000046]]", [['0000045'], ['0000046']]),
        ('[[45, -1],(1_2, +3)]', [[45, -1], ('1_2', '+3')]),
        ('1e-4', 1e-4),
        ('0.015,0.03', [0.015, 0.03]),
        ('[]', []),
        ('true', True),
        ('None', None),
        ("'a, b'", ['a', 'b']),
        (r'decoder\.[^(]*', r'decoder\.[^(]*'),
        ('person', 'person'),
    ],
)
def test_values_of_options(text, value):
    assert Options._parse_iterable(text) == value


def test_a_work_dir_in_the_home_folder(tmp_path, monkeypatch):
    """Not in a folder called ~, which whoever wants to be rid of it may delete the wrong way."""
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'run.py').write_text("model = dict(type='x')")
    cfg = load_config(str(tmp_path / 'run.py'), '~/runs/first')
    assert cfg.work_dir == str(tmp_path / 'runs/first')
