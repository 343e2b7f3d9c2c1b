"""A taught model in a notebook: `long_vivit.load(WORKDIR)`, then encode videos and texts."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from long_vivit import config, recipe, start, tuning, weights
from long_vivit.inputs import pixels, samplers, video
from long_vivit.inputs.looks import View, show
from long_vivit.inputs.pipeline import stack
from long_vivit.inputs.text import Tokenizer
from long_vivit.models import lora
from long_vivit.models.dual import DualEncoder
from long_vivit.names import unflatten
from long_vivit.retrieval import encode_patches, encode_tokens
from long_vivit.workdir import Workdir


@dataclass(frozen=True)
class Loaded:
    """A taught dual encoder with what it needs to read videos and texts.

    `view` is how the model's last stage looks at a video when it is scored.
    """

    model: DualEncoder
    view: View
    tokenizer: Tokenizer
    run: object  # the resolved configuration
    stage: object  # of the stage that was loaded

    def encode_video(self, frames):
        """z_video float32 [e], unit length, of one video; [b, e] of several.

        frames: uint8 [num_frames, height, width, 3] RGB in order, or [b, ...] of them, or the path
          of a video file (or a list of paths). Frames are cropped to the centre square and scaled;
          where there are more or fewer than the model's, those at the middle of equal parts are
          taken (frames are then repeated where there are fewer). With stage.token_budget they are
          taken as they are, stage.fps to a second, up to stage.frames.

        Raises:
          ValueError: frames of another shape or dtype. VideoError: a file cannot be read.
        """
        if isinstance(frames, str | Path):
            return self.encode_video([frames])[0]
        if isinstance(frames, list | tuple) and not frames:
            return np.zeros((0, self.run.model.embed), np.float32)
        if isinstance(frames, list | tuple) and all(isinstance(f, str | Path) for f in frames):
            return self._encode([self.read(file) for file in frames])
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim not in (4, 5) or frames.shape[-1] != 3:
            raise ValueError(
                f'frames is {frames.dtype} {list(frames.shape)}; it must be uint8 '
                '[num_frames, height, width, 3] or [b, num_frames, height, width, 3], RGB'
            )
        if frames.ndim == 4:
            return self.encode_video(frames[None])[0]
        view, picked = self.view, self._picked(frames.shape[1])
        shown = np.stack(
            [[pixels.shrink(f, view.pixels, view.scaling) for f in clip[picked]] for clip in frames]
        )
        return self._encode(shown)

    def encode_text(self, texts):
        """z_text float32 [b, e], unit length, of a list of strings; [e] of one string.

        A text longer than the model's `stage.text_length` tokens is cut there, with a warning.
        """
        one, texts = isinstance(texts, str), [texts] if isinstance(texts, str) else texts
        tokens = self.tokenizer.encode(texts, self.view.text_length)
        if tokens.num_cut:
            warnings.warn(
                f'{tokens.num_cut} of {len(texts)} texts have more than the {self.view.text_length}'
                ' tokens that the model reads: cut there',
                stacklevel=2,
            )
        z = np.asarray(encode_tokens(self.model, tokens.ids, tokens.lengths))
        return z[0] if one else z

    def read(self, file, start_s=None, end_s=None):
        """The frames that the model looks at in a file: uint8 [frames, pixels, pixels, 3]; with
        stage.token_budget fewer, where it is shorter.

        start_s, end_s: the part of the video in seconds; None is its start or end.
        """
        sampler = samplers.SAMPLERS[self.view.sampler]

        def times(start_s, end_s):
            num, end_s = self.view.seen(start_s, end_s)
            return sampler(start_s, end_s, num, fps=self.view.fps)

        return video.read_frames(
            file, times, pixels=self.view.pixels, scaling=self.view.scaling, start=start_s,
            end=end_s, time_limit_s=self.view.time_limit_s, max_missing=self.view.max_missing,
        ).frames  # fmt: skip

    def _picked(self, num_frames):
        """Which of so many frames the model looks at: int [n]."""
        view = self.view
        if not view.token_budget:
            return samplers.mid_indices(num_frames, view.frames)
        seen, _ = view.seen(0, num_frames / view.fps)
        return samplers.mid_indices(min(num_frames, seen), seen)

    def _encode(self, clips):
        # With a budget, patches are drawn: the same ones of every clip that is as long.
        each = [show(frames, self.view, np.random.default_rng(0)) for frames in clips]
        batch = stack([{'patches': shown, 'where': where} for shown, where in each])
        return np.asarray(encode_patches(self.model, **batch))


def load(workdir, stage='', which='', **look):
    """The model of a work directory's last finished stage, or of the finished stage named.

    What LoRA has learnt is merged into the weights, and `run` says so: the model embeds as it did.
    Its attention is what runs on this backend and the ambient mesh, where one is set.

    Args:
      workdir: its path; or FAMILY:PATH, weights of others, which then look at a video as `look`
        says: see `load_weights`.
      which: 'mean' (the running mean of the parameters), 'raw' (without it), '' (the mean where
        there is one).
    Raises ValueError: no run was begun in the folder, the stage is unknown or unfinished, or there
    is no mean.
    """
    if weights.split(str(workdir)):
        if stage:
            raise ValueError(f'{workdir}: these weights have no stage {stage!r}')
        if which == 'mean':
            raise ValueError(f'{workdir}: these weights have no running mean')
        return load_weights(workdir, **look)
    if look:
        raise ValueError(f'{workdir}: {", ".join(look)} are of FAMILY:PATH only')
    folder = Workdir(workdir)
    run = folder.read_config()
    done = [one for one in run.stages if folder.finished(one.name)]
    if not done:
        raise ValueError(f'{workdir}: no stage is finished yet')
    names = [one.name for one in done]
    if stage and stage not in names:
        raise ValueError(f'{workdir}: {stage!r} is no finished stage; finished: {", ".join(names)}')
    chosen = done[names.index(stage) if stage else -1]
    tokenizer = Tokenizer.load(folder.tokenizer)
    params = start.taught(folder.checkpoints(chosen.name), which)
    if lora.has_lora(params):
        params, run = lora.merged(params), tuning.sized(run, lora_rank=0)
    model = unflatten(start.model_like(run, chosen, tokenizer.vocab_size), params)
    view = recipe.eval_view(run, chosen)
    return Loaded(model, view, tokenizer, run, chosen)


def load_weights(init, *, frames=0, pixels=0, text_length=0, tubelet=0, tokenizer=''):
    """A model with the weights of others and nothing taught: what `train` would start from.

    Args:
      init: FAMILY:PATH, see `long_vivit.weights`.
      frames, pixels, text_length: what it shall take; 0 is what the weights were made for.
      tubelet: frames in a tubelet, for weights of images; 0 is 1 for them.
      tokenizer: for weights without a text tower, see `data.tokenizer`.
    Raises ValueError: as `weights.describe` does, or where these numbers do not fit the weights.
    """
    found = weights.describe(init)
    cfg = config.base_config()
    name, _ = weights.split(init)
    cfg.init, cfg.run, cfg.model.from_init = init, (name,), True
    if tubelet or 'model.video.tubelet' not in found.fields:
        cfg.model.video.tubelet = tubelet or 1
    cfg.loss.kind, cfg.data.tokenizer = found.loss, str(tokenizer)
    cfg.data.scaling = found.scaling
    cfg.stages[name] = cfg.stages.short.copy_and_resolve_references()
    cfg.stages[name].update(
        train='videos:none.jsonl', frames=frames or found.frames, pixels=pixels or found.pixels,
        text_length=text_length or found.text_length or cfg.stages.short.text_length,
    )  # fmt: skip
    run = config.resolve(cfg)
    stage = run.stages[0]
    tokenizer = start.tokenizer(run)
    params = start.of_others(init, run, stage, tokenizer.vocab_size).params
    model = unflatten(start.model_like(run, stage, tokenizer.vocab_size), params)
    return Loaded(model, recipe.eval_view(run, stage), tokenizer, run, stage)
