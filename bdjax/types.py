"""The shared vocabulary: what a data set, a member, a model, an attack and a defense are.

Everything here is a plain ``NamedTuple``. Axis letters in the comments: m members, n rows, b batch, h w c image, k classes,
d channels. A *member* is one point of the grid (one seed, one poison ratio, ...); every function of the package sees one
member, and only :mod:`bdjax.population` knows that there are many.

Functions name the shapes of their arrays in the notation of jaxtyping, ``Float[Array, "b h w c"]``: one letter stands for one
length throughout a call. The fast tests check them at every call.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

if TYPE_CHECKING or importlib.util.find_spec("jaxtyping"):
    from jaxtyping import Bool, Float, Int, Num, Shaped, UInt8
else:  # jaxtyping comes with the extra "test"; without it an annotation says no more than Array

    class Shaped:
        """Stands for the annotation that names a shape: ``Shaped[Array, " b"]`` is ``Array``."""

        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = Num = UInt8 = Shaped

Array = jax.Array
Key = jax.Array
Variables = Mapping[str, Any]  # {"params", "batch_stats"} and, where a defense adds them, {"bounds", "plug", "plug_stats"}
Masks = dict[str, Array]  # {address: keep factors f32[d]}
PROFILES = ("corrected", "reference")


class DataSpec(NamedTuple):
    """Static facts of a data set (hashable: it names a compilation)."""

    name: str
    image_shape: tuple[int, int, int]  # h, w, c
    classes: int
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    flip: bool  # random horizontal flip with probability 1/2 while training
    pad: int  # zero padding, in pixels, of the random crop while training
    class_names: tuple[str, ...] = ()


class Split(NamedTuple):
    """Rows of a data set: ``images`` u8[n h w c], ``labels`` i32[n]."""

    images: Array
    labels: Array


class Dataset(NamedTuple):
    """A data set as host arrays (memory-mapped where they come from a cache) and the hash of their bytes."""

    spec: DataSpec
    train: Split
    test: Split
    digest: str


class Triggered(NamedTuple):
    """Triggered test images that were made elsewhere, on the host."""

    images: np.ndarray  # u8[m h w c]
    labels: np.ndarray  # i32[m], true labels
    attack_labels: np.ndarray  # i32[m], what the attacked network is to answer
    index: np.ndarray  # type: ignore[assignment]  # i64[m], rows of the test set
    rows: int = 0  # of the whole test set; 0 = not known


class Member(NamedTuple):
    """What may differ between the members of a population; every leaf is an array."""

    key: Key  # from the seed alone
    ratio: Array  # f32[], poison ratio in [0, 1]
    count: Array  # type: ignore[assignment]  # i32[], rows poisoned = round(ratio * n), computed on the host in float64
    spc: Array  # i32[], clean samples per class the defender holds
    hyper: Any = ()  # pytree of traced hyper-parameters of the method that runs
    assets: Any = None  # what the attack prepared for this member's seed, where it prepares per seed


class Loop(NamedTuple):
    """How a loop of steps is executed (static; chosen by :mod:`bdjax.population`, carried by ``Model``)."""

    kind: str = "scan"  # "scan": one compiled loop; "dispatch": a Python loop over a compiled step
    unroll: int = 1  # steps per trip
    members: str = "batched"  # "batched": vmap reaches into the step; "unrolled": the step is repeated for every member
    options: tuple[tuple[str, str], ...] = ()  # of the compiler, for dispatched steps; they cannot run inside a jit


class Output(NamedTuple):
    """What a forward pass returns."""

    logits: Array  # f[b k]
    variables: Variables  # with new running statistics where train=True
    taps: dict[str, Any]  # {address: tensor, or f(tensor, mask)}


class ArchSpec(NamedTuple):
    """Static addresses of a network. An address is the path of a module, e.g. ``layer2_0/bn1``."""

    registered: tuple[tuple[str, str], ...]  # ("conv" | "norm", address) in registration order
    norms: tuple[str, ...]  # in execution order
    feeds: tuple[tuple[str, str], ...]  # (norm, conv whose output it normalises); norms of a residual sum are left out
    heads: tuple[str, ...]  # linear layers, in execution order
    stages: tuple[str, ...]  # addresses of the stage outputs, in execution order
    plug_site: str  # where a defense may insert a 1x1 convolution and a norm
    activations: tuple[str, ...] = ()  # those that a defense may bound, in execution order
    in_place: tuple[tuple[str, str], ...] = ()  # (conv, address): published code writes that tensor over the conv's output
    copies: float = 1.0  # entries of the published first head layer per entry of ours: 49/h² where VGG's is folded


class Model(NamedTuple):
    """One network for one member, as pure functions (static: closed over, never traced)."""

    init: Callable[..., Variables]  # (key) -> variables
    apply: Callable[..., Output]
    # apply(variables, images f32[b h w c] in [0, 1], *, train=False, plug_train=False, mask=None, key=None, record=(),
    #       start=None)
    #   train: batch statistics over rows with mask 1, new running statistics in Output.variables; key feeds dropout and
    #       stochastic depth, and a network that has neither needs none
    #   record: addresses (tensor wanted) or (address, f) pairs (f(tensor, mask) wanted)
    #   start: "features" or "head": `images` is then that tensor and only the rest of the network runs
    rebuild: Callable[..., "Model"]  # (**fields) -> the same network with other static fields
    spec: DataSpec
    arch: ArchSpec
    name: str
    width: int
    loop: Loop
    norm_eps: float = 1e-5  # added to the variance in its norms
    depth: int | None = None  # blocks per stage that it was cut to; None = whole
    norm_momentum: float = 0.1  # weight of the new value in their running statistics
    dtype: Any = None  # of activations and convolutions; None = that of the parameters
    edition: int = 1  # raised when its results change; part of the hash of every cell that it is in


class Recipe(NamedTuple):
    """How a backdoored model is trained (static). Lengths in epochs, rates per step."""

    epochs: int = 100
    batch: int = 128
    lr: float = 0.01
    schedule: str = "cosine"  # "cosine" to 0 over `epochs`, stepped once per epoch; or "constant"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "after"  # crops and flips act "after" | "before" the trigger, the attack has its "own", or there is "none"
    second_batch: bool = False  # `Attack.batch` gets a second, independently shuffled batch
    prepare_per: str = "dataset"  # `Attack.prepare` runs once per "dataset" or per "seed"
    shared_trigger: bool = True  # the trigger is the same for all members, so triggered copies are computed once


class Attack(NamedTuple):
    """A backdoor attack as pure functions of one member; built by a factory ``badnets(spec, config=None, *, profile)``."""

    init: Callable[..., Any]  # (key, assets) -> trigger, any pytree
    select: Callable[..., tuple[Array, Array]]  # (key, labels i32[n], count i32[]) -> (poisoned bool[n], feasible bool[])
    stamp: Callable[..., Array]  # (trigger, key, images f32[b h w c] in [0, 1]) -> f32[b h w c], values k/255: at test time
    relabel: Callable[[Array], Array]  # (labels i32[b]) -> i32[b]; test rows that count: relabel(y) != y
    recipe: Recipe
    config: Any = None  # the static configuration it was built with, for the record
    prepare: Callable[..., Any] | None = None
    # (key, Dataset) -> assets, nested dicts of arrays, before the population runs; kept on disk. Where Recipe.prepare_per is
    # "seed" it runs for a population of seeds: it must trace, and the images of the data set are traced arrays. There an entry
    # "stopped" i32[], the step at which something was not finite (-1 = none), makes the members of that seed non-finite
    batch: Callable[..., tuple[Array, Array, Array, Any]] | None = None
    # (trigger, key, images f32[b h w c], labels i32[b], ratio f32[], other) -> (images, labels, loss f32[], trigger): poison
    # inside the batch; `loss` is added to the classifier's; `other` = (images, labels) of the second batch, or None
    update: Callable[..., Any] | None = None  # (trigger, gradient) -> trigger, the trigger's own optimiser
    train_stamp: Callable[..., Array] | None = None  # like `stamp`, while training; None = `stamp`
    edition: int = 1  # raised when its results change, those of `prepare` included; part of the hash of every cell it is in
    source: str | None = None  # for an attack of the user's own: sha256 of its file and of what that imports, set by its loader
    triggered: Callable[[], Triggered] | None = None
    # () -> triggered test images, for an attack of which nothing else is known: networks are measured on them, and `select`,
    # `stamp` and `relabel` refuse. None: the attack makes its own from the test set


class CleanSet(NamedTuple):
    """The defender's clean rows, class-major and rank-minor; rows with role 0 are padding."""

    images: Array  # u8[n h w c]
    labels: Array  # i32[n]
    role: Array  # i8[n]: 0 absent, 1 train, 2 validation
    spc: Array  # i32[]


class DefenderView(NamedTuple):
    """Everything a defender may see. What a defense does not name in ``needs`` is None."""

    variables: Variables
    clean: CleanSet | None = None
    triggered: Array | None = None  # u8[n h w c]: the clean rows with the true trigger ("triggered" in needs)
    test_accuracy: Array | None = None  # f32[] ("test_accuracy" in needs)


class Defended(NamedTuple):
    """What a defense returns."""

    variables: Variables
    masks: Masks | None = None  # keep factors, for methods that prune
    trace: Any = ()  # the method's own NamedTuple of arrays: what happened on the way


class Curve(NamedTuple):
    """The pruning curve of a defense, for analysis: which networks it chose among."""

    label: str  # what the points are, e.g. "threshold"
    points: tuple[float, ...]  # one per level, in the order of pruning
    reads: tuple[str, ...]  # the fields of the trace that say which channel goes when
    at: Callable[..., Variables]
    # (variables before the defense, *fields, level i32[]) -> variables pruned to that level and not tuned


class Defense(NamedTuple):
    """A backdoor defense; built by a factory ``ft(model, config=None, *, profile="corrected")``."""

    defend: Callable[..., Defended]  # (key, DefenderView, hyper) -> Defended
    hyper: Any  # default NamedTuple of traced leaves
    needs: frozenset[str]  # of {"clean", "triggered", "test_accuracy"}; empty = data-free
    config: Any = None  # the static configuration it was built with, for the record
    validation: bool = False  # draws validation rows from the first ranks (spec: FP, ANP, Grad-Prune)
    curve: Curve | None = None  # for methods that prune more and more
    keyed: bool = True  # False: another key changes nothing, or only the order in which the same numbers are added
    edition: int = 1  # raised when its results change; part of the hash of every cell that it is in
