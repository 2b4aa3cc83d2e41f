# The hooks of every forgetting run; see the docstrings in mmgslora/engine.
custom_hooks = [
    dict(type='ClassCheckHook'),
    dict(type='FiniteLossHook'),
    dict(type='MethodHook'),
    dict(type='AdapterHook'),
    dict(type='PictureHook'),
    dict(type='RecordHook'),
    dict(type='LedgerHook'),
]
