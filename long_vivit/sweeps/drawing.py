"""What figures are drawn with: axes, bars, the looks of lines, their legend. Needs matplotlib."""

import matplotlib.pyplot as plt
from matplotlib import ticker

COLOURS = ('#0b6e99', '#e08e2b', '#5a9e6f', '#a34a6b', '#6f6f9a', '#9a9a9a', '#c2a83e', '#3f3f3f')
MARKERS = 'os^DvPX'
FEW = 6  # lines that leave room for their names


def new_axes(title, height=4.2, width=7.5):
    """(figure, axes) under a title, without a frame."""
    figure, axes = plt.subplots(figsize=(width, height), layout='constrained')
    axes.set_title(title, fontsize=11)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    return figure, axes


def doubling(axes):
    """A logarithmic x axis with plain numbers: twice as much is as far everywhere."""
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_locator(ticker.LogLocator(base=2, subs=(1.0, 1.5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))


def bars(told, title):
    """A bar for each label of {label: (length, error or None)}."""
    figure, axes = new_axes(title, height=1 + 0.32 * len(told))
    lengths, errors = zip(*told.values(), strict=True)
    errors = [x or 0 for x in errors] if any(errors) else None
    axes.barh(list(told), lengths, xerr=errors, color=COLOURS[2], capsize=3)
    axes.invert_yaxis()
    return figure


def styles(lines):
    """A look for each line: colours first, then other markers."""
    return [
        {'color': COLOURS[i % len(COLOURS)], 'marker': MARKERS[i // len(COLOURS) % len(MARKERS)]}
        for i in range(len(lines))
    ]


def legend(figure, axes):
    """Among the lines, or beside them where they are many."""
    if len(axes.get_legend_handles_labels()[0]) <= FEW:
        axes.legend(fontsize=8, frameon=False)
    else:
        figure.legend(fontsize=7, frameon=False, loc='outside right upper')


def together(told):
    """{(x, y): names} of points no farther from the first of them than a thirtieth of each axis."""
    spans = [max(p[i] for p in told.values()) - min(p[i] for p in told.values()) for i in (0, 1)]
    places = {}
    for name, point in told.items():
        near = (
            p for p in places
            if all(abs(p[i] - point[i]) <= spans[i] / 30 for i in (0, 1))
        )  # fmt: skip
        places.setdefault(next(near, point[:2]), []).append(name)
    return places
