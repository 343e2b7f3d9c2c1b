"""The command line of `python -m long_vivit.build_data clips`."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only this data set has; `build.build` takes each by its name."""
    group = parser.add_argument_group('clips', 'shards of the videos that a manifest lists')
    group.add_argument(
        '--manifest', required=True, metavar='PATH', help='.jsonl or .csv, see data/README.md'
    )
    group.add_argument(
        '--pixels', type=int, required=True, help='side of the stored squares; the largest of all'
    )
    group.add_argument(
        '--fps', required=True, help='frames stored per second, such as 2, 0.5 or 30000/1001'
    )
    group.add_argument(
        '--scaling',
        default='bilinear',
        choices=('bilinear', 'bicubic'),
        help='as data.scaling of the runs that will read them; CLIP has bicubic '
        '(default: %(default)s)',
    )
    group.add_argument(
        '--codec',
        default='raw',
        choices=('raw', 'jpeg'),
        help='raw loses nothing and reads quickest; jpeg takes a tenth of the room '
        '(default: %(default)s)',
    )
    group.add_argument(
        '--rows_per_shard', type=int, default=64, help='videos in a file (default: %(default)s)'
    )
    group.add_argument(
        '--time_limit_s',
        type=float,
        default=600.0,
        help='seconds for one video before it counts as broken (default: %(default)s)',
    )
    group.add_argument(
        '--max_missing',
        type=float,
        default=0.1,
        help='share of the frames of a video that may be undecodable; the nearest good frame '
        'stands in for them (default: %(default)s)',
    )
    group.add_argument(
        '--beam',
        metavar='FLAGS',
        help='build with Apache Beam (requirements-beam.txt) and pass it these flags, such as '
        "--beam='--runner=FlinkRunner --flink_master=host:8081'",
    )
