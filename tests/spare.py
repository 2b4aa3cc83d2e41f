"""What takes half of a tiny run, and what few tests look at."""

import gc
from functools import cache
from types import SimpleNamespace

from mmengine.config import config
from mmengine.dataset import base_dataset
from mmengine.utils import misc

import mmgslora.register  # noqa: F401  remembers the text of configs
from mmgslora.engine import image_hook, record_hook

# What draws a run's pictures; for those of images the model looks at them first.
DRAWING = {
    (record_hook, 'write_image'): record_hook.write_image,
    (image_hook.ImageHook, 'before_forget_task'): image_hook.ImageHook.before_forget_task,
    (image_hook.ImageHook, 'after_forget_task'): image_hook.ImageHook.after_forget_task,
}


def spare_runs(set_attribute=setattr) -> None:
    """No pictures, no line breaks in the text of a config, and two habits of MMEngine's."""
    for place, name in DRAWING:
        set_attribute(place, name, lambda *_, **__: None)
    set_attribute(config.FormatCode, '_plain', lambda text, **_: (text, True))
    # Every data set collects garbage, and every call of a layer of mmcv inspects its signature.
    set_attribute(base_dataset, 'gc', SimpleNamespace(collect=lambda: None))
    set_attribute(misc, 'getfullargspec', cache(misc.getfullargspec))


def draw(set_attribute) -> None:
    """Bring the pictures back."""
    for (place, name), drawing in DRAWING.items():
        set_attribute(place, name, drawing)


def spare_imports() -> None:
    """Among all that was imported there is no garbage."""
    gc.collect()
    gc.freeze()
