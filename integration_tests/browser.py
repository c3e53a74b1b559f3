"""A browser in which pages are opened: Chromium as the system has it, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

__all__ = ["PROGRAM", "needs_browser", "opened", "started"]

PROGRAM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(
    PROGRAM is None,
    reason="there is no chromium on the PATH; on Debian: apt-get install chromium, or as root: ci/browser",
)

_DRAWN: Final = "window.Bokeh && Bokeh.documents.length && Bokeh.documents.every((document) => document.is_idle)"


@contextmanager
def started() -> Iterator[Browser]:
    """Start a browser, and end it."""
    # Its sandbox refuses root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path, scheme: Literal["light", "dark"] = "light", **options: Any) -> Iterator[Page]:
    """Open a report, and wait until it is drawn. No error may be logged meanwhile, and nothing but it be asked for."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme, **options)
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = path.resolve().as_uri()
    page.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith(("data:", own)) else None
    )
    try:
        page.goto(own)
        page.wait_for_function(_DRAWN)
        yield page
        assert wrong == []
    finally:
        context.close()
