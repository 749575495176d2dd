"""The networks and one training step against PyTorch, on random weights with batch statistics that are not trivial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.models import MODELS
from bdjax.training import cross_entropy, sgd
from bdjax.types import DataSpec

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SPEC = DataSpec("x", (32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), True, 4)
LR, MOMENTUM, DECAY = 0.01, 0.9, 5e-4


def names(model):
    """[(our address, name in the reference network)] in both networks' order."""
    if model.name == "cnn":
        pairs = [(f"conv{i + 1}", f"features.{3 * i}") for i in range(3)] + [
            (f"bn{i + 1}", f"features.{3 * i + 1}") for i in range(3)
        ]
        return [*pairs, ("linear", "linear")]
    pairs = [("conv1", "stem"), ("linear", "linear")]
    for _, address in model.arch.registered[1:]:
        block, part = address.split("/")
        stage, index = block.removeprefix("layer").split("_")
        pairs.append((address, f"blocks.{2 * (int(stage) - 1) + int(index)}.{part.removesuffix('_0')}"))
    return pairs


def to_torch(model, variables):
    """The reference network with our weights and statistics."""
    from benchmarks.torch_reference import NETWORKS

    net, state = NETWORKS[model.name](10, model.width), {}
    for address, name in names(model):
        leaves = tree.get(variables["params"], address)
        for leaf, value in leaves.items():
            value = np.asarray(value)
            if leaf == "kernel":
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            state[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = torch.tensor(value)
        if "scale" in leaves:
            statistics = tree.get(variables["batch_stats"], address)
            state[f"{name}.running_mean"] = torch.tensor(np.asarray(statistics["mean"]))
            state[f"{name}.running_var"] = torch.tensor(np.asarray(statistics["var"]))
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    net.load_state_dict(state, strict=True)
    return net


@pytest.fixture(params=[("cnn", 8), ("preactresnet18", 8)], ids=lambda p: p[0])
def pair(request):
    model = MODELS[request.param[0]](SPEC, request.param[1])
    variables = model.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 400))
    draw = lambda x, low, high: jax.random.uniform(next(keys), x.shape, minval=low, maxval=high)  # noqa: E731
    statistics = {
        p: draw(x, 0.5, 2.0) if p.endswith("var") else draw(x, -0.5, 0.5)
        for p, x in tree.flatten(variables["batch_stats"]).items()
    }
    norms = {p: draw(x, 0.5, 1.5) for p, x in tree.flatten(variables["params"]).items() if p.endswith("scale")}
    variables = {
        "params": tree.replace(variables["params"], norms),
        "batch_stats": tree.replace(variables["batch_stats"], statistics),
    }
    return model, variables, to_torch(model, variables)


def batch():
    generator = np.random.default_rng(0)
    images, labels = generator.random((8, 32, 32, 3), np.float32), generator.integers(0, 10, 8).astype(np.int32)
    standard = (images - np.float32(SPEC.mean)) / np.float32(SPEC.std)
    return images, labels, torch.tensor(standard.transpose(0, 3, 1, 2))


def test_logits_in_eval_mode(pair):
    model, variables, net = pair
    images, _, x = batch()
    with torch.no_grad():
        want = net.eval()(x).numpy()
    for lowering in ("native", "patches"):
        got = model.rebuild(lowering=lowering).apply(variables, jnp.asarray(images)).logits
        assert float(np.max(np.abs(want))) > 0.05
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_two_sgd_steps_in_train_mode(pair):
    """Parameters, momentum through the second step, and running statistics."""
    model, variables, net = pair
    images, labels, x = batch()
    optimiser = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    rule = sgd(MOMENTUM, DECAY)
    momentum = rule.init(variables["params"])

    def loss(params, statistics):
        out = model.apply({"params": params, "batch_stats": statistics}, jnp.asarray(images), train=True)
        return jnp.mean(cross_entropy(out.logits, jnp.asarray(labels))), out.variables["batch_stats"]

    params, statistics = variables["params"], variables["batch_stats"]
    for _ in range(2):
        (value, statistics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, statistics)
        direction, momentum = rule.update(gradient, momentum, params)
        params = jax.tree.map(lambda p, d: p - LR * d, params, direction)
        optimiser.zero_grad()
        theirs = torch.nn.functional.cross_entropy(net.train()(x), torch.tensor(labels.astype(np.int64)))
        theirs.backward()
        optimiser.step()
        assert float(value) == pytest.approx(theirs.item(), abs=1e-4)
    ours = to_torch(model, {"params": params, "batch_stats": statistics}).state_dict()
    for name, want in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(ours[name].numpy(), want.numpy(), atol=1e-4, err_msg=name)
