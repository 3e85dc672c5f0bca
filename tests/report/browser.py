"""Opens pages in headless Chromium and says what happened there."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
    "--enable-logging=stderr",
)
TRACES = ("trace", "hm")
"""Classes of the elements that plotly.js draws data into."""


@dataclass(frozen=True)
class Opened:
    """A page after its scripts have run."""

    dom: str
    console: list[str]
    """What the page logged, refusals of its content security policy included."""
    requests: list[str]
    """What the page asked to load, but its own file and ``data:`` addresses."""

    @property
    def plots(self) -> dict[str, bool]:
        """Element id of each plot -> whether it was drawn, data included."""
        reader = _Plots()
        reader.feed(self.dom)
        return {name: seen["done"] and seen["svg"] and seen["data"] for name, seen in reader.found}


def open_page(page: Path, profile: Path, width_px: int = 1280) -> Opened:
    log = profile.with_suffix(".netlog.json")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width_px},1000",
        f"--log-net-log={log}",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(
        command, capture_output=True, check=True, timeout=300, encoding="utf-8", errors="replace"
    )
    lines = done.stderr.splitlines()
    return Opened(done.stdout, [line for line in lines if "CONSOLE" in line], _requests(log))


def _requests(log: Path) -> list[str]:
    """Addresses asked for by a page; the browser's own errands have no initiator."""
    text = log.read_text(encoding="utf-8", errors="replace")
    try:
        events = json.loads(text)["events"]
    except ValueError:
        # A log that the browser had no time to close lacks its last brackets.
        events = json.loads(re.sub(r",\s*$", "", text) + "]}")["events"]
    asked = (event.get("params", {}) for event in events)
    return [
        each["url"]
        for each in asked
        if "url" in each and each.get("initiator", "not an origin") != "not an origin"
    ]


class _Plots(HTMLParser):
    """Finds ``<div class="plot ...">`` elements and what is drawn inside them."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict[str, bool]]] = []
        self._depth = 0

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        classes = (given.get("class") or "").split()
        if tag == "div" and "plot" in classes and not self._depth:
            seen = {"done": given.get("data-drawn") == "yes", "svg": False, "data": False}
            self.found.append((given["id"], seen))
            self._depth = 1
        elif self._depth:
            self._depth += tag == "div"
            self.found[-1][1]["svg"] |= "main-svg" in classes
            self.found[-1][1]["data"] |= any(name in classes for name in TRACES)

    def handle_endtag(self, tag):
        if self._depth and tag == "div":
            self._depth -= 1
