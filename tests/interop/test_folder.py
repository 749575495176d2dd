"""The import folder: what is written is read, and what is damaged is refused. No PyTorch here."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.interop import File, Import, from_state, load, save
from tests.interop.checkpoints import random_state, reduced, same_bits, triggered_rows


@pytest.fixture
def imported():
    model = reduced("cnn")
    first, second = (from_state(model, random_state(model, seed)) for seed in (0, 1))
    return Import(
        model="cnn",
        width=4,
        classes=10,
        image_shape=(32, 32, 3),
        dataset="cifar10",
        sources=(File("a/attack_result.pt", "0" * 64), File("b/attack_result.pt", "1" * 64)),
        points=((0, 0.1), (1, None), (7, 0.05)),
        variables=(first.variables, second.variables),
        network=(0, 1, 0),
        kept=(first.kept, second.kept),
        triggered=triggered_rows(),
    )


def test_what_is_written_is_read(imported, tmp_path):
    save(tmp_path / "in" / "x", imported)
    got = load(tmp_path / "in" / "x")
    plain = ("model", "width", "depth", "classes", "image_shape", "dataset", "sources", "points", "network")
    assert all(getattr(got, name) == getattr(imported, name) for name in plain)
    for ours, theirs in zip((*got.kept, got.triggered._asdict()), (*imported.kept, imported.triggered._asdict()), strict=True):
        assert same_bits({k: np.asarray(v) for k, v in ours.items()}, {k: np.asarray(v) for k, v in theirs.items()})
    assert isinstance(got.triggered.rows, int)
    assert got.digest == imported.digest and got.digests == imported.digests
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["x"]
    assert load(tmp_path / "in" / "x", kept=False).kept == ({}, {})


def test_an_import_without_images(imported, tmp_path):
    save(tmp_path / "x", imported._replace(triggered=None))
    assert load(tmp_path / "x").triggered is None


def test_reading_needs_no_pytorch(imported, tmp_path):
    save(tmp_path / "x", imported)
    code = (
        "import sys; sys.modules.update(torch=None, safetensors=None)\n"
        f"from bdjax.interop import load; print(load({str(tmp_path / 'x')!r}).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == imported.digest


def test_the_digest_is_that_of_what_decides_results(imported):
    digest = imported.digest
    assert imported._replace(sources=(File("c", "2" * 64),) * 2, kept=({}, {}), dataset="other").digest == digest
    order = imported._replace(points=((7, 0.05), (0, 0.1), (1, None)), network=(0, 0, 1))
    assert order.digest == digest
    networks = imported.variables[::-1]
    assert imported._replace(variables=networks, network=(1, 0, 1)).digest == digest
    for other in (
        imported._replace(variables=networks),
        imported._replace(points=((0, 0.2), (1, None), (7, 0.05))),
        imported._replace(triggered=None),
        imported._replace(triggered=imported.triggered._replace(attack_labels=imported.triggered.attack_labels + 1)),
    ):
        assert other.digest != digest


def test_a_folder_is_not_replaced_unasked(imported, tmp_path):
    save(tmp_path / "x", imported)
    with pytest.raises(UserError, match="exists already"):
        save(tmp_path / "x", imported)
    save(tmp_path / "x", imported._replace(width=8), overwrite=True)
    assert load(tmp_path / "x").width == 8
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match="is not an import folder and is not replaced"):
        save(tmp_path / "notes", imported, overwrite=True)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path):
    told = json.loads(path.read_text())
    told["points"][0][0] = 5
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("file", "damage", "text"),
    [
        ("network_1.npz", flip, r"network_1\.npz does not match its checksum; import the checkpoint again"),
        ("kept_0.npz", flip, r"kept_0\.npz does not match"),
        ("triggered.npz", lambda p: p.write_bytes(p.read_bytes()[:100]), r"triggered\.npz does not match"),
        ("network_0.npz", lambda p: p.unlink(), r"network_0\.npz is missing"),
        ("manifest.json", edit, r"manifest\.json does not match its checksum"),
        ("manifest.json", lambda p: p.write_text(p.read_text()[:80]), r"manifest\.json cannot be read"),
        ("manifest.json", lambda p: p.write_text("[]"), r"manifest\.json cannot be read"),
        ("manifest.json", lambda p: p.unlink(), r"is no import folder \(it has no manifest\.json\)"),
        ("manifest.json", lambda p: p.write_text(p.read_text().replace('"version": 1', '"version": 2')), r"bdjax-import 2; this"),
    ],
)
def test_damage(imported, tmp_path, file, damage, text):
    save(tmp_path / "x", imported)
    damage(tmp_path / "x" / file)
    with pytest.raises(UserError, match=text):
        load(tmp_path / "x")


def test_nothing_is_left_behind_where_writing_fails(imported, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"cannot write .*x: No space left on device"):
        save(tmp_path / "x", imported)
    assert list(tmp_path.iterdir()) == []
