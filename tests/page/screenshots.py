"""Pictures of the page for the documentation, of a running server as it is at this moment.

python -m tests.page.screenshots --url http://127.0.0.1:8000     # writes docs/page-*.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from levi_serve.bundle.commands import Command, run
from tests.programs import package, program

from .conftest import FLAGS, PATIENCE_MS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PICTURES: dict[str, dict[str, Any]] = {
    "page-light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "page-dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "page-phone-dark": {
        "viewport": {"width": 360, "height": 740},
        "color_scheme": "dark",
        "is_mobile": True,
        "has_touch": True,
        "device_scale_factor": 2,
    },
}


class Screenshots(Command):
    """Ask for a prediction and for recommendations, and take pictures of what the page then shows."""

    url: str = Field("http://127.0.0.1:8000", description="Where the server is.")
    user: str = Field("138", description="Id of the user.")
    item: str = Field("357", description="Id of the item.")
    k: int = Field(5, description="Recommendations.")
    out: Path = Field(Path("docs"), description="Folder of the pictures.")

    def __call__(self) -> None:
        """Write all."""
        executable = program("chromium-headless-shell", "chromium")
        with package("playwright.sync_api").sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=[*FLAGS])
            for name, options in PICTURES.items():
                self._take(browser, self.out / f"{name}.png", options)
            browser.close()

    def _take(self, browser: Browser, path: Path, options: dict[str, Any]) -> None:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(self.url)
        page.locator("#predict-form").wait_for()
        for field, given in zip(page.locator(".side").get_by_label("id").all(), (self.user, self.item), strict=True):
            field.fill(given)
        page.get_by_role("button", name="Predict").click()
        page.locator(".rating").wait_for()
        page.locator("#recommend-id").fill(self.user)
        page.locator("#recommend-count").fill(str(self.k))
        page.get_by_role("button", name="Recommend").click()
        page.locator("#recommend-answer table").wait_for()
        page.locator("#verdict[data-kind]").wait_for()
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=path, full_page=True)
        context.close()
        print(path)


def main() -> int:
    """Entry point; returns the exit code."""
    commands: dict[str, type[Command]] = {"screenshots": Screenshots}
    return run("screenshots", "Pictures of the page.", commands, sys.argv[1:], default="screenshots")


if __name__ == "__main__":
    sys.exit(main())
