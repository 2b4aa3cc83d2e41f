# The authors' GS-LoRA (arXiv 2403.11530) on the face demo: its images, steps and schedule, and the
# authors' values of the method for face recognition and ImageNet100.
#   python tools/train.py configs/baselines/gs_lora_face_forget.py
_base_ = '../face/gslora_face_forget.py'
model = dict(
    method=dict(
        _delete_=True,
        type='GSLoRA',
        bound=105.0,
        beta=[0.2, 0.25, 0.25],
        sparsity=dict(mode='penalty', alpha=1e-4),
    )
)
