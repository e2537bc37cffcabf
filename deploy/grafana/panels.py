"""Building blocks of the dashboards: panels that ask the chosen Prometheus about the chosen servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import TypeAlias

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import BigValueTextMode, DataSourceRef, LegendDisplayMode, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

WINDOW = "[$__rate_interval]"
CHOSEN = 'job=~"$job",instance=~"$instance"'
"""What every query asks of a series."""
SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
HEIGHT = 8

Query: TypeAlias = tuple[str, str]
"""An expression and its legend."""
AnyPanel: TypeAlias = timeseries.Panel | stat.Panel | heatmap.Panel | bargauge.Panel


def board(
    title: str, uid: str, about: str, rows: Mapping[str, Sequence[AnyPanel]], *variables: QueryVariable
) -> Dashboard:
    """A dashboard of rows of panels, with variables for the data source and the servers, and a link to its sister."""
    everything = VariableOption(selected=True, text="All", value="$__all")
    sisters = DashboardLink("LEVI").type(DashboardLinkType.DASHBOARDS).tags(["levi"]).keep_time(True).include_vars(True)
    dashboard = (
        Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["levi"])
        .readonly()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(sisters)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_labels("job", "levi_ready").all_value("levi.*").current(everything))
        .with_variable(_labels("instance", 'levi_ready{job=~"$job"}').all_value(".*").current(everything))
    )
    for variable in variables:
        dashboard = dashboard.with_variable(variable)
    numbers = count(1)
    for name, panels in rows.items():
        dashboard = dashboard.with_row(Row(name).id(next(numbers)))
        for panel in panels:
            dashboard = dashboard.with_panel(panel.id(next(numbers)))
    return dashboard


def choice(name: str, metric: str, first: str) -> QueryVariable:
    """A variable over the values of one label of a metric, one at a time."""
    variable = _labels(name, metric).multi(False).include_all(False)
    return variable.current(VariableOption(selected=True, text=first, value=first))


def lines(
    title: str, unit: str, *queries: Query, about: str, stacked: bool = False, from_zero: bool = True
) -> timeseries.Panel:
    """Values over time."""
    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    panel = timeseries.Panel().title(title).description(about).unit(unit).datasource(SOURCE).legend(legend)
    panel = panel.span(12).height(HEIGHT).fill_opacity(30 if stacked else 5)
    if from_zero:
        panel = panel.min(0)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return panel.targets([_query(*query, number) for number, query in enumerate(queries)])


def number(
    title: str,
    unit: str,
    query: str,
    about: str,
    steps: tuple[tuple[str, float | None], ...] = (("text", None),),
    words: dict[str, str] | None = None,
    legend: str = "",
) -> stat.Panel:
    """One value as of now; `steps` are colours and the value from which each is shown, `words` stand in for values;
    with a `legend` that is what is shown.
    """
    limits = ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value, color) for color, value in steps])
    panel = stat.Panel().title(title).description(about).unit(unit).datasource(SOURCE).thresholds(limits)
    panel = panel.span(4).height(4).targets([_query(query, legend, 0).instant()])
    if words:
        panel = panel.mappings([ValueMap({key: ValueMappingResult(text=word) for key, word in words.items()})])
    return panel.text_mode(BigValueTextMode.NAME) if legend else panel


def density(title: str, unit: str, metric: str, more: str, about: str) -> heatmap.Panel:
    """A histogram metric over time."""
    rate = f"sum by (le) (increase({metric}_bucket{{{CHOSEN}{more}}}{WINDOW}))"
    query = _query(rate, "{{le}}", 0).format(PromQueryFormat.HEATMAP)
    panel = heatmap.Panel().title(title).description(about).datasource(SOURCE).span(12).height(HEIGHT)
    return panel.unit(unit).targets([query])


def bars(title: str, unit: str, query: Query, about: str) -> bargauge.Panel:
    """One bar per series, as of now."""
    panel = bargauge.Panel().title(title).description(about).unit(unit).datasource(SOURCE).span(12).height(HEIGHT)
    return panel.min(0).targets([_query(*query, 0).instant()])


def rate(metric: str, by: str = "", more: str = "") -> str:
    """How much a counter grows in a second, summed over servers, or kept apart `by` labels; `more` narrows it down."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{CHOSEN}{more}}}{WINDOW}))"


def gauge(metric: str, by: str, how: str = "sum") -> str:
    """A gauge, over servers."""
    return f"{how} by ({by}) ({metric}{{{CHOSEN}}})"


def quantile(q: float, metric: str, by: str = "", more: str = "") -> str:
    """Of a histogram."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q:g}, {rate(f'{metric}_bucket', labels, more)})"


def mean(metric: str, by: str = "") -> str:
    """Of a histogram."""
    return f"{rate(f'{metric}_sum', by)} / {rate(f'{metric}_count', by)}"


def _query(expression: str, legend: str, number: int) -> Dataquery:
    return Dataquery().expr(expression).legend_format(legend or "__auto").ref_id(chr(ord("A") + number)).range()


def _labels(name: str, metric: str) -> QueryVariable:
    query = f"label_values({metric}, {name})"
    variable = QueryVariable(name).label(name.capitalize()).datasource(SOURCE).definition(query)
    variable = variable.query({"query": query, "refId": f"variable-{name}"})
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True)
