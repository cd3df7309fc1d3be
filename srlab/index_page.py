"""Index page room: one page with the scorecard, every figure with its caption and numbers, and where it came from.

Takes what the gallery found below `results/` and the scorecard table; gives HTML. The page needs nothing but itself:
no script, no font, no address of anybody else. It is read on a phone as well as on a wide screen, in light and dark.
"""

from __future__ import annotations

import csv
import html
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, Protocol

PREVIEW_ROWS, PREVIEW_COLUMNS = 6, 8
"""What of a figure's CSV is shown on the page; the rest is one click away."""

VERDICTS = {"holds": ("good", "✔"), "holds only": ("part", "◐"), "within noise": ("part", "≈")}
VERDICTS |= {"does not hold": ("bad", "✘"), "not tested": ("open", "○")}
"""Beginning of a verdict -> its look: a colour and, for readers who see none, a sign."""


class Outcome(Protocol):
    """What the page wants to know about the run of a notebook: see `gallery.Outcome`."""

    notebook: str
    title: str
    seconds: float
    profile: str
    commit: str
    failed_cell: str
    error: str


def compose(
    outcomes: Sequence[Outcome], figures: Sequence[Mapping[str, Any]], scorecard: Path | None, results: Path
) -> str:
    """The page as HTML.

    Args:
        outcomes: how the notebooks ended, in their order.
        figures: records of saved figures: name, caption, notebook and provenance.
        scorecard: CSV with a row per claim (claim, statement, source, published, ours, low, high, control, also,
            verdict, notebook; columns that are absent stay empty); None if there is none.
        results: folder the page will lie in; the CSV files of the figures are looked up there.
    """
    known = {outcome.notebook: outcome for outcome in outcomes}
    sections = [
        _section(o, [_figure(f, results) for f in figures if f.get("notebook") == o.notebook]) for o in outcomes
    ]
    if others := [figure for figure in figures if figure.get("notebook") not in known]:
        sections.append(
            f'<section id="others"><h2>Other figures</h2>{"".join(_figure(f, results) for f in others)}</section>'
        )
    failed = sum(bool(outcome.error) for outcome in outcomes)
    trouble = f"; {failed} of them failed" if failed else ""
    claims = _read_scorecard(scorecard)
    return PAGE.substitute(
        summary=f"{count(figures, 'figure')} from {count(outcomes, 'notebook')}{trouble}.",
        contents="".join(_entry(o, sum(f.get("notebook") == o.notebook for f in figures)) for o in outcomes),
        scorecard=_scorecard(claims, known),
        sections="\n".join(sections),
    )


def count(things: Sequence[object] | range, name: str) -> str:
    """ "1 figure", "2 figures"."""
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


# scorecard


def _read_scorecard(path: Path | None) -> list[dict[str, str]]:
    if path is None or not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def _scorecard(claims: Sequence[Mapping[str, str]], known: Mapping[str, Outcome]) -> str:
    if not claims:
        return ""
    looks = [_look(claim.get("verdict", "")) for claim in claims]
    rows = "".join(_claim(claim, look, known) for claim, look in zip(claims, looks, strict=True))
    names = {"good": "hold", "part": "hold in part or within noise", "bad": "do not hold", "open": "not tested"}
    totals = ", ".join(f"{n} {name}" for kind, name in names.items() if (n := sum(look[0] == kind for look in looks)))
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Claim", "The paper", "Here", "Control", "Verdict"))
    return (
        f'<section id="scorecard"><h2>Scorecard</h2><p>What the paper claims, and what this lab found: {totals} '
        f'(of {len(claims)}). <a href="#figures">Figures below.</a></p>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _look(verdict: str) -> tuple[str, str]:
    fitting = [name for name in VERDICTS if verdict.startswith(name)]
    return VERDICTS[max(fitting, key=len)] if fitting else ("open", "○")


def _claim(claim: Mapping[str, str], look: tuple[str, str], known: Mapping[str, Outcome]) -> str:
    kind, sign = look
    notebook = claim.get("notebook", "")
    found = next((name for name in known if notebook and name.startswith(notebook[:2])), "")
    where = f'<a href="#{_text(found)}">{_text(notebook)}</a>' if found else _text(notebook)
    statement = claim.get("statement") or claim.get("claim", "")
    source = _text(claim.get("source", "")) + (f", notebook {where}" if where else "")
    verdict = _text(claim.get("verdict", ""))
    cells = {
        "Claim": f"{_text(statement)}<br><small>{source}</small>",
        "The paper": _text(claim.get("published", "")) or "–",
        "Here": _text(claim.get("ours", "")) or "–",
        "Control": _text("; ".join(filter(None, (claim.get("control"), claim.get("also"))))) or "–",
        "Verdict": f'<span class="{kind}"><span aria-hidden="true">{sign}</span> {verdict}</span>',
    }
    row = "".join(f'<td data-name="{name}"><div>{cell}</div></td>' for name, cell in cells.items())
    return f"<tr>{row}</tr>"


# notebooks and figures


def _entry(outcome: Outcome, figures: int) -> str:
    note = "failed" if outcome.error else count(range(figures), "figure")
    name, title = _text(outcome.notebook), _text(outcome.title or outcome.notebook)
    return f'<li><span class="number">{name[:2]}</span> <a href="#{name}">{title}</a> <small>{note}</small></li>'


def _section(outcome: Outcome, figures: Sequence[str]) -> str:
    name, where, error = (_text(value) for value in (outcome.notebook, outcome.failed_cell, outcome.error))
    trouble = f'<p class="failed"><strong>Failed</strong> in {where}: {error}</p>' if error else ""
    return (
        f'<section id="{name}"><h2>{_text(outcome.title or outcome.notebook)}</h2>'
        f'<p><a href="notebooks/{name}.html">Read the notebook</a> · '
        f'<a href="notebooks/{name}.ipynb">with its code to run</a> · '
        f"<small>{name}, profile {_text(outcome.profile)}, {outcome.seconds:.0f} s, "
        f"commit {_text(outcome.commit)}</small></p>{trouble}{''.join(figures)}</section>"
    )


def _figure(figure: Mapping[str, Any], results: Path) -> str:
    name, caption = _text(figure["name"]), _text(figure.get("caption", ""))
    made = ", ".join(f"{key} {figure.get(key)}" for key in ("seed", "profile", "commit", "date", "device"))
    packages = ", ".join(f"{package} {version}" for package, version in figure.get("versions", {}).items())
    kinds = (("csv", "numbers (CSV)"), ("pdf", "PDF"), ("svg", "SVG"), ("json", "provenance (JSON)"))
    numbers = _numbers(results / "figures" / f"{figure['name']}.csv")
    size = _size(results / "figures" / f"{figure['name']}.png")
    links = " · ".join(f'<a href="figures/{name}.{suffix}">{label}</a>' for suffix, label in kinds)
    return (
        f'<figure id="figure-{name}"><a href="figures/{name}.png">'
        f'<img src="figures/{name}.png" alt="{caption}"{size} loading="lazy"></a>'
        f"<figcaption>{caption}<p class='files'>{links}</p>{numbers}"
        f"<details><summary>how it was made</summary><small>{name}: {_text(made)}, {_text(packages)}; "
        f"numbers sha256 {_text(figure.get('data_sha256'))[:12]}</small></details></figcaption></figure>"
    )


def _numbers(path: Path) -> str:
    """The first rows of a CSV, folded away."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(islice(csv.reader(file), PREVIEW_ROWS + 1))
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in rows[0][:PREVIEW_COLUMNS])
    body = "".join(
        f"<tr>{''.join(f'<td>{_text(_short(cell))}</td>' for cell in row[:PREVIEW_COLUMNS])}</tr>" for row in rows[1:]
    )
    return (
        f'<details><summary>first numbers</summary><div class="scroll"><table class="plain"><thead><tr>{heads}</tr>'
        f"</thead><tbody>{body}</tbody></table></div></details>"
    )


def _size(path: Path) -> str:
    """Width and height of a PNG as attributes: its place is kept free until it is loaded."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError:
        return ""
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    return f' width="{width}" height="{height}"' if head[12:16] == b"IHDR" else ""


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.5g}"
    except ValueError:
        return cell if len(cell) <= 40 else cell[:39] + "…"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SR Lab: figures</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --soft: #55606e; --paper: #f6f7f9; --card: #fff; --edge: #dde1e7;
  --link: #0b5cad; --good: #00664f; --part: #7a4b00; --bad: #a3163f; --open: #55606e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a4adba; --paper: #14181e; --card: #1d232b;
  --edge: #333b46; --link: #7db8f5; --good: #5fd3b0; --part: #f0b55c; --bad: #ff8aa8; --open: #a4adba; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { font: 1rem/1.55 system-ui, "Segoe UI", Roboto, sans-serif; margin: 0; color: var(--ink);
  background: var(--paper); }
a { color: var(--link); }
header, main, nav { max-width: 66rem; margin: 0 auto; padding: 0 1.2rem; }
header { padding-top: 2.2rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .3rem; text-wrap: balance; }
header p { color: var(--soft); margin: .2rem 0 1rem; max-width: 46rem; }
small, .files { color: var(--soft); overflow-wrap: anywhere; font-size: .86rem; }
section { margin: 0 0 2.2rem; }
main > section { padding-top: 1.4rem; border-top: 1px solid var(--edge); }
nav ol { columns: 22rem 2; column-gap: 2.5rem; list-style: none; padding: 0; margin: .6rem 0 1.6rem; }
nav li { break-inside: avoid; margin-bottom: .35rem; padding-left: 2rem; text-indent: -2rem; }
.number { display: inline-block; width: 2rem; text-indent: 0; color: var(--soft); font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: .6rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; border-radius: .3rem; }
figcaption { margin-top: .8rem; max-width: 52rem; }
.files { margin: .35rem 0; }
details { margin: .2rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .55rem .7rem .55rem 0; border-bottom: 1px solid var(--edge);
  overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; font-size: .86rem; }
table.plain { width: auto; font: .82rem/1.4 ui-monospace, monospace; } table.plain td { padding: .2rem 1rem .2rem 0; }
td[data-name="Claim"] { width: 30%; } td[data-name="Verdict"] { width: 17%; font-weight: 600; }
.good { color: var(--good); } .part { color: var(--part); } .bad { color: var(--bad); } .open { color: var(--open); }
.failed { border-left: .3rem solid var(--bad); padding-left: .6rem; }
@media (max-width: 44rem) {
  h1 { font-size: 1.6rem; } header { padding-top: 1.2rem; } header, main, nav { padding: 0 .8rem; }
  figure { padding: .6rem; margin: 1rem -.2rem; }
  #scorecard thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  #scorecard tbody, #scorecard tr, #scorecard td { display: block; width: auto; }
  #scorecard tr { background: var(--card); border: 1px solid var(--edge); border-radius: .6rem; padding: .4rem .8rem;
    margin-bottom: .8rem; }
  #scorecard td { border: 0; padding: .25rem 0; display: grid; grid-template-columns: 5.6rem 1fr; gap: .4rem; }
  #scorecard td::before { content: attr(data-name); color: var(--soft); font-size: .82rem; font-weight: 400; }
}
@media print { figure { break-inside: avoid; } nav { display: none; } }
</style>
</head>
<body>
<header><h1>SR Lab: one model for x2, x3 and x4?</h1>
<p>Figures and findings of a rerun of <em>Implicit Grid Convolution for Multi-Scale Image Super-Resolution</em>
(<a href="https://arxiv.org/abs/2408.09674">arXiv 2408.09674</a>). $summary</p></header>
<main>$scorecard
<section id="figures"><h2>Notebooks</h2><nav aria-label="Notebooks" style="padding:0"><ol>$contents</ol></nav></section>
$sections</main>
</body>
</html>
""")
