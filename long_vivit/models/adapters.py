"""Adapters: a narrow MLP behind the MLP of each layer, to be trained while the layer stays."""

from flax import nnx


class Adapter(nnx.Module):
    """y [..., d] -> y + widen(activation(narrow(y))), [..., d]; at the start it returns y itself.

    Houlsby et al., arXiv 1902.00751, behind the feed-forward block only and before its residual
    sum, as LongViViT has it (section 4.2 there). They start near the identity; here `widen` starts
    at zero, so that it is the identity to the last bit.
    """

    def __init__(self, width, hidden, activation, *, linear, **how):
        """hidden: values in between. linear: the class of its two products, and `how` it is built;
        activation: a function."""
        self.narrow = linear(width, hidden, **how)
        self.widen = linear(hidden, width, std=0.0, **how)
        self.activation = activation

    def __call__(self, y):
        return y + self.widen(self.activation(self.narrow(y)))
