"""Where every field of a configuration is born: its unit, its default and what is allowed.

The other files of this folder import this one and change values; none adds a field, and neither
can the command line, since a configuration is locked once it is loaded. `long_vivit/config.py`
checks all that is said here and is the only module that reads these objects.

A value changes on the command line by its path: `--config.stages.long.mask_rate=0.5`.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    """All fields at their defaults; `arg` is the size word of the other files and must be ''."""
    if arg:
        raise ValueError(f"configs/base.py takes no word after ':', given {arg!r}.")
    config = ConfigDict(
        {
            'workdir': 'runs/base',  # folder for checkpoints, curves and scores of this run
            'seed': 0,  # integer >= 0: parameters, data order, sampled frames and patches
            'init': '',  # '' = start from nothing, the folder of a checkpoint to start from, or
            #              FAMILY:PATH, weights of others (FAMILY is a file of long_vivit/weights)
            'run': ('image', 'short', 'long'),  # names in `stages`, taught in this order
            'mesh': 'data=-1',  # how the devices are used: sizes of dcn (slices joined by a slow
            #                     network), data, fsdp (also splits parameters and optimiser), seq
            #                     (tokens of a video), tensor (heads, MLPs); their product is the
            #                     number of devices; one -1 = what is left; not named = 1
            'compile_cache': 'auto',  # folder that keeps compiled programs for the next start:
            #                           auto = .compiled beside the workdir | off | a path
            'max_bad_steps': 20,  # steps in a row without a finite loss before stopping; >= 1
            'data': data(),
            'model': model(),
            'loss': loss(),
            'optim': optim(),
            'checkpoint': checkpoint(),
            'log': log(),
            'eval': evaluation(),
            'stages': {'image': stage(frames=1), 'short': stage(), 'long': stage()},
        }
    )
    config.lock()  # a misspelt name in another config file is refused, not added ...
    config.stages.unlock()  # ... but `config.stages.NAME = base.stage(...)` may add a stage
    for fields in config.stages.values():
        fields.lock()
    return config


def data() -> dict:
    """Where examples come from. A data spec is one of

    videos:PATH.jsonl           a manifest of yours (also .csv); `videos:PATH.jsonl#val` picks the
                                rows whose split is `val`
    NAME/CONFIG:SPLIT           a data set stored by `python -m long_vivit.build_data NAME`,
                                such as shape_stories/long:train
    """
    return {
        'dir': 'data/built',  # folder of the stored data sets
        'train': '',  # data spec for every stage, without the stories' images; '' = each its own
        'eval': '',  # data spec for every stage; '' = each stage's own
        'tokenizer': '',  # tokenizer.json; '' = the one stored with shape_stories
        'threads': 0,  # threads that read and decode; 0 = one a core, half as many on CPU
        'scaling': 'bilinear',  # of frames to stage.pixels: bilinear | bicubic (as CLIP has it)
        'time_limit_s': 20.0,  # seconds for one video before it counts as broken; > 0
        'max_missing': 0.1,  # share of a video's frames that may be undecodable; 0 <= x < 1
    }


def model() -> dict:
    """The two encoders. Their inputs (pixels, frames, text length) belong to the stages."""
    return {
        'video': video_tower(),
        'text': text_tower(),
        'from_init': False,  # True: what `init` (FAMILY:PATH) says of the architecture replaces the
        #                      fields that are at their defaults; another value of them is refused
        'embed': 512,  # e, the width of the joint space; >= 1
        'dtype': 'float32',  # of activations: float32 | bfloat16; parameters stay float32
        'attention': 'auto',  # of the video encoder: blockwise (little memory, runs everywhere) |
        #                       cudnn (NVIDIA, with bfloat16) | splash (TPU) | dense (all at once) |
        #                       auto (cudnn or splash where it can run, else blockwise)
        'sequence': 'auto',  # with the tokens split over the mesh axis seq: ulysses (each device
        #                      has all tokens of some heads, which must divide) | ring (keys go
        #                      round; blockwise only) | auto (ulysses where heads divide, else ring)
    }


def video_tower() -> dict:
    """The video encoder."""
    return {
        'size': 'custom',  # Ti 192x12x3, S 384x12x6, B 768x12x12, L 1024x24x16 | custom
        'width': 0,  # d; a multiple of heads; 0 = as the size says
        'depth': 0,  # layers; 0 = as the size says
        'heads': 0,  # m; 0 = as the size says
        'patch': 16,  # side of a patch in pixels; divides every stage's pixels
        'tubelet': 2,  # frames in a tubelet; divides every video stage's frames
        'backbone': 'joint',  # joint (all patches see all) | factorised (in every layer first
        #                       the patches of a time slice see each other, then those of a
        #                       place, through a gate; masks: tube, frame) | factorised_encoder
        #                       (layers within slices, then layers over slices) | frames (each
        #                       slice by itself, then frame_pool); masks of these two: slice,
        #                       tube, frame
        'frame_pool': 'mean',  # of backbone frames, from slices to one vector: mean | attention
        #                        (of a learnt probe) | temporal (layers over slices, which know
        #                        their times; the other two know no order)
        'temporal_depth': 4,  # layers over slices: of factorised_encoder, and of frame_pool
        #                       temporal; >= 1
        'pool': 'mean',  # mean (over all tokens) | cls (a learnt token) | map (attention of a
        #                  learnt probe and an MLP, as SigLIP has); of factorised_encoder and
        #                  frames: over the tokens of a slice
        'cls_repeat': True,  # of cls: as many copies of the token as there are images' worth of
        #                      patches, so that a still video embeds as its frame | False: one;
        #                      where the backbone has slices, each has its own
        'activation': 'gelu',  # of the MLPs: gelu (tanh form) | gelu_erf (exact) | quick_gelu
        #                        (x sigmoid(1.702 x), as OpenAI's CLIP has)
        'norm_epsilon': 1e-6,  # added to the variance in each LayerNorm; > 0
        'norm_input': False,  # a LayerNorm before the first layer, as CLIP has
        'mlp_width': 0,  # hidden values of the MLPs; 0 = 4 x width
        'adapter_width': 0,  # hidden values of an adapter behind the MLP of each layer; there
        #                      from the first stage on whose `tune` names adapters; 0 = none
        'lora_rank': 0,  # rank of what LoRA adds to the weights of attention and MLPs, in the
        #                  stages whose `tune` names lora (alpha is the rank); 0 = none
        'positions': 'split',  # split (a table of space and one of time, added up) | joint (one
        #                        table of all places at all times, as ViViT has)
        'head': True,  # projects width -> embed; False: embed must be width, as SigLIP has it
        'remat': 'none',  # activations computed again in the backward pass, both towers; from
        #                   most memory to least: none | dots (all but matrix products) |
        #                   attention (all but attention's output) | full | offload (full, and
        #                   what each layer starts from waits in the host's memory)
    }


def text_tower() -> dict:
    """The text encoder."""
    return {
        'width': 512,  # d; a multiple of heads
        'depth': 8,  # layers
        'heads': 8,  # m
        'length': 0,  # rows of the position table; 0 = the stage's text_length, and the table
        #               is stretched from stage to stage; with from_init it loses none of `init`
        'kind': 'bidirectional',  # bidirectional (mean of tokens) | causal (last token) |
        #                           padded (reads padding too, last place: SigLIP)
        'activation': 'gelu',  # as model.video.activation
        'norm_epsilon': 1e-6,  # as model.video.norm_epsilon; > 0
        'mlp_width': 0,  # hidden values of the MLPs; 0 = 4 x width
        'head_bias': False,  # whether the projection to embed has a bias
        'positions': 'learned',  # learned (a table) | rotary (attention sees how far words are
        #                          apart; no table, any length)
        'stretch': 'kps',  # how a shorter table is made longer: kps (Long-CLIP's: the first
        #                    rows stay, the rest is read in between) | interpolate (all of it)
        'keep': -1,  # of kps, the rows that stay, and that never change in a stage that starts
        #              from something (Long-CLIP: 20 of 77); 0 = none; -1 = a share of 20 / 77
        #              stays when the table is stretched, and all are trained
    }


def loss() -> dict:
    """The contrastive loss; the logits are `scale * cosine` (+ `bias`), both are learnt."""
    return {
        'kind': 'nce',  # nce (CLIP: softmax over the batch) | sigmoid (SigLIP: pair by pair)
        'temperature': 0.07,  # 1 / scale at the start; > 0; CLIP has 0.07, SigLIP 0.1
        'max_scale': 100.0,  # the scale is held at or below this; >= 1 / temperature
        'bias': -10.0,  # of sigmoid, at the start: nearly all pairs are negatives
        'label_smoothing': 0.0,  # of nce; 0 <= x < 1
        'form': 'auto',  # dense (all pairs at once) | tiled | ring (tiled, shared by the devices)
        #                  | auto: dense up to 4096 pairs, then ring on several devices, else tiled
        'tile': 1024,  # pairs on a side of a tile, at most; >= 1
        'short_weight': 0.0,  # of a second loss, of the short texts that stages name (short_text),
        #                       beside the first one's 1; >= 0; 0 = no such loss; Long-CLIP has 1
        'components': 0,  # k: short texts are compared with what the k main directions of a batch
        #                   hold of the videos (PCM); less than batch - 1, or nothing is left out;
        #                   0 = with the videos as they are; Long-CLIP has 32
        'basis_gradient': 'full',  # of those directions: full | stop (they count as constants)
        'components_scope': 'global',  # of those directions: global (one basis for the batch) |
        #                                local (one for the rows of each device, as released)
        'renormalise': False,  # make unit vectors of the coarse videos again
    }


def optim() -> dict:
    """AdamW; the learning rate of each stage rises linearly, then falls as a cosine to 0."""
    return {
        'b1': 0.9,  # 0 <= x < 1
        'b2': 0.98,  # 0 <= x < 1
        'eps': 1e-8,  # > 0
        'weight_decay': 0.1,  # times the learning rate, on matrices only; >= 0
        'clip': 1.0,  # global norm at which gradients are cut; 0 = never
        'freeze': ('',),  # regexes of whole parameter names that stay as they are; '' = none
        'moment_dtype': 'float32',  # of the first moment: float32 | bfloat16, half the memory
        'video_lr': 1.0,  # factor of the learning rate for the video tower; > 0 (to keep it as it
        #                   is: freeze=video/.*)
        'text_lr': 1.0,  # the same for the text tower
        'layer_decay': 1.0,  # in both towers: factor for each layer from the top down; 0 < x <= 1
        'ema': 0.0,  # decay of the running mean of the parameters; 0 = none, else x < 1
    }


def checkpoint() -> dict:
    """When to save; each stage's end is always saved."""
    return {
        'every': 500,  # steps; >= 1
        'keep': 3,  # newest kept; >= 1; with eval.every > 0 besides the best of those it has scored
    }


def log() -> dict:
    """Where the curves go; metrics.jsonl in the work directory is always written."""
    return {
        'every': 20,  # steps; >= 1
        'tensorboard': False,  # also write TensorBoard files (needs tensorboardX)
    }


def evaluation() -> dict:
    """When and how retrieval is scored."""
    return {
        'every': 0,  # steps; 0 = at the end of each stage only
        'allow_broken': False,  # score the videos that can be read where some cannot
        'ablations': True,  # at a stage's end also score with shuffled frames and with one frame
        'images': '',  # data spec scored as still images, by the image stem: before the first step
        #                of a run with `init`, and at the end of each stage; '' = none
        'images_text': 'caption',  # of those: caption | long_caption | any
    }


def stage(**changes) -> ConfigDict:
    """A stage with all its fields, some of them changed.

    Raises KeyError for a name that is no field and TypeError for a value of another type.
    """
    fields = ConfigDict(
        {
            'train': '',  # data spec (see `data`)
            'eval': '',  # data spec; '' = this stage is not scored
            **sight(),
            **reading(),
            'batch': 64,  # pairs in a training step, over all devices; >= 2
            'micro_batch': 0,  # pairs that the encoders take at once, over all devices, with the
            #                    gradients of the whole batch (GradCache); divides batch; 0 = all
            'eval_batch': 64,  # pairs in a scoring step, over all devices; >= 1
            'steps': 1000,  # training steps; >= 1
            'lr': 1e-3,  # highest learning rate; > 0
            'warmup_steps': 100,  # 0 <= x < steps; a tenth of steps unless it is set
            'image_train': '',  # data spec of images mixed into a video stage; '' = none
            'image_ratio': 0.0,  # share of the steps that take images; 0 <= x < 1
            'tune': 'all',  # what of the video encoder is trained: all | none | last:K (K layers
            #                 and what follows) | first:K (and what comes before) | some of these
            #                 with + between: adapters, lora, temporal (attention over time), stem
            #                 (tubelets and times), head (what follows the layers); LongViViT has
            #                 adapters+stem, lora+stem, temporal+stem, last:4
            'last_layers': 0,  # K is short for tune = last:K; 0 = as `tune` says
            'text_tower': 'train',  # train | frozen: all of the text encoder stays as it is
        }
    )
    fields.warmup_steps = fields.get_ref('steps') // 10
    fields.lock()
    fields.update(changes)
    return fields


def sight() -> dict:
    """What a stage sees of a video: which frames, which patches of them."""
    return {
        'frames': 16,  # 1 = images, else a multiple of model.video.tubelet
        'pixels': 256,  # side of the square frame; a multiple of model.video.patch
        'patch': 0,  # pixels, in place of model.video.patch; 0 = that
        'tubelet': 0,  # frames, in place of model.video.tubelet; 0 = that
        'tubes': '',  # videos are seen as tubes of several sizes, set wide apart, in place of
        #               tubelets: tubevit (TubeViT's, for 224 pixels) | tubevit/2 (half as wide,
        #               high and far apart) | KERNEL/STRIDE@OFFSET+..., each TxHxW in frames and
        #               pixels: 8x8x8/16x32x32+4x12x12/16x32x32@0x16x16; '' = tubelets
        'token_budget': 0,  # k patches of each video, however long: of as many frames as it has
        #                     at fps, at most frames (of a longer one the first frames / fps
        #                     seconds); when scoring too; 0 = all patches, but for those masked
        'sampler': 'rand_seg',  # when training: a name in long_vivit/inputs/samplers.py
        'eval_sampler': 'mid',  # when scoring: the same names, but none that draws
        'fps': 1.0,  # frames per second, for the samplers fps and first_fps; > 0
        'mask_kind': 'tube',  # which patches are left out: random | slice | tube | frame |
        #                       motion (drawn too, but the more they change the rarer; all
        #                       frames must be decoded for that)
        'motion_uniform': 0.2,  # of mask_kind motion: share of the chance to be seen that is the
        #                         same for all patches, the rest goes by their change; 0 to 1
        'mask_rate': 0.0,  # share of the patches left out when training; 0 to 0.95
        'mask_schedule': '',  # other rates, each from a share of the steps on: 0.5=0.75,0.8=0.5
        #                       masks from the half on 75%, from four fifths on 50%; a rate is a
        #                       program of its own; '' = mask_rate throughout
        'unmasked_tail': 0.0,  # share of the steps, the last ones, that see all; 0 <= x < 1
    }


def reading() -> dict:
    """Which texts a stage reads, and how far."""
    return {
        'text': 'caption',  # caption | long_caption | any (a long caption where there is one)
        'text_length': 32,  # l, tokens with the start and end tokens; >= 3
        'text_buckets': (),  # lengths >= 3, a little above the quarters of those of your texts:
        #                      each is read as far as its bucket, to the same vector; () = to l
        'sentences': 'all',  # of long captions when training: all | sample (some, at random)
        'short_text': '',  # the second text, for loss.short_weight: caption | first_sentence
        #                    (of the first text) | '' = none
        'short_length': 32,  # tokens of the second text, as in text_length; >= 3
    }
