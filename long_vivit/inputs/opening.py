"""Which files of a data set cannot be used at all, told without decoding them."""

from concurrent.futures import ThreadPoolExecutor

from long_vivit.inputs import video


def unusable(source, *, time_limit_s, threads):
    """{row: 'reason: detail'} of the videos that cannot be opened, or whose packets end too early.

    Each file is read once, and one frame decoded: damage within is found by `read_frames` only.
    Videos stored as bytes are passed over: they were read when they were stored.
    """
    rows = {i: source[i] for i in range(len(source))}
    rows = {i: example for i, example in rows.items() if isinstance(example.video, str)}
    files = list(dict.fromkeys(example.video for example in rows.values()))

    def look(file):
        try:
            info = video.probe(file, time_limit_s=time_limit_s)
        except video.VideoError as error:
            return error.reason, error.detail
        return info.fault, info.detail

    with ThreadPoolExecutor(threads) as pool:
        faults = dict(zip(files, pool.map(look, files), strict=True))
    found = {i: (*faults[example.video], example.end_s) for i, example in rows.items()}
    return {
        i: f'{reason}: {detail}'
        for i, (reason, detail, end_s) in found.items()
        if reason and reason != 'damaged' and not (reason == 'truncated' and end_s is not None)
    }
