"""Long ViViT: contrastive encoders of long videos, trained in stages.

model = long_vivit.load('runs/long')
z_video = model.encode_video(frames)
z_text = model.encode_text(['a red circle slides left'])

model = long_vivit.load('clip:PATH', frames=16)    # other people's weights as they are
"""


def load(workdir, stage='', **look):
    """See `long_vivit.inference.load`; imported late, so that tools that need no JAX stay light."""
    from long_vivit import inference

    return inference.load(workdir, stage, **look)
