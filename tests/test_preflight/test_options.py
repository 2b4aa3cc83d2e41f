"""What a value on the command line becomes; numbers and lists are as MMEngine reads them."""

import pytest

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
