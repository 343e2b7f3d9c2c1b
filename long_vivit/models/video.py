"""The video encoder: joint space-time attention over whatever patches it is given, or by slices.

It never hears of masks, frame counts or resolutions: it embeds patches and adds the positions
they came from (LongViViT, arXiv 2312.07395, section 3.1: joint space-time attention, separate
image and tubelet stems over one trunk, mean pooling). The other backbones tell time slices apart
by the number of patches (`slices`).
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from long_vivit.models.factorised import FactorisedBlock
from long_vivit.models.frames import OverTime
from long_vivit.models.layers import EPSILON, Block, LayerNorm, Linear, Trunk
from long_vivit.models.pool import POOLS, MapPool, num_cls
from long_vivit.models.positions import Positions
from long_vivit.models.slices import KINDS, num_slices
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
      backbone: 'joint', or how slices are seen: 'factorised' (`long_vivit.models.factorised`),
        'factorised_encoder', 'frames' (`long_vivit.models.frames`). Then a learnt token stands at
        the head of each slice, and `pool` of the last two is over the tokens of a slice.
      whole_slices: whether masks leave out whole slices, see `slices.num_slices`.
      frame_pool, temporal_depth: of 'frames' and 'factorised_encoder', see `frames.OverTime`.
      adapter_width, lora_rank: of the blocks, see `layers.Block`.
      tubes: kernels (r, p, q) of the tubes that videos are cut into, in place of tubelets; their
        patches are a tuple, and where is float32 (`long_vivit.models.tubes`).
      padded: a video may have fewer patches than k: those from where -1 are none.
      mlp: activation and mlp_width of the blocks and of the probe's MLP, see `layers.Block`.
    """

    def __init__(
        self, *, grid, patch, tubelet, width, depth, heads, embed, pool, attention, split='auto',
        remat, dtype, rngs, cls_repeat=False, positions='split', norm_input=False,
        norm_epsilon=EPSILON, head=True, backbone='joint', whole_slices=False,
        frame_pool='mean', temporal_depth=4, adapter_width=0, lora_rank=0, tubes=(), padded=False,
        **mlp,
    ):  # fmt: skip
        for field, value, known in (('pool', pool, POOLS), ('backbone', backbone, KINDS)):
            if value not in known:
                raise ValueError(
                    f'model.video.{field} is {value!r}; it must be one of {", ".join(known)}'
                )
        if backbone != 'joint' and (tubes or padded):
            raise ValueError(
                f"model.video.backbone is {backbone!r}; tubes and token_budget are of 'joint' only"
            )
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
        mixing = {'implementation': attention, 'split': split, 'remat': remat}
        self.trunk = Trunk(
            width, depth, heads, make=FactorisedBlock if backbone == 'factorised' else Block,
            causal=False, adapter_width=adapter_width, lora_rank=lora_rank, **mixing, **mlp,
        )  # fmt: skip
        self.map = MapPool(width, heads, **mlp) if pool == 'map' else None
        if not head and embed != width:
            raise ValueError(
                f'model.embed is {embed}, but without model.video.head it must be the width {width}'
            )
        self.head = Linear(width, embed, bias=False, rngs=rngs) if head else None
        over_time = {'frames': frame_pool, 'factorised_encoder': 'temporal'}.get(backbone)
        self.over_time = (
            OverTime(over_time, width, temporal_depth, heads, **mixing, **mlp)
            if over_time
            else None
        )
        self.cls_repeat, self.padded, self.dtype = cls_repeat, padded, dtype
        self.backbone, self.whole_slices = backbone, whole_slices

    def tokens(self, patches, where):
        """Patches with their positions, before the trunk: [b, k, d]."""
        if self.padded:
            where = jnp.maximum(where, 0)  # what is no patch gets some place, and is not looked at
        if isinstance(patches, tuple):
            return self.tubes(patches) + self.positions(where, still=False).astype(self.dtype)
        is_image = self.is_image(patches)
        if not is_image and self.tubelet_embed is None:
            raise ValueError(
                f'patches of {patches.shape[-1]} values, but this encoder was built for images of '
                f'{self.image_embed.kernel.shape[0]}: set model.video.tubelet above 1'
            )
        embed = self.image_embed if is_image else self.tubelet_embed
        still = self.is_still(patches) or self.backbone == 'frames'
        x = embed(patches.astype(self.dtype) / 127.5 - 1)  # 0..255 -> -1..1
        return x + self.positions(where, still=still).astype(self.dtype)

    def is_image(self, patches):
        """Whether they go through the image stem."""
        return patches.shape[-1] == self.image_embed.kernel.shape[0]

    def is_still(self, patches):
        """Whether they have no time: tubelets of one frame look like images, and then the table
        tells whether there are times."""
        two_stems = self.tubelet_embed is not None or self.tubes is not None
        return self.is_image(patches) and (two_stems or self.positions.grid[0] == 1)

    def __call__(self, patches, where, *, num_frozen=0, num_still=0):
        """`num_frozen`: how many first blocks (and the stems) get no gradient; `num_still`: how
        many last blocks get none of their own, see `Trunk`."""
        if self.backbone != 'joint':
            cuts = {'num_frozen': num_frozen, 'num_still': num_still}
            return self.projected(self._by_slices(patches, where, **cuts))
        x, lengths = self.joint(patches, where, num_frozen=num_frozen, num_still=num_still)
        return self.pooled(x, lengths if self.padded else None)

    def joint(self, patches, where, **cuts):
        """Of the backbone 'joint': the tokens as they leave the trunk, [b, n, d], and how many of
        them are looked at, [b], or None for all."""
        x, lengths = self.tokens(patches, where), None
        if self.padded:
            lengths = (where[..., 0] >= 0).sum(1, dtype=jnp.int32)
        if self.cls is not None:
            x, lengths = self._with_cls(x, lengths)
        if self.norm_input is not None:
            x = self.norm_input(x)
        return self.trunk(x, lengths, axis=SEQ, **cuts), lengths

    def pooled(self, x, lengths=None):
        """What the trunk returned, [b, n, d] -> z_video; lengths [b]: the tokens that are real."""
        return self.projected(self._pool(x.astype(jnp.float32), lengths))

    def projected(self, x):
        """The pooled vector, float32 [b, d] -> z_video."""
        return unit(x if self.head is None else self.head(x))

    def num_slices(self, patches):
        """How many time slices the patches [b, k, r*p*q*c] make: int. Raises ValueError: none."""
        still = self.is_still(patches)
        grid, whole = self.positions.grid, self.whole_slices
        return num_slices(patches.shape[1], grid, whole=whole, still=still)

    def _by_slices(self, patches, where, **cuts):
        """Of the backbones that tell slices apart: the pooled vector, float32 [b, d]."""
        t = self.num_slices(patches)
        if self.backbone != 'factorised':
            x = self.slices(self.tokens(patches, where), t, **cuts)
            return self.over_time(self.timed(x, patches, where, cuts['num_frozen']))
        x = self.entered(self.tokens(patches, where), t)
        return self.pooled_slices(self.trunk(x, num_slices=t, **cuts), t)

    def entered(self, x, t):
        """Tokens [b, k, d] as the trunk takes those of `t` slices: each behind a learnt token."""
        x = rearrange(x, 'b (t s) d -> (b t) s d', t=t)
        x = x if self.cls is None else self._with_cls(x, None)[0]
        x = x if self.norm_input is None else self.norm_input(x)
        return rearrange(x, '(b t) s d -> b (t s) d', t=t)

    def pooled_slices(self, x, t):
        """What a factorised trunk returned of `t` slices, [b, n, d] -> float32 [b, d]."""
        x = x.astype(jnp.float32)
        if self.cls is None:
            return self._pool(x)
        return rearrange(x, 'b (t s) d -> b t s d', t=t)[:, :, 0].mean(1)

    def slices(self, x, t, **cuts):
        """Tokens [b, k, d] -> the vectors of `t` slices, each encoded by itself: [b, t, d]."""
        x = self.each_slice(x, t, **cuts).astype(jnp.float32)
        return rearrange(self._pool(x), '(b t) d -> b t d', t=t)

    def each_slice(self, x, t, **cuts):
        """Tokens [b, k, d] of `t` slices as they leave the trunk, each by itself: [(b t), s, d]."""
        return self.trunk(rearrange(self.entered(x, t), 'b (t s) d -> (b t) s d', t=t), **cuts)

    def timed(self, x, patches, where, num_frozen=0):
        """Vectors of slices [b, t, d] with the times that the layers over slices are to know."""
        if self.backbone != 'frames' or self.over_time.trunk is None or self.is_still(patches):
            return x
        time = self.positions.times(where[:, :: where.shape[1] // x.shape[1], 0])
        return x + (jax.lax.stop_gradient(time) if num_frozen else time)

    def _pool(self, x, lengths=None):
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
