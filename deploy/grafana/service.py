"""The dashboard about the service: is it up, how fast does it answer, what waits, and what does it do with its time?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import CHOSEN, WINDOW, AnyPanel, board, density, gauge, lines, mean, number, quantile, rate

REQUESTS = "levi_http_request_duration_seconds"
TRAFFIC = ',route!~"/livez|/readyz|/metrics"'
"""Probes and scrapes are none."""
ALL = rate(f"{REQUESTS}_count", more=TRAFFIC)
FAILED = rate(f"{REQUESTS}_count", more=TRAFFIC + ',status=~"5.."')
PREDICT = ',route="/predict",status!="429"'
"""Predictions that were not refused: refusing takes no time and would hide how long the others take."""
SHED = rate("levi_errors_total", more=',problem=~"overloaded|deadline"')


def build() -> Dashboard:
    """Top to bottom: the state now, requests, what waits, runs of the model, stores, processes."""
    about = "Requests, queues, model runs and stores of LEVI servers."
    rows = {
        "Now": _now(),
        "Requests": _requests(),
        "Waiting and shedding": _waiting(),
        "Runs of the model": _runs(),
        "Rows": _rows(),
        "Processes": _processes(),
    }
    return board("LEVI: service", "levi-service", about, rows)


def _now() -> list[AnyPanel]:
    return [
        number("Requests", "reqps", ALL, "Probes and scrapes left out."),
        number(
            "Failed",
            "percentunit",
            f"({FAILED} or vector(0)) / {ALL}",
            "Share of requests answered with a 5xx.",
            (("green", None), ("orange", 0.001), ("red", 0.01)),
        ),
        number(
            "Slowest percent",
            "s",
            quantile(0.99, REQUESTS, more=PREDICT),
            "99 % of predictions are answered faster; refused ones (429) left out.",
            (("green", None), ("orange", 0.1), ("red", 0.5)),
        ),
        number(
            "Workers in service",
            "none",
            f"sum(levi_ready{{{CHOSEN}}})",
            "Processes with a model.",
            (("red", None), ("green", 1)),
        ),
        number(
            "Alerts",
            "none",
            'count(ALERTS{job=~"$job",alertname=~"Levi.*",alertstate="firing"}) or vector(0)',
            "Firing now; what to do stands in docs/operations.md.",
            (("green", None), ("red", 1)),
        ),
        number(
            "Model",
            "none",
            f"max by (model, version, views) (levi_model_info{{{CHOSEN}}} == 1)",
            "In service.",
            legend="{{model}}/{{version}}, {{views}} views",
        ),
    ]


def _requests() -> list[AnyPanel]:
    return [
        lines(
            "Requests by route",
            "reqps",
            (rate(f"{REQUESTS}_count", "route", TRAFFIC), "{{route}}"),
            about="A route is a template: no id is in it.",
            stacked=True,
        ),
        lines(
            "Requests by status",
            "reqps",
            (rate(f"{REQUESTS}_count", "status", TRAFFIC), "{{status}}"),
            about="`unanswered`: the client had gone.",
            stacked=True,
        ),
        lines(
            "Time of predictions",
            "s",
            *((quantile(q, REQUESTS, more=PREDICT), f"p{100 * q:g}") for q in (0.5, 0.9, 0.99)),
            about="From a request's head to the end of its answer; refused ones (429) left out.",
        ),
        density(
            "Time of predictions, all",
            "s",
            REQUESTS,
            PREDICT,
            "How many requests took how long; refused ones (429) left out.",
        ),
    ]


def _waiting() -> list[AnyPanel]:
    depth, limit = gauge("levi_queue_depth", "lane"), gauge("levi_queue_limit", "lane")
    return [
        lines(
            "Problems",
            "reqps",
            (rate("levi_errors_total", "problem"), "{{problem}}"),
            about="Requests answered with a problem, the clients' mistakes included.",
        ),
        lines(
            "Items shed",
            "cps",
            (rate("levi_shed_items_total", "lane, reason"), "{{lane}}: {{reason}}"),
            about="Given up without an answer: the queue was full, they were too late, or their caller had gone.",
        ),
        lines(
            "Queues",
            "percentunit",
            (f"{depth} / {limit}", "{{lane}}"),
            about="Items that wait, as a share of those that may. A full queue refuses with 429.",
        ),
        lines(
            "Wait before a run",
            "s",
            (quantile(0.5, "levi_queue_wait_seconds", "lane"), "{{lane}} p50"),
            (quantile(0.99, "levi_queue_wait_seconds", "lane"), "{{lane}} p99"),
            about="Of the oldest item of each run.",
        ),
    ]


def _runs() -> list[AnyPanel]:
    padding, tokens = rate("levi_tokens_total", "lane", ',kind="padding"'), rate("levi_tokens_total", "lane")
    return [
        lines(
            "Items in a run",
            "short",
            (mean("levi_batch_size", "lane"), "{{lane}}"),
            about="Mean size of batches: 1 on an idle server, up to --max-batch on a busy one.",
        ),
        lines(
            "Time of a run",
            "s",
            (mean("levi_batch_duration_seconds", "lane"), "{{lane}}: whole"),
            (mean("levi_tokenise_duration_seconds", "lane"), "{{lane}}: tokenise"),
            (mean("levi_infer_duration_seconds", "lane"), "{{lane}}: infer"),
            about="Means. What is neither tokenising nor inference is looking rows up and writing answers.",
        ),
        lines(
            "Busy",
            "percentunit",
            (rate("levi_batch_duration_seconds_sum", "lane"), "{{lane}}"),
            about="Seconds of runs in a second; near 1 per worker a lane has no time left.",
        ),
        lines(
            "Padding",
            "percentunit",
            (f"{padding} / {tokens}", "{{lane}}"),
            about="Share of tokens through the backbone that only make sentences of one run equally long.",
        ),
    ]


def _rows() -> list[AnyPanel]:
    found = rate("levi_store_lookups_total", more=',tier=~"cache|redis|table|encoder"')
    cached = rate("levi_store_lookups_total", more=',tier="cache"')
    return [
        lines(
            "Rows by tier",
            "ops",
            (rate("levi_store_lookups_total", "tier"), "{{tier}}"),
            about="Where the rows of users and items came from, or why they did not.",
            stacked=True,
        ),
        lines(
            "Found in the cache",
            "percentunit",
            (f"{cached} / {found}", "cache"),
            about="Of the rows that were found. Without Redis only new entities' rows are cached.",
        ),
        lines(
            "Redis",
            "s",
            (quantile(0.5, "levi_redis_duration_seconds"), "p50"),
            (quantile(0.99, "levi_redis_duration_seconds"), "p99"),
            about="Calls that were answered.",
        ),
        lines(
            "Rows that could not be had",
            "ops",
            (rate("levi_redis_errors_total", "kind"), "Redis: {{kind}}"),
            (rate("levi_degraded_total", "side"), "degraded: {{side}}"),
            (gauge("levi_redis_breaker_open", "instance"), "workers without Redis: {{instance}}"),
            about="Failed calls, and entities that were rated as unknown ones for want of their row.",
        ),
    ]


def _processes() -> list[AnyPanel]:
    restarts = f"sum by (instance) (changes(levi_process_start_time_seconds{{{CHOSEN}}}{WINDOW}))"
    return [
        lines(
            "CPU",
            "short",
            (rate("levi_process_cpu_seconds_total", "instance, worker"), "{{instance}} {{worker}}"),
            about="Cores in use.",
        ),
        lines(
            "Memory",
            "bytes",
            (gauge("levi_process_resident_memory_bytes", "instance, worker"), "{{instance}} {{worker}}"),
            about="Resident. Workers share the pages of the tables: do not add them up.",
        ),
        lines(
            "Open files",
            "short",
            (gauge("levi_process_open_fds", "instance, worker"), "{{instance}} {{worker}}"),
            about="Connections are among them.",
        ),
        lines("Restarts", "short", (restarts, "{{instance}}"), about="Processes that began anew."),
    ]
