"""What defended networks still get wrong, class by class: a table per defense, behind a line that opens it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdjax.metrics import Floats
from bdjax.reporting.render import render
from bdjax.results.by_class import Pooled, Rates
from bdjax.results.wording import percent, ratio_title

if TYPE_CHECKING:
    from markupsafe import Markup

MOST = 50  # classes of a table at most: those with the most mistakes
TALL = 24  # a table with more rows scrolls in itself
LEAD = (
    "Open a defense to see the classes of which its networks still get images wrong: ACC of their clean test images, ASR and RA "
    "of their triggered ones. All runs at the largest poison ratio together, with the most clean samples per class."
)


class OfScenario(NamedTuple):
    """The defenses of one training configuration."""

    title: str
    slug: str
    names: tuple[str, ...]  # of the classes; () = they are known by their numbers
    defenses: list[Pooled]


def tables(every: Sequence[OfScenario]) -> "Markup | str":
    """A table per defense; "" where no record counts by class."""
    shown = [_table(one, place) for one in every for place in range(len(one.defenses))]
    heads = ["class", *(f"{rate} {when} %" for rate in ("ACC", "ASR", "RA") for when in ("before", "after"))]
    return render("classes.html", shown=shown, heads=heads, tall=TALL) if shown else ""


def _table(one: OfScenario, place: int) -> dict[str, Any]:
    defense = one.defenses[place]
    after = defense.after.rates()
    nowhere = np.full(len(after.acc), np.nan)
    before = Rates(nowhere, nowhere, nowhere) if defense.before is None else defense.before.rates()
    names = one.names or tuple(str(k) for k in range(len(after.acc)))
    worst = np.sort(np.argsort(-defense.after.mistakes(), kind="stable")[:MOST])
    columns = [values for pair in zip(before, after, strict=True) for values in pair]
    given = [] if defense.spc is None else [f"{defense.spc} per class"]
    return {
        "name": f"classes-{one.slug}-{place}",
        "title": ", ".join([f"{defense.title} against {one.title}", ratio_title(defense.ratio), *given]),
        "said": _said(defense, after, names),
        "rows": [{"name": names[k], "shares": [_share(values[k]) for values in columns]} for k in worst],
        "left_out": len(names) - len(worst),
    }


def _said(defense: Pooled, after: Rates, names: tuple[str, ...]) -> str:
    """The runs, and the classes that came out worst."""
    found = [f"{defense.runs} run" + "s" * (defense.runs > 1)]
    for values, worst, what in ((after.acc, np.nanargmin, "lowest ACC"), (after.asr, np.nanargmax, "highest ASR")):
        if not np.isnan(values).all():
            k = int(worst(values))
            found.append(f"{what} {percent(float(values[k]))} % ({names[k]})")
    return ", ".join(found)


def _share(value: Floats) -> float | None:
    return None if np.isnan(value) else float(value)
