"""The training step of video-to-text on a variant's encoder, to be compiled and not to be run.

As in LongViViT (section 3.2) the encoder gives no gradient, the language model is frozen too, and
AdamW has moments of the resampler and of the looks at the video alone. The encoder sees every
patch, where the paper leaves out 30% (section 6.1). What a variant does to save memory in the
contrastive stage may cost or save here: adapters stay in the encoder, low-rank pairs are merged
into it, and what was masked then is seen now.
"""

import re

import jax
import optax
from flax import nnx

from long_vivit import estimate, recipe, trained
from long_vivit.models import captioner
from long_vivit.names import flatten
from long_vivit.sweeps import shapes

LEARNING_RATE = 1e-4  # memory does not depend on it


def lowered(run, language):
    """The step for the one stage of `run`, a Run as `shapes.at` gives it, for one device.

    language: the section `memory.language` of configs/sweep.py. Returns the program, to be
    compiled, or None where a variant's patches lie on no grid of places (see `captioner.seen_by`).
    """
    (stage,) = run.stages
    if any(vars(stage).get(field) for field in ('tubes', 'token_budget')):
        return None
    here = f'stages.{stage.name}.'
    whole = estimate.changed(
        run, {here + 'mask_rate': 0.0, here + 'tune': 'all', here + 'last_layers': 0}
    )
    (stage,) = whole.stages
    optimiser = optax.adamw(LEARNING_RATE, weight_decay=0.0)

    def init():
        key = jax.random.key(0)
        encoder = recipe.model(whole, stage, shapes.VOCAB, key).video
        reader = captioner.Captioner(
            whole.model.video.width, vocab=shapes.VOCAB, length=stage.text_length, **language,
            remat=whole.model.video.remat, dtype=recipe.DTYPES[whole.model.dtype],
            rngs=nnx.Rngs(params=key),
        )  # fmt: skip
        return encoder, reader, optimiser.init(trained.take(reader, table(reader)))

    state = jax.eval_shape(init)
    step = jax.jit(make_step(optimiser), donate_argnums=(1, 2))
    return step.lower(*state, recipe.batch_like(whole, stage))


def table(reader):
    """{name: Rule} of a Captioner: what is new is trained."""
    return {
        name: trained.Rule(bool(re.fullmatch(captioner.TRAINED, name)), decay=False)
        for name in flatten(reader)
    }


def make_step(optimiser):
    """step(encoder, reader, opt, batch) -> (reader, opt, loss); batch: as `recipe.batch_like`."""

    def step(encoder, reader, opt, batch):
        rules = table(reader)
        seen = captioner.seen_by(encoder, batch['patches'], batch['where'])

        def loss_of(live):
            logits = trained.put(reader, live, rules)(seen, batch['tokens'])
            return captioner.next_word_loss(logits, batch['tokens'], batch['lengths'])

        live = trained.take(reader, rules)
        loss, grads = jax.value_and_grad(loss_of)(live)
        updates, opt = optimiser.update(grads, opt, live)
        return trained.put(reader, optax.apply_updates(live, updates), rules), opt, loss

    return step
