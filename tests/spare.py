"""What takes half of a tiny run, and what few tests look at."""

import gc

from mmengine.config import config

import mmgslora.register  # noqa: F401  remembers the text of configs
from mmgslora.engine import image_hook, record_hook

DRAWING = (image_hook, record_hook)


def spare_runs(set_attribute=setattr) -> None:
    """No pictures, no line breaks in the text of a config."""
    for hook in DRAWING:
        set_attribute(hook, 'write_image', lambda *_: None)
    set_attribute(config.FormatCode, '_plain', lambda text, **_: (text, True))


def spare_imports() -> None:
    """Every data set collects garbage; among all that was imported there is none."""
    gc.collect()
    gc.freeze()
