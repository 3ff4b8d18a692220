"""Draws the dashboard's panels in their places, from what a Prometheus answers to their queries.

python deploy/grafana/draw.py http://localhost:9090 picture.png [minutes]

It takes no Grafana, and it is not what Grafana shows: it is there to see that every panel has something to say.
"""

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

DASHBOARD = Path(__file__).with_name("heed.json")
COLUMNS = 24
VARIABLES = {"$__rate_interval": "30s", "$instance": ".*", "$model": ".*"}


def ask(prometheus: str, expr: str, minutes: float, instant: bool) -> list[dict[str, Any]]:
    """The series that a query gives; each has `metric` and `values`."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    now = time.time()
    query = {"query": expr, "time": now} if instant else {"query": expr, "start": now - 60 * minutes, "end": now}
    path = "query" if instant else "query_range"
    query |= {} if instant else {"step": max(1.0, 60 * minutes / 250)}
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url) as answer:
        series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return series


def legend(pattern: str, metric: dict[str, str]) -> str:
    return re.sub("{{(.+?)}}", lambda found: metric.get(found[1], found[1]), pattern)


def number(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.4g}"


def colour(value: float, defaults: dict[str, Any]) -> str:
    steps = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    return str(steps[-1]["color"])


def draw_stat(axes: Axes, panel: dict[str, Any], prometheus: str) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    found = ask(prometheus, panel["targets"][0]["expr"], 0, instant=True)
    axes.set_axis_off()
    value = float(found[0]["value"][1]) if found else float("nan")
    axes.text(
        *(0.5, 0.45), number(value, defaults["unit"]), ha="center", va="center", size=15, color=colour(value, defaults)
    )


def draw_table(axes: Axes, panel: dict[str, Any], prometheus: str) -> None:
    axes.set_axis_off()
    rows = [one["metric"] for one in ask(prometheus, panel["targets"][0]["expr"], 0, instant=True)]
    names = [name for name in rows[0] if name not in ("__name__", "job")]
    table = axes.table([[row[name][:20] for name in names] for row in rows], colLabels=names, loc="upper center")
    table.auto_set_font_size(False)
    table.set_fontsize(6)


def draw_lines(axes: Axes, panel: dict[str, Any], prometheus: str, minutes: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    series = [
        (legend(target["legendFormat"], one["metric"]), one["values"])
        for target in panel["targets"]
        for one in ask(prometheus, target["expr"], minutes, instant=False)
    ]
    now, below = time.time(), {}
    for name, values in series:
        times = [(at - now) / 60 for at, _ in values]
        numbers = [float(value) for _, value in values]
        if defaults["custom"]["stacking"]["mode"] == "normal":
            base = [below.get(at, 0.0) for at, _ in values]
            tops = [low + (0 if math.isnan(high) else high) for low, high in zip(base, numbers, strict=True)]
            below |= dict(zip((at for at, _ in values), tops, strict=True))
            axes.fill_between(times, base, tops, alpha=0.6, label=name, linewidth=0)
        else:
            axes.plot(times, numbers, label=name, linewidth=1)
    if not series:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")
    axes.set_xlim(-minutes, 0)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, defaults["unit"])))
    axes.legend(fontsize=5, loc="upper left", ncols=2)


def main(prometheus: str, out: str, minutes: float = 5) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(14, rows * 0.33))
    plt.rcParams.update({"font.size": 6})
    for panel in panels:
        at = panel["gridPos"]
        left, width = at["x"] / COLUMNS, at["w"] / COLUMNS
        top, height = 1 - at["y"] / rows, at["h"] / rows
        if panel["type"] == "row":
            figure.text(0.01, top - 0.7 * height, panel["title"], size=11, weight="bold")
            continue
        axes = figure.add_axes((left + 0.04, top - 0.85 * height, width - 0.05, 0.68 * height))
        axes.set_title(panel["title"], size=8)
        if panel["type"] == "stat":
            draw_stat(axes, panel, prometheus)
        elif panel["type"] == "table":
            draw_table(axes, panel, prometheus)
        else:
            draw_lines(axes, panel, prometheus, minutes)
    figure.savefig(out, dpi=72)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
