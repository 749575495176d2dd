"""The layout of the HTML page: tiles, sortable tables, figures as inline SVG, provenance."""

import io
import json
import re
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from bdjax import __version__
from bdjax.report.figures import COLORS, INK, PAPER
from bdjax.report.pool import STATUSES
from bdjax.report.tables import NAMES, Printed, board, full

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

FONTS = "system-ui, 'DejaVu Sans', sans-serif"


class Drawing(NamedTuple):
    """A figure of the page, or the reason why there is none."""

    slug: str  # its file name without ".png"
    caption: str
    figure: "Figure | None"
    missing: str = ""


class Drawings(NamedTuple):
    """The figures of the page by section."""

    overall: list[Drawing]
    effects: list[Drawing]
    triggers: list[Drawing]
    pruning: list[Drawing]
    courses: list[Drawing]
    recovered: list[Drawing]


def page(records: "pl.DataFrame", drawings: Drawings) -> str:
    """The whole page as one string of HTML.

    Args:
      records: rows of a sweep, at least one.
      drawings: what was drawn from them.
    """
    leaders = board(records)
    sections = [
        ("defenses", "Defenses, best first", _leaders(leaders)),
        ("compared", "Defenses compared", _figures(drawings.overall)),
        ("effect", "Before and after", _effects(drawings.effects)),
        ("triggers", "What the triggers look like", _figures(drawings.triggers)),
        ("pruning", "What pruning does", _figures(drawings.pruning)),
        ("recovered", "The triggers that were recovered", _figures(drawings.recovered)),
        ("course", "What happened on the way", _figures(drawings.courses)),
        ("all", "Every scenario", _table(full(records), "Results per scenario and defense", tall=True)),
        ("provenance", "Where the numbers come from", _provenance(records)),
    ]
    sections = [section for section in sections if section[2]]
    datasets, attacks, methods, networks, seeds, ratios = (
        sorted({str(value) for value in records[key]} - {"none"}, key=_natural)
        for key in ("dataset", "attack", "defense", "model", "seed", "ratio")
    )
    title = "Backdoor attacks and defenses"
    if len(attacks) + len(datasets) < 5:
        title = f"{' and '.join(attacks)} on {' and '.join(datasets)}"
    lead = (
        f"{_count(attacks, 'attack')} against {', '.join(networks)}; {_count(methods, 'defense')}, {_count(seeds, 'seed')}, "
        f"poison ratios {', '.join(f'{100 * float(r):g}' for r in ratios)} %. All numbers are percent of test images."
    )
    template = Template(files("bdjax.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        version=escape(__version__),
        title=escape(title),
        lead=escape(lead),
        tiles=_tiles(records),
        links="".join(f'<a href="#{key}">{escape(head)}</a>' for key, head, _ in sections),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-head"><h2 id="{key}-head">{escape(head)}</h2>{body}</section>'
            for key, head, body in sections
        ),
    )


def _natural(text: str) -> tuple[bool, float, str]:
    """Numbers by value, then names."""
    number = text.replace(".", "", 1).isdigit()
    return not number, float(text) if number else 0.0, text


def _count(things: list[str], what: str) -> str:
    return f"{len(things)} {what}" + ("" if len(things) == 1 else "s")


def _tiles(records: "pl.DataFrame") -> str:
    """What became of every run, in numbers."""
    trained = records.filter(records["defense"] == "none")
    repaired = records.filter(records["defense"] != "none")
    tiles = [("trained members", trained.height, ""), ("repairs", repaired.height, "")]
    for status in STATUSES:
        count = records.filter(records["status"] == status).height
        text = {"ok": "measured", "non_finite": "non-finite"}.get(status, status)
        tiles.append((text, count, "lost" if count and status != "ok" else ""))
    items = "".join(f'<li class="{kind}"><b>{count:,}</b>{text}</li>' for text, count, kind in tiles)
    return f'<ul class="tiles">{items}</ul>'


def _leaders(told: Printed | None) -> str:
    if told is None:
        return ""
    text = (
        "Pooled over all attacks and poison ratios above 0; compare rows with the same number of tasks (training configurations "
        "× ratios). DER rewards removing the backdoor and charges lost accuracy: 50 means no change, 100 a perfect repair. The "
        "cost is what the defense takes from the accuracy (ARR) of models nobody attacked. Click a column to sort."
    )
    return f'<p class="soft">{escape(text)}</p>' + _table(told, "Defenses pooled over attacks and poison ratios")


def _table(told: Printed, caption: str, tall: bool = False) -> str:
    def cell(i: int, text: str, order: object) -> str:
        value, low, rest = text.partition(" [")
        shown = escape(value) + (f" <small>{escape(low + rest).strip()}</small>" if low else "")
        known = "" if order is None else f' data-v="{escape(str(order), quote=True)}"'
        kind = " class=n" if told.numeric[i] else " class=w" if told.heads[i] == NAMES["lost"] else ""
        return f"<td{kind}{known}>{shown}</td>"

    heads = "".join(
        f'<th scope="col"{" class=n" if numeric else ""}><button type="button">{escape(head)}</button></th>'
        for head, numeric in zip(told.heads, told.numeric, strict=True)
    )
    rows = "\n".join("<tr>" + "".join(cell(i, *c) for i, c in enumerate(row)) + "</tr>" for row in told.rows)
    constants = ", ".join(f"{key} {value}" for key, value in told.constants.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in told.notes)
    return (
        (f'<p class="soft">All rows: {escape(constants)}.</p>' if constants else "")
        + f'<div class="scroll{" tall" * tall}" tabindex="0" role="region" aria-label="{escape(caption)}">'
        + f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
        + f'<ul class="notes">{notes}</ul>'
    )


def _effects(drawings: list[Drawing]) -> str:
    text = (
        "Hollow: the backdoored model; filled: after the defense, with its 95 % interval. A defense without a result shows what "
        "became of its runs."
    )
    return f'<p class="soft">{text}</p>{_figures(drawings)}' if drawings else ""


def _figures(drawings: list[Drawing]) -> str:
    parts = []
    for drawing in drawings:
        caption = escape(drawing.caption, quote=True)
        if drawing.figure is None:
            parts.append(f'<p class="missing">No pictures of {caption}: {escape(drawing.missing)}</p>')
        else:
            picture = _svg(drawing.figure, drawing.slug).replace("<svg ", f'<svg role="img" aria-label="{caption}" ', 1)
            parts.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def _svg(figure: "Figure", salt: str) -> str:
    """A figure as an <svg> element in the colours of the page's theme, its text as text."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", text)
    used = set(re.findall(r"#([\w-]+)[)\"]", text))  # the other ids repeat from figure to figure
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for color, name in ((INK, "currentColor"), (PAPER, "var(--card)"), (COLORS[0], "var(--blue)")):
        text = text.replace(color, name)
    return text


def _provenance(records: "pl.DataFrame") -> str:
    import polars as pl

    def each(key: str) -> str:
        return "<br>".join(escape(str(value)) for value in records[key].drop_nulls().unique(maintain_order=True)) or "unknown"

    calls = records.select("cell", "created", "seconds", "compile_seconds").unique()
    installed = [json.loads(text) for text in records["versions"].drop_nulls().unique(maintain_order=True)]
    versions = [", ".join(f"{package} {version}" for package, version in packages.items()) for packages in installed]
    digests = records.select("dataset", "data_digest").unique(maintain_order=True).rows()
    told = [
        ("Versions", "<br>".join(map(escape, versions)) or "unknown"),
        ("Commit", each("git_commit")),
        ("Device", each("device")),
        ("Execution", each("execution")),
        ("Data", "<br>".join(f"{escape(name)} <code>{escape(str(digest))}</code>" for name, digest in digests)),
        ("Seeds", escape(", ".join(str(seed) for seed in sorted(set(records["seed"]))))),
        ("Computed", f"{escape(str(records['created'].min()))} to {escape(str(records['created'].max()))}"),
        ("Time", f"{calls['seconds'].sum():,.0f} s of computing, {calls['compile_seconds'].sum():,.0f} s of compiling"),
        ("Made again by", "<code>bdjax report</code> with this folder"),
    ]
    parts = "<dl>" + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in told) + "</dl>"
    configs = records.filter(pl.col("config").is_not_null()).unique("cell", maintain_order=True).sort("attack", "defense")
    listed = "".join(
        f"<h3>{escape(row['attack'])} · {escape(row['defense'])} <small class=soft>cell {escape(row['cell'])}</small></h3>"
        f"<p><code>{escape(row['config'])}</code></p>"
        for row in configs.select("attack", "defense", "cell", "config").to_dicts()
    )
    return parts + f"<details><summary>Full configuration of every cell ({configs.height})</summary>{listed}</details>"
