"""The command line of `python -m long_vivit.build_data shape_stories`."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only this data set has; `build.build` takes each by its name."""
    parser.add_argument(
        '--scale',
        type=float,
        default=1.0,
        help='fraction of the default number of examples; it is recorded, and a later build of '
        'another scale into the same folder is an error (default: %(default)s)',
    )
