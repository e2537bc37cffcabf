"""The dashboard about shift: is traffic like the data of the fit, since when not, how much, and why?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import (
    CHOSEN,
    WINDOW,
    AnyPanel,
    bars,
    board,
    choice,
    density,
    gauge,
    lines,
    number,
    quantile,
    rate,
)

PREDICTIONS = "levi_monitor_predictions_total"
BINS = "levi_monitor_score_bin_total"
SCORE = ',score="$score"'


def build() -> Dashboard:
    """Top to bottom: the verdict now, the evidence, the scores behind it, the heads, the error."""
    about = "Whether live traffic is like the data that the model was fitted on, as the heads' disagreement tells."
    rows = {
        "Now": _now(),
        "Evidence": _evidence(),
        "Scores": _scores(),
        "Heads": _heads(),
        "Error and cost": _error(),
    }
    return board("LEVI: shift", "levi-shift", about, rows, choice("score", BINS, "spread"))


def _now() -> list[AnyPanel]:
    strongest = (
        f'max(levi_monitor_evidence{{{CHOSEN},stream="all"}} / on (job, instance) levi_monitor_evidence_threshold)'
    )
    return [
        number(
            "Verdict",
            "none",
            f"max(levi_monitor_alarm_active{{{CHOSEN}}})",
            "An alarm stays until somebody acknowledges it.",
            (("green", None), ("red", 1)),
            {"0": "as in distribution", "1": "shift"},
        ),
        number(
            "Evidence",
            "percentunit",
            strongest,
            "Of what raises the alarm, on a logarithmic scale.",
            (("green", None), ("orange", 0.7), ("red", 1)),
        ),
        number("Predictions watched", "cps", rate(PREDICTIONS), "In a second."),
        number(
            "RMSE, estimated",
            "none",
            f"max(levi_monitor_estimated_rmse{{{CHOSEN}}})",
            "Without true ratings; blind to errors that all heads share.",
        ),
        number(
            "RMSE in distribution",
            "none",
            f"max(levi_monitor_id_rmse{{{CHOSEN}}})",
            "Measured when the model was made.",
        ),
        number(
            "Alarms",
            "none",
            f"sum(increase(levi_monitor_alarms_total{{{CHOSEN}}}[$__range]))",
            "Raised within the time shown.",
            (("green", None), ("red", 1)),
        ),
    ]


def _evidence() -> list[AnyPanel]:
    return [
        lines(
            "Evidence",
            "none",
            (gauge("levi_monitor_evidence", "stream", "max"), "{{stream}}"),
            (f"max(levi_monitor_evidence_threshold{{{CHOSEN}}})", "alarm"),
            about="Natural logarithms. `all` is compared with the alarm's limit; the others tell which score grew.",
            from_zero=False,
        ),
        lines(
            "Alarms",
            "short",
            (f"sum by (score, kind) (increase(levi_monitor_alarms_total{{{CHOSEN}}}{WINDOW}))", "{{score}}, {{kind}}"),
            (gauge("levi_monitor_alarm_active", "instance", "max"), "not acknowledged: {{instance}}"),
            about="By the score that gave most of the evidence.",
        ),
    ]


def _scores() -> list[AnyPanel]:
    highest, lowest = (rate(BINS, more=f'{SCORE},bin=~"{tail}"') for tail in ("1[89]", "[01]"))
    share = f"{rate(BINS, 'bin', SCORE)} / scalar({rate(BINS, more=SCORE)})"
    padded = f'label_replace({share}, "bin", "0$1", "bin", "([0-9])")'
    return [
        bars(
            "Scores now, by twentieths of those in distribution",
            "percentunit",
            (padded, "{{bin}}"),
            "In distribution every bar is at 5 %. Bars that grow at the end: the heads disagree more.",
        ),
        lines(
            "Tails",
            "percentunit",
            (f"{highest} / {rate(BINS, more=SCORE)}", "highest tenth"),
            (f"{lowest} / {rate(BINS, more=SCORE)}", "lowest tenth"),
            ("vector(0.1)", "in distribution"),
            about="Share of predictions whose score lies where in distribution a tenth of them lie.",
        ),
        density(
            "Disagreement", "none", "levi_monitor_disagreement", "", "Standard deviation of the heads, in rating units."
        ),
        lines(
            "Disagreement",
            "none",
            *((quantile(q, "levi_monitor_disagreement"), f"p{100 * q:g}") for q in (0.5, 0.9, 0.99)),
            about="Of the heads, in rating units.",
        ),
    ]


def _heads() -> list[AnyPanel]:
    mean, reference = (gauge(f"levi_monitor_head_{of}_mean", "head", "avg") for of in ("rating", "reference"))
    deviation, usual = (gauge(f"levi_monitor_head_{of}_deviation", "head", "avg") for of in ("rating", "reference"))
    return [
        lines(
            "Mean rating of each head, against that in distribution",
            "none",
            (f"{mean} - {reference}", "head {{head}}"),
            about="Head 0 reads the earliest layer. All together: pairs of another kind. One alone: it is broken.",
            from_zero=False,
        ),
        lines(
            "Deviation of each head's ratings, of that in distribution",
            "percentunit",
            (f"{deviation} / {usual}", "head {{head}}"),
            about="One near zero: that head says the same of every pair. All: everybody asks for the same pairs.",
        ),
    ]


def _error() -> list[AnyPanel]:
    side = rate("levi_monitor_unknown_total", "side")
    return [
        lines(
            "RMSE",
            "none",
            (gauge("levi_monitor_estimated_rmse", "instance", "max"), "estimated: {{instance}}"),
            (gauge("levi_monitor_true_rmse", "instance", "max"), "measured on feedback: {{instance}}"),
            (f"max(levi_monitor_id_rmse{{{CHOSEN}}})", "in distribution"),
            about="The estimate needs no true ratings; where feedback comes, the true error stands beside it.",
        ),
        lines(
            "Unknown users and items",
            "percentunit",
            (f"{side} / scalar({rate(PREDICTIONS)})", "{{side}}"),
            about="Share of predictions about entities that the model was not fitted on.",
        ),
        lines(
            "Cost of the monitor",
            "s",
            (f"{rate('levi_monitor_seconds_total')} / {rate(PREDICTIONS)}", "per prediction"),
            about="All scores, their bins and the test.",
        ),
    ]
