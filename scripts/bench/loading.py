"""Seconds and memory of reading CLIP ViT-L/14 from safetensors, in the layout of Hugging Face.

    python scripts/bench/loading.py

Writes random weights of that size (1.7 GB) into a folder that is removed again, and reads them in
a process of its own: the parameters as numpy arrays (`weights.read`), and a model that encodes
(`long_vivit.load`). Memory is the process's largest resident set, less what it was after imports.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.rows import header, record, record_argument, table

TEXT = {'hidden_size': 768, 'intermediate_size': 3072, 'num_attention_heads': 12}
VISION = {
    'hidden_size': 1024, 'intermediate_size': 4096, 'num_attention_heads': 16,
    'num_hidden_layers': 24, 'patch_size': 14,
}  # fmt: skip


def main():
    """Measures, prints, and records where --record asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--child', nargs=2, metavar=('WHAT', 'FOLDER'), help='a part of it')
    record_argument(parser)
    args = parser.parse_args()
    if args.child:
        what, folder = args.child
        print(json.dumps(write(Path(folder)) if what == 'write' else read(what, folder)))
        return
    record(lines(), args.record, 'jax', 'safetensors', 'numpy')


def lines():
    """A row for each way of reading."""
    with tempfile.TemporaryDirectory() as folder:
        # This process stays small: what it holds would count as the peak of what it starts.
        size = child('write', folder)
        yield f'CLIP ViT-L/14, {size / 1e9:.2f} GB of float32'
        yield header('', 'seconds', 'peak above imports, GB', 'imports, GB', 'peak to the file')
        for how in ('weights.read', 'long_vivit.load'):
            seconds, before, peak = child(how, folder)
            sizes = f'{peak / 1e9:.2f}', f'{before / 1e9:.2f}', f'{peak / size:.2f} x'
            yield table(how, f'{seconds:.2f}', *sizes)


def child(what, folder):
    """What a process of its own prints last."""
    command = [sys.executable, __file__, '--child', what, folder]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def write(folder):
    """Random weights of a ViT-L/14 and their config -> bytes of the file."""
    import numpy as np
    from safetensors.numpy import save_file

    from long_vivit.weights import clip, pairs

    config = {'model_type': 'clip', 'projection_dim': 768}
    config |= {'text_config': TEXT, 'vision_config': VISION}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'merges.txt').write_text('#version: 0.2\n')
    vocab = {str(number): number for number in range(49406)}
    vocab |= {'<|startoftext|>': 49406, '<|endoftext|>': 49407}
    (folder / 'vocab.json').write_text(json.dumps(vocab))
    sizes, _ = clip.sizes_of(folder)
    rng = np.random.default_rng(0)
    parts = (part for row in pairs.transformers_rows(sizes) for part in row.parts)
    tensors = {
        part.theirs: np.asarray(rng.standard_normal(part.shape, np.float32)) for part in parts
    }
    save_file(tensors, folder / 'model.safetensors')
    return os.path.getsize(folder / 'model.safetensors')


def read(how, folder):
    """Reads the weights -> seconds, bytes at most after imports, bytes at most above that."""
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    import jax

    import long_vivit
    from long_vivit import inference, weights

    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))  # the backend is there
    assert inference
    before, begun = peak(), time.monotonic()
    if how == 'weights.read':
        kept = weights.read(f'clip:{folder}', {})[0]
    else:
        kept = long_vivit.load(f'clip:{folder}').model
        jax.block_until_ready(kept)
    assert kept
    return time.monotonic() - begun, before, peak() - before


def peak():
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == '__main__':
    main()
