"""The picture of an utterance: spectrogram, weights, accumulator, tokens above."""

import importlib.util
import logging
import pathlib
from itertools import cycle, islice

import numpy as np

logger = logging.getLogger(__name__)

# Okabe and Ito's colours for all kinds of colour vision; neighbours differ in lightness.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
UNFIRED = "#B0B0B0"

# Beside matplotlib's own DejaVu Sans, which has no Chinese, Japanese or Korean.
FONTS = (
    "Noto Sans CJK SC, Noto Sans CJK JP, Noto Sans SC, Source Han Sans SC, PingFang SC, "
    "Hiragino Sans GB, Microsoft YaHei, SimHei, WenQuanYi Zen Hei, WenQuanYi Micro Hei, "
    "Droid Sans Fallback, Arial Unicode MS"
).split(", ")
# A wheel of fonts, where there is no other Chinese one: its package, and the file in it.
PACKAGED = "mplfonts", "fonts/NotoSansCJKsc-Regular.otf"


def plot(
    log_mel,
    alpha,
    spans,
    clock,
    words=(),
    hop=0.01,
    sample_rate=16000,
    threshold=1.0,
    title="",
):
    """Draw what CIF did with one utterance, in one colour per token.

    From top to bottom: tokens over their spans, each written where half of its weight
    has come in; the log-mel spectrogram; the weight of every encoder frame, split where
    a token fires within it; the accumulator, which a fire empties. A filled mark is a
    fire at the threshold, an open one a fire by what was left at the end of the
    utterance. What was left and did not fire is grey.

    A token that no installed font can write is numbered instead, with a warning.

    Arguments
    ---------
    log_mel : torch.Tensor, [N, F], float32
        Log-mel energies of the feature frames in dB, before normalisation.
    alpha : torch.Tensor, [T], float32
        CIF weights.
    spans : list of TokenSpan
        One per fire.
    clock : FrameClock
    words : list of TokenSpan
        From `word_spans`, written above the tokens.
    hop : float
        Time between feature frames in seconds.
    sample_rate : int
        Hz.
    threshold : float
        Sum of weights that fires a token.
    title : str
        Written above the picture.

    Returns
    -------
    matplotlib.figure.Figure
        To be saved with `savefig(path)`, or shown in a notebook.
    """
    # Only who draws needs matplotlib; and without pyplot, nobody needs a display.
    from matplotlib.figure import Figure

    spans, words, fonts = _printable(spans, words)
    edges = clock.start + clock.step * np.arange(len(alpha) + 1)
    total = np.concatenate([[0.0], alpha.double().cumsum(0).numpy()])
    seconds = max(len(log_mel) * hop, edges[-1])
    width = min(max(4.5, 1.1 * seconds), 60.0)  # of the time axis, in inches
    figure = Figure(dpi=160)
    panels = [figure.add_axes((0, 0, 1, 1), label=str(i)) for i in range(4)]
    scale = seconds / width
    label_height = _draw_labels(panels[3], spans, words, edges, total, scale, fonts)
    _draw_spectrogram(panels[2], log_mel, spans, hop, sample_rate)
    _draw_weights(panels[1], alpha, spans, edges)
    _draw_accumulator(panels[0], spans, edges, total, threshold)
    panels[0].set_xlabel("time (s)", fontsize=9)
    panels[0].locator_params(axis="x", nbins=int(1.5 * width), steps=[1, 2, 5, 10])
    panels[3].set_title(title, loc="left", fontsize=9)
    _arrange(figure, panels, seconds, width, (0.9, 0.9, 1.6, label_height))
    return figure


def _draw_labels(panel, spans, words, edges, total, scale, fonts):
    """Tokens over their spans, words over these; returns the height in inches.

    The vertical axis is in inches; `scale` is in seconds per inch.
    """
    panel.set_axis_off()
    for span, colour in zip(spans, cycle(COLOURS), strict=False):
        panel.barh(0.04, span.end - span.start, 0.08, span.start, color=colour)
    paper = {"color": "white", "pad": 0.4}  # hides the lines to the rows above
    y = 0.11
    for labels, fontsize, height in ((spans, 9, 0.17), (words, 10, 0.2)):
        row_ends = []  # in seconds
        for span in filter(lambda span: span.token, labels):
            # Where half of the weight is: a pause before a token is in its span.
            half = np.interp([span.start, span.end], edges, total).mean()
            x = np.interp(half, total, edges)
            text = panel.text(x, y, span.token, ha="center", va="bottom")
            text.set(fontsize=fontsize, family=fonts, bbox=paper)
            radius = text.get_window_extent().width / panel.figure.dpi * scale / 2
            free = [row for row, end in enumerate(row_ends) if end < x - radius]
            row = free[0] if free else len(row_ends)
            row_ends[row : row + 1] = [x + radius + 0.04 * scale]
            text.set_y(y + row * height)
            if row:
                panel.plot([x, x], [y, y + row * height], color="grey", lw=0.6)
        y += height * len(row_ends)
    panel.set_ylim(0, y)
    return y


def _draw_spectrogram(panel, log_mel, spans, hop, sample_rate):
    """Log-mel energies; bands are equally far apart in mel."""
    frames, bands = log_mel.shape
    image = log_mel.numpy().T
    image = image.clip(*np.percentile(image, [5, 99.5]))
    # Frame i is centred at i * hop; band b is the (b + 1)-th of bands + 1 steps.
    extent = (-hop / 2, (frames - 0.5) * hop, 0.5, bands + 0.5)
    panel.imshow(image, cmap="magma", aspect="auto", origin="lower", extent=extent)
    for span in spans:
        panel.axvline(span.end, color="white", lw=0.7, alpha=0.6)
    ticks = [k for k in (0.25, 0.5, 1, 2, 4, 8) if k < sample_rate / 2000]
    mel = np.log1p(np.array([*ticks, sample_rate / 2000]) / 0.7)
    panel.set_yticks(mel[:-1] / mel[-1] * (bands + 1), [f"{k:g}" for k in ticks])
    panel.set_ylabel("frequency (kHz)")


def _draw_weights(panel, alpha, spans, edges):
    """A bar per frame, in the colours of the tokens that it feeds."""
    for times, colour in _pieces(spans, edges):
        frames = np.searchsorted(edges, (times[:-1] + times[1:]) / 2) - 1
        height, width = alpha.numpy()[frames], np.diff(times)
        panel.bar(times[:-1], height, width, align="edge", color=colour)
    panel.vlines(edges, 0, 1, color="white", lw=0.5)
    panel.set_ylim(0, 1.1 * alpha.max().item())
    panel.set_ylabel("weight")


def _draw_accumulator(panel, spans, edges, total, threshold):
    """What has come in since the last fire, and the fires."""
    panel.axhline(threshold, color="black", lw=0.7, ls="--")
    for times, colour in _pieces(spans, edges):
        level = np.interp(times, edges, total)
        level -= level[0]
        panel.fill_between(times, level, color=colour, alpha=0.3, lw=0)
        panel.plot([*times, times[-1]], [*level, 0.0], color=colour, lw=1.2)
        if colour != UNFIRED:
            face = colour if level[-1] > 0.999 * threshold else "white"
            mark = {"marker": "o", "ms": 4.5, "color": colour, "mfc": face}
            panel.plot(times[-1], level[-1], clip_on=False, **mark)
    panel.set_ylim(0, 1.2 * threshold)
    panel.set_ylabel("accumulator")


def _pieces(spans, edges):
    """Of each token, then of the rest: its frames' edges within, and its colour."""
    rest = ("", spans[-1].end if spans else edges[0], edges[-1])
    colours = [*islice(cycle(COLOURS), len(spans)), UNFIRED]
    for (_, start, end), colour in zip([*spans, rest], colours, strict=True):
        if start < end:
            inside = edges[(edges > start) & (edges < end)]
            yield np.array([start, *inside, end]), colour


def _arrange(figure, panels, seconds, width, heights):
    """Stack the panels from the bottom, in inches: text keeps its size."""
    left, right, bottom, gap, top = 0.65, 0.25, 0.45, 0.08, 0.3
    full_width = left + width + right
    full_height = bottom + sum(heights) + gap * (len(heights) - 1) + top
    figure.set_size_inches(full_width, full_height)
    y = bottom
    for panel, height in zip(panels, heights, strict=True):
        corner = (left / full_width, y / full_height)
        panel.set_position((*corner, width / full_width, height / full_height))
        panel.set_xlim(0, seconds)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, labelbottom=panel is panels[0])
        panel.yaxis.label.set_size(9)
        panel.yaxis.set_label_coords(-0.45 / width, 0.5)
        y += height + gap


def _printable(spans, words):
    """Spans and words in characters that can be drawn, and the fonts to do it with."""
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.ft2font import FT2Font

    packaged = _packaged_font()
    if packaged:
        fontManager.addfont(packaged)
    installed = set(fontManager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    files = [fontManager.findfont(FontProperties(family=name)) for name in fonts]
    known = set().union(*(FT2Font(file).get_charmap() for file in files))
    missing = {c for s in [*spans, *words] for c in s.token if ord(c) not in known}
    if missing:
        logger.warning(
            f"no font has {''.join(sorted(missing))}: the picture has numbers instead. "
            "Install one that has: pip install mplfonts (85 MB), or apt-get install "
            "fonts-noto-cjk"
        )
        words = ()
        spans = [
            span._replace(token=str(number)) if missing & set(span.token) else span
            for number, span in enumerate(spans, start=1)
        ]
    return spans, words, fonts


def _packaged_font():
    """Path of the font in the wheel, or None. The package itself is not run."""
    package, file = PACKAGED
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = pathlib.Path(spec.submodule_search_locations[0], file)
    return path if path.exists() else None
