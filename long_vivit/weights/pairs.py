"""What all CLIPs share: the sizes of the two towers, the rows in either naming, the fields.

CLIP: arXiv 2103.00020. An image is cut by a convolution without bias; a class token goes first;
a LayerNorm stands before the blocks. The text tower looks back only and gives the end token's
output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from long_vivit.weights import Described, rows
from long_vivit.weights.rows import Row, Tower, one

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TABLE = 'video/positions/table'  # class token and places in one table, until `finish`


class Pixels(NamedTuple):
    """How pictures are made ready; the defaults are what CLIP was taught with.

    Attributes:
      mean, std: of the channels R, G, B, values from 0 to 1. scaling: of data.scaling.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    scaling: str = 'bicubic'


PIXELS = Pixels()


class Sizes(NamedTuple):
    """The shape of a CLIP, and the choices that its weights do not show."""

    video: Tower
    text: Tower
    patch: int
    side: int  # patches along a side of the image
    length: int  # rows of the text's position table
    vocab: int
    embed: int
    activation: str  # of model.*.activation
    epsilon: float = 1e-5
    text_epsilon: float = 1e-5
    text_activation: str = ''  # '' = as the image's
    head_bias: bool = False  # of the text's projection
    logit_bias: bool = False
    pixels: Pixels = PIXELS

    def fields(self) -> dict[str, Any]:
        """The architecture in the paths of configs/base.py."""
        text_activation = self.text_activation or self.activation
        return {
            **self.video.fields(
                'video', self.activation, self.epsilon, patch=self.patch, pool='cls',
                norm_input=True, positions='split', head=True,
            ),
            **self.text.fields(
                'text', text_activation, self.text_epsilon, kind='causal', head_bias=self.head_bias
            ),
            'model.embed': self.embed,
        }  # fmt: skip

    def described(self, tokenizer: str) -> Described:
        """What weights of these sizes say of themselves, beside the path of a tokenizer."""
        return Described(
            self.fields(), tokenizer, self.vocab, 'sigmoid' if self.logit_bias else 'nce',
            pixels=self.side * self.patch, text_length=self.length,
            scaling=self.pixels.scaling,
        )  # fmt: skip


def openai_rows(sizes: Sizes) -> list[Row]:
    """The rows in the names of OpenAI's release, which open_clip's plain models have as well."""
    v, t, e = sizes.video, sizes.text, sizes.embed
    head = [one('text/head/kernel', 'text_projection', (t.width, e))]
    if sizes.head_bias:
        head = rows.linear('text/head', 'text_projection', t.width, e)
    found = [
        rows.patches('video/image_embed', 'visual.conv1', v.width, sizes.patch),
        one('video/cls', 'visual.class_embedding', (v.width,)),
        one(TABLE, 'visual.positional_embedding', (1 + sizes.side**2, v.width)),
        *rows.norm('video/norm_input', 'visual.ln_pre', v.width),
        *rows.blocks('video/trunk', 'visual.transformer.resblocks', v, 'openai'),
        *rows.norm('video/trunk/norm', 'visual.ln_post', v.width),
        one('video/head/kernel', 'visual.proj', (v.width, e)),
        one('text/embed', 'token_embedding.weight', (sizes.vocab, t.width)),
        one('text/positions', 'positional_embedding', (sizes.length, t.width)),
        *rows.blocks('text/trunk', 'transformer.resblocks', t, 'openai'),
        *rows.norm('text/trunk/norm', 'ln_final', t.width),
        *head,
        one('log_scale', 'logit_scale', ()),
    ]
    return found + [one('logit_bias', 'logit_bias', ())] * sizes.logit_bias


def transformers_rows(sizes: Sizes) -> list[Row]:
    """The rows in the names of Hugging Face's CLIPModel."""
    v, t, e = sizes.video, sizes.text, sizes.embed
    seen, read = 'vision_model', 'text_model'
    return [
        rows.patches('video/image_embed', f'{seen}.embeddings.patch_embedding', v.width,
                     sizes.patch),
        one('video/cls', f'{seen}.embeddings.class_embedding', (v.width,)),
        one(TABLE, f'{seen}.embeddings.position_embedding.weight', (1 + sizes.side**2, v.width)),
        *rows.norm('video/norm_input', f'{seen}.pre_layrnorm', v.width),  # so spelt there
        *rows.blocks('video/trunk', f'{seen}.encoder.layers', v, 'transformers'),
        *rows.norm('video/trunk/norm', f'{seen}.post_layernorm', v.width),
        *rows.linear('video/head', 'visual_projection', v.width, e, bias=False),
        one('text/embed', f'{read}.embeddings.token_embedding.weight', (sizes.vocab, t.width)),
        one('text/positions', f'{read}.embeddings.position_embedding.weight',
            (sizes.length, t.width)),
        *rows.blocks('text/trunk', f'{read}.encoder.layers', t, 'transformers'),
        *rows.norm('text/trunk/norm', f'{read}.final_layer_norm', t.width),
        *rows.linear('text/head', 'text_projection', t.width, e, bias=False),
        one('log_scale', 'logit_scale', ()),
    ]  # fmt: skip


def finish(params: dict[str, np.ndarray], sizes: Sizes) -> dict[str, np.ndarray]:
    """What `rows.read` gave, in our model's own terms; changes `params`.

    The class token takes its row of the position table. Times start as zeros: a still video is its
    frame. The mean and the deviation of the pixels go into the patch kernel, which our encoder
    gives values from -1 to 1.
    """
    table = params.pop(TABLE)
    params['video/cls'] += table[0]
    params['video/positions/space'] = rearrange(table[1:], '(h w) d -> h w d', h=sizes.side)
    params['video/positions/time'] = np.zeros((1, sizes.video.width), np.float32)
    kernel, bias = 'video/image_embed/kernel', 'video/image_embed/bias'
    mean, std, _ = sizes.pixels
    params[kernel], params[bias] = rows.fold_pixels(params[kernel], 0.0, mean, std)
    return params
