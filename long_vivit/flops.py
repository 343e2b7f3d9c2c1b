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
    num_trained: int  # of the layers, whose weights are trained
    mlp_width: int = 0  # 0: 4 d
    num_passed: int = -1  # of the layers, which the gradient passes through; -1: the trained ones
    adapter_width: int = 0
    lora_rank: int = 0
    named: tuple[str, ...] = ()  # trained in all layers, besides: keys of `parts`
    looks: tuple[int, ...] = ()  # for each attention of a layer, how many tokens one looks at;
    #                              (): there is one, and it looks at all

    def mlp(self) -> int:
        """FLOPs of one token through an MLP, forward: 16 d^2 where it is 4 d wide."""
        return 4 * self.width * (self.mlp_width or 4 * self.width)

    def parts(self) -> dict[str, int]:
        """FLOPs of one token through what a layer may have besides, forward.

        That is its adapter, its low-rank pairs, and the weights of attention over time.
        """
        d, hidden = self.width, self.mlp_width or 4 * self.width
        into_and_out = (3 + 1) * 2 * d + 2 * (d + hidden)  # of all pairs: qkv, out, up, down
        return {
            'adapters': 4 * d * self.adapter_width,
            'lora': 2 * self.lora_rank * into_and_out,
            'temporal': 8 * d * d * (len(self.attends()) - 1),
        }

    def attends(self) -> tuple[int, ...]:
        """How many tokens one looks at in each attention of a layer."""
        return self.looks or (self.num_tokens,)

    def scores(self) -> int:
        """FLOPs of one layer's attention but for weights, forward: 4 n^2 d of one of all tokens."""
        return 4 * self.num_tokens * sum(self.attends()) * self.width

    def weights(self) -> int:
        """FLOPs of one layer's products with weights, forward."""
        each = 8 * self.width**2 + self.mlp() + sum(self.parts().values())
        return self.num_tokens * each

    def layer(self) -> int:
        """FLOPs of one layer's forward pass for one example: 24 n d^2 + 4 n^2 d."""
        return self.weights() + self.scores()

    def passed(self) -> int:
        """In how many layers the gradient of the input is computed."""
        return self.num_trained if self.num_passed < 0 else self.num_passed

    def probe(self, groups: int = 1) -> int:
        """FLOPs of `MapPool` for one example, forward, but for the query that all share.

        groups: into how many equal parts the tokens fall, each pooled by itself.
        """
        n, d = self.num_tokens, self.width
        return 4 * n * d * d + 4 * n * d + groups * (2 * d * d + self.mlp())

    def training(self) -> int:
        """FLOPs of all layers, forward and backward, for one example.

        The gradient of the input takes a product for each product with weights, and two for the
        scores of attention and for what they weigh; that of trained weights takes one more.
        """
        named = self.num_tokens * sum(self.parts()[part] for part in self.named)
        return (
            self.layer() * self.depth
            + (self.weights() + 2 * self.scores()) * self.passed()
            + self.weights() * self.num_trained
            + named * self.depth
        )


class Trains(NamedTuple):
    """What of a dual encoder is trained outside the layers."""

    stem: bool = True
    head: bool = True  # all that follows the video's layers, but for `above`
    above: bool = True  # the layers over the vectors of time slices
    text: bool = True


def training_step(
    video: Tower, text: Tower, *, batch: int, num_patches: int, patch_values: int, embed: int,
    probe: int = 0, head: bool = True, above: Tower | None = None, trains: Trains | None = None,
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
      above: the layers over the vectors of slices; without layers, a `MapPool` of them. Which of
        its layers are trained goes by `trains`.
      trains: None: all, but for a stem below a cut (`num_trained` < `depth`).

    The stem's input is pixels, which need no gradient. The loss is a table of all pairs, forward,
    and backward a product for each tower that is trained.
    """
    trains = trains or Trains(stem=video.num_trained == video.depth)
    below = trains.stem or video.passed() > 0  # the gradient goes on below the pooling of tokens
    pooled = below or trains.head
    vector = pooled or (above is not None and trains.above)  # and on below the projection
    stem = 2 * num_patches * patch_values * video.width * (1 + trains.stem)
    heads = 2 * video.width * head * embed * (1 + vector + trains.head)
    heads += 2 * text.width * embed * (1 + 2 * trains.text)
    logits = 2 * batch * batch * embed * (1 + vector + trains.text)
    pools = [(video, probe, 1 + pooled + trains.head, trains.head)] if probe else []
    if above is not None and above.depth:
        live, through = above.depth * trains.above, above.depth * vector
        heads += above._replace(num_trained=live, num_passed=through).training()
    elif above is not None:
        pools.append((above, 1, 1 + vector + trains.above, trains.above))
        if trains.above and not pooled:  # what goes into keys and values needs no gradient
            heads -= 4 * above.num_tokens * above.width**2
    for tower, groups, passes, live in pools:
        heads += tower.probe(groups) * passes
        if passes > 1 and not live:  # the scores' gradient goes to keys, and to what is weighed
            heads += 2 * tower.num_tokens * tower.width
        query = 2 * video.width * video.width  # once for the whole batch
        logits += query * (TRAINED if live else 1)
    return batch * (video.training() + text.training() + stem + heads) + logits


def second_branch(text: Tower, *, batch: int, embed: int) -> int:
    """FLOPs that a second text of each example and its loss add to a training step.

    Left out is what the components of the batch take: an eigendecomposition of the smaller of
    batch and `embed`, once a step however large the encoders are.
    """
    trained = text.num_trained > 0
    head = 2 * text.width * embed * (1 + 2 * trained)
    logits = 2 * batch * batch * embed * (2 + trained)
    return batch * (text.training() + head) + logits
