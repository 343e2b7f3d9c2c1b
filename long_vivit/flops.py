"""How much a training step computes, counted from the shapes: the numerator of utilisation.

A multiply and an add are two. Counted is what the mathematics needs of matrix products: patches
that a mask leaves out are not there, and what the device computes a second time to save memory is
not counted. Normalisation, softmax, GELU and the optimiser are left out; together they are one or
two parts in a hundred. XLA's own count takes a loop over the layers for one layer, so it cannot
serve (`jax.stages.Compiled.cost_analysis`).
"""

from typing import NamedTuple

TRAINED = 3  # forward, and a product each for the input's and the weights' gradient


class Tower(NamedTuple):
    """A transformer's share: `num_tokens` of one example through `depth` layers."""

    width: int  # d
    depth: int
    num_tokens: int
    num_trained: int  # of the layers, the last ones; the others only run forward
    mlp_width: int = 0  # 0: 4 d
    looks: tuple[int, ...] = ()  # for each attention of a layer, how many tokens one looks at;
    #                              (): there is one, and it looks at all

    def mlp(self) -> int:
        """FLOPs of one token through an MLP, forward: 16 d^2 where it is 4 d wide."""
        return 4 * self.width * (self.mlp_width or 4 * self.width)

    def layer(self) -> int:
        """FLOPs of one layer's forward pass for one example: 24 n d^2 + 4 n^2 d."""
        n, d = self.num_tokens, self.width
        attention = sum(8 * n * d * d + 4 * n * seen * d for seen in self.looks or (n,))
        return attention + n * self.mlp()

    def probe(self, groups: int = 1) -> int:
        """FLOPs of `MapPool` for one example, forward, but for the query that all share.

        groups: into how many equal parts the tokens fall, each pooled by itself.
        """
        n, d = self.num_tokens, self.width
        return 4 * n * d * d + 4 * n * d + groups * (2 * d * d + self.mlp())

    def training(self) -> int:
        """FLOPs of all layers, forward and backward, for one example."""
        return self.layer() * (self.depth + (TRAINED - 1) * self.num_trained)


def training_step(
    video: Tower, text: Tower, *, batch: int, num_patches: int, patch_values: int, embed: int,
    probe: int = 0, head: bool = True, above: Tower | None = None,
) -> int:  # fmt: skip
    """FLOPs of one step of a dual encoder over a global batch, all devices together.

    Args:
      video, text: the towers; the video's tokens are the kept patches, and the learnt ones of
        pool 'cls'.
      batch: pairs. num_patches: kept patches of one video. patch_values: numbers in a patch
        (r * p * q * c).
      embed: e, the width of the joint space.
      probe: whether a `MapPool` reads the video's tokens, or in how many groups (time slices).
        head: whether what is pooled is projected.
      above: the layers over the vectors of slices; without layers, a `MapPool` of them.

    The stem's input is pixels, which need no gradient, and the stem none at all below a cut
    (`num_trained` < `depth`). The loss is a table of all pairs, forward and two products backward.
    """
    stem_passes = TRAINED - 1 if video.num_trained == video.depth else 1
    stem = 2 * num_patches * patch_values * video.width * stem_passes
    heads = 2 * (video.width * head + text.width) * embed * TRAINED
    logits = 2 * batch * batch * embed * TRAINED
    pools = [(video, probe)] if probe else []
    if above is not None:
        heads += above.training()
        pools += [] if above.depth else [(above, 1)]
    for tower, groups in pools:
        heads += tower.probe(groups) * TRAINED
        logits += 2 * video.width * video.width * TRAINED  # the query, once for the whole batch
    return batch * (video.training() + text.training() + stem + heads) + logits


def second_branch(text: Tower, *, batch: int, embed: int) -> int:
    """FLOPs that a second text of each example and its loss add to a training step.

    Left out is what the components of the batch take: an eigendecomposition of the smaller of
    batch and `embed`, once a step however large the encoders are.
    """
    head = 2 * text.width * embed * TRAINED
    return batch * (text.training() + head) + 2 * batch * batch * embed * TRAINED
