"""Networks of the user's own that cannot run are refused before anything is trained, in one line with file, line and remedy."""

import re

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.sweep import expand
from bdjax.sweep.grid import Grid
from bdjax.sweep.ready import Ready
from bdjax.types import Dataset, Split
from tests.sweep.small import refused

HEAD = """import flax.linen as nn
import jax
import jax.numpy as jnp
from bdjax.models.build import build
from bdjax.nn.layers import Conv, Linear, NormAct, tap
from bdjax.types import ArchSpec, Loop, Model, Output


"""
MODULE = """class Mine(nn.Module):
    classes: int
    width: int

    @nn.compact
    def __call__(self, x, run, start):
        if start is None:
            x = Conv(self.width, 3, 2, name="conv1")(x, run)
            x = NormAct(name="bn1")(x, run)
            x = tap(x, "stage1", run)
        if start != "head":
            x = tap(x, "features", run)
            x = x.mean((1, 2))
        x = tap(x, "head", run)
        return Linear(self.classes, name="linear")(x)


"""
FACTORY = """def mine(spec, width=4, **how):
    return build(Mine(spec.classes, width), factory=mine, spec=spec, width=width, how=how)
"""
ARCH = "factory=mine, arch=ArchSpec({}), "


def text(*changes, arch=""):
    """The text of a file with a network, in which each change (before, after) was made."""
    found = HEAD + MODULE + FACTORY
    for before, after in (*changes, ("factory=mine, ", ARCH.format(arch))) if arch else changes:
        assert found.count(before) == 1, before
        found = found.replace(before, after)
    return found


@pytest.fixture(scope="module")
def dataset():
    """The facts of the digits and their shapes; no image is read where nothing is computed."""
    from bdjax.data import spec

    def split(rows):
        return Split(np.zeros((rows, 16, 16, 3), np.uint8), (np.arange(rows) % 10).astype(np.int32))

    return Dataset(spec("digits"), split(100), split(20), "digest")


def look(file, content, dataset, **fields):
    file.write_text(content)
    grid = Grid(**{"model": f"{file}:mine", "defense": (), "poison_ratio": 0.1, "epochs": 1, "batch": 25, **fields})
    for branch in expand.cells(grid):
        Ready().look(branch, dataset)


WRONG = {
    "logits of another shape": (
        text(("Linear(self.classes,", "Linear(self.classes + 1,")),
        r"mine returns float32\[2, 11\]; it has to be float32\[2, 10\]: logits of 2 images of 10 classes \(spec\.classes\)",
    ),
    "no features": (
        text(('            x = tap(x, "features", run)\n', "")),
        r"does not tap an address of every network: unknown tap address 'features'; allowed: conv1, .*x = tap\(x, ADDRESS, run\)",
    ),
    "no head": (text(('x = tap(x, "head", run)', "pass")), "unknown tap address 'head'"),
    "a stage that never occurs": (
        text(arch="stages=('stage1', 'stage2')"),
        r"does not tap an address of ArchSpec\.stages: unknown tap address 'stage2'.*Did you mean 'stage1'",
    ),
    "a stage without a map": (
        text(arch="stages=('head',)"),
        r"has \[2, 4\] at 'head' of ArchSpec\.stages; it is a map \[b h w c\]",
    ),
    "an activation that never occurs": (
        text(arch="activations=('bn2/act',)"),
        r"of ArchSpec\.activations: unknown tap .*'bn1/act'",
    ),
    "a plug nowhere": (text(arch="plug_site='conv2'"), r"of ArchSpec\.plug_site: unknown tap address 'conv2'"),
    "a convolution that is not there": (
        text(arch="registered=(('conv', 'conv2'), ('norm', 'bn1'))"),
        r"names 'conv2' in ArchSpec\.registered, which is no layer of it: unknown address 'conv2/kernel'; .*Did you mean 'conv1/",
    ),
    "a norm that is not there": (text(arch="norms=('bn2',)"), r"names 'bn2' in ArchSpec\.norms, which is no layer of it"),
    "a norm that is none": (text(arch="norms=('conv1',)"), r"names 'conv1' in ArchSpec\.norms, .*'conv1/scale'"),
    "norms in one place alone": (
        text(arch="registered=(('conv', 'conv1'),)"),
        r"has bn1 in one of ArchSpec\.norms and ArchSpec\.registered, and not in the other",
    ),
    "feeds the other way round": (text(arch="feeds=(('conv1', 'bn1'),)"), r"\('conv1', 'bn1'\) in ArchSpec\.feeds"),
    "a head that is a convolution": (
        text(arch="heads=('conv1',)"),
        r"names 'conv1' in ArchSpec\.heads; its kernel is \[3, 3, 3, 4\], not of 2 axes",
    ),
    "addresses in a list": (
        HEAD
        + "def mine(spec, width=4, **how):\n    return Model(print, print, print, spec, ArchSpec(norms=[]), '', 4, Loop())\n",
        r"line 9: mine cannot be used: ArchSpec\.norms is a list; addresses are tuples",
    ),
    "the whole network from the head": (
        text(('        if start != "head":\n            x = tap', "        if True:\n            x = tap")),
        r"line 21: mine fails: ",
    ),
    "the head before a layer": (
        text(('x = tap(x, "head", run)', 'x = nn.Dense(7)(tap(x, "head", run))'), arch="heads=('linear',)"),
        r"has \[2, 4\] at 'head' and 7 inputs of linear: the address 'head' is the input of the first linear layer",
    ),
    "statistics of all rows": (
        text(('NormAct(name="bn1")(x, run)', "nn.BatchNorm(use_running_average=not run.train)(x)")),
        r"running statistics that do not follow the rows that count in a batch: use bdjax\.nn\.layers\.NormAct",
    ),
    "a further collection": (
        text(('x = tap(x, "stage1", run)', 'self.variable("seen", "n", jnp.zeros, ())')),
        r"has the variables \['batch_stats', 'params', 'seen'\]; a run carries along params and batch_stats",
    ),
    "parameters of another dtype": (
        text(
            (
                'x = tap(x, "head", run)',
                'x = tap(x + self.param("b", lambda key: jnp.zeros((1, 4), jnp.bfloat16)).astype(x.dtype), "head", run)',
            )
        ),
        r"has params/b of bfloat16; parameters and running statistics are float32",
    ),
    "an error of its own": (text(("x = x.mean((1, 2))", "x = x.mean((1, 2)) + jnp.ones(3)")), "line 21: mine fails: "),
    "an exit": (text(('x = tap(x, "stage1", run)', "raise SystemExit")), "line 18: mine fails: it ends the program"),
    "a Python if": (text(('x = tap(x, "stage1", run)', "if x.sum() > 0: x = -x")), r"line 18: .*a Python `if`.*use jnp\.where"),
    "no width": (
        text(("mine(spec, width=4, **how)", "mine(spec, **how)"), ("classes, width)", "classes, 4)"), ("width=width", "width=4")),
        r"line 26: mine takes spec, how, and its second argument has to be a width with a default: def mine\(spec, width=16",
    ),
    "a width without a default": (text(("width=4,", "width,")), "missing a required argument: 'width'; write def mine"),
    "no static fields": (
        text(("mine(spec, width=4, **how)", "mine(spec, width=4, norm_eps=1e-5)"), ("how=how", "how={'norm_eps': norm_eps}")),
        r"mine takes no norm_momentum, dtype, lowering, loop, which a run sets: def mine",
    ),
    "a field of its own that is lost": (
        text(("width=4, **how", "width=4, *, drop=0.1, **how")),
        r"mine takes drop and does not hand it on, .*: build\(…, how=\{\*\*how, 'drop': drop\}\)",
    ),
    "a module": (
        text(("    return build(", "    return Mine(spec.classes, width)\n    return build(")),
        r"line 26: mine is no model: it returns a Mine; it has to return bdjax\.models\.build\.build\(\.\.\.\)",
    ),
    "a defense": (
        "from bdjax.types import Defense\n\n\ndef mine(spec, width=4, **how):\n    return Defense(print, (), frozenset())\n",
        "it returns a Defense; name it with --defense",
    ),
    "a list as a field": (
        text(("    width: int\n", "    width: list\n"), ("classes, width)", "classes, [width])")),
        r"Mine\.width is a list; fields of a network are numbers, texts and tuples of them",
    ),
    "a file that is not there": (None, "model file .*mine.py does not exist"),
    "a syntax error": ("def mine(:\n", "mine.py, line 1: model file .* fails when imported: SyntaxError"),
}
BY_HAND = """def mine(spec, width=4, **how):
    def init(key):
        linear = {{"kernel": jnp.ones((3, spec.classes)), "bias": jnp.ones(spec.classes)}}
        return {{"params": {{"linear": linear}}, "batch_stats": {{}}}}

    def apply(variables, images, *, train=False, mask=None, key=None, record=(), start=None):
        layer = variables["params"]["linear"]
        features = images if start == "features" else None if start else images.astype(layer["kernel"].dtype)
        head = images if start == "head" else features.mean((1, 2))
        taps = {{"features": features, "head": head}}
        logits = head @ layer["kernel"] + layer["bias"][None]
        return {returned}

    return Model(init, apply, lambda **fields: {again}, spec, ArchSpec(heads=("linear",)), "mine", width, Loop())
"""
HAND = {
    "no output": ("logits", "None", "mine returns a DynamicJaxprTracer where Model.apply returns bdjax.types.Output"),
    "no tap": (
        "Output(logits, variables, {})",
        "None",
        "does not tap 'features', an address of every network: Output.taps lacks it",
    ),
    "nothing built again": (
        "Output(logits, variables, {a: taps[a] for a in record})",
        "None",
        "mine is no model: it returns nothing",
    ),
    "the same built again": (
        "Output(logits, variables, {a: taps[a] for a in record})",
        "mine(spec, width)",
        "built again by Model.rebuild has norm_eps 1e-05; asked for 2e-05",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_network_that_cannot_run_is_refused_with_its_place_and_the_remedy(tmp_path, dataset, case):
    content, message = WRONG[case]
    file = tmp_path / "mine.py"
    with pytest.raises(UserError) as caught:
        look(file, content or "", dataset, **({} if content else {"model": f"{tmp_path}/gone/mine.py:mine"}))
    told = str(caught.value)
    assert "\n" not in told and "mine.py" in told
    assert re.search(message, told), told


@pytest.mark.parametrize("case", HAND)
def test_a_network_made_without_build_is_held_to_the_same(tmp_path, dataset, case):
    returned, again, message = HAND[case]
    with pytest.raises(UserError, match=message):
        look(tmp_path / "mine.py", HEAD + BY_HAND.format(returned=returned, again=again), dataset)


def test_networks_that_can_run_are_accepted(tmp_path, dataset):
    look(tmp_path / "mine.py", text(), dataset)
    look(tmp_path / "mine.py", text(), dataset, precision="bfloat16", width=6, defense=("ft", "clp", "npd"), spc=2)
    masked = (
        "nn.BatchNorm(use_running_average=not run.train)(x, mask=None if run.mask is None else run.mask[:, None, None, None] > 0)"
    )
    look(tmp_path / "mine.py", text(('NormAct(name="bn1")(x, run)', masked)), dataset)


def test_a_precision_that_its_layers_do_not_compute_in_is_refused(tmp_path, dataset):
    content = text(('Conv(self.width, 3, 2, name="conv1")(x, run)', "nn.Conv(self.width, (3, 3), dtype=jnp.float32)(x)"))
    with pytest.raises(UserError, match=r"features of float32 in precision bfloat16: its layers have to compute in run\.dtype"):
        look(tmp_path / "mine.py", content, dataset, precision="bfloat16")


def test_a_defense_names_the_address_that_the_network_lacks(tmp_path, dataset):
    content = text(('            x = tap(x, "stage1", run)\n', ""))
    with pytest.raises(
        UserError, match=r"nad needs outputs of stages, and .*mine\.py:mine names none in ArchSpec\.stages: x = tap"
    ):
        look(tmp_path / "mine.py", content, dataset, defense="nad", spc=2)


@pytest.mark.parametrize("command", ["check", "run", "plan"])
def test_commands_refuse_it_in_one_line(tmp_path, capsys, own_cache, command):
    file, out = tmp_path / "mine.py", tmp_path / "out"
    file.write_text(text(("x = x.mean((1, 2))", "x = x.mean((1, 2)) + jnp.ones(3)")))
    arguments = ["--dataset", "digits", "--model", f"{file}:mine", "--defense", "none", "--epochs", "1"]
    told = refused(capsys, command, *arguments, *(["--no-tune"] if command == "plan" else ["--out", out]))
    assert f"{file}, line 21: mine fails: " in told
    assert not (out / "records").exists() and not (out / "models").exists()


def test_a_name_that_is_no_file_is_one_of_the_table(capsys):
    told = refused(capsys, "check", "--dataset", "digits", "--model", "cn")
    assert "unknown model 'cn'" in told and "Did you mean 'cnn'" in told
