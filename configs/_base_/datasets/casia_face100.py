# CASIA-Face100 in one folder per identity: data/casia_face100/{train,test}/<identity>/, 112 x
# 112. Pixels in [0, 1] and no augmentation, as the authors'. There is no validation part: the
# test images are looked at after every task, nothing is chosen on them.
_base_ = './class_folders.py'
seen = dict(
    data_root='data/casia_face100/',
    transforms=[
        dict(type='Resize', size=(112, 112)),
        dict(type='ToImage'),
        dict(type='ToDtype', dtype='float32', scale=True),
    ],
)
train_dataloader = dict(batch_size=480, num_workers=8, dataset=seen)
val_dataloader = dict(batch_size=500, num_workers=8, dataset=dict(folder='test', **seen))
test_dataloader = val_dataloader
val_evaluator = dict(verification=True)
test_evaluator = val_evaluator
