"""Pieces of a self-contained HTML page. All text is escaped here: titles come from users' files."""

from collections.abc import Iterable, Sequence
from html import escape as escape

from recalign.evaluation.plots import Drawing

CSS = """
:root { color-scheme: light dark;
  --ink: #1c1c1c; --paper: #fdfdfc; --faint: #6b6b6b; --line: #d9d9d6; --mark: #b45309; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --paper: #161616; --faint: #9a9a96; --line: #3a3a38; --mark: #f0a35e; }
}
* { box-sizing: border-box; }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 62rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; } h3 { font-size: 1rem; }
.verdict { border-left: 4px solid var(--mark); padding: 0.2rem 0 0.2rem 1rem; }
.verdict p { margin: 0.4rem 0; } .verdict p:first-child { font-size: 1.15rem; font-weight: 600; }
.wide { overflow-x: auto; } .faint, caption, figcaption { color: var(--faint); font-size: 0.875rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
caption { text-align: left; padding-bottom: 0.3rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid var(--line); }
tr.best { font-weight: 600; } li.hit { font-weight: 600; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: 0.6rem; } code { font-size: 0.875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.cards > div { border: 1px solid var(--line); padding: 0.2rem 1rem; }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page: inline style, nothing fetched from anywhere (the policy in its head forbids it)."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def section(heading: str, *parts: str) -> str:
    """A section with its heading; the parts are HTML."""
    return "\n".join([f"<section>\n<h2>{escape(heading)}</h2>", *parts, "</section>"])


def paragraph(text: str, css: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{escape(css)}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", best: str | None = None) -> str:
    """A table of plain values that scrolls on narrow screens; the row whose first cell is `best` stands out."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    lines = []
    for row in rows:
        css = ' class="best"' if row and row[0] == best else ""
        lines.append(f"<tr{css}>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>")
    over = f"<caption>{escape(caption)}</caption>" if caption else ""
    inside = f"{over}<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>"
    return f'<div class="wide" tabindex="0"><table>{inside}</table></div>'


def figure(drawing: Drawing) -> str:
    """A drawing with its words for those who do not see it."""
    svg = drawing.svg.replace("<svg", f'<svg role="img" aria-label="{escape(drawing.alt)}"', 1)
    return f"<figure>\n{svg}<figcaption>{escape(drawing.title)}. {escape(drawing.alt)}</figcaption>\n</figure>"


def commands(lines: Iterable[str]) -> str:
    """Commands to type, one a line."""
    return "<pre><code>" + "\n".join(escape(line) for line in lines) + "</code></pre>"


def folded(summary: str, inside: str) -> str:
    """HTML that opens on a click."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{inside}\n</details>"


def ordered(lines: Iterable[str], hit: str) -> str:
    """A ranked list; the line that equals `hit` stands out, in words too."""
    listed = [
        f'<li class="hit">{escape(line)} ← came next</li>' if line == hit else f"<li>{escape(line)}</li>"
        for line in lines
    ]
    return "<ol>\n" + "\n".join(listed) + "\n</ol>"
