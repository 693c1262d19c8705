"""The figures as a picture: ratios, and how works grow with feeds and connections."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pygal  # type: ignore[import-untyped]
from pygal.style import CleanStyle  # type: ignore[import-untyped]

COLOURS = ("#3068b0", "#d0702c", "#3a8a50", "#8a4a9a")
# By line, a figure at each point.
Lines = Mapping[str, Sequence[float | None]]


def growth(path: Path, title: str, points: Sequence[int], lines: Lines) -> None:
    """Requests a second at each number of feeds, or of connections.

    Lines come in pairs of a colour, the second one dashed.
    """
    chart = pygal.Line(
        **_options(title, [colour for colour in COLOURS for _ in "ab"]), logarithmic=True
    )
    chart.x_labels = [f"{point:,}" for point in points]
    for number, (name, values) in enumerate(lines.items()):
        dashed = {"dasharray": "6, 4"} if number % 2 else {}
        chart.add(name, list(values), stroke_style={"width": 2} | dashed)
    _write(chart, path)


def ratios(path: Path, title: str, works: Sequence[str], lines: Lines) -> None:
    """How the service does beside each reference; 1 is as fast."""
    options = _options(title, COLOURS) | {"print_values": True, "print_values_position": "top"}
    chart = pygal.Bar(**options)
    chart.x_labels = list(works)
    chart.value_formatter = lambda value: f"{value:.2f}"
    for name, values in lines.items():
        chart.add(name, list(values))
    _write(chart, path)


def _options(title: str, colours: Sequence[str]) -> dict[str, object]:
    # No script, nothing from elsewhere: it is shown as an image.
    return {
        "title": title,
        "js": [],
        "style": CleanStyle(value_font_size=11, background="white", colors=colours),
        "width": 900,
        "height": 450,
        "legend_at_bottom": True,
        "truncate_legend": -1,
        "truncate_label": -1,
    }


def _write(chart: "pygal.Graph", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.render_to_file(str(path))
