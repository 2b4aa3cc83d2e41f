# torchvision's ViT-B/16 with its published ImageNet weights and the 100 rows of its head that
# belong to ImageNet100. Nothing is to be trained: the base of
# ../classification/gslora_imagenet100_forget.py. Data under data/imagenet100, see
# ../_base_/datasets/imagenet100.py. Awaits a run.
_base_ = ['../_base_/datasets/imagenet100.py', '../_base_/classifier_runtime.py']
custom_imports = dict(imports=['mmgslora.register'])
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VisionTransformer', arch='vit_b_16', weights='IMAGENET1K_V1'),
    head=dict(
        type='ImageNetHead',
        folder_names='data/imagenet100/train',
        all_folder_names='data/imagenet100/imagenet_folder_names.txt',
    ),
)
