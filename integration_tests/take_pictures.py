"""Takes the pictures of docs/seeing.md: reports on the census, run on four runners. ``ci/pictures`` runs this."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from PIL import Image

from integration_tests.browser import opened, started
from integration_tests.commands import turnout_command

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Page

TOP: Final = Path(__file__).resolve().parents[1]
PICTURES: Final = TOP / "docs" / "pictures"
RUNNERS: Final = ("sequential", "thread:2", "process:2", "dask?n_workers=2")

# What is in a picture: parts of a page, the first and the last.
PARTS: Final = {"report": ("header", "#timeline"), "path": ("#path", "#time")}

# In pixels.
_WIDTH: Final = 1100
_MARGIN: Final = 8


def main(runners: tuple[str, ...] = RUNNERS) -> None:
    """Run the census, write reports, and take pictures of them."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, started() as browser:
        for runner in runners:
            page_file = report_on(runner, Path(folder))
            with opened(browser, page_file) as page:
                save(page, ("#timeline",), f"timeline-{word(runner)}")
                if word(runner) == "process":
                    for name in ("report", "path"):
                        save(page, PARTS[name], name)
            scheme: Literal["light", "dark"] = "dark"
            if word(runner) == "process":
                with opened(browser, page_file, scheme) as page:
                    save(page, PARTS["report"], "report-dark")


def word(runner: str) -> str:
    """Return the first word of what names a runner."""
    return runner.partition("?")[0].partition(":")[0]


def report_on(runner: str, folder: Path) -> Path:
    """Run the census on a runner, and return the file of the report."""
    report = folder / f"{word(runner)}.html"
    options = ("--runner", runner, "--log-level", "error", "-p", f"output={folder}", "-p", "limit=600")
    ended = turnout_command("run", TOP / "examples" / "census.py", *options, "--report", report)
    assert ended.status == 0, ended.err
    return report


def save(page: Page, parts: tuple[str, ...], name: str) -> None:
    """Save a picture of some parts of a page, one below the other, in few colours."""
    page.set_viewport_size({"width": _WIDTH, "height": 900})
    page.wait_for_timeout(500)
    boxes = [box for part in parts if (box := page.locator(part).bounding_box())]
    top, bottom = boxes[0]["y"], boxes[-1]["y"] + boxes[-1]["height"]
    clip: FloatRect = {"x": 0, "y": top, "width": _WIDTH, "height": bottom - top + _MARGIN}
    whole = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")
    path = PICTURES / f"{name}.png"
    whole.quantize(64).save(path, optimize=True)
    print(path.relative_to(TOP), f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or RUNNERS)
