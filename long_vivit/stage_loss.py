"""What the fields about the loss stand for in a stage: options, words, and what is in vain."""

from long_vivit.losses import components, form


def options(run, stage):
    """What `step.make_step` takes of the configuration's loss."""
    loss = run.loss
    return {'short': short_branch(run, stage)} | {
        key: getattr(loss, key) for key in ('kind', 'max_scale', 'label_smoothing', 'form', 'tile')
    }


def short_branch(run, stage):
    """What `step.two_branches` takes of the configuration; None for a stage without short texts."""
    loss = run.loss
    if not stage.short_text:
        return None
    return {'weight': loss.short_weight} | {
        key: getattr(loss, key)
        for key in ('components', 'basis_gradient', 'components_scope', 'renormalise')
    }


def in_words(run, stage):
    """How a stage of a large batch or of two losses comes by them; '' where that is plain."""
    loss, b = run.loss, stage.batch
    words = [form.in_words(loss.kind, loss.form, b, loss.tile)]
    short = short_branch(run, stage)
    if short:
        words.append(f'{short.pop("weight"):g} times that of the {components.in_words(b, **short)}')
    if stage.micro_batch:
        words.append(f'the encoders take {stage.micro_batch} of {b} pairs at once')
    plain = not stage.micro_batch and not short and form.chosen(loss.form, b) == 'dense'
    return '' if plain else ', '.join(words)


def warning(run, stage):
    """What a stage asks of its loss in vain, and what to change; '' where there is nothing."""
    if not stage.short_text:
        return ''
    loss = run.loss
    return components.warning(loss.components, loss.components_scope, stage, run.model.embed)
