"""One picture of a dataset or an episode: camera images, curves and histograms of its values."""

import dataclasses
import io
import os
import pathlib
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.dataset import Dataset
from pipeline.errors import UserError
from pipeline.files import sync, temporary_path
from pipeline.images import decode_image
from pipeline.manifest import TaskChange
from pipeline.schema import ACTION, EPISODES, Column, Feature
from pipeline.statistics import FeatureStatistics

if TYPE_CHECKING:
    import matplotlib.axes

SUFFIX = ".png"
MAX_EPISODES = 512
"""That are read for the histograms, spread evenly over the dataset."""
MAX_TASKS = 6
"""Whose images are shown, spread evenly over the tasks."""
MAX_PANELS = 16
"""Dimensions of a feature that are drawn."""
NUM_BINS = 40

_UNITS = {
    "rad_s": "rad/s",
    "deg_s": "°/s",
    "m_s": "m/s",
    "m_s2": "m/s²",
    "rad": "rad",
    "deg": "°",
    "m": "m",
    "cm": "cm",
    "mm": "mm",
    "s": "s",
    "ms": "ms",
    "hz": "Hz",
    "n": "N",
    "nm": "N m",
    "kg": "kg",
}
"""What the last words of a dimension's name stand for; the longest that fits is taken."""
_NUM_OTHERS = 16
"""Other episodes drawn behind the curve."""
_FRAMES = {"task": 6, "episode": 8}
"""Images beside each other in a strip, of all its cameras together."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One camera image."""

    caption: str
    image: np.ndarray
    """uint8 (h w 3), as stored."""


@dataclasses.dataclass(frozen=True)
class Strip:
    """Images beside each other under a heading."""

    heading: str
    """The instruction; empty where the picture's title has it."""
    note: str
    """Where the images come from."""
    cameras: tuple[tuple[str, tuple[Frame, ...]], ...]
    """Names and images in the order of time."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """The values of one dimension."""

    label: str
    """Name without its unit."""
    unit: str
    """Empty where the name has none."""
    limits: tuple[float, float]
    """Of the axis: the dataset's range, but outliers far beyond p01 and p99 are left out."""
    value_range: tuple[float, float]
    """Of the dataset."""
    p01: float
    p99: float
    counts: np.ndarray
    """int64 (NUM_BINS): values between the limits, in bins of one width."""
    num_values: int
    """All that were counted, those beyond the limits too."""
    curve: np.ndarray
    """float64 (t): of the episode that is shown."""
    others: tuple[np.ndarray, ...]
    """float64 (t): of other episodes, each of its own length."""


@dataclasses.dataclass(frozen=True)
class Panels:
    """The dimensions of one feature."""

    key: str
    note: str
    """What is left out; empty where nothing is."""
    panels: tuple[Panel, ...]


@dataclasses.dataclass(frozen=True)
class Picture:
    """What is drawn."""

    title: tuple[str, ...]
    """Name of the dataset, or the instructions of the episode: a paragraph each."""
    subtitle: str
    strips: tuple[Strip, ...]
    images_note: str
    """What the pixels are; empty without strips."""
    groups: tuple[Panels, ...]
    panels_note: str
    """What curves and histograms show; empty without groups."""
    step_s: float
    """Seconds of a step."""
    changes: tuple[int, ...]
    """Steps at which the shown episode's instruction changes."""


def dim_names(feature: Feature) -> tuple[str, ...]:
    """A name for each value of a step, in the order of the flattened shape.

    (2), dims x_m y_m    x_m y_m
    (2), no dims         [0] [1]
    (2, 2), dims u v     [0] u, [0] v, [1] u, [1] v
    ()                   one empty name
    """
    names = []
    for place in np.ndindex(*feature.shape):
        if place and len(feature.dims) == feature.shape[-1]:
            words = [f"[{', '.join(map(str, place[:-1]))}]"] if place[:-1] else []
            names.append(" ".join([*words, feature.dims[place[-1]]]))
        else:
            names.append(f"[{', '.join(map(str, place))}]" if place else "")
    return tuple(names)


def split_unit(name: str) -> tuple[str, str]:
    """(label, unit) of a dimension's name; the unit is empty where its end is none.

    rz_rad           rz, rad
    gripper_left_m   gripper left, m
    dx               dx, ""
    """
    words = name.split("_")
    for start in range(max(1, len(words) - 2), len(words)):
        unit = _UNITS.get("_".join(words[start:]).lower())
        if unit is not None:
            return " ".join(words[:start]), unit
    return " ".join(words), ""


def spread(total: int, count: int) -> list[int]:
    """At most `count` different indices below `total`, evenly spread, with the first and last."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int)).tolist()


def axis_limits(low: float, high: float, p01: float, p99: float) -> tuple[float, float]:
    """The range that an axis shows: (low, high), with outliers cut off, and never empty.

    What lies further beyond p01 or p99 than they lie apart is cut off.
    """
    span = p99 - p01
    if span > 0:
        low, high = max(low, p01 - span), min(high, p99 + span)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def check_target(path: str) -> pathlib.Path:
    """The path of a picture to write.

    Raises:
      UserError: Another suffix than .png, a folder that is missing or not writable, or a path
        that is itself a folder.
    """
    target = pathlib.Path(path)
    problem = None
    if target.suffix.lower() != SUFFIX:
        problem = (f"a file that ends in {SUFFIX}", target.suffix or "no suffix")
    elif not target.parent.is_dir():
        problem = ("a folder that exists", f"no folder {target.parent}")
    elif target.is_dir():
        problem = ("a file", "a folder of this name")
    elif not os.access(target.parent, os.W_OK):
        problem = ("a folder that can be written", f"{target.parent}, read-only for you")
    if problem is None:
        return target
    raise UserError(
        where=f"--plot {path}",
        expected=problem[0],
        found=problem[1],
        remedy="Name a file such as out.png in a folder of yours.",
    )


def write(dataset: Dataset, episode: int | None, target: pathlib.Path) -> None:
    """Draws a dataset, or one episode of it, into a PNG file, whole or not at all.

    Raises:
      DataError: A damaged record or image.
      UserError: Where matplotlib is missing, or the file cannot be written.
    """
    data = draw(collect(dataset, episode))
    temporary = temporary_path(target)
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            where=f"--plot {target}",
            expected="a file that can be written",
            found=str(error),
            remedy="Name a file in a folder of yours with space left.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def collect(dataset: Dataset, episode: int | None) -> Picture:
    """What a picture shows; reads at most 512 episode records, and a few dozen images.

    Args:
      dataset: The opened directory; at least one episode.
      episode: The one whose images and curves are shown, from 0 to before `num_episodes`. None:
        images of several tasks, and the curves of an episode of median length.

    Raises:
      DataError: A damaged record or image.
    """
    manifest = dataset.manifest
    shown = _median_episode(manifest.episode_lengths) if episode is None else episode
    hz = manifest.conventions.control_frequency_hz
    strips = _task_strips(dataset) if episode is None else _episode_strips(dataset, episode)
    sample = spread(dataset.num_episodes, MAX_EPISODES)
    groups = _panels(dataset, shown, sample)
    changes = tuple(c for c in manifest.task_changes if c.episode == shown)
    counts = f"{dataset.num_episodes:,} episodes, {dataset.num_steps:,} steps"
    if episode is None:
        title, subtitle = [manifest.name], f"{counts}, {len(manifest.tasks)} tasks, {hz:g} Hz"
    else:
        title = [manifest.tasks[manifest.episode_tasks[shown]]]
        title += [f"from step {c.step}: {manifest.tasks[c.task]}" for c in changes]
        steps = manifest.episode_lengths[shown]
        subtitle = f"{manifest.name}, episode {shown}: {steps:,} steps, {steps / hz:.1f} s"
    return Picture(
        title=tuple(title),
        subtitle=subtitle,
        strips=strips,
        images_note=_images_note(dataset, len(strips), episode) if strips else "",
        groups=groups,
        panels_note=_panels_note(dataset, shown, sample, changes) if groups else "",
        step_s=1 / hz,
        changes=tuple(c.step for c in changes),
    )


def _median_episode(lengths: Sequence[int]) -> int:
    return int(np.argsort(lengths, kind="stable")[len(lengths) // 2])


def _images_note(dataset: Dataset, num_strips: int, episode: int | None) -> str:
    orientation = (
        f"Pixels as stored; image orientation: {dataset.manifest.conventions.image_orientation}."
    )
    num_tasks = len(dataset.manifest.tasks)
    if episode is not None or num_strips == num_tasks:
        return orientation
    return f"{num_strips} of {num_tasks} tasks, evenly spread. {orientation}"


def _panels_note(
    dataset: Dataset, shown: int, sample: Sequence[int], changes: Sequence[TaskChange]
) -> str:
    total = dataset.num_episodes
    steps = sum(dataset.manifest.episode_lengths[number] for number in sample)
    over = f"all {steps:,} steps"
    if len(sample) < total:
        over = f"a sample: {steps:,} steps of {len(sample)} of {total:,} episodes, evenly spread"
    num_others = len(_behind(shown, sample))
    others = f"; grey: {num_others} other episodes" if num_others else ""
    return (
        f"Blue: episode {shown}{others}. Bars: {over}, with the share of the longest one. "
        "Dashed: 1st and 99th percentile of the dataset."
    ) + (" Dotted: a new instruction." if changes else "")


def _behind(shown: int, sample: Sequence[int]) -> set[int]:
    """Episodes of the sample whose curves are drawn behind the one that is shown."""
    return {sample[place] for place in spread(len(sample), _NUM_OTHERS)} - {shown}


def _cameras(dataset: Dataset) -> list[tuple[Column, Feature]]:
    pairs = dataset.manifest.schema.features()
    return [(c, f) for c, f in pairs if f.kind == "image" and c.per == "step"]


def _task_strips(dataset: Dataset) -> tuple[Strip, ...]:
    """For some tasks, a few images of the first episode that begins with each."""
    manifest = dataset.manifest
    cameras = _cameras(dataset)
    if not cameras:
        return ()
    count = max(1, _FRAMES["task"] // len(cameras))
    first = {task: n for n, task in reversed(list(enumerate(manifest.episode_tasks)))}
    tasks = sorted(first)
    strips = []
    for place in spread(len(tasks), MAX_TASKS):
        episode = first[tasks[place]]
        steps = spread(manifest.episode_lengths[episode], count)
        images = tuple(
            (_short(f.key), _read_frames(dataset, c, f, episode, steps)) for c, f in cameras
        )
        strips.append(Strip(manifest.tasks[tasks[place]], f"episode {episode}", images))
    return tuple(strips)


def _episode_strips(dataset: Dataset, episode: int) -> tuple[Strip, ...]:
    """A strip for each camera."""
    steps = spread(dataset.manifest.episode_lengths[episode], _FRAMES["episode"])
    return tuple(
        Strip("", "", ((_short(f.key), _read_frames(dataset, c, f, episode, steps)),))
        for c, f in _cameras(dataset)
    )


def _read_frames(
    dataset: Dataset, column: Column, feature: Feature, episode: int, steps: Iterable[int]
) -> tuple[Frame, ...]:
    first = int(dataset.episode_starts[episode])
    frames = []
    for step in steps:
        encoded = dataset.columns[column.name].read(first + step)[feature.key]
        image = np.empty(feature.shape, np.uint8)
        where = f"{dataset.path}, column {column.name}, record {first + step}, {feature.key}"
        decode_image(bytes(encoded), image, where)
        frames.append(Frame(f"step {step}", image))
    return tuple(frames)


def _short(key: str) -> str:
    return key.removeprefix("observation/")


def _panels(dataset: Dataset, shown: int, sample: Sequence[int]) -> tuple[Panels, ...]:
    """The action and the low-dimensional observations that have statistics."""
    features = [
        feature
        for column, feature in dataset.manifest.schema.features()
        if column.name == EPISODES
        and feature.key in dataset.statistics
        and (feature.key == ACTION or feature.key.startswith("observation/"))
    ]
    if not features:
        return ()
    reader = dataset.columns[EPISODES]
    episode = reader.read(shown)
    builders = [_Builder(f, dataset.statistics[f.key], _flat(episode[f.key])) for f in features]
    behind = _behind(shown, sample)
    for number in sample:
        record = reader.read(number)
        for feature, builder in zip(features, builders, strict=True):
            builder.add(_flat(record[feature.key]), keep=number in behind)
    return tuple(builder.finish() for builder in builders)


def _flat(values: Any) -> np.ndarray:
    """float64 (t, d): the first dimensions of a trajectory (t, *shape)."""
    return values.reshape(len(values), -1)[:, :MAX_PANELS].astype(np.float64)


class _Builder:
    """Counts the values of a feature episode by episode, in a memory that does not grow."""

    def __init__(self, feature: Feature, statistics: FeatureStatistics, curve: np.ndarray) -> None:
        self._feature = feature
        self._curve = curve
        names = ("min", "max", "p01", "p99")
        rows = np.stack([np.ravel(getattr(statistics, n))[:MAX_PANELS] for n in names], axis=1)
        self._rows = rows.astype(np.float64).tolist()
        self._limits = [axis_limits(*row) for row in self._rows]
        self._counts = np.zeros((curve.shape[1], NUM_BINS), np.int64)
        self._num_values = 0
        self._others: list[np.ndarray] = []

    def add(self, values: np.ndarray, *, keep: bool) -> None:
        """Takes float64 (t, d) of an episode."""
        for dim, limits in enumerate(self._limits):
            self._counts[dim] += np.histogram(values[:, dim], NUM_BINS, limits)[0]
        self._num_values += len(values)
        if keep:
            self._others.append(values)

    def finish(self) -> Panels:
        """A panel for each dimension."""
        names = dim_names(self._feature)
        panels = []
        for dim, (low, high, p01, p99) in enumerate(self._rows):
            label, unit = split_unit(names[dim])
            panels.append(
                Panel(
                    label=label or _short(self._feature.key),
                    unit=unit,
                    limits=self._limits[dim],
                    value_range=(low, high),
                    p01=p01,
                    p99=p99,
                    counts=self._counts[dim],
                    num_values=self._num_values,
                    curve=self._curve[:, dim],
                    others=tuple(values[:, dim] for values in self._others),
                )
            )
        left_out = len(names) - len(panels)
        note = f"the first {len(panels)} of {len(names)} dimensions" if left_out else ""
        return Panels(self._feature.key, note, tuple(panels))


# From here on: the drawing. All lengths are inches from the top left corner.

_DPI = 120
_WIDTH = 14.0
_MARGIN = 0.5
_INNER = _WIDTH - 2 * _MARGIN
_INK, _GREY, _PALE = "#1f2630", "#6b7480", "#ccd2da"
_ACCENT, _FILL, _MARK = "#20639b", "#9dbad5", "#b8572a"
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.usetex": False,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.6,
    "axes.labelcolor": _GREY,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.facecolor": "white",
}
_LONG_TITLE = 200
"""Characters from which on a title is set smaller."""
_PANELS_A_ROW = 4
_PANEL_HEIGHT = 1.62


@dataclasses.dataclass(frozen=True)
class _Block:
    """A part of the page as wide as it; blocks stand below each other."""

    height: float
    draw: Callable[["_Page", float], None]
    """Called with the page and the block's upper edge."""


class _Page:
    """A figure that is placed on in inches from its top left corner."""

    def __init__(self, figure: Any, height: float) -> None:
        self._figure = figure
        self._height = height

    def text(self, x: float, y: float, text: str, **style: Any) -> float:
        """Places text with its upper left corner at (x, y); returns its width."""
        style = {"va": "top", "linespacing": 1.3} | style
        placed = self._figure.text(x / _WIDTH, 1 - y / self._height, text, **style)
        return placed.get_window_extent().width / _DPI

    def line(self, y: float) -> None:
        """A hairline over the whole width."""
        from matplotlib.lines import Line2D  # noqa: PLC0415  (slow, and for pictures alone)

        ends = [_MARGIN / _WIDTH, 1 - _MARGIN / _WIDTH]
        height = [1 - y / self._height] * 2
        self._figure.add_artist(Line2D(ends, height, color=_PALE, linewidth=0.8))

    def axes(self, x: float, y: float, width: float, height: float) -> "matplotlib.axes.Axes":
        """Axes with their upper left corner at (x, y)."""
        bottom = 1 - (y + height) / self._height
        return self._figure.add_axes((x / _WIDTH, bottom, width / _WIDTH, height / self._height))


def draw(picture: Picture) -> bytes:
    """The picture as a PNG, 1680 pixels wide.

    Raises:
      UserError: Where matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: ICN001, PLC0415  (slow to import, and for pictures alone)
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            where="--plot",
            expected="the package matplotlib",
            found=str(error),
            remedy="Install it: pip install matplotlib",
        ) from error
    blocks = _blocks(picture)
    height = sum(block.height for block in blocks) + 2 * _MARGIN
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        page, top = _Page(figure, height), _MARGIN
        for block in blocks:
            block.draw(page, top)
            top += block.height
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _blocks(picture: Picture) -> list[_Block]:
    blocks = [_title_block(picture)]
    if picture.strips:
        blocks.append(_heading_block("Cameras", picture.images_note))
        blocks += _strip_blocks(picture.strips)
    for number, group in enumerate(picture.groups):
        note = picture.panels_note if number == 0 else ""
        note = " ".join(part for part in (group.note and f"Drawn: {group.note}.", note) if part)
        blocks.append(_heading_block(group.key, note))
        blocks.append(_panels_block(group, picture))
    return blocks


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines that fit `width` inches at `size` points: a character is 0.6 em wide or less."""
    return textwrap.wrap(text, max(8, int(width * 72 / (0.6 * size)))) or [""]


def _title_block(picture: Picture) -> _Block:
    size = 15.0 if len(" ".join(picture.title)) < _LONG_TITLE else 11.0
    lines = [line for text in picture.title for line in _wrapped(text, _INNER, size)]
    title_height = 1.4 * size / 72 * len(lines)

    def draw_block(page: _Page, top: float) -> None:
        page.text(_MARGIN, top, "\n".join(lines), size=size, weight="bold")
        page.text(_MARGIN, top + title_height + 0.05, picture.subtitle, size=10, color=_GREY)

    return _Block(title_height + 0.35, draw_block)


def _heading_block(heading: str, note: str) -> _Block:
    lines = _wrapped(note, _INNER, 7.5)
    note_height = 0.15 * len(lines) if note else 0.0

    def draw_block(page: _Page, top: float) -> None:
        page.line(top + 0.1)
        page.text(_MARGIN, top + 0.2, heading, size=11, weight="bold")
        page.text(_MARGIN, top + 0.43, "\n".join(lines), size=8, color=_GREY)

    return _Block(0.45 + note_height + (0.08 if note else 0.0), draw_block)


def _strip_blocks(strips: Sequence[Strip]) -> list[_Block]:
    """Strips of tasks stand two beside each other, strips of cameras below each other."""
    beside = 2 if len(strips) > 1 and strips[0].heading else 1
    return [
        _strip_block(strips[start : start + beside], beside)
        for start in range(0, len(strips), beside)
    ]


_NOTE_WIDTH = 0.75


def _strip_block(strips: Sequence[Strip], beside: int) -> _Block:
    gap = 0.4
    width = (_INNER - gap * (beside - 1)) / beside
    headings = [_wrapped(strip.heading, width - _NOTE_WIDTH, 9.0) for strip in strips]
    heading_height = 0.17 * max(len(h) for h in headings) if strips[0].heading else 0.0
    image_height = max(_image_height(strip, width) for strip in strips)

    def draw_block(page: _Page, top: float) -> None:
        for place, (strip, heading) in enumerate(zip(strips, headings, strict=True)):
            left = _MARGIN + place * (width + gap)
            page.text(left, top, "\n".join(heading), size=9, weight="bold")
            page.text(left + width, top, strip.note, size=7.5, color=_GREY, ha="right")
            _draw_images(page, strip, left, top + heading_height, width)

    return _Block(heading_height + image_height + 0.5, draw_block)


_IMAGE_GAP, _CAMERA_GAP = 0.05, 0.15


def _image_width(strip: Strip, width: float) -> float:
    counts = [len(frames) for _, frames in strip.cameras]
    gaps = _IMAGE_GAP * (sum(counts) - len(counts)) + _CAMERA_GAP * (len(counts) - 1)
    return (width - gaps) / max(sum(counts), _FRAMES["task"])


def _image_height(strip: Strip, width: float) -> float:
    shapes = [frame.image.shape for _, frames in strip.cameras for frame in frames]
    return _image_width(strip, width) * max(shape[0] / shape[1] for shape in shapes)


def _draw_images(page: _Page, strip: Strip, left: float, top: float, width: float) -> None:
    """A camera's name above its images, the captions below."""
    size = _image_width(strip, width)
    for name, frames in strip.cameras:
        page.text(left, top + 0.02, name, size=7.5, color=_GREY)
        for frame in frames:
            height = size * frame.image.shape[0] / frame.image.shape[1]
            axes = page.axes(left, top + 0.19, size, height)
            axes.imshow(frame.image, aspect="auto", interpolation="antialiased")
            axes.set_axis_off()
            page.text(left, top + 0.19 + height + 0.03, frame.caption, size=7, color=_GREY)
            left += size + _IMAGE_GAP
        left += _CAMERA_GAP - _IMAGE_GAP


def _panels_block(group: Panels, picture: Picture) -> _Block:
    rows = -(-len(group.panels) // _PANELS_A_ROW)

    def draw_block(page: _Page, top: float) -> None:
        for number, panel in enumerate(group.panels):
            row, column = divmod(number, _PANELS_A_ROW)
            left = _MARGIN + column * (_INNER / _PANELS_A_ROW)
            is_lowest = number + _PANELS_A_ROW >= len(group.panels)
            _draw_panel(
                page, panel, picture, (left, top + row * _PANEL_HEIGHT), is_lowest=is_lowest
            )

    return _Block(rows * _PANEL_HEIGHT + 0.15, draw_block)


def _draw_panel(
    page: _Page, panel: Panel, picture: Picture, corner: tuple[float, float], *, is_lowest: bool
) -> None:
    """A curve over time, and beside it on the same axis the histogram of the dataset."""
    left, top = corner
    inset, height = 0.58, 1.05
    histogram_width, gap = 0.5, 0.08
    curve_width = _INNER / _PANELS_A_ROW - inset - gap - histogram_width
    label_width = page.text(left + inset, top + 0.01, panel.label, size=8.5, weight="bold")
    unit = f"({panel.unit})" if panel.unit else ""
    page.text(left + inset + label_width + 0.06, top + 0.018, unit, size=7.5, color=_GREY)
    right = left + _INNER / _PANELS_A_ROW
    page.text(right, top + 0.02, _beyond(panel), size=7, color=_MARK, ha="right")
    curve = page.axes(left + inset, top + 0.22, curve_width, height)
    _draw_curve(curve, panel, picture)
    if is_lowest:
        curve.set_xlabel("time (s)", size=7.5, labelpad=1)
    histogram = page.axes(left + inset + curve_width + gap, top + 0.22, histogram_width, height)
    _draw_histogram(histogram, panel)
    for axes in (curve, histogram):
        low, high = _padded(panel)
        axes.set_ylim(low, high)
        for percentile in (panel.p01, panel.p99):
            axes.axhline(percentile, color=_MARK, linewidth=0.7, dashes=(4, 2), zorder=1.5)


def _padded(panel: Panel) -> tuple[float, float]:
    """The axis shows the limits and the whole curve, with a little room."""
    low = min(panel.limits[0], float(panel.curve.min()))
    high = max(panel.limits[1], float(panel.curve.max()))
    room = 0.06 * (high - low)
    return low - room, high + room


def _draw_curve(axes: "matplotlib.axes.Axes", panel: Panel, picture: Picture) -> None:
    for other in panel.others:
        axes.plot(
            np.arange(len(other)) * picture.step_s, other, color=_PALE, linewidth=0.6, zorder=1
        )
    seconds = np.arange(len(panel.curve)) * picture.step_s
    axes.plot(seconds, panel.curve, color=_ACCENT, linewidth=1.2, zorder=4)
    for step in picture.changes:
        axes.axvline(step * picture.step_s, color=_INK, linewidth=0.7, dashes=(1, 1))
    axes.set_xlim(0, max(seconds[-1], picture.step_s))
    axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=5)


def _draw_histogram(axes: "matplotlib.axes.Axes", panel: Panel) -> None:
    low, high = panel.limits
    height = (high - low) / NUM_BINS
    share = panel.counts / max(panel.num_values, 1)
    centers = low + height * (np.arange(NUM_BINS) + 0.5)
    axes.barh(centers, share, height=height, color=_FILL, linewidth=0, zorder=2)
    peak = max(float(share.max()), 1e-9)
    axes.set_xlim(0, peak * 1.05)
    axes.set_xticks([peak], [f"{100 * peak:.0f} %"], ha="right")
    axes.tick_params(axis="y", left=False, labelleft=False)


def _beyond(panel: Panel) -> str:
    """The extremes of the dataset that the axis does not show."""
    (low, high), (lowest, highest) = panel.limits, panel.value_range
    words = [f"min {lowest:.3g}"] if lowest < low else []
    return "   ".join([*words, f"max {highest:.3g}"] if highest > high else words)
