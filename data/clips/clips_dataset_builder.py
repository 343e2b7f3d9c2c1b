"""TFDS builder of decode-once shards. `python -m long_vivit.build_data clips` runs it."""

import collections
import json
import os
import pathlib
import shutil
from collections.abc import Sequence

import tensorflow_datasets as tfds

from data.clips.parts import FEATURES, Part, make, runs

DESCRIPTION = """
Videos of one's own manifest, decoded once and stored as small squares at a steady frame rate.
"""
LEDGER = 'broken.jsonl'


class Builder(tfds.core.dataset_builder.FileReaderBuilder):
    """Makes the parts, then takes their files as they are for the shards of its splits.

    Records keep the manifest's order. A part that lies finished in its folder is not made again,
    so a build that was killed goes on. Set the attributes before `download_and_prepare`.

    Attributes:
      parts: all of them, in order.
      work: makes those of the given parts that are not made yet; returns the report of each, in
        any order. Processes of this machine or a Beam pipeline.
      record: what decides the result; stored with it as `metadata`.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First release.'}

    parts: tuple[Part, ...] = ()
    record: dict = {}

    @staticmethod
    def work(todo: Sequence[Part]) -> list[dict]:
        return [make(part) for part in todo]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(FEATURES),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager, download_config):
        del dl_manager, download_config  # nothing to download
        reports = self.work(self.parts)
        files = {(part.split, part.number): part.file for part in self.parts}
        broken = [fault for report in reports for fault in report['broken']]
        if not any(report['records'] for report in reports):
            raise ValueError(f'none of the {len(broken)} videos can be read: {say_broken(broken)}')
        splits = []
        for split, members in runs(reports):
            template = self._get_filename_template(split)
            for i, report in enumerate(members):
                shard = template.sharded_filepath(shard_index=i, num_shards=len(members))
                _link(files[split, report['number']], shard)
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[report['records'] for report in members],
                    num_bytes=sum(report['bytes'] for report in members),
                    filename_template=template,
                )
            )
        self.info.set_splits(tfds.core.splits.SplitDict(splits))
        self.info.metadata.update(self.record)
        if broken:
            order = {row['id']: i for i, row in enumerate(r for p in self.parts for r in p.rows)}
            lines = sorted(broken, key=lambda fault: order[fault['id']])
            text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
            pathlib.Path(self.data_path, LEDGER).write_text(text, encoding='utf-8')


def say_broken(broken: list[dict]) -> str:
    """'2 truncated, 1 cannot-open' of ledger lines."""
    counts = collections.Counter(fault['reason'] for fault in broken)
    return ', '.join(f'{count} {reason}' for reason, count in counts.most_common())


def _link(source: pathlib.Path, target) -> None:
    """The same file under another name, so that a break in between costs nothing; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
