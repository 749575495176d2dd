"""Devices that are not here, as a user names them."""

import math

import pytest

from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.population import foreseen, targets
from bdjax.population.chips import CHIPS, TPUS


@pytest.mark.parametrize(
    ("text", "platform", "kind", "devices"),
    [
        ("tpu:v5e-8", "tpu", "v5e", 8),
        ("tpu:v5e", "tpu", "v5e", 1),
        ("tpu:v5p-8", "tpu", "v5p", 4),  # its number counts cores, of which a chip has two
        ("tpu:v5p", "tpu", "v5p", 1),
        ("cuda:h200-8", "cuda", "h200", 8),
    ],
)
def test_hardware_is_named(text, platform, kind, devices):
    assert targets.parse(text) == targets.Target(text, platform, kind, devices)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("v5e-8", "hardware is written platform:kind-number, as in tpu:v5e-8 or cuda:h200-8; given 'v5e-8'"),
        ("tpu:", "hardware is written platform:kind-number, as in tpu:v5e-8 or cuda:h200-8; given 'tpu:'"),
        ("tpu:v5e-eight", "given 'tpu:v5e-eight'"),
        ("cpu:any-2", "unknown platform of hardware 'cpu'; allowed: tpu, cuda"),
        ("tpu:h200-8", "unknown kind of tpu devices 'h200'; allowed: v4, v5e, v5p, v6e"),
        ("tpu:v5x-8", "Did you mean"),
        ("tpu:v5e-0", "the number behind v5e counts devices, and is at least 1; given 0"),
        ("tpu:v5p-3", "the number behind v5p counts cores, 2 of each device, and is at least 2; given 3"),
    ],
)
def test_wrong_hardware_is_refused(text, told):
    with pytest.raises(UserError) as refused:
        targets.parse(text)
    assert told in str(refused.value)


@pytest.mark.parametrize("platform", CHIPS)
def test_without_the_compiler_a_plan_says_how_to_install_it(platform, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(targets.WHEELS, platform, ("no_such_compiler",))
    kind = next(iter(CHIPS[platform]))
    code = cli.main(["plan", "--dataset", "digits", "--model", "cnn", "--width", "4", "--hardware", f"{platform}:{kind}-8"])
    told = capsys.readouterr()
    assert code == 2 and told.out == "" and not list(tmp_path.rglob("*.json"))
    (line,) = told.err.splitlines()
    assert line.startswith("bdjax: error: the compiler of ") and line.endswith(f"install it with: {targets.INSTALL[platform]}")


@pytest.mark.parametrize("more", [["--budget", "5"], ["--refresh"], ["--strategy", "vmap"]])
def test_what_would_measure_does_not_go_with_hardware(more, capsys):
    assert cli.main(["plan", "--dataset", "digits", "--hardware", "tpu:v5e-8", *more]) == 2
    assert "--hardware measures nothing" in capsys.readouterr().err


def test_the_clock_follows_from_the_data_sheet():
    assert math.isclose(TPUS["v5e"].clock, 1.503e9, rel_tol=1e-3)
    assert all(8e8 < chip.clock < 2e9 for chip in TPUS.values())


def test_what_was_compiled_is_kept_and_a_damaged_file_is_named_and_made_again(monkeypatch, tmp_path, capsys, tiny_spec):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(targets, "version", lambda platform: "compiler 1")
    compiled = []

    def compiles(model, execution, target, batch):
        compiled.append(target.kind)
        return foreseen.Foreseen(execution, 10.0, False, 4, 1.0, "a test")

    monkeypatch.setattr(foreseen, "_compiled", compiles)
    model, target = cnn(tiny_spec, 2), targets.parse("tpu:v5e")
    first = foreseen.foresee(model, target, batch=8)
    assert foreseen.foresee(model, target, batch=8) == first and compiled == ["v5e"] and not capsys.readouterr().err
    (file,) = (tmp_path / "foreseen").iterdir()
    whole = file.read_bytes()
    for damage in (whole[:-9], b"[]", b"{}", whole.replace(b'"rate"', b'"speed"')):
        file.write_bytes(damage)
        assert foreseen.foresee(model, target, batch=8) == first
        assert f"the cache file {file} is damaged" in capsys.readouterr().err
    assert len(compiled) == 5
