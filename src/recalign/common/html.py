"""Pieces of a self-contained HTML page. All text is escaped here: titles come from users' files."""

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as escape

SMALLEST = 0.9  # pixels a point of a drawing: its letters of 10 points are then 9 pixels high
MANY, LONG = 5, 24  # columns beside the first that no narrow screen holds; characters that a text may be squeezed at
CSS = """
:root { color-scheme: light dark;
  --ink: #1c1c1c; --paper: #fdfdfc; --faint: #5f5f5f; --line: #d9d9d6; --mark: #b45309; --heat: #3b82c4;
  --shade: #0003; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --paper: #161616; --faint: #a3a39f; --line: #3a3a38; --mark: #f0a35e; --heat: #4f9be0;
    --shade: #fff4; }
}
* { box-sizing: border-box; }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 62rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; } h3 { font-size: 1rem; }
a { color: inherit; } a:focus-visible, summary:focus-visible, .wide:focus-visible { outline: 2px solid var(--mark); }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; background: var(--paper); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.875rem; }
.verdict { border-left: 4px solid var(--mark); padding: 0.2rem 0 0.2rem 1rem; }
.verdict p { margin: 0.4rem 0; } .verdict p:first-child { font-size: 1.15rem; font-weight: 600; }
.warning { border: 1px solid var(--mark); padding: 0.4rem 0.8rem; }
/* what goes on beyond an edge is shaded there: the paper scrolls along and covers the shade at the end */
.wide { overflow-x: auto; margin-bottom: 1rem; background:
    linear-gradient(to right, var(--paper) 40%, transparent) left / 1.5rem 100%,
    linear-gradient(to left, var(--paper) 40%, transparent) right / 1.5rem 100%,
    linear-gradient(to right, var(--shade), transparent) left / 0.6rem 100%,
    linear-gradient(to left, var(--shade), transparent) right / 0.6rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
.faint, .caption, figcaption { color: var(--faint); font-size: 0.875rem; } .caption { margin: 0 0 0.3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid var(--line); }
tbody th { font-weight: inherit; position: sticky; left: 0; background: var(--paper); }
tr.best { font-weight: 600; } tr.grey { color: var(--faint); } td.best { font-weight: 700; }
li.hit { font-weight: 600; }
.interval { display: block; white-space: nowrap; font-size: 0.8rem; font-weight: 400; }
td.long { min-width: 13rem; }
.heat td { padding: 0.3rem 0.3rem; } .heat tbody th { min-width: 9rem; } .heat .interval { font-size: 0.72rem; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: 0.6rem; }
code { font-size: 0.875rem; } details { margin: 0.5rem 0 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1rem; }
.cards > div { border: 1px solid var(--line); padding: 0.2rem 1rem; }
@media (max-width: 30rem) {
  table { font-size: 0.82rem; } th, td { padding-right: 0.5rem; } .interval { font-size: 0.72rem; }
  .heat tbody th { min-width: 7rem; }
}
"""


@dataclass(frozen=True)
class Drawing:
    """A figure: name (of its file), title, alt (what it shows, in words) and svg (the element, without XML heading)."""

    name: str
    title: str
    alt: str
    svg: str


def document(title: str, body: Iterable[str]) -> str:
    """A whole page: inline style, nothing fetched from anywhere (the policy in its head forbids it)."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>",
            '<a class="skip" href="#main">to the verdict</a>\n<main id="main">',
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def section(heading: str, *parts: str) -> str:
    """A section with its heading, which `contents` links to; the parts are HTML."""
    key = _key("s", heading)
    return "\n".join(
        [f'<section aria-labelledby="{key}">\n<h2 id="{key}">{escape(heading)}</h2>', *parts, "</section>"]
    )


def contents(sections: Iterable[str]) -> str:
    """Links to sections made by `section`."""
    heads = [re.search(r'<h2 id="(\w+)">(.*?)</h2>', own) for own in sections]
    links = "".join(f'<li><a href="#{head[1]}">{head[2]}</a></li>' for head in heads if head)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _key(kind: str, *texts: str) -> str:
    """An id that depends on nothing but the texts."""
    return f"{kind}{zlib.crc32(chr(0).join(texts).encode()):08x}"


def paragraph(text: str, css: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{escape(css)}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", best: str | None = None) -> str:
    """A table of plain values that scrolls on narrow screens; the row whose first cell is `best` stands out."""
    lines = []
    for first, *others in rows:
        css = ' class="best"' if first == best else ""
        scrolls = len(others) >= MANY
        lines.append(f"<tr{css}>{_row_head(first)}" + "".join(_data(cell, scrolls) for cell in others))
    return _framed(headings, lines, caption)


@dataclass(frozen=True)
class HeatRow:
    """A row of a heat table: its head, (text, value in 0 … 1) a cell, the column that stands out, grey where small."""

    head: str
    cells: Sequence[tuple[str, float]]
    best: int | None
    grey: bool


def heat_table(headings: Sequence[str], rows: Iterable[HeatRow], caption: str) -> str:
    """A table whose cells are tinted by their value in 0 … 1 (their text says it too); grey rows have no tint."""
    lines = []
    for row in rows:
        cells = []
        for place, (text, value) in enumerate(row.cells):
            mixed = f"color-mix(in srgb, var(--heat) {55 * value:.0f}%, transparent)"
            tint = "" if row.grey else f' style="background: {mixed}"'
            css = ' class="best"' if place == row.best else ""
            cells.append(f"<td{css}{tint}>{_cell(text)}</td>")
        small = ' class="grey"' if row.grey else ""
        lines.append(f"<tr{small}>{_row_head(row.head)}" + "".join(cells))
    return _framed(headings, lines, caption, "heat")


def _row_head(cell: object) -> str:
    return f'<th scope="row">{_cell(cell)}</th>'


def _data(cell: object, scrolls: bool) -> str:
    """A cell; its text keeps a width to be read at where the table `scrolls` on narrow screens in any case."""
    long = ' class="long"' if scrolls and len(str(cell).partition(" [")[0]) > LONG else ""
    return f"<td{long}>{_cell(cell)}</td>"


def _cell(cell: object) -> str:
    """Escaped text; an interval, from " [" on, stands small below its value and is not broken."""
    value, bracket, interval = str(cell).partition(" [")
    return escape(value) + (f' <span class="interval">[{escape(interval)}</span>' if bracket else "")


def _framed(headings: Sequence[str], lines: Sequence[str], caption: str, css: str = "") -> str:
    """The caption is above the frame, since inside it would be as wide as the table and be cut on a phone."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    key = _key("t", caption, *headings)
    over = f'<p class="caption" id="{key}">{escape(caption)}</p>\n' if caption else ""
    name = f'aria-labelledby="{key}"' if caption else f'aria-label="{escape(", ".join(headings))}"'
    body = "\n".join(f"{line}</tr>" for line in lines)
    return (
        f'{over}<div class="wide" role="region" {name} tabindex="0"><table class="{css}" {name}>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def figure(drawing: Drawing) -> str:
    """A drawing with its words for those who do not see it; where letters would become too small, it scrolls."""
    width = re.search(r'width="([\d.]+)pt"', drawing.svg)
    least = f' style="min-width: {SMALLEST * float(width[1]):.0f}px"' if width else ""
    svg = drawing.svg.replace("<svg", f'<svg role="img" aria-label="{escape(drawing.alt)}"{least}', 1)
    said = f"<figcaption>{escape(drawing.title)}. {escape(drawing.alt)}</figcaption>"
    frame = f'<div class="wide" role="region" aria-label="{escape(drawing.title)}" tabindex="0">{svg}</div>'
    return f"<figure>\n{frame}{said}\n</figure>"


def commands(lines: Iterable[str]) -> str:
    """Commands to type, one a line."""
    return '<pre tabindex="0"><code>' + "\n".join(escape(line) for line in lines) + "</code></pre>"


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
