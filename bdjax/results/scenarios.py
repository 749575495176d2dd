"""The training configurations of a report: a scenario each, all its ratios, seeds and defenses in it."""

import hashlib
import json
import re
from typing import TYPE_CHECKING, NamedTuple

from bdjax.results.apart import apart
from bdjax.results.configs import from_configs, labels, precision, trained

if TYPE_CHECKING:
    import polars as pl


class Scenario(NamedTuple):
    """One training configuration."""

    title: str  # the attack, and whatever else distinguishes it from the other scenarios of the report
    slug: str  # the title as a file name
    name: str  # as a file name too, and the same whatever else is in the report
    rows: "pl.DataFrame"


def scenarios(records: "pl.DataFrame") -> list[Scenario]:
    """The scenarios of a report, in the order of their first rows."""
    tagged = records.with_columns(from_configs(records, trained).alias("trained"))
    parts = tagged.partition_by("trained", maintain_order=True)
    every = [
        (
            p["attack"][0].rpartition(":")[2],
            labels(p["config"][0]) or "labels of its own",
            p["dataset"][0],
            f"{p['model'][0]} width {p['width'][0]}",
            precision(p["config"][0]),
            p["profile"][0],
        )
        for p in parts
    ]
    differs = [i == 0 or len({facts[i] for facts in every}) > 1 for i in range(6)]
    titles = [" · ".join(fact for fact, shown in zip(facts, differs, strict=True) if shown) for facts in every]
    found = []
    for title, facts, part in zip(_told_apart(titles, parts), every, parts, strict=True):
        name = f"{slug(facts[0])}-{hashlib.sha256(part['trained'][0].encode()).hexdigest()[:12]}"
        found.append(Scenario(title, slug(title), name, part.drop("trained")))
    return found


def _told_apart(titles: list[str], parts: "list[pl.DataFrame]") -> list[str]:
    """The titles, those that several configurations have with the fields in which these differ."""
    settings = apart([json.loads(part["trained"][0]) for part in parts], titles)
    texts = [title + f" · {one}" * bool(one) for title, one in zip(titles, settings, strict=True)]
    return [text if texts.count(text) == 1 else f"{text} · configuration {i + 1}" for i, text in enumerate(texts)]


def slug(title: str) -> str:
    """A title as a part of a file's name."""
    return re.sub(r"[^a-z0-9_]+", "-", title.lower()).strip("-")
