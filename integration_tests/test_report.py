"""The report in a real browser: it opens without the network, is drawn, can be pointed at and filtered, and is safe."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pytest
from PIL import Image

from integration_tests.browser import needs_browser, opened, started
from integration_tests.made_up_runs import made_up_run
from turnout import events
from turnout.history._page import save_report
from turnout.history._reading import history_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# One browser is enough for all.
pytestmark = [needs_browser, pytest.mark.xdist_group("browser")]

NASTY: Final = '$$x^2$$ </script><img src=x onerror="window.hacked = 1"><b>\'"\n{{7*7}} &amp; @state'

# Where a bar is on the screen: its middle, by the name of the call.
_PLACE: Final = """
(name) => {
  const figure = Bokeh.documents[0].get_model_by_name("lanes");
  const {data} = Bokeh.documents[0].get_model_by_name("bars").data_source;
  const number = [...data.name].indexOf(name);
  const {frame, el} = Bokeh.index.find_one(figure);
  const {x, y} = el.getBoundingClientRect();
  return [
    x + frame.x_scale.compute((data.left[number] + data.right[number]) / 2),
    y + frame.y_scale.compute((data.top[number] + data.bottom[number]) / 2),
  ];
}
"""
_SHOWN: Final = """
() => {
  const bars = Bokeh.documents[0].get_model_by_name("bars");
  return [...bars.view.indices].map((number) => bars.data_source.data.name[number]);
}
"""
_KINDS_OF_LABELS: Final = """
() => {
  const [axis] = Bokeh.documents[0].get_model_by_name("lanes").left;
  return [...axis.major_label_overrides.values()].map((label) => label.type);
}
"""
_FRAMES: Final = """
() => {
  window.frames_ = [];
  let last = performance.now();
  const note = () => {
    const now = performance.now();
    window.frames_.push(now - last);
    last = now;
    requestAnimationFrame(note);
  };
  requestAnimationFrame(note);
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a run in which all that can happen does."""
    path = tmp_path_factory.mktemp("report") / "run.html"
    save_report(history_of(made_up_run(500, seed=2)), path)
    return path


def pixels(page: Page, selector: str) -> Any:
    """Return what is seen of an element, as rows of red, green and blue."""
    picture = page.locator(selector).screenshot()
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def count_near(page: Page, selector: str, colour: str) -> int:
    """Return how many pixels of an element are about of this colour."""
    wanted = [int(colour[index : index + 2], 16) for index in (1, 3, 5)]
    return int((np.abs(pixels(page, selector) - wanted).max(axis=2) < 24).sum())


def test_it_has_all_its_parts(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        assert page.title() == "weather: Turnout report"
        for title in ("Timeline", "Critical path", "Where the time went", "Graph", "Workers", "Failures", "Logs"):
            assert page.get_by_role("heading", name=title).is_visible()
        facts = page.locator(".facts").inner_text()
        assert "ProcessPoolTaskRunner(max_workers=8)" in facts
        assert "upstream failed" in facts
        assert "could not convert string to float" in page.locator("#failures pre").first.inner_text()
        # Lines that are far below are not laid out yet, and have no inner text.
        assert "rows" in (page.locator("#logs").text_content() or "")


def test_the_network_is_not_needed(browser: Browser, report: Path) -> None:
    with opened(browser, report, offline=True) as page:
        assert len(page.evaluate(_SHOWN)) > 400
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?(http|//)", report.read_text())


def test_bars_are_drawn_in_the_colours_of_their_states(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        # As they are drawn: not opaque, upon white.
        assert count_near(page, "#timeline", "#6fb391") > 3000
        assert count_near(page, "#timeline", "#e3b865") > 20
        green = count_near(page, "#timeline", "#6fb391")
        page.get_by_text("colour by task").click()
        page.wait_for_function("() => Bokeh.documents[0].get_model_by_name('bars').glyph.fill_color.field == 'task'")
        page.wait_for_timeout(300)
        assert count_near(page, "#timeline", "#6fb391") < green / 4


def test_a_bar_that_is_pointed_at_tells_of_its_call(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        names = page.evaluate(_SHOWN)
        draw = next(name for name in names if name.startswith("draw"))
        page.mouse.move(*page.evaluate(_PLACE, draw))
        told = tooltip(page)
        assert draw in told
        assert "Completed" in told
        assert "waited for others" in told


def tooltip(page: Page) -> str:
    """Return what is told of what is pointed at."""
    shown = page.locator(".bk-Tooltip")
    shown.wait_for()
    text: str = shown.evaluate("element => element.shadowRoot.textContent")
    return text


def test_calls_are_filtered_by_task_and_by_state(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        everything = page.evaluate(_SHOWN)
        choose(page, 0, "merge")
        page.wait_for_function(f"() => ({_SHOWN})().length < {len(everything)}")
        merges = page.evaluate(_SHOWN)
        assert merges == [name for name in everything if name.startswith("merge")]
        choose(page, 0, "parse")
        page.wait_for_function(f"() => ({_SHOWN})().length > {len(merges)}")
        choose(page, 1, "Retrying")
        page.wait_for_function(f"() => ({_SHOWN})().length < {len(merges)}")
        again = page.evaluate(_SHOWN)
        assert again
        assert all(name.startswith("parse") for name in again)


def choose(page: Page, index: int, label: str) -> None:
    choices = page.locator(".choices").nth(index)
    choices.click()
    choices.locator(".choices__list--dropdown .choices__item", has_text=label).first.click()
    page.keyboard.press("Escape")


def test_the_critical_path_can_be_hidden(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        assert count_near(page, "#timeline", "#e8590c") > 300
        page.get_by_label("critical path", exact=True).click()
        page.wait_for_timeout(300)
        assert count_near(page, "#timeline", "#e8590c") < 100


def test_the_wheel_scrolls_the_page_and_zooms_with_a_key(browser: Browser, report: Path) -> None:
    span = "() => { const {start, end} = Bokeh.documents[0].get_model_by_name('lanes').x_range; return end - start; }"
    with opened(browser, report) as page:
        page.mouse.move(*page.evaluate(_PLACE, page.evaluate(_SHOWN)[100]))
        before = page.evaluate(span)
        page.mouse.wheel(0, 100)
        page.wait_for_function("() => window.scrollY == 100")
        assert page.evaluate(span) == before
        page.keyboard.down("Control")
        page.mouse.wheel(0, -300)
        page.wait_for_function(f"() => ({span})() < {before} * 0.9")


@pytest.mark.parametrize(("scheme", "ground"), [("light", 255), ("dark", 45)])
def test_it_is_light_or_dark_as_the_browser_is(
    browser: Browser, report: Path, scheme: Literal["light", "dark"], ground: int
) -> None:
    with opened(browser, report, scheme) as page:
        for part in ("#timeline", "#graph", "#path", "#logs"):
            # Most of a part is ground, and what is written on it stands out.
            found = pixels(page, part)
            most = np.median(found.reshape(-1, 3), axis=0)
            assert (most == 255).all() if ground == 255 else (most < ground).all()
            assert np.abs(found - most).max() > 120


def test_what_users_wrote_is_text(browser: Browser, tmp_path: Path) -> None:
    n = NASTY
    stream: list[events.Event] = [
        events.FlowStarted(1.0, "f", n, n, n, 2),
        events.WorkerUp(1.0, n, n, 5, n),
        events.CallCreated(1.0, 1, "f", n, n, n),
        events.CallStarted(1.1, 1, 1, n, 0),
        events.CallFinished(2.0, 1, "f", n, n, "Failed", 1, 0.9, n, n, 5, 0, message=n, traceback=n),
        events.CallCreated(1.0, 2, "f", n + "2", n, n, needs=(1,)),
        events.CallStarted(2.1, 2, 1, n, 0),
        events.CallRetrying(2.2, 2, 1, n, 0.1, n),
        events.CallStarted(2.5, 2, 2, n, 0),
        events.CallFinished(3.0, 2, "f", n + "2", n, n, 2, 0.5, n, n, 5, 0, message=n, traceback=n),
        events.LogRecord(2.0, n, n, n, "f", 1, n),
        events.WorkerDown(3.0, n, n),
        events.FlowFinished(3.1, "f", n, 2.1, n),
    ]
    save_report(history_of(stream), tmp_path / "nasty.html")
    with opened(browser, tmp_path / "nasty.html") as page:
        page.locator(".choices").first.click()
        option = page.locator(".choices__list--dropdown .choices__item").first
        option.wait_for()
        assert "<img src=x" in option.inner_text()
        page.keyboard.press("Escape")
        page.mouse.move(*page.evaluate(_PLACE, n))
        assert "<img src=x" in tooltip(page)
        assert page.locator("img").count() == 0
        assert page.evaluate("window.hacked") is None
        assert page.evaluate(_KINDS_OF_LABELS) == ["PlainText"]
        assert "{{7*7}} &amp; @state" in page.locator("h1").inner_text()


def test_a_run_that_was_cut_off_or_did_nothing_is_shown(browser: Browser, tmp_path: Path) -> None:
    stream = made_up_run(300)
    for length in (2, len(stream) // 2):
        path = tmp_path / f"{length}.html"
        save_report(history_of(stream[:length]), path)
        with opened(browser, path) as page:
            assert "was killed" in page.locator("header").inner_text()


@pytest.mark.timeout(180)
def test_a_hundred_thousand_calls_open_and_scroll_smoothly(browser: Browser, tmp_path: Path) -> None:
    history = history_of(made_up_run(100_000, workers=8, slots=4))
    save_report(history, tmp_path / "large.html")
    assert (tmp_path / "large.html").stat().st_size < 15_000_000
    with opened(browser, tmp_path / "large.html") as page:
        assert len(page.evaluate(_SHOWN)) > 95_000
        page.mouse.move(*page.evaluate(_PLACE, page.evaluate(_SHOWN)[0]))
        page.evaluate(_FRAMES)
        for turn in [120] * 10 + [-120] * 10:
            page.mouse.wheel(0, turn)
            page.wait_for_timeout(30)
        # A screen is drawn every 16.7 ms, and while the page moves none of its 100,000 bars has to be drawn again.
        assert statistics.median(page.evaluate("window.frames_")) < 50
