# forgetting.py for classifiers and face recognisers: pictures have a name each, not boxes.
custom_hooks = [
    dict(type='ClassCheckHook'),
    dict(type='FiniteLossHook'),
    dict(type='MethodHook'),
    dict(type='AdapterHook'),
    dict(type='LabelPictureHook'),
    dict(type='RecordHook'),
    dict(type='LedgerHook'),
]
