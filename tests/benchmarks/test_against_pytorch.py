"""The benchmark beside PyTorch: all rows, the same work, and a fine-tuning that reaches the same parameters."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.batches import epoch_plan
from bdjax.defenses.table import DEFENSES
from bdjax.keys import Stream, step_key, stream
from bdjax.models import MODELS
from bdjax.types import CleanSet, DataSpec, DefenderView
from tests.torch_networks import benchmarked, state_dict, torch

pytestmark = pytest.mark.torch

EPOCHS = 3
SMALL = "--model cnn --width 4 --size 8 --batch 4 --steps 2 --epochs 2 --spc 1 --members 3 --rounds 1"


def table(monkeypatch, tmp_path, flags):
    from benchmarks import against_pytorch

    monkeypatch.setattr(sys, "argv", ["against_pytorch", *f"{SMALL} {flags} --out {tmp_path}/table".split()])
    against_pytorch.main()
    assert (tmp_path / "table.md").read_text().count("cnn width 4") >= 1
    return json.loads((tmp_path / "table.json").read_text())["rows"]


def test_every_contestant_has_its_row_and_does_the_same_work(monkeypatch, tmp_path):
    rows = table(monkeypatch, tmp_path, "--eval-images 20 --variants eager processes --executions")
    groups = {}
    for row in rows:
        groups.setdefault((row["work"], row["members"]), []).append(row)
    assert list(groups) == [(work, 3) for work in ("train", "tune", "tune, evaluated")]
    for (work, n), group in groups.items():
        assert [row["how"].split(",")[0].split(" (")[0] for row in group] == ["bdjax default", "PyTorch eager", "PyTorch eager"]
        want = {"train": 4 * 2, "tune": 2 * 10, "tune, evaluated": 2 * 10 + 2 * 20}[work]
        assert {row["images"] for row in group} == {n * want}
        assert len({row["MMAC/image"] for row in group}) == 1
        assert group[1]["vs PyTorch eager"] == 1.0
        for row in group:
            assert row["vs PyTorch eager"] == pytest.approx(group[1]["seconds"] / row["seconds"])
            rate, amount = ("img/s", n * want) if work == "train" else ("experiments/min", 60 * n)
            assert row[rate] == pytest.approx(amount / row["seconds"])
        assert max(row["vs best PyTorch"] for row in group[1:]) == 1.0


def test_a_compiler_that_fails_is_a_row_with_the_reason(monkeypatch, tmp_path):
    flags = "--work train --members 1 2 --variants eager compiled --compile-mode nonsense"
    rows = table(monkeypatch, tmp_path, flags)
    failed = [row for row in rows if "failed" in row]
    assert [(row["members"], row["how"]) for row in failed] == [(n, "PyTorch torch.compile, channels-last") for n in (1, 2)]
    assert all("nonsense" in row["failed"] for row in failed)
    assert [(row["members"], row["images"]) for row in rows if row not in failed] == [(1, 8)] * 2 + [(2, 16)] * 2


def test_without_torch_our_side_runs_alone_and_says_so(monkeypatch, tmp_path):
    from benchmarks import against_pytorch

    monkeypatch.setattr(against_pytorch.importlib.util, "find_spec", lambda name: None)
    rows = table(monkeypatch, tmp_path, "--work tune --members 1")
    assert len(rows) == 1 and rows[0]["how"].startswith("bdjax default") and rows[0]["vs PyTorch eager"] is None
    assert "not installed" in (tmp_path / "table.md").read_text()


def test_unequal_work_stops_the_run(monkeypatch, tmp_path):
    from benchmarks import torch_contestants

    monkeypatch.setattr(torch_contestants.Runner, "run", lambda self, models: 1)
    with pytest.raises(RuntimeError, match="not the same work"):
        table(monkeypatch, tmp_path, "--work train --members 1 --variants eager")


@pytest.mark.slow
def test_compiled_networks_do_the_same_work(monkeypatch, tmp_path):
    rows = table(monkeypatch, tmp_path, "--members 2 --variants eager compiled processes")
    assert len(rows) == 8 and not any("failed" in row for row in rows)
    assert {row["images"] for row in rows if row["work"] == "train"} == {16}
    assert all(row["compile s"] > 0 for row in rows if "torch.compile" in row["how"])


@pytest.mark.parametrize("batch", [40, 16], ids=["one batch", "the last batch is incomplete"])
def test_both_fine_tunings_reach_the_same_parameters(batch):
    from benchmarks.torch_reference import Cnn, Sgd, forward_of, tune

    spec = DataSpec("x", (12, 12, 3), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), False, 0)  # nothing to augment
    model = MODELS["cnn"](spec, 8)
    variables = model.init(jax.random.key(0))
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (40, 12, 12, 3), dtype=np.uint8), np.arange(40, dtype=np.int32) % 10
    clean = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.ones(40, jnp.int8), jnp.int32(4))
    defense = DEFENSES["ft"](model, {"epochs": EPOCHS, "batch": batch})
    key = jax.random.key(1)
    hyper = defense.hyper._replace(lr=np.float32(0.05))
    ours = jax.jit(defense.defend)(key, DefenderView(variables, clean), hyper)

    batches = []
    for epoch in range(EPOCHS):
        rows, mask = epoch_plan(step_key(stream(key, Stream.ORDER), jnp.int32(epoch)), jnp.ones(40, jnp.bool_), batch)
        batches.append([torch.tensor(np.asarray(r)[np.asarray(m) > 0].astype(np.int64)) for r, m in zip(rows, mask, strict=True)])
    net = Cnn(10, 8)
    net.load_state_dict(state_dict(variables, benchmarked(model)), strict=True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sgd = Sgd(*(float(x) for x in hyper))
    forward = forward_of(net, spec.mean, spec.std, torch.float32)
    done = tune(net, forward, torch.tensor(images), torch.tensor(labels.astype(np.int64)), batch, EPOCHS, sgd, batches)

    assert done == EPOCHS * 40
    want = state_dict(ours.variables, benchmarked(model))
    for name, got in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert float((got - before[name]).abs().max()) > 1e-3, name  # it moved
            np.testing.assert_allclose(got.numpy(), want[name].numpy(), atol=1e-4, err_msg=name)
