"""The row that a member gets before its cell runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bdjax.data.poisoned_export import already_poisoned
from bdjax.population import Execution
from bdjax.store import provenance
from bdjax.store.hashing import canonical, short_hash
from bdjax.store.rows import Row, blank
from bdjax.sweep import goal
from bdjax.sweep.cell import DefenseCell, Point, member_hash
from bdjax.sweep.cells import Attacked
from bdjax.types import Defense


def row_of(attacked: Attacked, point: Point, config: Mapping[str, Any], **fields: Any) -> Row:
    """Return the row of one member of a cell, without what was measured.

    Args:
      attacked: the training cell on the device.
      point: the member.
      config: the full static configuration of the cell (:func:`bdjax.sweep.build.described`).
      fields: columns that differ from those of a training cell.
    """
    dataset, train_cell = attacked.dataset, attacked.cell
    target = goal.target(attacked.attack, train_cell.target)
    common = dict(
        cell=short_hash(config),
        member=member_hash(point),
        dataset=dataset.spec.name,
        train_images=len(dataset.train.labels),
        test_images=len(dataset.test.labels),
        classes=dataset.spec.classes,
        majority=float(np.bincount(np.asarray(dataset.test.labels)).max() / len(dataset.test.labels)),
        model=attacked.model.name,
        width=attacked.model.width,
        attack=train_cell.attack,
        defense="none",
        profile=train_cell.profile,
        seed=point.seed,
        ratio=point.ratio,
        target=target,
        target_class=goal.class_name(dataset.spec, target),
        hyper=canonical(point.hyper),
        knows_trigger=False,
        knows_test=False,
        config=canonical(config),
        execution=canonical(attacked.execution),
        versions=canonical(provenance.versions()),
        git_commit=provenance.git_commit(),
        device=provenance.device(),
        data_digest=dataset.digest,
        trigger_digest=attacked.trigger_digest,
        warning=(already_poisoned(train_cell.dataset) or None) if train_cell.imported is None else None,
    )
    return blank(**{**common, **fields})


def defense_row(
    attacked: Attacked, cell: DefenseCell, config: Mapping[str, Any], defense: Defense, point: Point, base: Row
) -> Row:
    """Return the row of a member under a defense before it ran; one that was not trained passes its status on.

    Args:
      attacked: the training cell on the device.
      cell: the defense cell.
      config: its full static configuration.
      defense: built for it.
      point: the member.
      base: the row of the same member without a defense.
    """
    row = row_of(attacked, point, config, defense=cell.defense, spc=cell.spc, status=base["status"], reason=base["reason"])
    if base["status"] != "ok":
        row["reason"] = f"not trained: {base['reason']}"
    row.update(knows_trigger="triggered" in defense.needs, knows_test="test_accuracy" in defense.needs)
    row.update(poisoned=base["poisoned"], trigger_digest=base["trigger_digest"])
    row.update(acc_before=base["acc"], asr_before=base["asr"], ra_before=base["ra"], one_class_before=base["one_class"])
    row.update(target_rate=base["target_rate"], warning=base["warning"])
    return row


def timing(call: provenance.Timed, members: int, execution: Execution) -> Row:
    """The columns about how a call ran."""
    times = {"seconds": call.seconds, "compile_seconds": call.compile_seconds}
    return {**times, "members": members, "execution": canonical(execution)}
