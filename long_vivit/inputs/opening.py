"""Which videos of a data set cannot be used at all, told without decoding them."""

from concurrent.futures import ThreadPoolExecutor

from long_vivit.inputs import video


def unusable(source, *, time_limit_s, threads):
    """{row: 'reason: detail'} of the videos that cannot be opened, or whose packets do not
    hold the part from `start` to `end`.

    Each file is read once, and one frame decoded: damage within is found by `read_frames` only.
    Videos stored as bytes are passed over: they were read when they were stored.
    """
    rows = {i: source[i] for i in range(len(source))}
    rows = {i: example for i, example in rows.items() if isinstance(example.video, str)}
    files = list(dict.fromkeys(example.video for example in rows.values()))

    def look(file):
        try:
            return video.probe(file, time_limit_s=time_limit_s)
        except video.VideoError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        looks = dict(zip(files, pool.map(look, files), strict=True))
    found = {i: _fault(looks[example.video], example) for i, example in rows.items()}
    return {i: fault for i, fault in found.items() if fault}


def _fault(seen, example):
    """'reason: detail' of an example whose file is a VideoInfo, or a VideoError; '' for none."""
    if not isinstance(seen, video.VideoError):
        try:
            video.clip_range(seen, example.start_s, example.end_s, example.video)
            return ''
        except video.VideoError as error:
            seen = error
    return f'{seen.reason}: {seen.detail}'
