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
ArrayTree = Any  # arrays in nested dicts, lists and (named) tuples
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
    """Static addresses of a network. An address is the path of a module, e.g. ``layer2_0/bn1``.

    What a network does not name is empty; a defense that cannot do without it says so (:mod:`bdjax.defenses.reads`).
    """

    registered: tuple[tuple[str, str], ...] = ()  # ("conv" | "norm", address) in registration order
    norms: tuple[str, ...] = ()  # in execution order
    feeds: tuple[tuple[str, str], ...] = ()  # (norm, conv whose output it normalises); norms of a residual sum are left out
    heads: tuple[str, ...] = ()  # linear layers, in execution order
    stages: tuple[str, ...] = ()  # addresses of the stage outputs, in execution order
    plug_site: str = ""  # where a defense may insert a 1x1 convolution and a norm
    activations: tuple[str, ...] = ()  # those that a defense may bound, in execution order
    in_place: tuple[tuple[str, str], ...] = ()  # (conv, address): published code writes that tensor over the conv's output
    copies: float = 1.0  # entries of the published first head layer per entry of ours: 49/h² where VGG's is folded

    @property
    def convs(self) -> tuple[str, ...]:
        """The convolutions, in registration order."""
        return tuple(address for kind, address in self.registered if kind == "conv")


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
    source: str | None = None  # for a network of the user's own: sha256 of its file and of what that imports, set by its loader


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
    """A backdoor attack as pure functions of one member; built by a factory ``badnets(spec, config=None, *, profile)``.

    Five fields are needed, the others have a default. In the shapes n counts the training rows, b the rows of a batch, h w c are
    height, width and channels; images are float32 in [0, 1] unless u8 is said. A hook runs compiled and for many members at once:
    it uses ``jax.numpy``, has no Python ``if`` on an array, and draws from the key that it is given and from nothing else.

    Attributes:
      init: ``(key, assets) -> trigger``, a nested dict of arrays, {} where there is nothing to keep. Called once for each member
        before it is trained; ``assets`` is what ``prepare`` returned, or None. With ``recipe.shared_trigger``, the default, all
        members have one trigger, and the triggered copies of all images are computed once; a trigger that is drawn or learned
        for each member needs ``Recipe(shared_trigger=False)``.
      select: ``(key, labels i32[n], count i32[]) -> (poisoned bool[n], feasible bool[])``: the training rows that are poisoned.
        Called once for each member; ``count`` is the poison ratio times n, rounded. Where ``feasible`` is False the member is
        recorded as infeasible. Most attacks use what :func:`bdjax.attacks.selection.any_class` or ``one_class`` gives.
      stamp: ``(trigger, key, images f32[b h w c]) -> f32[b h w c]``, values k/255: the images with the trigger. Called on the
        test images to measure a network and, without ``train_stamp``, on training images; it stamps all that it is given, and
        the caller takes those of poisoned rows.
      relabel: ``(labels i32[b]) -> i32[b]``: what triggered images are to be called. Called on the labels of poisoned rows in
        every batch, and on the test labels: test rows for which it changes nothing do not count for ASR.
      recipe: how a network is trained with this attack; the user's own settings go before it.
      config: the static configuration that it was built with; in the record and in the hash of the cell.
      prepare: ``(key, Dataset) -> assets``, nested dicts of arrays, or None. Called before the population runs, once per data set
        and kept on disk. Where ``recipe.prepare_per`` is "seed" it runs for a population of seeds: it must trace, and the images
        of the data set are traced arrays. There an entry "stopped" i32[], the step at which something was not finite (-1 =
        none), makes the members of that seed non-finite.
      batch: ``(trigger, key, images f32[b h w c], labels i32[b], ratio f32[], other) -> (images, labels, loss f32[], trigger)``,
        or None. Called in every training step instead of ``select`` and ``stamp``, for an attack that poisons anew in each batch:
        ``loss`` is added to the classifier's, the trigger goes on to the next step, ``other`` is ``(images, labels)`` of a second
        batch where ``recipe.second_batch`` asks for one, else None.
      update: ``(trigger, gradient) -> trigger``, or None. Called in every training step for an attack whose trigger learns, with
        the gradient of the whole loss with respect to the trigger.
      train_stamp: like ``stamp``, called on training images; None = ``stamp``. For a trigger that is weaker or stronger in
        training than at test time.
      edition: raised when its results change, those of ``prepare`` included; part of the hash of every cell that it is in.
      source: for an attack of the user's own, the sha256 of its file and of what that imports; set by its loader.
      triggered: ``() -> Triggered``, or None. For an attack of which nothing but triggered test images is known: networks are
        measured on them, and ``select``, ``stamp`` and ``relabel`` refuse.
    """

    init: Callable[..., Any]
    select: Callable[..., tuple[Array, Array]]
    stamp: Callable[..., Array]
    relabel: Callable[[Array], Array]
    recipe: Recipe
    config: Any = None
    prepare: Callable[..., Any] | None = None
    batch: Callable[..., tuple[Array, Array, Array, Any]] | None = None
    update: Callable[..., Any] | None = None
    train_stamp: Callable[..., Array] | None = None
    edition: int = 1
    source: str | None = None
    triggered: Callable[[], Triggered] | None = None


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
    """A backdoor defense; built by a factory ``ft(model, config=None, *, profile="corrected")``.

    Attributes:
      defend: ``(key, DefenderView, hyper) -> Defended``, called once for each member, compiled and for many members at once:
        it has no Python ``if`` on an array, and draws from ``key`` and from nothing else.
      hyper: the default hyper-parameters, a NamedTuple whose leaves are arrays and may differ between members.
      needs: what the view holds beside the variables, of {"clean", "triggered", "test_accuracy"}; empty = no data are needed.
      config: the static configuration that it was built with; in the record and in the hash of the cell.
      validation: some of the clean rows are for validation and not to train on: their ``role`` is 2 (FP, ANP, Grad-Prune).
      curve: the pruning curve of a method that prunes more and more, or None.
      keyed: False promises that another key changes nothing, or only the order in which the same numbers are added. A run does
        not read it and draws for every seed all the same; the contract tests of a built-in defense hold it to the promise.
      edition: raised when its results change; part of the hash of every cell that it is in.
    """

    defend: Callable[..., Defended]
    hyper: Any
    needs: frozenset[str]
    config: Any = None
    validation: bool = False
    curve: Curve | None = None
    keyed: bool = True
    edition: int = 1
