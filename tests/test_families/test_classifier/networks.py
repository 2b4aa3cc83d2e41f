"""Small networks of other libraries."""

SWIN = dict(
    type='torchvision.models.SwinTransformer',
    patch_size=[4, 4],
    embed_dim=8,
    depths=[1, 1],
    num_heads=[1, 2],
    window_size=[2, 2],
)
