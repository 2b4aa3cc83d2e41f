# The hooks of every forgetting run; see the docstrings in mmgslora/engine.
custom_hooks = [
    dict(type='ClassCheckHook'),
    dict(type='FiniteLossHook'),
    dict(type='MethodHook'),
    dict(type='AdapterHook'),
    dict(type='ImageHook'),
    dict(type='RecordHook'),
    dict(type='LedgerHook'),
]
# Several processes: groups that are held at zero take no part in a step.
find_unused_parameters = True
