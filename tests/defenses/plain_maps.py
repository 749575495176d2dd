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
    start = np.clip(np.asarray(images) + epsilon * np.asarray(signs), low, high)

    def apart(x, before, mine):
        after = maps(params, statistics, x, spec, train)[1]
        return sum((((after[conv] - before[conv]) ** 2).mean((0, 1, 2)) * mine[conv]).sum() for conv in CONVS)

    @jax.jit
    def judged(start, images, mine):
        before = maps(params, statistics, images, spec, train)[1]
        moved = jnp.clip(start + epsilon * jnp.sign(jax.grad(apart)(start, before, mine)), low, high)
        logits = maps(params, statistics, moved, spec, train)[0]
        return logits.argmax(1), cross_entropies(logits, labels).mean()

    correct, entropy = [], []
    for conv in CONVS:
        for c in range(params[conv]["kernel"].shape[-1]):
            mine = {other: np.zeros(params[other]["kernel"].shape[-1]) for other in CONVS}
            mine[conv][c] = 1
            classes, mean = judged(start, np.asarray(images), mine)
            correct.append(int((np.asarray(classes) == np.asarray(labels)).sum()))
            entropy.append(float(mean))
    return correct, entropy
