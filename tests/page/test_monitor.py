"""The page's view of live traffic, its alarms, and how often it looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.programs import package

from .answers import HOSTILE, Held, alarm, monitor, places, play, problem

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.system
expect = package("playwright.sync_api").expect
Look = Callable[..., "Page"]

HIDING = """
let hidden = false;
Object.defineProperty(document, "hidden", { get: () => hidden });
window.hide = (value) => {
  hidden = value;
  document.dispatchEvent(new Event("visibilitychange"));
};
"""


def seen(look: Look, answer: Any, status: int = 200) -> Page:
    """The page before a monitor that says this."""
    return look(lambda page: play(page, "monitor", answer, status))


def timed(look: Look, answer: Any) -> tuple[Page, list[Any]]:
    """The page under a clock that stands still, at 14:30 on the day of the alarms, and what it asks of the monitor."""
    asked: list[list[Any]] = []

    def prepare(page: Page) -> None:
        page.clock.install(time="2026-05-03T14:30:00Z")
        page.add_init_script(HIDING)
        asked.append(play(page, "monitor", answer))

    page = look(prepare)
    expect(page.locator("#verdict")).to_have_attribute("data-kind", answer["status"])
    return page, asked[0]


@pytest.mark.parametrize(
    ("answer", "status", "kind", "said"),
    [
        (monitor(), 200, "ok", "Live traffic looks like the data this model was fitted on."),
        (monitor("warming", bins=[0] * 20), 200, "warming", "Too few predictions so far to judge live traffic."),
        (monitor("off"), 200, "off", "The shift monitor is off."),
        ({"status": "off"}, 200, "off", "The shift monitor is off."),
        (problem(500, "the server failed"), 500, "lost", "the server failed"),
        (monitor("alarm"), 200, "alarm", "Shift alarm."),
        (monitor("alarm", since="soon"), 200, "alarm", "Shift alarm since soon."),
    ],
)
def test_verdict(look: Look, answer: Any, status: int, kind: str, said: str) -> None:
    """One sentence on top says how things are; without a monitor nothing else pretends to."""
    page = seen(look, answer, status)
    expect(page.locator("#verdict")).to_have_text(said)
    expect(page.locator("#verdict")).to_have_attribute("data-kind", kind)
    expect(page.locator("#monitor")).to_be_visible(visible=kind in {"ok", "warming", "alarm"})


@pytest.mark.parametrize(
    ("score", "kind", "cause"),
    [
        ("contrast", "mean", "the heads’ contrast is higher than it should be"),
        ("spread", "upper", "the heads’ spread is very high too often"),
        ("new_user", "mean", "the share of new users is higher than it should be"),
        ("new_item", "mean", "the share of new items is higher than it should be"),
        ("level", "lower", "the level of ratings is lower than it should be"),
        ("depth_gap", "mean", "the gap between late and early heads is higher than it should be"),
        ("support_item", "mean", "the distance from fitted items is higher than it should be"),
        ("odd_score", "odd_kind", "odd score is not as it should be (odd kind)"),
    ],
)
def test_cause(look: Look, score: str, kind: str, cause: str) -> None:
    """An alarm is told in words, with the time since when; one that nobody has seen yet goes first."""
    alarms = [alarm(1, score=score, kind=kind), alarm(2, "2026-05-03T14:09:00Z", kind="upper")]
    page, _ = timed(look, monitor("alarm", since="2026-05-03T14:02:00Z", alarms=alarms))
    expect(page.locator("#verdict")).to_have_text(f"Shift alarm since 14:02: {cause}.")


def test_all_alarms_seen(look: Look) -> None:
    """When all are acknowledged the last one stands for the state; times of other days have their day."""
    alarms = [alarm(1, "2026-05-03T14:09:00Z"), alarm(2, "2026-05-03T14:09:00Z", kind="lower")]
    page, _ = timed(look, monitor("alarm", since="2026-05-02T09:00:00Z", alarms=alarms))
    said = "Shift alarm since 2 May, 09:00: the heads’ contrast is lower than it should be."
    expect(page.locator("#verdict")).to_have_text(said)


def test_evidence(look: Look) -> None:
    """Evidence is drawn against the threshold, all together first, then streams by strength."""
    page = seen(look, monitor())
    plot = page.get_by_role("table", name="Evidence of a shift")
    expect(plot.locator("caption")).to_contain_text("at 20.0 the alarm is raised")
    names = ["all together", "contrast, high", "depth gap, very high", "level, low"]
    expect(plot.get_by_role("rowheader")).to_have_text(names)
    expect(plot.locator(".number")).to_have_text(["5.0", "6.0", "−0.5", "–"])
    scale = 20 * 1.2
    assert places(plot.locator(".limit"), "x1", 4) == pytest.approx([100 * 20 / scale] * 4)
    assert places(plot.locator(".filled"), "width", 3) == pytest.approx([100 * 5 / scale, 100 * 6 / scale, 0])
    expect(plot.locator("tr.sum")).to_have_count(1)
    said = "48,213 predictions watched; at most one false alarm in 30 days at 1,000 predictions a second."
    expect(page.locator("#monitor-said")).to_have_text(said)


def test_more_than_are_watched(look: Look) -> None:
    """Predictions beyond the rate of the budget are told."""
    page = seen(look, monitor(passed_over=1_250_000))
    expect(page.locator("#monitor-said")).to_contain_text("48,213 predictions watched, 1,250,000 passed over; at most")


def test_evidence_beyond_the_threshold(look: Look) -> None:
    """However strong the evidence, it is drawn within the plot and marked; of many streams the strongest are shown."""
    streams = [{"score": f"s{i}", "kind": "mean", "evidence": float(i)} for i in range(20)]
    page = seen(look, monitor("alarm", evidence={"value": 50.0, "threshold": 20.0}, streams=streams))
    plot = page.get_by_role("table", name="Evidence of a shift")
    expect(plot.locator("tr.over .number")).to_have_text("50.0")
    assert places(plot.locator("tr.over .filled"), "width", 1) == [100]
    assert places(plot.locator("tr.over .limit"), "x1", 1) == [40]
    expect(plot.get_by_role("rowheader")).to_have_text(["all together", *(f"s{i}, high" for i in range(19, 13, -1))])


def test_bins(look: Look) -> None:
    """Twenty columns stand against the line of the reference; what exceeds it is marked as such."""
    page = seen(look, monitor(bins=[0] * 10 + [100] * 9 + [300]))
    plot = page.get_by_role("img", name="Shares of live predictions")
    level, highest = 60, 300
    assert places(plot.locator(".limit"), "y1", 1) == pytest.approx([100 - 100 * level / highest])
    usual = places(plot.locator(".usual"), "height", 20)
    assert usual == pytest.approx([0] * 10 + [100 * 60 / highest] * 10)
    above = plot.locator(".filled")
    assert places(above, "height", 20) == pytest.approx([0] * 10 + [100 * 40 / highest] * 9 + [100 * 240 / highest])
    assert places(above, "y", 20)[-1] == pytest.approx(0)
    assert places(plot.locator(".usual"), "x", 20)[10] == pytest.approx(50 + 0.08 * 5)
    shares = ", ".join(["0\u202f%"] * 10 + ["8\u202f%"] * 9 + ["25\u202f%"])
    said = (
        f"Shares of live predictions by twentieths of in-distribution disagreement, least first: {shares}; usual: 5 %"
    )
    expect(plot).to_have_attribute("aria-label", said)


def test_no_bins_yet(look: Look) -> None:
    """Before the first prediction there is nothing to draw."""
    page = seen(look, monitor("warming", bins=[0] * 20))
    plot = page.get_by_role("img", name="Shares of live predictions")
    expect(plot).to_be_attached()
    expect(plot.locator("*")).to_have_count(0)


def test_heads_and_errors(look: Look) -> None:
    """Each head's mean and deviation stand beside its in-distribution mean; the estimated error beside the measured."""
    page = seen(look, monitor())
    plot = page.get_by_role("table", name="Each head’s mean")
    expect(plot.locator("tbody .number")).to_have_text(["3.00", "3.50", "4.00"])
    assert places(plot.locator("circle"), "cx", 3) == [50, 62.5, 75]
    assert places(plot.locator(".reference"), "x1", 3) == [50, 50, 50]
    assert places(plot.locator(".band"), "x1", 3) == [37.5, 50, 62.5]
    assert places(plot.locator(".band"), "x2", 3) == [62.5, 75, 87.5]
    expect(plot.locator(".path")).to_have_count(0)
    facts = page.locator("#monitor-facts")
    expect(facts.locator("dt")).to_have_text(
        [
            "RMSE, estimated without labels",
            "RMSE in distribution, measured",
            "predictions with unknown user",
            "predictions with unknown movie",
        ]
    )
    expect(facts.locator("dd")).to_have_text(["0.968", "0.962", "0.1\u202f%", "3\u202f%"])


def test_nothing_known(look: Look) -> None:
    """What the server does not know is not drawn and not made up."""
    nothing = {"mean": None, "deviation": None, "id_mean": 3.0, "id_deviation": 0.4}
    evidence = {"value": None, "threshold": 20.0}
    page = seen(look, monitor("warming", estimated_rmse=None, heads=[nothing] * 3, evidence=evidence))
    plot = page.get_by_role("table", name="Each head’s mean")
    expect(plot.locator("tbody .number")).to_have_text(["–"] * 3)
    expect(plot.locator("circle, .band")).to_have_count(0)
    expect(plot.locator(".reference")).to_have_count(3)
    expect(page.locator("#monitor-facts dd").first).to_have_text("not known yet")
    expect(page.locator("#monitor-evidence tr.sum .number")).to_have_text("–")


def test_acknowledge(look: Look) -> None:
    """The newest alarm is on top; the button tells the server which one was seen, and the page looks again."""
    page, asked = timed(look, monitor("alarm", alarms=[alarm(1, "2026-05-03T14:10:00Z"), alarm(2)]))
    entries = page.locator("#alarms li")
    cause = "the heads’ contrast is higher than it should be"
    expect(entries.first).to_have_text(f"{cause}14:02, evidence 21.8Acknowledge")
    expect(entries.last).to_have_text(f"{cause}14:01, evidence 21.8, acknowledged 14:10")
    posted = play(page, "monitor/alarms/*/acknowledge", {})
    play(page, "monitor", monitor("alarm", alarms=[alarm(1, "2026-05-03T14:10:00Z"), alarm(2, "2026-05-03T14:30:00Z")]))
    page.get_by_role("button", name="Acknowledge the alarm of 14:02").click()
    expect(entries.first).to_have_text(f"{cause}14:02, evidence 21.8, acknowledged 14:30")
    assert [(request.method, request.url.partition("/monitor")[2]) for request in posted] == [
        ("POST", "/alarms/a%2F2/acknowledge")
    ]
    expect(page.get_by_role("heading", name="Alarms")).to_be_focused()
    assert len(asked) == 1


def test_acknowledging_fails(look: Look) -> None:
    """When the server refuses, its reason stands there and the button stays."""
    page = seen(look, monitor("alarm", alarms=[alarm(1)]))
    play(page, "monitor/alarms/*/acknowledge", problem(404, "There is no alarm a/1."), 404)
    page.get_by_role("button", name="Acknowledge").click()
    expect(page.locator("#alarms-problem")).to_have_text("There is no alarm a/1.")
    expect(page.get_by_role("button", name="Acknowledge")).to_be_visible()
    play(page, "monitor/alarms/*/acknowledge", {})
    page.get_by_role("button", name="Acknowledge").click()
    expect(page.locator("#alarms-problem")).to_be_empty()


def test_what_the_server_says_is_text(look: Look) -> None:
    """No name in a monitor's answer is read as HTML."""
    evil = alarm(1, id=HOSTILE, raised=HOSTILE, score=HOSTILE, kind=HOSTILE)
    streams = [{"score": HOSTILE, "kind": HOSTILE, "evidence": 1.0}]
    page = seen(look, monitor("alarm", since=HOSTILE, alarms=[evil], streams=streams, unknown={HOSTILE: 0.5}))
    expect(page.locator("#alarms li")).to_contain_text(HOSTILE)
    expect(page.locator("#verdict")).to_contain_text(HOSTILE)
    expect(page.locator("#monitor-facts")).to_contain_text(HOSTILE)
    expect(page.locator("#monitor-evidence")).to_contain_text(HOSTILE)
    assert page.locator("img, main script").count() == 0
    assert page.evaluate("window.hacked") is None


def test_looks_again(look: Look) -> None:
    """The page asks every five seconds, and shows what has changed."""
    page, asked = timed(look, monitor())
    for times in (2, 3, 4):
        with page.expect_response("**/monitor"):
            page.clock.run_for(5_000)
        assert len(asked) == times
    page.clock.run_for(4_000)
    play(page, "monitor", monitor("alarm", since="2026-05-03T14:02:00Z", alarms=[alarm(2)]))
    page.clock.run_for(1_000)
    expect(page.locator("#verdict")).to_contain_text("Shift alarm since 14:02")
    assert len(asked) == 4


def test_hidden_pages_ask_nothing(look: Look) -> None:
    """While nobody sees the page it is silent; when it is seen again it asks at once, and at the old pace."""
    page, asked = timed(look, monitor())
    page.evaluate("window.hide(true)")
    page.clock.run_for(60_000)
    page.evaluate("new Promise(requestAnimationFrame)")
    assert len(asked) == 1
    with page.expect_response("**/monitor"):
        page.evaluate("window.hide(false)")
    for value in ("true", "false", "true", "false"):
        page.evaluate(f"window.hide({value})")
    with page.expect_response("**/monitor"):
        page.clock.run_for(5_000)
    before = len(asked)
    with page.expect_response("**/monitor"):
        page.clock.run_for(5_000)
    page.evaluate("new Promise(requestAnimationFrame)")
    assert len(asked) == before + 1


def test_a_slow_server(look: Look) -> None:
    """While an answer is awaited the clock brings no second question; after ten seconds the page gives up, says so,
    and asks again.
    """
    held = Held("monitor")

    def prepare(page: Page) -> None:
        page.clock.install()
        held.hold(page)

    page = look(prepare)
    held.first()
    page.clock.run_for(9_000)
    assert held.count == 1
    page.clock.run_for(1_000)
    expect(page.locator("#verdict")).to_have_text("The server took longer than 10 s.")
    play(page, "monitor", monitor())
    page.clock.run_for(5_000)
    expect(page.locator("#verdict")).to_have_attribute("data-kind", "ok")
    assert held.count == 1


def test_server_lost_and_found(look: Look) -> None:
    """When the server is gone the page says so and from when its picture is; it goes on asking, and recovers."""
    page, _ = timed(look, monitor())
    page.unroute("**/monitor")
    page.route("**/info", lambda route: route.abort("connectionrefused"))
    page.clock.run_for(5_000)
    expect(page.locator("#verdict")).to_have_text("The server does not answer. What is below is of 14:30.")
    expect(page.locator("#monitor-bins .usual")).to_have_count(20)
    page.unroute("**/info")
    play(page, "monitor", monitor())
    page.clock.run_for(5_000)
    expect(page.locator("#verdict")).to_have_text("Live traffic looks like the data this model was fitted on.")


def test_looking_again_disturbs_nobody(look: Look) -> None:
    """Neither the button under the keyboard nor what somebody is writing is lost when the page looks again."""
    page, _ = timed(look, monitor("alarm", alarms=[alarm(1)]))
    page.get_by_role("group", name="user").get_by_label("id").fill("77")
    button = page.get_by_role("button", name="Acknowledge")
    button.focus()
    with page.expect_response("**/monitor"):
        page.clock.run_for(5_000)
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(button).to_be_focused()
    expect(page.get_by_role("group", name="user").get_by_label("id")).to_have_value("77")


def test_verdict_is_read_out_once(look: Look) -> None:
    """The sentence is a live region whose text is touched only when it changes."""
    page, _ = timed(look, monitor())
    expect(page.get_by_role("status").first).to_have_id("verdict")
    page.evaluate(
        "new MutationObserver(() => (window.touched = true)).observe(document.getElementById('verdict'), "
        "{ childList: true, characterData: true, subtree: true })"
    )
    with page.expect_response("**/monitor"):
        page.clock.run_for(5_000)
    page.evaluate("new Promise(requestAnimationFrame)")
    assert page.evaluate("window.touched") is None
    play(page, "monitor", monitor("warming"))
    page.clock.run_for(5_000)
    expect(page.locator("#verdict")).to_contain_text("Too few")
    assert page.evaluate("window.touched") is True
