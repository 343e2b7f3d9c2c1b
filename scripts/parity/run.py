"""Holds weights of others, loaded here, against the implementation that they come from.

    make parity                              # all families, in an environment of its own
    python scripts/parity/run.py clip        # some
    python scripts/parity/run.py --fixtures  # writes tests/fixtures anew as well

Prints the largest absolute difference in float32 for each family, size and tower; exit status 1
where one is above its limit. The reference models have random weights of a seed.

A family is a file of this folder with

    check(folder) -> Iterator[Row]     builds reference models, saves them below `folder` in their
                                       own format, loads them here, compares; see `towers.py`
    fixture(folder) -> None            (optional) writes a tiny checkpoint and what the reference
                                       makes of it into `folder`, for tests that have no torch

and a line in FAMILIES. It may import torch and the reference; nothing of them is needed elsewhere.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # nothing is downloaded here
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

FAMILIES = ('tokens', 'clip', 'open_clip', 'openai', 'longclip', 'siglip2', 'vivit')
FAMILIES += ('export', 'twin')
FIXTURES = ROOT / 'tests' / 'fixtures'


def main(argv=None):
    """Checks what the command line names -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('families', nargs='*', metavar='FAMILY', help=', '.join(FAMILIES))
    parser.add_argument('--fixtures', action='store_true', help='write tests/fixtures anew, too')
    args = parser.parse_args(argv)
    if unknown := set(args.families) - set(FAMILIES):
        parser.error(f'{", ".join(unknown)}: no family; there are {", ".join(FAMILIES)}')
    begun, failed, count = time.monotonic(), 0, 0
    importlib.import_module('opened')  # sees to torchvision, which transformers imports as well
    print(f'{"family":10} {"size":44} {"tower":22} {"difference":>10}  limit')
    for name in args.families or FAMILIES:
        family = importlib.import_module(f'{name}_parity')
        with tempfile.TemporaryDirectory() as folder:
            for row in family.check(Path(folder)):
                failed, count = failed + row.failed, count + 1
                print(f'{name:10} {row}', flush=True)
        if args.fixtures and hasattr(family, 'fixture'):
            family.fixture(FIXTURES / name)
    seconds = time.monotonic() - begun
    print(f'{count} rows, {failed} above their limit, {seconds:.0f} s')
    return int(failed > 0 or count == 0)


if __name__ == '__main__':
    sys.exit(main())
