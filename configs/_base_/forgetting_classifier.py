# forgetting.py for classifiers and face recognisers: pictures have a name each, not boxes.
custom_hooks = [
    dict(type='ClassCheckHook'),
    dict(type='FiniteLossHook'),
    dict(type='MethodHook'),
    dict(type='AdapterHook'),
    dict(type='LabelPictureHook'),
    dict(type='RecordHook'),
]
# Several processes: groups that are held at zero take no part in a step.
find_unused_parameters = True
