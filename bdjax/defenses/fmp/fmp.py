"""FMP: prune the feature maps whose adversarial stimulation costs most accuracy, then fine-tune."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import ADDED, at_least, configure
from bdjax.defenses.batches import training_rows
from bdjax.defenses.channels import split
from bdjax.defenses.fmp.stimulation import Rules, measurer
from bdjax.defenses.tuning import tuner
from bdjax.errors import choose
from bdjax.train.evaluate import finite
from bdjax.train.schedules import cosine_between
from bdjax.types import Array, Bool, Defended, DefenderView, Defense, Float, Int, Key, Masks, Model, Variables

PROJECTION = "shortcut_0"  # of a residual block: published networks run it first and register it last
SCORE_BN, CLIP_SPACE, TIE_BREAK = ("eval", "train"), ("pixel", "normalised"), ("cross_entropy", "index")


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    epochs: int = 10  # of the tuning after pruning
    batch: int = 256
    period: int | None = None  # epochs from the first learning rate to the last
    images: int = 32  # rows that channels are scored on, at most
    prune_one_in: int = 64  # channels of a convolution per one that is pruned; the rest of the division prunes none
    score_bn: str | None = None  # statistics of the norms while scoring: "eval", the running ones, or "train", the batch's
    clip_space: str | None = None  # where steps are taken and images cut to [0, 1]: "pixel" or "normalised"
    order_bug: bool | None = None  # scores are listed in the order of execution and read in the order of registration
    tie_break: str | None = None  # among channels of equal accuracy: larger "cross_entropy" first, or "index" alone
    augment_scored: bool | None = None  # crop and flip the scored rows
    registered_norms: bool | None = None  # the norm registered next to a convolution goes with it, not the one that it feeds
    freeze_pruned: bool | None = None  # what is pruned stays 0 while tuning
    in_place: Annotated[bool, ADDED] = False  # a convolution's map is what published networks write over it afterwards


class FMPHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.01)  # of the first epoch
    last_lr: Any = np.float32(1e-4)  # towards which it falls along a cosine
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(0)
    epsilon: Any = np.float32(1 / 255)  # size of the random start and of the step


class FMPTrace(NamedTuple):
    """What was measured, convolution after convolution in the order of registration, and what happened while tuning."""

    correct: Array  # i32[channels]: stimulated images classified correctly, as they count for each channel
    entropy: Array  # f[channels]: mean cross-entropy on them
    scored: Array  # i32[]: images that were stimulated
    pruned: Array  # i32[convolutions]: channels pruned
    loss: Array  # f32[epochs]: mean cross-entropy of the epoch
    alive: Array  # bool[]: scores, loss and gradients stayed finite
    stopped: Array  # i32[]: the first step of the tuning at which they did not; -1 = none


PRESETS = {
    "corrected": Config(
        score_bn="eval",
        clip_space="pixel",
        order_bug=False,
        tie_break="cross_entropy",
        augment_scored=False,
        registered_norms=False,
        freeze_pruned=True,
        in_place=False,
    ),
    "reference": Config(
        score_bn="train",
        clip_space="normalised",
        order_bug=True,
        tie_break="index",
        augment_scored=True,
        registered_norms=True,
        freeze_pruned=False,
        in_place=True,
    ),
}


def fmp(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Prune in every convolution the channels that, once stimulated through the images, leave the network least accurate.

    With x at most 32 clean images, x0 = clip(x + epsilon r), r random signs, and z_c channel c of a convolution's output:
    x_c = clip(x0 + epsilon sign(∂ mean (z_c(x0) - z_c(x))² / ∂x0)). In each convolution of d channels, those of
    squeeze-and-excitation too, the floor(d / 64) with the lowest accuracy on x_c lose their kernel and bias, and the scale and
    bias of the norm that they feed. Then the whole network is tuned as in FT, without weight decay.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`FMPHyper`, masks {convolution: keep f[d]} and trace :class:`FMPTrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: D. Huang, Q. Bu, "Adversarial Feature Map Pruning for Backdoor", ICLR 2024; settings of K. Dunnett et al., arXiv
      2411.11200, 2024.
    Differs: "corrected" scores in eval mode and in pixels, as the original does, on images as they are, breaks ties by the larger
      cross-entropy, then the first channel, and keeps what is pruned at 0. "reference" repeats the survey's published code: norms
      take the statistics of the batch and dropout is on while scoring; epsilon and the cut to [0, 1] are those of normalised
      images; the scores of PreActResNet's projections prune the next convolution and so on in a circle; the projections, last
      convolutions of blocks and the stem keep their norms; pruned channels may grow back; the map of the last convolution of a
      PreActResNet's block is its output plus the shortcut, and that of an EfficientNet's first squeezing convolution its SiLU:
      the published networks write these over the output in place, so that a hook on the convolution finds them. But in the
      published code each of some 3 channels forward passes moves the running statistics and draws its own dropout, one pass after
      the other; here they are left alone, and one draw gives the gradients of all channels. Ties go to the first channel; there
      they are arbitrary. In both profiles activations are scored in the precision of the parameters: in bfloat16 a step of 1/255
      would be lost. Where there is no row, or a score is not finite, nothing is pruned.
    """
    config = _resolved(config, profile)
    assert config.period is not None
    convs = tuple(address for kind, address in model.arch.registered if kind == "conv")
    measured = _executed(convs) if config.order_bug else convs  # whose scores the convolutions are judged by
    measure = measurer(model.rebuild(dtype=None), measured, rules_of(config))
    norms = _registered_norms(model) if config.registered_norms else {conv: norm for norm, conv in model.arch.feeds}
    project = _projection(norms)
    prune = _pruning(convs, project, config)
    tune = tuner(
        model,
        epochs=config.epochs,
        batch=config.batch,
        schedule=cosine_between(config.period),
        project=project if config.freeze_pruned else None,
    )

    def defend(key: Key, view: DefenderView, hyper: FMPHyper) -> Defended:
        assert view.clean is not None
        scoring, tuning = jax.random.split(key)
        hyper = jax.tree.map(jnp.asarray, hyper)
        correct, entropy, scored = measure(scoring, view.variables, view.clean, hyper.epsilon)
        variables, masks, pruned, sound = prune(view.variables, correct, entropy, scored)
        tuned = tune(tuning, variables, view.clean, training_rows(view.clean), hyper, masks)
        trace = FMPTrace(correct, entropy, scored, pruned, tuned.loss, tuned.alive & sound, tuned.stopped)
        return Defended(tuned.variables, masks, trace)

    edition = 2 if config.in_place and model.arch.in_place else 1  # the first did not know of what is written over
    return Defense(defend, FMPHyper(), frozenset({"clean"}), config, edition=edition)


def _resolved(config: Config | Mapping[str, Any] | None, profile: str) -> Config:
    """The configuration without None, its values known and in range."""
    config = configure(PRESETS, config, "fmp", profile)
    config = config._replace(period=config.epochs if config.period is None else config.period)
    at_least("fmp", config, epochs=1, batch=1, period=1, images=1, prune_one_in=1)
    for field, allowed in (("score_bn", SCORE_BN), ("clip_space", CLIP_SPACE), ("tie_break", TIE_BREAK)):
        choose(f"fmp.{field}", str(getattr(config, field)), allowed)
    return config


def rules_of(config: Config) -> Rules:
    """The rules of the scores that a configuration without None asks for."""
    return Rules(
        images=config.images,
        train=config.score_bn == "train",
        normalised=config.clip_space == "normalised",
        in_place=config.in_place,
        augment=bool(config.augment_scored),
    )


def _projection(norms: dict[str, str]) -> Callable[[Any, Masks], Any]:
    """``project(params, masks)``: parameters without what is pruned; ``norms`` {convolution: norm} go with their convolutions."""

    def project(params: Any, masks: Masks) -> Any:
        fed = {norms[conv]: keep for conv, keep in masks.items() if conv in norms}
        return tree.mask_norms(tree.scale_convs(params, masks), fed, bias=True)

    return project


def _pruning(convs: tuple[str, ...], project: Callable[[Any, Masks], Any], config: Config) -> Callable[..., Any]:
    """``prune(variables, correct, entropy, scored) -> (variables, masks, channels pruned by convolution, scores are finite)``."""

    @jax.jit
    def prune(
        variables: Variables, correct: Int[Array, " channels"], entropy: Float[Array, " channels"], scored: Int[Array, ""]
    ) -> Any:
        params = variables["params"]
        kernels = {conv: tree.get(params, conv)["kernel"] for conv in convs}
        sound = finite(entropy)
        keep = _kept(correct, entropy, [kernel.shape[-1] for kernel in kernels.values()], config) | ~sound | (scored == 0)
        each = split(keep, {conv: kernel[0, 0, 0] for conv, kernel in kernels.items()})
        masks = {conv: mask.astype(kernels[conv].dtype) for conv, mask in each.items()}
        pruned = jnp.stack(list(tree.pruned_count(masks).values()))
        return {**variables, "params": project(params, masks)}, masks, pruned, sound

    return prune


def _kept(
    correct: Int[Array, " channels"], entropy: Float[Array, " channels"], sizes: list[int], config: Config
) -> Bool[Array, " channels"]:
    """Of convolutions of ``sizes`` channels: false for the floor(d / prune_one_in) of each to be pruned."""
    layer = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    keys = (-entropy, correct, layer) if config.tie_break == "cross_entropy" else (correct, layer)
    order = jnp.lexsort(tuple(jnp.asarray(key) for key in keys))
    # Sorted by layer first, so the channels that follow one another in the order are those of one layer.
    place = np.concatenate([np.arange(d, dtype=np.int32) for d in sizes])
    least = np.repeat(np.asarray(sizes, np.int32) // config.prune_one_in, sizes)
    return jnp.zeros(len(layer), bool).at[order].set(jnp.asarray(place >= least))


def _executed(convs: tuple[str, ...]) -> tuple[str, ...]:
    """Convolutions in the order in which published networks run them, from the order of registration."""
    order: list[str] = []
    for conv in convs:
        block, _, name = conv.rpartition("/")
        begun = (i for i, other in enumerate(order) if name == PROJECTION and other.rpartition("/")[0] == block)
        order.insert(next(begun, len(order)), conv)
    return tuple(order)


def _registered_norms(model: Model) -> dict[str, str]:
    """{convolution: norm} where the two follow one another in one module."""
    following = zip(model.arch.registered, model.arch.registered[1:], strict=False)
    return {
        conv: norm
        for (kind, conv), (next_kind, norm) in following
        if (kind, next_kind) == ("conv", "norm") and conv.rpartition("/")[0] == norm.rpartition("/")[0]
    }
