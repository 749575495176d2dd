"""NAD: fine-tune while matching the attention maps of a fine-tuned teacher."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.defenses.batches import masked_mean, training_rows
from bdjax.defenses.tuning import Batch, Gradient, tuner
from bdjax.nn.folded_linear import pool_matrix
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.schedules import constant, cosine_by_epoch, plateau
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, Defended, DefenderView, Defense, Float, Key, Model, Variables

SMALLEST = 1e-6  # added to the norm of an attention map


class Config(NamedTuple):
    """Static configuration; None = as the profile and the data set say."""

    teacher_epochs: int = 10
    epochs: int = 10  # of the student
    batch: int = 256
    period: int | None = None  # epochs from the teacher's first learning rate down to 0; 0 = it waits for a plateau instead
    power: int = 2  # p of the attention map
    all_taps: bool | None = None  # the last three stages that have an attention map, not the published code's taps
    repeated_statistics: bool | None = None  # running statistics move several times per student step, as in the published code


class NADHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.01)
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    beta1: Any = np.float32(500)  # weight of the attention loss of the earliest of three maps
    beta2: Any = np.float32(1000)
    beta3: Any = np.float32(1000)  # of the last one


class NADTrace(NamedTuple):
    """What happened while tuning."""

    teacher_loss: Array  # f32[teacher epochs]: mean cross-entropy of the epoch
    loss: Array  # f32[epochs]: mean cross-entropy of the student
    attention: Array  # f32[epochs]: weighted attention loss of the student
    alive: Array  # bool[]: losses and gradients stayed finite
    stopped: Array  # i32[]: the first step, of the teacher or the student, at which they did not; -1 = none


PRESETS = {
    "corrected": Config(all_taps=True, repeated_statistics=False),
    "reference": Config(period=100, all_taps=False, repeated_statistics=True),
}
OF_DATA: dict[str, dict[str, Any]] = {"tiny_imagenet": {"batch": 128, "period": 0}}  # fields that a data set changes, in both


def nad(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Tune a copy of the network as the teacher, then the network itself to have the teacher's attention.

    Teacher: cross-entropy, SGD. Student, from the original network: CE + sum_l beta_l mean((Q_l/(‖Q_l‖ + 1e-6) - the same of the
    teacher)²), Q_l = sum_c |A_c|^p over the channels of tap l, norm over its positions, mean over rows and positions; constant
    learning rate; teacher in eval mode; both see the same augmented batch.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`NADHyper` and trace :class:`NADTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: Y. Li, X. Lyu, N. Koren, L. Lyu, B. Li, X. Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep
      Neural Networks", ICLR 2021; settings of K. Dunnett et al., arXiv 2411.11200, 2024.
    Differs: a map of one position is 1 whatever the network does, so it teaches nothing. "reference" has the taps of the survey's
      published code: the last two stages of PreActResNet-18 (and of ``cnn``), the 7x7 pooling of VGG, which says something from
      64 pixels on, and nothing that has more than one position for the other two, where NAD is then ten epochs of fine-tuning at
      a constant rate. "corrected" takes the last three stages with at least 2x2 positions in every network, the last one with
      beta3. The published code runs truncated copies of the student beside it, so that running statistics move 2 to 4 times per
      step; "reference" repeats that, "corrected" moves them once. Student epochs are the teacher's ten in both. The teacher's
      cosine has a half-period of ten times its epochs (100 in "reference"; on Tiny-ImageNet its rate waits for a plateau).
    """
    presets = {name: preset._replace(**OF_DATA.get(model.spec.name, {})) for name, preset in PRESETS.items()}
    config = configure(presets, config, "nad", profile)
    batch, period = config.batch, 10 * config.teacher_epochs if config.period is None else config.period
    config = config._replace(period=period)
    at_least("nad", config, teacher_epochs=1, epochs=1, batch=1, period=0, power=1)
    schedule = cosine_by_epoch(period) if period else plateau()
    teach = tuner(model, epochs=config.teacher_epochs, batch=batch, schedule=schedule)

    @functools.cache  # when it first defends: which stages have a map takes a trace of the network to know
    def learner() -> Callable[..., Any]:
        taps = _last_stages(model) if config.all_taps else _published_taps(model)
        gradient = _distilling(model, taps, config)
        return tuner(model, epochs=config.epochs, batch=batch, schedule=constant(), gradient=gradient, measured=2)

    def defend(key: Key, view: DefenderView, hyper: NADHyper) -> Defended:
        assert view.clean is not None
        teaching, learning = jax.random.split(key)
        hyper = jax.tree.map(jnp.asarray, hyper)
        rows = training_rows(view.clean)
        teacher = teach(teaching, view.variables, view.clean, rows, hyper)
        extra = (teacher.variables, (hyper.beta1, hyper.beta2, hyper.beta3))
        student = learner()(learning, view.variables, view.clean, rows, hyper, extra)
        stopped = jnp.where(teacher.alive, student.stopped, teacher.stopped)
        entropy, attention = student.measured
        trace = NADTrace(teacher.loss, entropy, attention, teacher.alive & student.alive, stopped)
        return Defended(student.variables, None, trace)

    return Defense(defend, NADHyper(), frozenset({"clean"}), config)


class Tap(NamedTuple):
    """Where an attention map is taken."""

    address: str
    beta: int  # 0, 1 or 2: which weight it has
    grid: int | None = None  # positions a side that its map is pooled to first; None = as it is


PUBLISHED_TAPS = {
    "preactresnet18": (Tap("stage3", 0), Tap("stage4", 1)),
    "cnn": (Tap("stage2", 0), Tap("stage3", 1)),
    "vgg19_bn": (Tap("features", 2, 7),),
}
# How often the published code moves running statistics per student step, by how the norm's name starts; 2 in other networks.
UPDATES = {"preactresnet18": (("layer4", 3), ("", 4))}


def attention(features: Float[Array, "b h w c"], power: int) -> Float[Array, "b h w"]:
    """sum_c |A_c|^power per position, over its norm."""
    features = features.astype(at_least_float32(features.dtype))
    energy = jnp.sum(jnp.abs(features) ** power, -1)
    square = jnp.sum(jnp.square(energy), (1, 2))
    # The root has no slope at 0, where a row's map is dead: that row then teaches nothing.
    size = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return energy / (size + SMALLEST)[:, None, None]


def _sides(model: Model) -> dict[str, int]:
    """Positions a side of every stage's output and of the features."""
    wanted = (*model.arch.stages, "features")
    images = jax.ShapeDtypeStruct((1, *model.spec.image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    taps = jax.eval_shape(lambda v, x: model.apply(v, x, record=wanted).taps, variables, images)
    return {address: taps[address].shape[1] for address in wanted}


def _last_stages(model: Model) -> tuple[Tap, ...]:
    sides = _sides(model)
    informative = [stage for stage in model.arch.stages if sides[stage] > 1][-3:]
    return tuple(Tap(stage, 3 - len(informative) + i) for i, stage in enumerate(informative))


def _published_taps(model: Model) -> tuple[Tap, ...]:
    """The published code's taps but for those of one position, whose loss and gradient are 0."""
    sides = _sides(model)
    return tuple(tap for tap in PUBLISHED_TAPS.get(model.name, ()) if sides[tap.address] > 1)


def _updates(model: Model, norm: str) -> int:
    """How often the published code moves the running statistics of a norm per student step."""
    return next((times for start, times in UPDATES.get(model.name, ()) if norm.startswith(start)), 2)


def _distilling(model: Model, taps: tuple[Tap, ...], config: Config) -> Gradient:
    record = tuple((tap.address, _map(tap, config.power)) for tap in taps)
    momentum = model.norm_momentum

    def repeated(old: Any, new: Any) -> Any:
        """The statistics after several updates from one batch, from those after one."""
        values = {}
        for norm in model.arch.norms:
            factor = (1 - (1 - momentum) ** _updates(model, norm)) / momentum
            before, after = tree.get(old, norm), tree.get(new, norm)
            values[norm] = jax.tree.map(lambda a, b, factor=factor: a + factor * (b - a), before, after)
        return tree.replace(new, values)

    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Float[Array, " 3"]]:
        teacher, betas = extra
        goals = model.apply(teacher, batch.images, record=record).taps if taps else {}

        def loss(params: Any) -> tuple[Float[Array, ""], Any]:
            student = {**variables, "params": params}
            out = model.apply(student, batch.images, train=True, mask=batch.mask, key=key, record=record)
            entropy = masked_mean(cross_entropy(out.logits, batch.labels), batch.mask)
            apart = jnp.zeros_like(entropy)
            for tap in taps:
                square = jnp.mean(jnp.square(out.taps[tap.address] - goals[tap.address]), (1, 2))
                apart = apart + betas[tap.beta].astype(square.dtype) * masked_mean(square, batch.mask)
            return entropy + apart, (out.variables["batch_stats"], jnp.stack([entropy, apart]))

        (value, (statistics, parts)), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        if config.repeated_statistics:
            statistics = repeated(variables["batch_stats"], statistics)
        return slope, statistics, jnp.concatenate([value[None], parts])

    return gradient


def _map(tap: Tap, power: int) -> Callable[[Array, Array | None], Array]:
    def measure(features: Float[Array, "b h w c"], mask: Array | None) -> Float[Array, "b s t"]:
        if tap.grid is not None:
            side = jnp.asarray(pool_matrix(features.shape[1]), features.dtype)
            features = jnp.einsum("sh,tw,bhwc->bstc", side, side, features)
        return attention(features, power)

    return measure
