"""A page in headless Chromium: what its layout measures at a width, in light or dark."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1600,1200")
DARK = "--blink-settings=preferredColorScheme=0"

# The page lies in a frame, since a window cannot be as narrow as a phone; the outer page measures the inner one.
MEASURE = """
onload = () => {
  const inner = document.querySelector("iframe").contentDocument, all = (query) => [...inner.querySelectorAll(query)];
  const frame = inner.documentElement.clientWidth;
  const scrolled = (element) => element.closest(".wide, pre, details:not([open])");
  const cut = (element) =>
    element.getBoundingClientRect().right > frame + 1 || element.scrollWidth > element.clientWidth + 1;
  const named = (element) => element.getAttribute("aria-label")
    || inner.getElementById(element.getAttribute("aria-labelledby"))?.textContent;
  const style = inner.defaultView.getComputedStyle(inner.body);
  document.title = JSON.stringify({
    overflow: inner.documentElement.scrollWidth - frame,
    cut: all("h1, h2, h3, p, figcaption, li, summary").filter((e) => !scrolled(e) && cut(e)).map((e) => e.textContent),
    unnamed: all("[role], nav, table").filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 80)),
    unreachable: all(".wide").filter((e) => e.scrollWidth > e.clientWidth && e.tabIndex !== 0).length,
    scrolled: all(".wide").filter((e) => e.scrollWidth > e.clientWidth + 1).length,
    tallest: Math.max(...all("tbody tr").map((e) => e.getBoundingClientRect().height)),
    unscoped: all("th:not([scope])").length,
    letters: Math.min(...all("svg text").map((e) => e.getBoundingClientRect().height)),
    headings: all("h1, h2, h3").map((e) => Number(e.tagName[1])),
    first: all("main *")[0].tagName,
    colour: style.color, background: style.backgroundColor,
  });
};
"""


def measure(page: str, folder: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What MEASURE finds of an HTML page at a width in pixels; skips where no Chromium is installed."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    frame = f'<iframe width="{width}" height="1000" style="border: 0" srcdoc="{escape(page)}"></iframe>'
    outer = folder / "outer.html"
    outer.write_text(f"<!doctype html><meta charset=utf-8>{frame}<script>{MEASURE}</script>", encoding="utf-8")
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", *([DARK] if dark else [])]
    shown = subprocess.run(
        [browser, *flags, "--dump-dom", outer.as_uri()], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title, shown[:500]
    told: dict[str, Any] = json.loads(unescape(title[1]))
    return told
