"""levi_serve.engine: what runs beside what."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx

from .conftest import settings
from .running import Gate, RunningApp
from .toy import Toy, tokens


def test_new_entities_do_not_hold_up_known_ones(entity_toy_repository: Path) -> None:
    """While the encoder is busy with a new movie, a pair of known ids is answered."""
    with RunningApp(settings(entity_toy_repository)) as app:
        gate = Gate(app, "_encode")

        async def both() -> tuple[bool, int, int]:
            body = {"pairs": [{"user": 138, "movie": {"title": "New"}}]}
            cold = asyncio.ensure_future(app.client.post("/predict", json=body))
            while not gate.batches:
                await asyncio.sleep(0)
            warm = await asyncio.wait_for(app.client.get("/predict?user=138&movie=357"), timeout=5)
            waited = not cold.done()
            gate.open()
            return waited, warm.status_code, (await cold).status_code

        assert app.run(both()) == (True, 200, 200)


def test_the_event_loop_stays_free(toy: Toy, toy_repository: Path) -> None:
    """While a backbone or a tokeniser is at work the process answers probes: neither is on the event loop."""
    with RunningApp(settings(toy_repository)) as app:
        engine = app.live.service.engine
        entered, opened = threading.Event(), threading.Event()

        def slow(*_: object) -> None:
            entered.set()
            assert opened.wait(10)

        graph = (engine._predictor if toy.views == "pair" else app.live.service.version.encoder)._graph
        run = graph.run
        graph.run = lambda feeds: (slow(), run(feeds))[1]

        async def both() -> tuple[int, int]:
            body = {"pairs": [{"user": 138, "movie": {"title": "New"}}]}
            waiting = asyncio.ensure_future(app.client.post("/predict", json=body))
            while not entered.is_set():
                await asyncio.sleep(0.01)
            alive = await asyncio.wait_for(app.client.get("/livez"), timeout=5)
            opened.set()
            return alive.status_code, (await waiting).status_code

        assert app.run(both()) == (200, 200)


def test_a_busy_server_is_ready(entity_toy_repository: Path) -> None:
    """A full queue means 429 for predictions, but /readyz stays 200: taking a busy server out would not help."""
    with RunningApp(settings(entity_toy_repository, max_batch=1, max_pairs=1, max_queue=2)) as app:
        gate = Gate(app, "_score")

        async def crowd() -> tuple[httpx.Response, list[httpx.Response]]:
            tasks = await gate.crowd(9)
            ready = await asyncio.wait_for(app.client.get("/readyz"), timeout=5)
            gate.open()
            return ready, list(await asyncio.gather(*tasks))

        ready, answers = app.run(crowd())
        assert ready.status_code == 200
        assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 3


def test_requests_share_runs(entity_toy_repository: Path) -> None:
    """Requests that arrive while every permit is taken are answered by the next run together."""
    with RunningApp(settings(entity_toy_repository)) as app:
        gate = Gate(app, "_score")

        async def crowd() -> None:
            tasks = await gate.crowd(24)
            gate.open()
            await asyncio.gather(*tasks)

        app.run(crowd())
        assert [len(batch) for batch in gate.batches] == [1, 1, 1, 1, 20]


def test_stages_of_new_entities(toy: Toy, toy_repository: Path) -> None:
    """One request with two new movies is tokenised once and runs through the graph; its tokens and the padding of the
    shorter sentence are counted.
    """
    with RunningApp(settings(toy_repository)) as app:
        before = counted(app)
        movies: list[Any] = [{"title": "A"}, {"title": "A longer title"}]
        app.post([{"user": 138, "movie": movie} for movie in movies])
        after = counted(app)
        told = [toy.sentences(138, movie)[-1] for movie in movies]
    lengths = [len(tokens(sentence)) for sentence in told]
    tokenising, backbone = ("tokenise", "score") if toy.views == "pair" else ("encode", "encode")
    expected = {
        f'levi_tokenise_duration_seconds_count{{lane="{tokenising}"}}': 1,
        f'levi_infer_duration_seconds_count{{lane="{backbone}"}}': 1,
        f'levi_tokens_total{{kind="real",lane="{backbone}"}}': sum(lengths),
        f'levi_tokens_total{{kind="padding",lane="{backbone}"}}': max(lengths) - min(lengths),
    }
    assert {name: after[name] - before[name] for name in expected} == expected


def counted(app: RunningApp) -> dict[str, float]:
    """What /metrics says, by line."""
    lines = [line.rpartition(" ") for line in app.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}
