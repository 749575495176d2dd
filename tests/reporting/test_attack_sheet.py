"""The sheet shows the very pixels; triggers are those of the members, whichever way an attack comes by them."""

import io

import jax
import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from bdjax import population
from bdjax.attacks.table import ATTACKS
from bdjax.cli.show_attack import _rows, markdown, show, show_attack
from bdjax.data import load
from bdjax.errors import UserError
from bdjax.interop.export_data import export_data
from bdjax.keys import Stream, member_key, root, stream
from bdjax.population import Execution
from bdjax.reporting import html
from bdjax.reporting.attack_sheet import DPI, FRAME, GAP, Shown, attack_sheet, mosaic
from bdjax.reporting.details import details
from bdjax.reporting.images import changed
from bdjax.results import member, recreate
from bdjax.results.learned import Learning
from bdjax.results.quality import Summary
from bdjax.results.scenarios import scenarios
from bdjax.results.triggers import pictures, unlearned
from bdjax.store import hashing
from bdjax.sweep import build, run
from bdjax.sweep.cell import TrainCell
from bdjax.sweep.grid import Grid
from bdjax.train.experiment import apply_trigger_to_all, stage
from tests.reporting.made_up import SOURCE
from tests.reporting.sketch import sketch

HOW = Execution("sequential", "native", "dispatch")
WAYS = ("coloured", "typical", "seeded")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("attacks") / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def two():
    """Two images of 6x5 pixels and a trigger: + 3, - 20 and a white corner."""
    images = np.random.default_rng(1).integers(30, 200, (2, 6, 5, 3), dtype=np.uint8)
    triggered = images.copy()
    triggered[:, 0, 0] += 3
    triggered[:, 1, 1] -= 20
    triggered[:, -1, -1] = 255
    return images, triggered


def test_changes_are_ten_times_as_large_around_grey(two):
    images, triggered = two
    shown = changed(images, triggered)
    assert (shown[:, 0, 0] == 157).all() and (shown[:, 1, 1] == 0).all() and (shown[:, -1, -1] == 255).all()
    assert (shown.reshape(2, -1) == 127).sum() == 2 * 27 * 3


def test_a_pixel_is_a_square_of_whole_pixels_in_the_file(two):
    images, triggered = two
    measured = Summary(2, 0, 21.34, 0.98765, 120.4, 210)
    figure = attack_sheet(images, [Shown("patch", triggered, measured, "seed 3"), Shown("none", images)], ["cat", "dog"])
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=figure.dpi)
    drawn = np.asarray(Image.open(buffer).convert("RGB"))
    left, right = mosaic([images, triggered, images], 16), mosaic([changed(images, triggered), changed(images, images)], 16)
    assert left.shape == (3 * (6 * 16 + 2 * FRAME) + 2 * GAP, 2 * (5 * 16 + 2 * FRAME) + GAP, 3)
    np.testing.assert_array_equal(left[FRAME:97:16, FRAME:81:16], images[0])
    for block in (left, right):
        high, wide, _ = block.shape
        places = [
            (y, x)
            for y, x in np.argwhere((drawn == block[0, 0]).all(-1))
            if drawn[y : y + high, x : x + wide].shape == block.shape and (drawn[y : y + high, x : x + wide] == block).all()
        ]
        assert len(places) == 1
    texts = {text.get_text() for text in figure.findobj(mpl.text.Text)}
    assert {"original", "patch", "PSNR 21.3 dB\nSSIM 0.988 · L∞ 120\nseed 3", "none", "cat", "dog"} <= texts
    assert figure.dpi == DPI


def test_grey_images_and_pictures_that_do_not_fit(two):
    images, triggered = two
    grey = mosaic([images[..., :1]], 1)
    assert (grey[1:7, 1:6] == images[0, :, :, :1]).all()
    with pytest.raises(UserError, match=r"pictures of patch are uint8\[1, 6, 5, 3\]; the originals are uint8\[2, 6, 5, 3\]"):
        attack_sheet(images, [Shown("patch", triggered[:1])])
    with pytest.raises(UserError, match="at least one attack"):
        attack_sheet(images, [])


def record_of(name, seed, root_number=0, train_images=100):
    """A record of a member that was never trained, as far as pictures read it."""
    cell = TrainCell("digits", train_images, 60, "cnn", 4, name, {}, {}, "corrected", 0, root_number)
    dataset = load("digits", train_images=train_images, test_images=60)
    row = {
        "dataset": "digits",
        "attack": name,
        "train_images": train_images,
        "test_images": 60,
        "seed": seed,
        "data_digest": dataset.digest,
    }
    return {**row, "config": hashing.canonical(build.describe(cell, dataset.digest))}, build.attacked(cell)[1], dataset


def as_measured(attack, dataset, seed, root_number, images):
    """Triggered images the way a population makes them."""
    key = root(root_number)
    data = stage(attack, dataset, key)
    stacked, _ = population.members([seed], [0.1], len(dataset.train.labels), root_number=root_number)
    assets = population.prepare(attack, stacked, dataset, data).assets
    if attack.recipe.shared_trigger:
        return np.asarray(apply_trigger_to_all(attack, attack.init(stream(key, Stream.TRIGGER), data.assets), key, images))
    own = stream(member_key(key, seed), Stream.TRIGGER)
    assets = None if assets is None else jax.tree.map(lambda leaf: leaf[0], assets)
    return np.asarray(apply_trigger_to_all(attack, attack.init(own, assets), own, images))


@pytest.mark.parametrize("way", WAYS)
def test_pictures_of_a_record_carry_the_trigger_of_its_member(file, way, tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path))
    corners = {}
    for seed, root_number, rows in ((0, 0, 100), (1, 0, 100), (1, 1, 100), (1, 1, 50)):
        row, attack, dataset = record_of(f"{file}:{way}", seed, root_number, rows)
        if way == "seeded" or (way == "typical" and (seed, root_number, rows) != (1, 0, 100)):  # that of seed 0 serves
            with pytest.raises(UserError, match=f"what .*:{way} prepared .* not kept .* --dataset digits --train-images {rows}$"):
                pictures(row)
        shown = pictures({**row, "config": row["config"].replace(way, "coloured")}, count=3).images
        want = as_measured(attack, dataset, seed, root_number, shown)
        made = pictures(row, count=3)
        assert made.note == ("" if way == "typical" else f"seed {seed}") and made.images.shape == (3, 16, 16, 3)
        np.testing.assert_array_equal(made.images, pictures(row, count=8).images[:3])
        np.testing.assert_array_equal(made.triggered, want)
        assert (made.triggered[:, :-3] == made.images[:, :-3]).all() and (
            made.triggered[:, -3:, -3:] == made.triggered[0, -1, -1]
        ).all()
        corners[seed, root_number, rows] = tuple(made.triggered[0, -1, -1])
    first, second, other, fewer = corners.values()
    assert (first != second) == (way != "typical") and (second != other) == (way != "typical")
    assert (other != fewer) == (way == "typical")  # a mean of other images; the keys are the same


def test_pictures_need_the_images_and_the_file_of_the_record(file, tmp_path):
    row, *_ = record_of(f"{file}:typical", 0)
    with pytest.raises(UserError, match="are not those of the record"):
        pictures({**row, "train_images": 50})
    mine = tmp_path / "mine.py"
    mine.write_text(SOURCE)
    row, *_ = record_of(f"{mine}:coloured", 0)
    mine.write_text(SOURCE.replace("255.0", "128.0"))
    with pytest.raises(UserError, match="was edited since the record was made"):
        pictures(row)


@pytest.fixture(scope="module")
def results(file, tmp_path_factory):
    """Two members whose trigger was learned."""
    out = tmp_path_factory.mktemp("results")
    grid = Grid(attack=(f"{file}:learned",), defense=(), poison_ratio=(0.0, 0.1), seeds=(2,), width=4, train_images=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        return out, run.run(grid, out, execution=HOW)


def learned_images(out, ratio):
    """Triggered test images of a member as they were measured, and their rows."""
    dataset = load("digits", train_images=100)
    found = recreate.triggered(member.find(out, {"ratio": ratio}), dataset)
    return dict(zip(found.index.tolist(), found.images, strict=True))


@pytest.mark.slow
def test_pictures_of_a_learned_trigger_come_from_the_weights(results, tmp_path, monkeypatch):
    out, frame = results
    labels = np.asarray(load("digits").test.labels)
    for row in frame.iter_rows(named=True):
        made = pictures(row, out=out)
        measured = learned_images(out, row["ratio"])
        for k in range(1, 8):  # class 0 is the target, which is not measured
            np.testing.assert_array_equal(made.triggered[k], measured[int(np.argmax(labels == k))])
        with pytest.raises(UserError, match="name the folder of its results"):
            pictures(row)
        with pytest.raises(UserError, match="no networks"):
            pictures({**row, "seed": 9}, out=out)
    untouched, moved = (learned_images(out, ratio)[1] for ratio in (0.0, 0.1))
    assert (untouched != moved).any()  # it was learned where rows were poisoned
    sketch(monkeypatch)
    page = html.build(tmp_path / "page", frame).read_text()
    assert "the weights of this member are no longer" in page or "is no folder of results" in page


@pytest.mark.slow
def test_the_page_of_a_folder_shows_its_learned_trigger(results):
    out, frame = results
    drawn = [one for one in details(scenarios(frame), out, None).triggers if one.figure is not None]
    assert len(drawn) == 1
    texts = {text.get_text() for text in drawn[0].figure.findobj(mpl.text.Text)}
    assert {"original", "learned\nseed 2"} <= texts
    want = pictures(frame.filter(frame["ratio"] == 0.1).row(0, named=True), out=out).triggered
    shown = drawn[0].figure.axes[8].images[0].get_array()
    np.testing.assert_array_equal(shown, want[0])


def png(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_show_draws_and_measures_what_members_carry(file, tmp_path, capsys):
    made = show(["badnets", f"{file}:seeded"], "digits", out=tmp_path / "sheet.png", images=3, target=2, seed=4, train_images=100)
    assert made.path == tmp_path / "sheet.png" and [row.name for row in made.rows] == ["badnets", "seeded"]
    dataset = load("digits", train_images=100)
    labels = np.asarray(dataset.test.labels)
    assert all(row.quality.images == (labels != 2).sum() for row in made.rows)
    attack = build.attacked(TrainCell("digits", 100, None, "cnn", None, f"{file}:seeded", {"target": 2}, {}, "corrected", 2, 0))[
        1
    ]
    rows = [int(np.flatnonzero(labels == k)[0]) for k in (0, 5, 9)]  # evenly spaced among 0, 1, 3 … 9
    images = np.asarray(dataset.test.images)[rows]
    triggered = as_measured(attack, dataset, 4, 0, images)
    sheet, want = png(made.path), mosaic([triggered], 6)
    high, wide, _ = want.shape
    assert any(
        (sheet[y : y + high, x : x + wide] == want).all()
        for y, x in np.argwhere((sheet[: 1 - high, : 1 - wide] == want[0, 0]).all(-1))
    )
    moved = np.asarray(dataset.test.images)[labels != 2].astype(int)
    most = np.abs(as_measured(attack, dataset, 4, 0, moved.astype(np.uint8)).astype(int) - moved).max((1, 2, 3))
    assert made.rows[1].quality.linf == most.mean() and made.rows[1].quality.linf_max == most.max()
    table = markdown(made.rows).splitlines()
    assert len(table) == 4 and table[2].startswith("| badnets | ") and table[3].endswith(f" | {most.max()} | {len(moved)} | 0 |")


@pytest.mark.slow
def test_a_learned_trigger_is_trained_here_or_taken_from_a_run(results, file, tmp_path):
    out, _ = results
    name, lines = f"{file}:learned", []
    common = {"seed": 2, "images": 9, "say": lines.append, "execution": HOW}
    taken = show([name], "digits", out=tmp_path / "a.png", **common, learning=Learning(str(out), poison_ratio=0.1))
    assert not lines
    fresh = show(
        [name], "digits", out=tmp_path / "b.png", **common, train_images=100, learning=Learning(width=4, poison_ratio=0.1)
    )
    assert taken.rows == fresh.rows and [row.name for row in fresh.rows] == ["learned", "learned, training"]
    assert fresh.rows[1].quality.linf > 1.5 * fresh.rows[0].quality.linf  # twice as strong while training
    np.testing.assert_array_equal(png(tmp_path / "a.png"), png(tmp_path / "b.png"))
    assert (
        "learns its trigger" in lines[0]
        and "cnn, 2 epochs of 100 images" in lines[0]
        and "ACC 0." in lines[-1]
        and "ASR " in lines[-1]
    )
    with pytest.raises(UserError, match=r"2 networks of .* it holds ratio: 0.0, 0.1"):
        show([name], "digits", out=tmp_path / "c.png", **common, learning=Learning(str(out)))
    with pytest.raises(UserError, match=r"no networks of .* model preactresnet18"):
        show(
            [name],
            "digits",
            out=tmp_path / "c.png",
            **common,
            learning=Learning(str(out), model="preactresnet18", poison_ratio=0.1),
        )
    with pytest.raises(UserError, match=r"was trained with .*:learned of target 0"):
        show([name], "digits", out=tmp_path / "c.png", **common, target=3, learning=Learning(str(out), poison_ratio=0.1))
    with pytest.raises(UserError, match=r"^--epochs, recipe\.lr=1: nothing is trained where --results"):
        show([name], "digits", out=tmp_path / "c.png", config=["recipe.lr=1"], learning=Learning(str(out), epochs=3))
    assert not (tmp_path / "c.png").exists()


def test_no_name_means_every_attack_that_fits_the_data(tmp_path, monkeypatch):
    from bdjax.attacks import ATTACKS

    def picky(spec, config=None, *, profile="corrected"):
        raise UserError("picky needs larger images")

    some = {"badnets": ATTACKS["badnets"], "blended": ATTACKS["blended"], "picky": picky}
    for module in ("bdjax.attacks.table", "bdjax.cli.show_attack"):
        monkeypatch.setattr(f"{module}.ATTACKS", some)
    lines = []
    made = show([], "digits", out=tmp_path / "all.png", images=2, say=lines.append)
    assert [row.name for row in made.rows] == ["badnets", "blended"] and lines == ["picky is left out: picky needs larger images"]
    with pytest.raises(UserError, match="larger images"):
        show(["picky"], "digits", out=tmp_path / "all.png", images=2)


def test_as_many_images_are_shown_as_there_are_classes_unless_the_user_says(tiny_dataset, tmp_path):
    labels, attack = np.asarray(tiny_dataset.test.labels), ATTACKS["badnets"](tiny_dataset.spec)
    assert (
        len(_rows(labels, [attack], None, tiny_dataset.spec)[0]) == 3
        and len(_rows(labels, [attack], 2, tiny_dataset.spec)[0]) == 2
    )


def test_what_has_no_meaning_is_refused(tmp_path):
    out = tmp_path / "sheet.png"
    for names, options, text in (
        (["badnet"], {}, "unknown attack 'badnet'.*Did you mean 'badnets'"),
        (["badnets"], {"out": tmp_path / "sheet.jpg"}, "must end in .png"),
        (["badnets"], {"images": 10}, "9 classes to show, besides the target; allowed: 1 … 9"),
        (["badnets"], {"images": 0}, "allowed: 1 … 9"),
        (["badnets"], {"target": 10}, "target"),
        (["badnets"], {"learning": Learning(epochs=3, results="x")}, "--results, --epochs: no network is trained"),
        (["badnets"], {"learning": Learning(model="cnn")}, "--model: no network is trained"),
        (["badnets"], {"config": ["badnets.recipe.lr=1"]}, "badnets.recipe.lr=1: no network is trained"),
        (["badnets"], {"config": ["blended.target=1"]}, "blended"),
        (["badnets", "badnets"], {}, "twice"),
    ):
        with pytest.raises(UserError, match=text):
            show(names, "digits", **{"out": out, **options})
    assert not out.exists()


def test_all_to_all_shows_every_class(tmp_path):
    made = show(["badnets"], "digits", out=tmp_path / "s.png", images=10, config=["badnets.labels=all_to_all"])
    assert made.rows[0].quality.images == 360


def test_the_command_prints_the_table(tmp_path, capsys):
    assert show_attack(("badnets",), Learning(), out=str(tmp_path / "s.png"), images=2) == 0
    printed = capsys.readouterr().out
    assert "| badnets | " in printed and f"picture in {tmp_path / 's.png'}" in printed


def test_a_learned_trigger_is_not_made_from_settings(file):
    cell = TrainCell("digits", 100, None, "cnn", None, f"{file}:learned", {}, {}, "corrected", 0, 0)
    with pytest.raises(UserError, match="learns its trigger"):
        unlearned(build.attacked(cell)[1], load("digits", train_images=100), 0, 0)


def test_a_stamp_of_other_numbers_is_refused_with_its_place(tmp_path):
    path = tmp_path / "bytes.py"
    path.write_text(
        SOURCE
        + """

def in_bytes(spec, config=None, *, profile="corrected"):
    def stamp(trigger, key, images):
        return jnp.round(255 * images).astype(jnp.uint8)

    return badnets(spec, config, profile=profile)._replace(stamp=stamp)
"""
    )
    with pytest.raises(UserError, match=r"bytes\.py, line \d+: stamp returns uint8\[.*; it has to be float32\["):
        show((f"{path}:in_bytes",), "digits", out=tmp_path / "sheet.png")
    with pytest.raises(UserError, match="stamp returns uint8"):
        export_data(Grid(dataset="digits", attack=f"{path}:in_bytes", poison_ratio=0.1), tmp_path / "out")
