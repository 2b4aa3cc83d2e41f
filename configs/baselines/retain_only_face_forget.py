# A control: the face demo's steps and images without a forget term.
#   python tools/train.py configs/baselines/retain_only_face_forget.py
_base_ = '../face/gslora_face_forget.py'
model = dict(method=dict(_delete_=True, type='RetainOnly'))
