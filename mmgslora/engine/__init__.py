from mmgslora.engine.adapter_hook import AdapterHook
from mmgslora.engine.averaging_hook import AveragingHook
from mmgslora.engine.checkpoint_hook import CheckpointHook
from mmgslora.engine.class_check_hook import ClassCheckHook
from mmgslora.engine.finite_loss_hook import FiniteLossHook
from mmgslora.engine.image_hook import ImageHook
from mmgslora.engine.ledger_hook import LedgerHook
from mmgslora.engine.loop import ContinualForgettingLoop
from mmgslora.engine.method_hook import MethodHook
from mmgslora.engine.record_hook import RecordHook

__all__ = [
    'AdapterHook',
    'AveragingHook',
    'CheckpointHook',
    'ClassCheckHook',
    'ContinualForgettingLoop',
    'FiniteLossHook',
    'ImageHook',
    'LedgerHook',
    'MethodHook',
    'RecordHook',
]
