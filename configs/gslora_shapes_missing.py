# gslora_shapes_forget.py with two classes that must stay and have no training image: no image that
# shows one of them is used. Only the teacher knows them. The method is the demo's, untouched.
#   python tools/train.py configs/gslora_shapes_missing.py
_base_ = './gslora_shapes_forget.py'
train_cfg = dict(protocol=dict(missing=['cross', 'heart']))
