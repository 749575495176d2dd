"""Triggers of the user's own: patches and patterns of BadNets, pictures of Blended, stored fields of WaNet."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bdjax.attacks.badnets.badnets import badnets, patch
from bdjax.attacks.blended import blended, picture
from bdjax.attacks.table import ATTACKS
from bdjax.attacks.wanet.wanet import draw_field, wanet
from bdjax.configure import recorded
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path / "cache"))


def stamped(attack, images=IMAGES):
    trigger = attack.init(KEY, None)
    return np.asarray(to_uint8(attack.stamp(trigger, KEY, to_float(jnp.asarray(images)))))


def saved(path, pixels, **options):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return str(path)


def noise(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("badnets", ["size", "place", "colour", "pattern", "transparent"]),
        ("blended", ["picture"]),
        ("wanet", ["field"]),
        ("bpp", ["dithering"]),
    ],
)
def test_records_of_the_default_triggers_are_those_of_before(tiny_spec, name, added):
    config = ATTACKS[name](tiny_spec).config
    assert [field for field in config._fields if field not in recorded(config)] == added
    assert not {*added} & {*recorded(ATTACKS[name](tiny_spec, dict.fromkeys(added)).config)}


@pytest.mark.parametrize("side", [8, 32, 64])
def test_fields_at_their_defaults_stamp_the_default_patch(tiny_spec, side):
    spec = tiny_spec._replace(image_shape=(side, side, 3))
    images = noise(2, side, side, 3)
    told = {"place": "bottom_right", "colour": [255, 255, 255]}
    np.testing.assert_array_equal(stamped(badnets(spec, told), images), stamped(badnets(spec), images))
    corner = patch(side, side) > 0
    moved = stamped(badnets(spec, {"place": "top_left"}), images)
    size = corner.any(1).sum()  # the whole patch moves, its soft border too
    np.testing.assert_array_equal(moved[:, :size, :size], stamped(badnets(spec), images)[:, -size:, -size:])
    np.testing.assert_array_equal(moved[:, size:], images[:, size:])


@pytest.mark.parametrize(
    ("place", "row", "column"),
    [("top_left", 0, 0), ("top_right", 0, 6), ("bottom_left", 6, 0), ("bottom_right", 6, 6), ("center", 3, 3), ([2, 5], 2, 5)],
)
def test_a_patch_of_any_size_place_and_colour(tiny_spec, place, row, column):
    want = IMAGES.copy()
    want[:, row : row + 2, column : column + 2] = [0, 9, 200]
    np.testing.assert_array_equal(stamped(badnets(tiny_spec, {"size": 2, "place": place, "colour": [0, 9, 200]})), want)
    want[:, row : row + 2, column : column + 2] = 0  # black is a colour, and hides what it covers
    np.testing.assert_array_equal(stamped(badnets(tiny_spec, {"size": 2, "place": place, "colour": 0})), want)


def test_a_pattern_is_stamped_pixel_by_pixel(tiny_spec, tmp_path):
    pixels = noise(2, 3, 3)
    attack = badnets(tiny_spec, {"pattern": saved(tmp_path / "a.png", pixels), "place": "top_left"})
    want = IMAGES.copy()
    want[:, :2, :3] = pixels
    np.testing.assert_array_equal(stamped(attack), want)
    grey = badnets(tiny_spec, {"pattern": saved(tmp_path / "grey.png", pixels[:, :, 0]), "place": "top_left"})
    np.testing.assert_array_equal(stamped(grey)[:, :2, :3], np.broadcast_to(pixels[:, :, :1], (3, 2, 3, 3)))


def test_the_alpha_channel_of_a_pattern_is_its_mask(tiny_spec, tmp_path):
    pixels = noise(8, 8, 4)
    pixels[:, :, 3] = np.where(pixels[:, :, 3] > 99, 255, 0)
    want = np.where(pixels[None, :, :, 3:] == 255, pixels[None, :, :, :3], IMAGES)
    np.testing.assert_array_equal(stamped(badnets(tiny_spec, {"pattern": saved(tmp_path / "a.png", pixels)})), want)
    pixels[:, :, 3] = 51  # a fifth
    mixed = (51 * pixels[None, :, :, :3].astype(int) + 204 * IMAGES.astype(int) + 127) // 255
    np.testing.assert_array_equal(stamped(badnets(tiny_spec, {"pattern": saved(tmp_path / "b.png", pixels)})), mixed)


def test_a_colour_of_a_pattern_can_mean_transparent(tiny_spec, tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[-3:, -3:] = 255  # the file of BackdoorBench
    attack = badnets(tiny_spec, {"pattern": saved(tmp_path / "a.png", pixels), "transparent": 0})
    np.testing.assert_array_equal(stamped(attack), stamped(badnets(tiny_spec)))


def test_a_large_pattern_is_scaled_by_its_longer_side(tiny_spec, tmp_path):
    path = saved(tmp_path / "a.png", np.full((100, 50, 3), 7))
    want = IMAGES.copy()
    want[:, 4:, 6:] = 7
    np.testing.assert_array_equal(stamped(badnets(tiny_spec, {"pattern": path, "size": 4})), want)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "I;16"])
def test_a_picture_in_any_form_is_blended_in(tiny_spec, tmp_path, mode):
    pixels = noise(8, 8, 3)
    if mode == "I;16":
        Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "a.png")
        shown = pixels[:, :, :1]
    else:
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"))
        shown = np.asarray(image.convert("RGB"))
    attack = blended(tiny_spec, {"picture": str(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"))})
    np.testing.assert_array_equal(stamped(attack), (4 * IMAGES.astype(int) + shown.astype(int)) // 5)


def test_a_picture_is_scaled_as_data_sets_are(tiny_spec, tmp_path):
    pixels = noise(31, 17, 3)
    scaled = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR))
    attack = blended(tiny_spec, {"picture": saved(tmp_path / "a.png", pixels), "alpha": 0.5, "test_alpha": 0.5})
    np.testing.assert_array_equal(stamped(attack), (IMAGES.astype(int) + scaled) // 2)


def test_a_picture_of_bdjax_itself_is_the_default_trigger(tiny_spec, tmp_path):
    attack = blended(tiny_spec, {"picture": saved(tmp_path / "a.png", picture(8, 8))})
    np.testing.assert_array_equal(stamped(attack), stamped(blended(tiny_spec)))


def test_where_a_picture_is_transparent_less_is_blended_in(tiny_spec, tmp_path):
    pixels = noise(8, 8, 4)
    pixels[:, :, 3] = np.arange(64).reshape(8, 8) * 4
    share = 200 * pixels[None, :, :, 3:].astype(int)
    want = ((255_000 - share) * IMAGES.astype(int) + share * pixels[None, :, :, :3].astype(int)) // 255_000
    np.testing.assert_array_equal(stamped(blended(tiny_spec, {"picture": saved(tmp_path / "a.png", pixels)})), want)
    np.testing.assert_array_equal(want[:, 0, 0], IMAGES[:, 0, 0])


def test_one_channel_takes_a_picture_of_ones_own(tiny_spec, tmp_path):
    spec, pixels = tiny_spec._replace(image_shape=(8, 8, 1)), noise(8, 8)
    with pytest.raises(UserError, match=r"tiny has 1: .*channels.*; or .*: --config blended.picture=FILE"):
        blended(spec)
    attack = blended(spec, {"picture": saved(tmp_path / "a.png", pixels)})
    want = (4 * IMAGES[..., :1].astype(int) + pixels[None, :, :, None]) // 5
    np.testing.assert_array_equal(stamped(attack, IMAGES[..., :1]), want)


FORMS = {
    "ours.npy": lambda field: field,
    "published.npy": lambda field: field.transpose(1, 2, 0)[None],
    "named.npz": lambda field: {"identity_grid": np.zeros((1, 8, 8, 2)), "noise_grid": field.transpose(1, 2, 0)[None]},
    "alone.npz": lambda field: {"u": field},
}


def test_a_stored_field_bends_as_the_same_field_drawn(tiny_spec, tmp_path):
    field = np.asarray(draw_field(KEY, 4, 8, 8))
    want = stamped(wanet(tiny_spec))
    for name, form in FORMS.items():
        held = form(field)
        np.savez(tmp_path / name, **held) if isinstance(held, dict) else np.save(tmp_path / name, held)
        attack = wanet(tiny_spec, {"field": str(tmp_path / name)})
        np.testing.assert_array_equal(attack.init(jax.random.key(9), None)["field"], field)
        np.testing.assert_array_equal(stamped(attack), want)


@pytest.mark.torch
def test_a_field_beside_a_published_network(tiny_spec, tmp_path):
    import torch

    field = np.asarray(draw_field(KEY, 4, 8, 8))
    grids = {"noise_grid": torch.tensor(field.transpose(1, 2, 0)[None].copy()), "identity_grid": torch.zeros(1, 8, 8, 2)}
    torch.save({"netC": {"weight": torch.zeros(3)}, "epoch_current": 3, **grids}, tmp_path / "morph.pth.tar")
    torch.save(grids["noise_grid"], tmp_path / "alone.pt")
    for name in ("morph.pth.tar", "alone.pt"):
        attack = wanet(tiny_spec, {"field": str(tmp_path / name)})
        np.testing.assert_array_equal(attack.init(KEY, None)["field"], field)


def test_a_file_is_known_by_its_content_and_found_again_by_its_name(tiny_spec, tmp_path):
    first, second = noise(8, 8, 3), noise(8, 8, 3)
    second[0, 0, 0] ^= 1
    here, there, edited = (saved(tmp_path / f"{n}.png", p) for n, p in [("a", first), ("b", first), ("c", second)])
    one, same, other = (blended(tiny_spec, {"picture": path}) for path in (here, there, edited))
    assert one.config == same.config != other.config and one.config.picture.startswith("sha256:")
    before = stamped(one)
    os.remove(here)
    np.testing.assert_array_equal(stamped(blended(tiny_spec, recorded(one.config))), before)
    saved(tmp_path / "b.png", second)
    os.utime(tmp_path / "b.png", ns=(1, 1))
    assert blended(tiny_spec, {"picture": there}).config == other.config  # edited in place


def test_a_record_of_a_file_that_was_never_read_here_says_what_to_do(tiny_spec):
    with pytest.raises(UserError, match=r"not kept on this machine.*--config blended.picture=PATH"):
        blended(tiny_spec, {"picture": "sha256:" + "0" * 64})


@pytest.fixture
def files(tmp_path):
    """Files that are no good for a trigger, by name."""
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = (tmp_path / "cut.png", noise(64, 64, 3))
    saved(*whole)
    whole[0].write_bytes(whole[0].read_bytes()[:3000])
    saved(tmp_path / "large.png", noise(9, 8, 3))
    saved(tmp_path / "full.png", noise(8, 8, 3))
    saved(tmp_path / "clear.png", np.zeros((4, 4, 4)))
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    np.save(tmp_path / "shape.npy", np.zeros((2, 9, 8)))
    np.save(tmp_path / "nan.npy", np.full((2, 8, 8), np.nan))
    np.save(tmp_path / "objects.npy", np.asarray([{}], object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.zeros(1), b=np.zeros(1))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("attack", "config", "message"),
    [
        ("badnets", {"size": 0}, "badnets.size is 0; allowed: 1 … 8 pixels"),
        ("badnets", {"size": 9}, "badnets.size is 9; allowed: 1 … 8 pixels, as images of tiny are 8x8"),
        ("badnets", {"size": "3px"}, "badnets.size takes int; given '3px'"),
        ("badnets", {"place": "top-left"}, r"allowed: bottom_right, .*Did you mean 'top_left'"),
        ("badnets", {"place": [6, 0]}, r"badnets.place is \[6, 0\].*row 0 … 5 and column 0 … 5"),
        ("badnets", {"place": [-1, 0]}, "row 0 … 5"),
        ("badnets", {"place": [1]}, r"\[row,column\]"),
        ("badnets", {"place": [True, 1]}, r"\[row,column\]"),
        ("badnets", {"colour": 256}, "badnets.colour is 256; allowed: a whole number of 0 … 255"),
        ("badnets", {"colour": [1, 2]}, r"badnets.colour is \[1, 2\]; .*a list of 3"),
        ("badnets", {"colour": [0, 0, -1]}, "a whole number"),
        ("badnets", {"colour": "red"}, "badnets.colour takes int or tuple"),
        ("badnets", {"pattern": "full.png", "colour": 3}, "badnets.colour has no effect"),
        ("badnets", {"transparent": 0}, "badnets.pattern, which is not given"),
        ("badnets", {"pattern": "full.png", "transparent": 300}, "badnets.transparent is 300"),
        ("badnets", {"pattern": "large.png"}, "is 9x8 pixels, and images of tiny are 8x8; give badnets.size, at most 8"),
        ("badnets", {"pattern": "large.png", "size": 9}, "is 9x8 pixels"),
        ("badnets", {"pattern": "full.png"}, "hides the whole image"),
        ("badnets", {"pattern": "clear.png"}, "transparent everywhere"),
        ("badnets", {"pattern": "nowhere.png"}, r"badnets.pattern: .*nowhere.png is not there"),
        ("badnets", {"pattern": "./folder"}, "folder is no file"),
        ("badnets", {"pattern": "text.png"}, r"text.png cannot be read as an image: it is no image that Pillow knows"),
        ("badnets", {"pattern": "empty.png"}, "it is no image that Pillow knows"),
        ("blended", {"picture": "cut.png"}, "cut.png cannot be read as an image"),
        ("blended", {"picture": "clear.png"}, "transparent everywhere"),
        ("blended", {"picture": "float.tiff"}, "pixels of 32 bits"),
        ("blended", {"picture": "nowhere.png"}, "blended.picture: .*is not there"),
        ("blended", {"picture": 3}, "blended.picture takes str; given 3"),
        ("blended", {"picture": "sha256:0"}, "64 hexadecimal digits"),
        ("wanet", {"field": "shape.npy"}, r"float64\[2, 9, 8\]; wanted numbers of shape \[2, 8, 8\].*or \[1, 8, 8, 2\]"),
        ("wanet", {"field": "nan.npy"}, "not finite"),
        ("wanet", {"field": "objects.npy"}, "cannot be read as a NumPy file"),
        ("wanet", {"field": "text.npy"}, "cannot be read as a NumPy file"),
        ("wanet", {"field": "several.npz"}, "holds a, b; the field is an array called field or noise_grid"),
        ("wanet", {"field": "nowhere.pt"}, "wanet.field: .*is not there"),
        ("wanet", {"field": "shape.npy", "grid": 5}, r"float64|wanet.grid has no effect"),
        ("bpp", {"dithering": 1}, "bpp.dithering takes bool; given 1"),
    ],
)
def test_every_mistake_is_one_line_that_names_it(tiny_spec, files, attack, config, message):
    given = {field: str(files / value) if "." in str(value) else value for field, value in config.items()}
    with pytest.raises(UserError, match=message) as caught:
        ATTACKS[attack](tiny_spec, given)
    assert "\n" not in str(caught.value)


def test_a_grid_beside_a_stored_field_is_refused(tiny_spec, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8)))
    with pytest.raises(UserError, match=r"wanet.grid has no effect"):
        wanet(tiny_spec, {"field": str(tmp_path / "a.npy"), "grid": 5})
