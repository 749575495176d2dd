"""BTI-DBF's generator and phases written out in 64-bit numbers: no masks over rows, no scans."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.defenses.bti_dbf.bti_dbf import replacements
from bdjax.keys import Stream, step_key, stream
from tests.defenses.plain_eval import Adam, log_softmax
from tests.defenses.plain_network import batches, cross_entropies, follow, forward, plain, shuffled

CHANNELS = (1, 1, 1, 3)


def convolved(x, layer):
    """A 3x3 convolution with its bias, or a 1x1 one."""
    side = layer["kernel"].shape[0] // 2
    y = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), [(side, side)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer["bias"].reshape(1, 1, 1, -1)


def enlarged(x, layer):
    """Every number spreads the kernel around twice its place: position (2 i + u - 1, 2 j + v - 1) gets kernel[u, v]."""
    b, h, w, d = x.shape
    wide = jnp.zeros((b, 2 * h + 2, 2 * w + 2, d))
    for u in range(3):
        for v in range(3):
            wide = wide.at[:, u : u + 2 * h : 2, v : v + 2 * w : 2].add(x @ layer["kernel"][u, v].T)
    return wide[:, 1 : 2 * h + 1, 1 : 2 * w + 1] + layer["bias"].reshape(1, 1, 1, -1)


def leaky(x):
    return jnp.where(x > 0, x, x / 100)


def blocked(x, params, name):
    for i in (1, 2):
        x = convolved(x, params[f"{name}_conv{i}"])
        mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
        norm = params[f"{name}_norm{i}"]
        x = (x - mean) / jnp.sqrt(variance + 1e-5) * norm["scale"].reshape(1, 1, 1, -1) + norm["bias"].reshape(1, 1, 1, -1)
        x = leaky(x)
    return x


def drawn(params, images, spec, levels):
    """What the generator makes of images in [0, 1]."""
    mean, std = (jnp.asarray(v).reshape(CHANNELS) for v in (spec.mean, spec.std))
    x, beside = (images - mean) / std, []
    for level in range(levels):
        beside.append(blocked(x, params, f"down{level}"))
        b, h, w, c = beside[-1].shape
        x = beside[-1].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    x = blocked(x, params, "middle")
    for level in reversed(range(levels)):
        x = jnp.concatenate([leaky(enlarged(x, params[f"enlarge{level}"])), beside[level]], -1)
        x = blocked(x, params, f"up{level}")
    return convolved(x, params["out"]) * std + mean


def head(params, features):
    """Logits of features f[b h w c]."""
    return features.mean((1, 2)) @ params["linear"]["kernel"] + params["linear"]["bias"].reshape(1, -1)


def _in_numpy(function):
    """Compiled, with results in NumPy."""
    run = jax.jit(function)
    return lambda *args: plain(run(*args))


class Phases:
    """The four losses. ``unit`` is what a change of a colour is measured in, f[3], ``size`` the rows of a full batch."""

    def __init__(self, spec, levels, hyper, unit, size):
        self.spec, self.levels, self.size, self.unit = spec, levels, size, jnp.asarray(unit).reshape(CHANNELS)
        self.hyper = {name: float(value) for name, value in hyper._asdict().items()}
        self.drawn = _in_numpy(lambda free, x: drawn(free, x, spec, levels))
        self.noisy = _in_numpy(self.of_noise)
        self.replaced = jax.jit(self.of_batch, static_argnums=3)
        self.slopes = [
            _in_numpy(jax.value_and_grad(f, has_aux=True)) for f in (self.copying, self.masking, self.changing, self.knowing)
        ]

    def eval(self, network, x):
        logits, stages, _ = forward(network["params"], x, self.spec, network["batch_stats"])
        return logits, stages[-1]

    def of_noise(self, key, number, free, x, network):
        """Logits of what is drawn of the images with noise."""
        noise = jax.random.normal(step_key(stream(key, Stream.DEFENSE), number), (self.size, *self.spec.image_shape), jnp.float64)
        x = x + self.hyper["noise"] * jnp.asarray(self.spec.std).reshape(CHANNELS) * noise[: len(x)]
        return self.eval(network, drawn(free, x, self.spec, self.levels))[0]

    def of_batch(self, key, step, full, share):
        """The rows that are replaced: those of the method."""
        choosing = jax.random.split(step_key(stream(key, Stream.NETWORK), step), 3)[0]
        return replacements(choosing, full, share)[0]

    def change(self, x, y):
        return (((x - y) / self.unit) ** 2).mean()

    def copying(self, free, x, network):
        y = drawn(free, x, self.spec, self.levels)
        (clean, features), (logits, seen) = self.eval(network, x), self.eval(network, y)
        p, q = (jnp.exp(log_softmax(z)) for z in (clean, logits))
        image = self.change(x, y)
        far = image > self.hyper["pretrain_bound"]
        loss = -(q * log_softmax(p)).sum(1).mean() + ((features - seen) ** 2).mean() + jnp.where(far, 100, 0.01) * image
        return loss, (far,)

    def masking(self, free, x, y, network):
        _, stages, measured = forward(network["params"], x, self.spec)
        share = jnp.tanh(free) / (2 + 1e-7) + 0.5
        one, two = (cross_entropies(head(network["params"], part[None] * stages[-1]), y).mean() for part in (share, 1 - share))
        return one - two, measured

    def changing(self, free, x, network, share, target, aimed):
        y = drawn(free, x, self.spec, self.levels)
        (_, features), (logits, seen) = self.eval(network, x), self.eval(network, y)
        image = self.change(x, y)
        benign, others = (((part[None] * (features - seen)) ** 2).mean() for part in (share, 1 - share))
        outside = (image > self.hyper["image_bound"]) | (benign > self.hyper["feature_bound"])
        aim = cross_entropies(logits, jnp.full(len(x), target)).mean()
        total = jnp.where(outside, image, 0.01 * benign - others) + jnp.where(aimed, aim, 0)
        return total, (outside, image, benign, others)

    def knowing(self, free, x, mixed, y):
        _, clean, first = forward(free, x, self.spec)
        logits, seen, second = forward(free, mixed, self.spec)
        entropy, apart = cross_entropies(logits, y).mean(), ((clean[-1] - seen[-1]) ** 2).mean()
        return entropy + apart, (entropy, apart, first, second)


def written_out(spec, variables, images, labels, key, start, hyper, unit, config, levels):
    """The whole method: (network, parameters of the generator, what was recorded), only the draws are the method's."""
    rows, batch, size = len(labels), config["batch"], min(config["batch"], len(labels))
    phases, lr = Phases(spec, levels, hyper, unit, size), {k: float(v) for k, v in hyper._asdict().items()}
    copying, masking, changing, knowing = phases.slopes
    variables, images, labels = plain(variables, images, labels)
    _, first, rest = jax.random.split(key, 3)
    plan = functools.partial(batches, rows=rows, batch=batch)
    network = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    features = jax.eval_shape(phases.eval, network, images)[1].shape[1:]
    draw = plain(start)
    recorded: dict = {
        name: [] for name in ("pretrain", "mask", "generator", "image", "benign", "others", "loss", "entropy", "apart")
    }
    recorded.update(detected=[], share=[], far=[], outside=[])
    step, adam = 0, Adam(draw, largest=False)

    def mean(values):
        return np.mean([[float(x) for x in v] for v in values], 0)

    for epoch in plan(first, epochs=config["pretrain_epochs"]):
        seen = []
        for r in epoch:
            (value, (far,)), slope = copying(draw, images[r], network)
            draw, step = adam.step(draw, slope, lr["generator_lr"]), step + 1
            seen.append((value,))
            recorded["far"].append(bool(far))
        recorded["pretrain"].append(mean(seen)[0])

    painting, tuning, target = Adam(draw, largest=False), Adam(network["params"], largest=False), None
    for n in range(config["rounds"]):
        drawing, to_mask, to_paint, to_vote, to_tune = jax.random.split(step_key(rest, n), 5)
        free = np.asarray(jax.random.normal(drawing, features, jnp.float64))
        adam, statistics = Adam(free, largest=False), network["batch_stats"]
        for epoch in plan(to_mask, epochs=config["mask_epochs"]):
            seen = []
            for r in epoch:
                (value, measured), slope = masking(free, images[r], labels[r], network)
                free, statistics, step = adam.step(free, slope, lr["mask_lr"]), follow(statistics, measured), step + 1
                seen.append((value,))
            recorded["mask"].append(mean(seen)[0])
        copy, share = {**network, "batch_stats": statistics}, np.tanh(free) / (2 + 1e-7) + 0.5
        for epoch in plan(to_paint, epochs=config["generator_epochs"]):
            seen = []
            for r in epoch:
                (value, (outside, *parts)), slope = changing(draw, images[r], copy, share, target or 0, n > 0)
                draw, step = painting.step(draw, slope, lr["generator_lr"]), step + 1
                seen.append((value, *parts))
                recorded["outside"].append(bool(outside))
            for name, value in zip(("generator", "image", "benign", "others"), mean(seen), strict=True):
                recorded[name].append(value)

        votes = np.zeros(spec.classes, int)
        for i, r in enumerate(shuffled(to_vote, rows, batch)):
            for k in phases.noisy(to_vote, np.int32(i), draw, images[r], network).argmax(1):
                votes[k] += 1
        recorded["detected"].append(int(votes.argmax()))
        recorded["share"].append(votes.max() / rows)
        target = recorded["detected"][0]

        for epoch in plan(to_tune, epochs=config["unlearn_epochs"]):
            seen = []
            for r in epoch:
                full = (np.arange(size) < len(r)).astype(np.float32)
                chosen = np.asarray(phases.replaced(to_tune, np.int32(step), full, config["replaced"]))
                chosen = chosen[: int(config["replaced"] * len(r) + 1)]
                mixed = images[r].copy()
                mixed[chosen] = phases.drawn(draw, images[r])[chosen]
                (value, (entropy, apart, one, two)), slope = knowing(network["params"], images[r], mixed, labels[r])
                network = {
                    "params": tuning.step(network["params"], slope, lr["lr"]),
                    "batch_stats": follow(follow(network["batch_stats"], one), two),
                }
                step += 1
                seen.append((value, entropy, apart))
            for name, value in zip(("loss", "entropy", "apart"), mean(seen), strict=True):
                recorded[name].append(value)
    return network, draw, recorded
