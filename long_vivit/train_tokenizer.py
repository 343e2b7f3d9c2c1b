"""Trains a tokenizer on the texts of one's own data sets, for `--config.data.tokenizer`.

    python -m long_vivit.train_tokenizer --out tokenizer.json videos:PATH/manifest.jsonl#train
    python -m long_vivit.train_tokenizer --out tokenizer.json --vocab_size 32000 clips/films:train

All captions and long captions are learnt from. A model keeps the tokenizer that it was taught with:
one for a run that goes on from another must be the other's. Exit status: 0, or 2 where an argument
or a manifest is at fault.
"""

import argparse
import sys
from pathlib import Path

from long_vivit import command_line
from long_vivit.inputs.sources import SPEC_FORMS, open_source
from long_vivit.inputs.text import train_tokenizer


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m long_vivit.train_tokenizer',
        description=__doc__.split('\n')[0],
        epilog=f'A data spec is {SPEC_FORMS}.',
    )
    add = parser.add_argument
    add('data', metavar='SPEC', nargs='+', help='data specs, of training data')
    add('--out', required=True, metavar='FILE', help='where to; must not exist')
    add('--vocab_size', type=int, default=16_384, metavar='N', help='at most; (%(default)s)')
    add('--data_dir', default='data/built', metavar='DIR', help='stored data sets (%(default)s)')
    return parser.parse_args(argv)


def main(argv=None):
    """Trains on what the command line names and writes the file -> exit status."""
    args = parse(argv)
    out = Path(args.out)
    if out.exists():
        raise ValueError(f'--out={out}: is there already; a taught model may need it')
    sources = [open_source(spec, data_dir=args.data_dir) for spec in args.data]
    texts = list(dict.fromkeys(text for source in sources for text in texts_of(source)))
    tokenizer = train_tokenizer(texts, args.vocab_size)
    try:
        tokenizer.save(out)
    except OSError as error:
        raise ValueError(f'--out={out}: cannot be written ({error.strerror})') from error
    lengths = tokenizer.encode(texts, 2).num_tokens
    print(
        f'{out}: {tokenizer.vocab_size:,} tokens, learnt from {len(texts):,} different texts, '
        f'which have {lengths.mean():.0f} on average and {lengths.max():,} at most'
    )
    return 0


def texts_of(source):
    """All captions and long captions of a source."""
    for i in range(len(source)):
        example = source[i]
        yield from (*example.captions, *example.long_captions)


if __name__ == '__main__':
    with command_line.user_errors():
        sys.exit(main())
