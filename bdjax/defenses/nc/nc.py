"""NC (Neural Cleanse): find each class's smallest trigger, flag the outliers, fine-tune against them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least, configure, of_ten_thousand
from bdjax.data.augment import to_float
from bdjax.defenses.batches import bits_by_index, training_rows
from bdjax.defenses.nc.control import Rules
from bdjax.defenses.nc.search import searcher, with_trigger
from bdjax.defenses.tuning import Tuned, tuner
from bdjax.errors import UserError
from bdjax.train.schedules import cosine_by_epoch, plateau
from bdjax.types import (
    PROFILES,
    Array,
    Bool,
    CleanSet,
    DataSpec,
    Defended,
    DefenderView,
    Defense,
    Float,
    Int,
    Key,
    Model,
    Variables,
)

CONSISTENCY = 1.4826  # median absolute deviation of a normal distribution, as a standard deviation


class Config(NamedTuple):
    """Static configuration; None = as the data set says."""

    search_epochs: int = 80  # at most, per class
    batch: int = 256
    patience: int = 5  # epochs after which the cost of the mask's norm changes
    early_patience: int = 25  # epochs without a smaller mask after which a class stops
    early_ratio: float = 0.99
    epochs: int | None = None  # of the fine-tuning
    period: int | None = None  # epochs from its first learning rate down to 0; 0 = the rate waits for a plateau instead
    stamped_share: float = 0.2  # of each class's rows that get the triggers, in (0, 1), in steps of 1e-4
    max_flagged: int = 3  # classes whose triggers are unlearned, smallest norms first


OF_DATA = {"tiny_imagenet": Config(epochs=200, period=0)}  # data sets that are not tuned as the others are


class NCHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.01)
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    search_lr: Any = np.float32(0.1)
    cost: Any = np.float32(1e-3)  # first weight of the mask's norm
    multiplier: Any = np.float32(2)  # of the cost on its way up; its power 1.5 divides on the way down
    threshold: Any = np.float32(0.98)  # success rate that the search asks for
    outlier: Any = np.float32(2)  # anomaly index above which a small norm is flagged


class NCTrace(NamedTuple):
    """What was found, per class, and what happened while tuning."""

    mask: Array  # f[k h w]: recovered masks in [0, 1]
    pattern: Array  # f[k h w c]: recovered patterns in [0, 1]
    norm: Array  # f[k]: L1 norms of the masks
    anomaly: Array  # f[k]: anomaly index |norm - median| / (1.4826 MAD)
    flagged: Array  # bool[k]: small outliers, the classes called targets
    success: Array  # f32[search epochs, k]: success rate of the epoch; NaN once a class has stopped
    size: Array  # f32[search epochs, k]: mean L1 norm of the epoch; NaN likewise
    cost: Array  # f32[search epochs, k]: weight of the norm; NaN likewise
    unlearned: Array  # i32[]: flagged classes whose triggers were unlearned, at most ``max_flagged``
    loss: Array  # f32[epochs]: mean cross-entropy of the tuning; 0 where nothing was flagged
    alive: Array  # bool[]: loss and gradients stayed finite, those of the search too
    stopped: Array  # i32[]: the first step of the tuning at which they did not; -1 = none


def nc(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Reverse-engineer a trigger per class; where some class's is abnormally small, fine-tune on images that carry it.

    Search: x' = (1 - m) x + m q with m, q = tanh(·)/(2 + 1e-7) + 1/2, loss CE(f(x'), t) + cost ‖m‖_1, Adam (0.5, 0.9) in eval
    mode; the cost is doubled after 5 epochs in a row with success of at least ``threshold`` and divided by 2^1.5 after 5 without;
    the smallest successful mask is kept. Flags: n_t <= med and |n_t - med| / (1.4826 med |n - med|) > ``outlier``, with lower
    medians. Then ``stamped_share`` of each class's rows carry the flagged triggers, the others stay clean, labels stay true, and
    the whole network is tuned as in FT. Where nothing is flagged the network is returned as it came.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected"; the published code's mitigation cannot run.

    Returns:
      A defense with hyper-parameters :class:`NCHyper` and trace :class:`NCTrace`.

    Raises:
      UserError: the profile "reference", an unknown field or profile, or a value out of range.

    Source: B. Wang, Y. Yao, S. Shan, H. Li, B. Viswanath, H. Zheng, B. Y. Zhao, "Neural Cleanse: Identifying and Mitigating
      Backdoor Attacks in Neural Networks", IEEE S&P 2019; settings of K. Dunnett et al., arXiv 2411.11200, 2024.
    Differs: the published code stops with an error once a class is flagged, and would return the untouched network if it did
      not, so there is no profile "reference". Here ``stamped_share`` is drawn within each class (at 2 per class over classes at
      random), triggers act in floating point before the augmentation, and the tuned network is returned. The search normalises
      the pattern per channel, as it does images. The published search mistakes rows for channels, which changes what it finds on
      every data set but GTSRB (:func:`bdjax.defenses.nc.search.searcher`). As in the survey, not the original: the search starts
      from all ones at a positive cost and the tuning takes 100 epochs (Tiny-ImageNet 200, with a rate that waits for a plateau).
      At most ``max_flagged`` triggers are unlearned, those with the smallest norms. All classes are searched over the same
      batches. Where the threshold was never reached, a class keeps the mask of the first epoch, as there.
    """
    config = _resolved(config, model.spec, profile)
    rules = Rules(config.search_epochs, config.batch, config.patience, config.early_patience, config.early_ratio)
    search, judge, mitigate = searcher(model, rules), _judging(model.spec.classes, config), _mitigation(model, config)

    def defend(key: Key, view: DefenderView, hyper: NCHyper) -> Defended:
        assert view.clean is not None
        searching, splitting, tuning = jax.random.split(key, 3)
        hyper = jax.tree.map(jnp.asarray, hyper)
        found = search(searching, view.variables, view.clean, hyper)
        index, flagged, count, present, extra = judge(splitting, view.clean, found.norm, found.mask, found.pattern, hyper)
        tuned = mitigate(count, tuning, view.variables, view.clean, present, hyper, extra)
        seen = NCTrace(
            *(found.mask, found.pattern, found.norm, index, flagged, found.success, found.size, found.cost),
            *(count, tuned.loss, tuned.alive & jnp.all(found.alive), tuned.stopped),
        )
        return Defended(tuned.variables, None, seen)

    return Defense(defend, NCHyper(), frozenset({"clean"}), config)


def _resolved(config: Config | Mapping[str, Any] | None, spec: DataSpec, profile: str) -> Config:
    """The configuration without None, in range."""
    preset = OF_DATA.get(spec.name, Config(epochs=100))
    config = configure(dict.fromkeys(PROFILES, preset), config, "nc", profile)
    if profile == "reference":
        raise UserError("nc has no profile 'reference': the published mitigation cannot run; use profile 'corrected'")
    config = config._replace(period=config.epochs if config.period is None else config.period)
    at_least("nc", config, search_epochs=1, batch=1, patience=1, early_patience=1, epochs=1, period=0, max_flagged=1)
    if config.max_flagged > spec.classes:
        config = config._replace(max_flagged=spec.classes)
    of_ten_thousand("nc.stamped_share", config.stamped_share, ends=False)
    return config


def _judging(classes: int, config: Config) -> Callable[..., Any]:
    """``judge(key, clean, norm, mask, pattern, hyper) -> (index, flagged, count, present, extra)``: which classes are targets.

    ``count`` of them are unlearned, on those rows of the fine-tuning that are ``present``; :func:`_gather` reads ``extra``.
    """

    @jax.jit
    def judge(
        key: Key,
        clean: CleanSet,
        norm: Float[Array, " k"],
        mask: Float[Array, "k h w"],
        pattern: Float[Array, "k h w c"],
        hyper: Any,
    ) -> Any:
        index, flagged = outliers(norm, hyper.outlier)
        order = jnp.argsort(jnp.where(flagged, norm, jnp.inf), stable=True)[: config.max_flagged]
        count = jnp.minimum(jnp.sum(flagged, dtype=jnp.int32), config.max_flagged)
        rows = training_rows(clean)
        triggered = split(key, clean.labels, rows, classes, config.stamped_share)
        virtual, present = _virtual(rows, triggered, count, config)
        triggers = {"mask": mask[order][..., None], "pattern": pattern[order]}
        return index, flagged, count, present, (virtual, triggers)

    return judge


def outliers(norm: Float[Array, " k"], threshold: Float[Array, ""]) -> tuple[Float[Array, " k"], Bool[Array, " k"]]:
    """Anomaly indices, and which classes are flagged: below the median and further from it than ``threshold``.

    Medians are lower ones. Where the deviations' median is 0 the division gives infinity, which flags, or NaN, which does not.
    """
    middle = (norm.shape[0] - 1) // 2
    median = jnp.sort(norm)[middle]
    away = jnp.abs(norm - median)
    index = away / (CONSISTENCY * jnp.sort(away)[middle])
    return index, (norm <= median) & (index > threshold.astype(norm.dtype))


def _share_of(rows: Any, share: float) -> Any:
    """How many of so many rows carry the triggers: rows - floor((1 - share) rows), for an int or i32[]."""
    return rows - (10_000 - of_ten_thousand("nc.stamped_share", share, ends=False)) * rows // 10_000


def split(key: Key, labels: Int[Array, " n"], rows: Bool[Array, " n"], classes: int, share: float) -> Bool[Array, " n"]:
    """The training rows that carry the triggers, ``share`` of each class; what does not divide is drawn over the classes.

    Args:
      key: draws.
      labels: of all rows.
      rows: training rows; of N of them N - floor((1 - share) N) carry the triggers.
      classes: number of classes.
      share: in (0, 1).
    """
    count = _share_of(jnp.sum(rows, dtype=jnp.int32), share)
    within, among = jax.random.split(key)
    # The rank of each row inside its class, in random order; draws by place among the training rows: padding changes none.
    draw = bits_by_index(within, jnp.maximum(jnp.cumsum(rows, dtype=jnp.int32) - 1, 0))
    group = jnp.where(rows, labels, classes)
    position = jnp.argsort(jnp.lexsort((draw, group))).astype(jnp.int32)
    own = jnp.sum(group[:, None] == jnp.arange(classes, dtype=jnp.int32)[None], 0, dtype=jnp.int32)
    start = jnp.cumsum(own, dtype=jnp.int32) - own
    inside = jnp.minimum(group, classes - 1)
    # As a share of the class, so that each class gives the same share; a random order of the classes decides ties.
    level = (position - start[inside]).astype(jnp.float32) / jnp.maximum(own[inside], 1).astype(jnp.float32)
    turn = bits_by_index(among, jnp.arange(classes, dtype=jnp.int32))[inside]
    return rows & (jnp.argsort(jnp.lexsort((turn, jnp.where(rows, level, 2)))).astype(jnp.int32) < count)


def _virtual(
    rows: Bool[Array, " n"], triggered: Bool[Array, " n"], count: Int[Array, ""], config: Config
) -> tuple[Int[Array, " v"], Bool[Array, " v"]]:
    """The rows of the fine-tuning, and which of them are present; row + j n is row with trigger j - 1, j = 0 clean.

    There are at most so many of them as room is made for here, statically: the present ones come first.
    """
    n = rows.shape[0]
    unlearned = jnp.arange(1, config.max_flagged + 1, dtype=jnp.int32)[:, None] <= count
    present = jnp.concatenate([(rows & ~triggered)[None], triggered[None] & unlearned]).reshape(-1)
    room = n + (config.max_flagged - 1) * _share_of(n, config.stamped_share)
    order = jnp.argsort(~present, stable=True).astype(jnp.int32)[:room]
    return order, present[order] & (count > 0)


def _mitigation(model: Model, config: Config) -> Callable[..., Tuned]:
    """``mitigate(count, key, variables, clean, present, hyper, extra) -> Tuned``: tune where something is flagged."""
    assert config.epochs is not None and config.period is not None
    schedule = cosine_by_epoch(config.period) if config.period else plateau()
    tune = tuner(model, epochs=config.epochs, batch=config.batch, schedule=schedule, gather=_gather)

    def mitigate(count: Int[Array, ""], key: Key, variables: Variables, *rest: Any) -> Tuned:
        if model.loop.kind != "scan":
            return tune(key, variables, *rest)
        # Without a row no step changes anything, but one compiled branch saves the time.
        none = jnp.zeros(config.epochs, jnp.float32)
        same = Tuned(dict(variables), none, (), jnp.bool_(True), jnp.int32(-1), jnp.int32(0))
        return jax.lax.cond(count > 0, lambda: tune(key, variables, *rest), lambda: same)

    return mitigate


def _gather(clean: CleanSet, extra: Any, at: Int[Array, " b"]) -> tuple[Float[Array, "b h w c"], Int[Array, " b"]]:
    """Images and labels of the fine-tuning's rows ``at``, with the triggers that they carry."""
    virtual, triggers = extra
    n = clean.labels.shape[0]
    row, number = virtual[at] % n, virtual[at] // n
    images = to_float(clean.images[row]).astype(triggers["mask"].dtype)
    for j in range(triggers["mask"].shape[0]):
        trigger = {name: value[j] for name, value in triggers.items()}
        images = jnp.where((number == j + 1)[:, None, None, None], with_trigger(trigger, images), images)
    return images, clean.labels[row]
