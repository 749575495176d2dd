"""The small ``cnn`` with the outputs of its convolutions, and FMP's scores channel by channel, in 64-bit numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.defenses.plain_network import EPS, LAYERS, cross_entropies

CONVS = tuple(f"conv{layer}" for layer, _ in LAYERS)


def maps(params, statistics, images, spec, train=False):
    """(logits f[b k], outputs of the three convolutions) in eval mode, or with the statistics of the batch."""
    x = (images - jnp.asarray(spec.mean)[None, None, None]) / jnp.asarray(spec.std)[None, None, None]
    found = {}
    for layer, stride in LAYERS:
        window = ((1, 1), (1, 1))
        x = jax.lax.conv_general_dilated(
            x, params[f"conv{layer}"]["kernel"], (stride, stride), window, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        found[f"conv{layer}"] = x
        norm, running = params[f"bn{layer}"], statistics[f"bn{layer}"]
        mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (running["mean"], running["var"])
        mean, factor = mean[None, None, None], (norm["scale"] / jnp.sqrt(variance + EPS))[None, None, None]
        x = (x - mean) * factor + norm["bias"][None, None, None]
        x = jnp.where(x > 0, x, 0.0)
    return x.mean((1, 2)) @ params["linear"]["kernel"] + params["linear"]["bias"][None], found


def stimulated_scores(variables, images, labels, signs, spec, *, epsilon, low, high, train):
    """(correct, entropy), each a list over conv1's channels, then conv2's and conv3's. ``epsilon``, ``low``, ``high`` f[3]."""
    params, statistics = variables["params"], variables["batch_stats"]
    epsilon, low, high = (np.asarray(v, np.float64).reshape(1, 1, 1, 3) for v in (epsilon, low, high))
    start = jnp.clip(images + epsilon * signs, low, high)
    _, before = maps(params, statistics, images, spec, train)

    def apart(x, conv, mine):
        z = maps(params, statistics, x, spec, train)[1][conv]
        return (((z - before[conv]) ** 2).mean((0, 1, 2)) * mine).sum()

    correct, entropy = [], []
    classify = jax.jit(lambda x: maps(params, statistics, x, spec, train)[0])
    for conv in CONVS:
        slope = jax.jit(jax.grad(lambda x, mine, conv=conv: apart(x, conv, mine)))
        for c in range(params[conv]["kernel"].shape[-1]):
            mine = np.zeros(params[conv]["kernel"].shape[-1])
            mine[c] = 1
            moved = jnp.clip(start + epsilon * np.sign(np.asarray(slope(start, mine))), low, high)
            logits = classify(moved)
            correct.append(int((np.asarray(logits).argmax(1) == np.asarray(labels)).sum()))
            entropy.append(float(cross_entropies(logits, labels).mean()))
    return correct, entropy
