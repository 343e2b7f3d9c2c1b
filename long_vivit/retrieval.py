"""Embed a data set with a model and score retrieval on it, with the protocol beside the score."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np

from long_vivit import hosts, layout, sharding
from long_vivit.bootstrap import recall_interval
from long_vivit.inputs.looks import in_words
from long_vivit.inputs.pipeline import Clips, read_ahead
from long_vivit.metrics import both_ways, twin_accuracy
from long_vivit.models import in_place


@jax.jit
def encode_patches(model, patches, where):
    """The compiled video tower: z_video float32 [b, e], on every device; see `in_place.encode`."""
    return sharding.constrain(in_place.encode(model.video, patches, where), None, None)


@jax.jit
def encode_tokens(model, tokens, lengths):
    """The compiled text tower: z_text float32 [b, e], on every device; see `TextEncoder`."""
    return sharding.constrain(model.text(tokens, lengths), None, None)


def _padded(rows, size):
    """rows [b, ...] -> [size, ...], the last row repeated: one shape, one compilation."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def _full(batch, mesh):
    """The batch in whole rows for each part of the mesh."""
    parts = sharding.batch_parts(mesh)
    return -(-batch // parts) * parts


def embed_videos(model, clips, *, threads=1, mesh=None):
    """Videos as unit vectors.

    Args:
      clips: `Clips` of all rows; each process reads those that its devices need.

    Returns:
      z_video float32 [o, n, e], for each frame order of `clips` and in the order of the source (a
      broken video's row is zero), and the broken ones as {row: 'reason: detail'}.
    """
    mesh = mesh or sharding.make_mesh()
    found, broken = [], {}
    full, total = _full(clips.batch, mesh), len(clips.source)
    rows = sharding.rows_here(mesh, full)
    ahead = read_ahead(replace(clips, rows=rows), threads=threads)
    for first, batch in zip(range(0, total, clips.batch), ahead, strict=True):
        each = [
            {'patches': jax.tree.map(lambda x, o=o: x[:, o], batch['patches']),
             'where': batch['where']}
            for o in range(len(clips.frame_orders))
        ]  # fmt: skip
        with jax.set_mesh(mesh):
            z = [encode_patches(model, **sharding.place(mesh, one, full)) for one in each]
        found.append(np.stack(z)[:, : min(clips.batch, total - first)])
        for row, error in zip(rows, batch['error'], strict=True):
            if error is not None:
                broken[first + int(row)] = f'{error.reason}: {error.detail}'
    z_video = np.concatenate(found, axis=1)
    broken = {row: text for part in hosts.gathered(list(broken.items())) for row, text in part}
    z_video[:, list(broken)] = 0
    return z_video, broken


def embed_texts(model, tokenizer, texts, *, length, batch=64, mesh=None):
    """Texts as unit vectors float32 [n, e], and how many were cut at `length` tokens."""
    mesh = mesh or sharding.make_mesh()
    batch = _full(batch, mesh)
    here = sharding.rows_here(mesh, batch)
    tokens = tokenizer.encode(texts, length)
    order = np.argsort(tokens.lengths, kind='stable')  # texts of like length meet in a batch
    found = []
    for i in range(0, len(texts), batch):
        rows = order[i : i + batch]
        arrays = {
            'tokens': _padded(tokens.ids[rows], batch)[here],
            'lengths': _padded(tokens.lengths[rows], batch)[here],
        }
        with jax.set_mesh(mesh):
            z = encode_tokens(model, **sharding.place(mesh, arrays, batch))
        found.append(np.asarray(z)[: len(rows)])
    return np.concatenate(found)[np.argsort(order)], tokens.num_cut


def texts_of(source, kind):
    """All texts of a source to score with, and the example that each belongs to: list, int64 [m].

    kind: 'caption', 'long_caption', or 'any': long captions where an example has them.
    """
    texts, owner = [], []
    for i in range(len(source)):
        example = source[i]
        own = example.captions if kind == 'caption' else example.long_captions
        if kind == 'any':
            own = own or example.captions
        if not own:
            raise ValueError(
                f"{example.id}: has no {kind} to score with; set the stage's text to the kind that "
                "it has, or to 'any'"
            )
        texts += own
        owner += [i] * len(own)
    return texts, np.array(owner)


def score(
    model, source, view, tokenizer, *, batch, threads=1, frame_orders=('ordered',),
    allow_broken=False, mesh=None,
):  # fmt: skip
    """Retrieval scores of a model on a source, both ways, and how they were taken.

    Args:
      view: a `View` for scoring. frame_orders: of `pipeline.FRAME_ORDERS`, each scored by itself.
      allow_broken: False raises where a video cannot be read; True scores the rest, says so in the
        protocol, and gives `bounds`: recall@1 with the queries of the broken videos counted in,
        all as misses or all as hits.

    Returns:
      {'scores': {frame_order: {...}}, 'protocol': {...}}, the fields of `tables.py`.

    Raises:
      ValueError: listing the broken videos, or an example without text.
    """
    mesh = mesh or sharding.make_mesh()
    model = layout.spread(model, layout.shardings(model, mesh)[0])
    texts, owner = texts_of(source, view.text)
    embed = partial(embed_texts, length=view.text_length, batch=batch, mesh=mesh)
    z_text, num_cut = embed(model, tokenizer, texts)
    group = np.array([source[i].group for i in range(len(source))])
    clips = Clips(source, view, batch, tuple(frame_orders))
    z_videos, broken = embed_videos(model, clips, threads=threads, mesh=mesh)
    if broken and (not allow_broken or len(broken) == len(source)):
        raise ValueError(broken_message(source, broken))
    whole = np.setdiff1d(np.arange(len(source)), list(broken))
    scores = {
        frame_order: _scores(z_video, z_text, owner, group, whole)
        for frame_order, z_video in zip(frame_orders, z_videos, strict=True)
    }
    return {'scores': scores, 'protocol': _protocol(source, view, texts, num_cut, broken)}


def _scores(z_video, z_text, owner, group, whole):
    """Both directions with intervals, and order twins, over the videos `whole` (row numbers)."""
    total = len(z_video)
    queries = {'text_to_video': len(z_text), 'video_to_text': total}
    place = np.full(total, -1)
    place[whole] = np.arange(len(whole))
    kept = place[owner] >= 0
    z_video, z_text, owner, group = z_video[whole], z_text[kept], place[owner[kept]], group[whole]
    found = {}
    for way, result in both_ways(z_video, z_text, owner).items():
        interval = recall_interval(result.hits, result.video)
        found[way] = result.to_dict() | {'interval': [interval.low, interval.high]}
        if len(whole) < total:
            asked, all_asked = result.num_queries, queries[way]
            hits = result.recall_at_1 * asked
            found[way]['bounds'] = [hits / all_asked, (hits + all_asked - asked) / all_asked]
    first_text = np.unique(owner, return_index=True)[1]
    sizes = np.unique(group, return_counts=True)[1]
    twins = twin_accuracy(z_video, z_text[first_text], group) if (sizes > 1).any() else None
    return found | {'twin_accuracy': twins}


def _protocol(source, view, texts, num_cut, broken):
    return {
        'data': source.name,
        'fingerprint': source.fingerprint,
        'videos': len(source) - len(broken),
        'missing_videos': len(broken),
        'texts': len(texts),
        'frames': view.frames,
        'sampler': view.sampler,
        'fps': view.fps if view.sampler in ('fps', 'first_fps') else None,
        'pixels': view.pixels,
        'crop': 'centre',
        'scaling': view.scaling,
        'patches_kept': 1 - view.mask_rate,
        **seen_as(view),
        'text': view.text,
        'text_length': view.text_length,
        'cut_texts': num_cut,
        'ties': 'expected value',
        'equal_captions': 'not merged',
        'dual_softmax': False,
    }


def seen_as(view):
    """What a protocol must say of the patches where they are not all of a grid of tubelets."""
    if view.token_budget:  # the draw goes by the video's number: it is the same each time
        return {'patches_kept': f'drawn once for each video: {in_words(view)}', 'fps': view.fps}
    return {'patches_kept': in_words(view)} if view.tubes else {}


def broken_message(source, broken, limit=20):
    """One message for all broken videos: {row: what is wrong}."""
    lines = [f'  {source[row].id}: {error}' for row, error in list(broken.items())[:limit]]
    more = [f'  ... and {len(broken) - limit} more'] if len(broken) > limit else []
    head = (
        f'{source.name}: {len(broken)} of {len(source)} videos cannot be read, so no true score '
        'can be given. Mend or remove them, or score the rest with eval.allow_broken=True '
        '(`--allow_broken` of long_vivit.evaluate)'
    )
    return '\n'.join([head, *lines, *more])
