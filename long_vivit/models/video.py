"""The video encoder: joint space-time attention over whatever patches it is given.

It never hears of masks, frame counts or resolutions: it embeds patches and adds the positions
they came from (LongViViT, arXiv 2312.07395, section 3.1: joint space-time attention, separate
image and tubelet stems over one trunk, mean pooling).
"""

import jax.numpy as jnp
from flax import nnx

from long_vivit.models.layers import EPSILON, LayerNorm, Linear, Trunk
from long_vivit.models.pool import POOLS, MapPool, num_cls
from long_vivit.models.positions import Positions
from long_vivit.models.tubes import Tubes
from long_vivit.sharding import SEQ, axis_size


class VideoEncoder(nnx.Module):
    """patches uint8 [b, k, r*p*q*c], where int32 [b, k, 3] -> z_video float32 [b, e], unit length.

    A patch vector as long as one frame's patch (r = 1) goes through the image stem, a longer one
    through the tubelet stem; the trunk is shared. Images have no time, unless videos come in
    tubelets of one frame as well: then an image is a video's frame at the time it names.

    Args:
      grid: (t, h, w), sizes of the position tables in tubelets, patch rows, patch columns.
      patch: pixels along a patch side. tubelet: frames in a tubelet; 1 builds no tubelet stem.
      attention, split: the implementation and how devices along `seq` share it, see
        `long_vivit.models.attention.attend`.
      pool: 'mean' over all given tokens (the paper), 'cls', a learnt token's output, or 'map', a
        learnt probe's look at all tokens (`long_vivit.models.pool`).
      cls_repeat: several copies of the learnt token, see `num_cls`; False: one, however long the
        video is.
      positions: 'split' or 'joint', see `long_vivit.models.positions`.
      norm_input: a LayerNorm before the first block. head: False: z is the pooled vector itself,
        whose width must be e.
      adapter_width, lora_rank: of the blocks, see `layers.Block`.
      tubes: kernels (r, p, q) of the tubes that videos are cut into, in place of tubelets; their
        patches are a tuple, and where is float32 (`long_vivit.models.tubes`).
      padded: a video may have fewer patches than k: those from where -1 are none.
      mlp: activation and mlp_width of the blocks and of the probe's MLP, see `layers.Block`.
    """

    def __init__(
        self, *, grid, patch, tubelet, width, depth, heads, embed, pool, attention, split='auto',
        remat, dtype, rngs, cls_repeat=False, positions='split', norm_input=False,
        norm_epsilon=EPSILON, head=True, adapter_width=0, lora_rank=0, tubes=(), padded=False,
        **mlp,
    ):  # fmt: skip
        if pool not in POOLS:
            raise ValueError(f'model.video.pool is {pool!r}; it must be one of {", ".join(POOLS)}')
        pixels = patch * patch * 3
        self.image_embed = Linear(pixels, width, dtype=dtype, rngs=rngs)
        self.tubelet_embed = (
            Linear(tubelet * pixels, width, dtype=dtype, rngs=rngs)
            if tubelet > 1 and not tubes
            else None
        )
        self.tubes = Tubes(tubes, width, dtype=dtype, rngs=rngs) if tubes else None
        self.positions = Positions(grid, width, kind=positions, rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((width,))) if pool == 'cls' else None
        self.norm_input = LayerNorm(width, epsilon=norm_epsilon) if norm_input else None
        mlp |= {'norm_epsilon': norm_epsilon, 'dtype': dtype, 'rngs': rngs}
        self.trunk = Trunk(
            width, depth, heads, implementation=attention, split=split, causal=False, remat=remat,
            adapter_width=adapter_width, lora_rank=lora_rank, **mlp,
        )  # fmt: skip
        self.map = MapPool(width, heads, **mlp) if pool == 'map' else None
        if not head and embed != width:
            raise ValueError(
                f'model.embed is {embed}, but without model.video.head it must be the width {width}'
            )
        self.head = Linear(width, embed, bias=False, rngs=rngs) if head else None
        self.cls_repeat, self.padded, self.dtype = cls_repeat, padded, dtype

    def tokens(self, patches, where):
        """Patches with their positions, before the trunk: [b, k, d]."""
        if self.padded:
            where = jnp.maximum(where, 0)  # what is no patch gets some place, and is not looked at
        if isinstance(patches, tuple):
            return self.tubes(patches) + self.positions(where, still=False).astype(self.dtype)
        is_image = patches.shape[-1] == self.image_embed.kernel.shape[0]
        if not is_image and self.tubelet_embed is None:
            raise ValueError(
                f'patches of {patches.shape[-1]} values, but this encoder was built for images of '
                f'{self.image_embed.kernel.shape[0]}: set model.video.tubelet above 1'
            )
        embed = self.image_embed if is_image else self.tubelet_embed
        # Tubelets of one frame look like images: then the table tells whether there are times.
        two_stems = self.tubelet_embed is not None or self.tubes is not None
        still = is_image and (two_stems or self.positions.grid[0] == 1)
        x = embed(patches.astype(self.dtype) / 127.5 - 1)  # 0..255 -> -1..1
        return x + self.positions(where, still=still).astype(self.dtype)

    def __call__(self, patches, where, *, num_frozen=0, num_still=0):
        """`num_frozen`: how many first blocks (and the stems) get no gradient; `num_still`: how
        many last blocks get none of their own, see `Trunk`."""
        x, lengths = self.tokens(patches, where), None
        if self.padded:
            lengths = (where[..., 0] >= 0).sum(1, dtype=jnp.int32)
        if self.cls is not None:
            x, lengths = self._with_cls(x, lengths)
        if self.norm_input is not None:
            x = self.norm_input(x)
        x = self.trunk(x, lengths, num_frozen=num_frozen, num_still=num_still, axis=SEQ)
        return self.pooled(x, lengths if self.padded else None)

    def pooled(self, x, lengths=None):
        """What the trunk returned, [b, n, d] -> z_video; lengths [b]: the tokens that are real."""
        x = self._pool(x.astype(jnp.float32), lengths)
        return unit(x if self.head is None else self.head(x))

    def _pool(self, x, lengths):
        if self.map is not None:
            return self.map(x, lengths)
        if self.cls is not None:
            return x[:, 0]
        if lengths is None:
            return x.mean(1)
        real = jnp.arange(x.shape[1]) < lengths[:, None]
        return jnp.where(real[..., None], x, 0).sum(1) / jnp.maximum(lengths, 1)[:, None]

    def num_cls(self, k):
        """How many copies of the learnt token stand before k patches; 0 without one."""
        if self.cls is None:
            return 0
        return num_cls(k, self.positions.grid) if self.cls_repeat else 1

    def _with_cls(self, x, lengths):
        """The learnt token and its copies before the patches [b, k, d]; the lengths for `Trunk`.

        Where the tokens are split over devices they are padded, so that they divide: then their
        lengths are told.
        """
        b, k, d = x.shape
        count = self.num_cls(k)
        cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (b, count, d))
        x = jnp.concatenate([cls, x], axis=1)
        n = count + k
        if lengths is not None:
            lengths += count
        if pad := -n % axis_size(SEQ):
            x = jnp.pad(x, [(0, 0), (0, pad), (0, 0)])
            lengths = jnp.full((b,), n, jnp.int32) if lengths is None else lengths
        return x, lengths


def unit(x):
    """x [..., e] scaled to length 1, in float32; a zero vector stays zero, with finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12)
    return x / jnp.sqrt(square)
