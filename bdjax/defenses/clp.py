"""CLP: prune the channels whose convolution and norm amplify most."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bdjax import tree
from bdjax.configure import configure
from bdjax.defenses.channels import limit, outlier_curve
from bdjax.types import ArchSpec, Array, Defended, DefenderView, Defense, Float, Key, Model, Variables


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    eps_under_root: bool | None = None  # sqrt(s² + eps) with the model's eps, instead of sqrt(s²)
    leave_out_non_finite: bool | None = None  # of mean and standard deviation; else one such channel keeps its whole layer


class Hyper(NamedTuple):
    """Traced hyper-parameters."""

    u: Any = np.float32(3)  # f32[]: standard deviations above the layer's mean


class CLPTrace(NamedTuple):
    """What was measured, one entry per norm (or channel) in the order of :func:`pairs`."""

    threshold: Array  # f[layers]
    largest: Array  # f[layers]: the largest score of the layer
    pruned: Array  # i32[layers]: channels pruned
    scores: Array  # f[channels]: layer after layer


PRESETS = {
    "corrected": Config(eps_under_root=True, leave_out_non_finite=True),
    "reference": Config(eps_under_root=False, leave_out_non_finite=False),
}


def clp(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Prune, without data, channels with an unusually large Lipschitz constant.

    L_k = |gamma_k| / sqrt(s²_k + eps) sigma_max(W_k) for channel k of a norm, with W_k the kernel of its convolution as an
    (input channels) x (kernel positions) matrix. Channels with L_k > mean(L) + u std(L), the unbiased standard deviation over
    their layer, get scale and bias 0. One shot; running statistics stay.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A data-free defense that ignores its key, with hyper-parameters :class:`Hyper`, masks {norm: keep f[d]} and trace
      :class:`CLPTrace`.

    Raises:
      UserError: an unknown field or profile, or a value of another type.

    Source: R. Zheng, R. Tang, J. Li, L. Liu, "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022.
    Differs: a norm is paired with the convolution registered last before it (:func:`pairs`), as in the survey (arXiv
      2411.11200), in both profiles: in a pre-activation network that is a heuristic where the norm's input is a residual sum.
      "reference" leaves out eps, as the survey's published code does; a running variance of 0 then gives a score that is not
      finite, and its layer is kept whole.
    """
    config = configure(PRESETS, config, "clp", profile)
    paired = pairs(model.arch)

    @jax.jit
    def prune(variables: Variables, hyper: Hyper) -> tuple[Any, dict[str, Array], CLPTrace]:
        scores = channel_scores(variables, paired, model.norm_eps if config.eps_under_root else 0.0)
        limits = {norm: limit(score, hyper.u, config.leave_out_non_finite) for norm, score in scores.items()}
        masks = tree.keep_below(scores, limits)
        params = tree.mask_norms(variables["params"], masks, bias=True)
        trace = CLPTrace(
            jnp.stack(list(limits.values())),
            jnp.stack([jnp.max(score) for score in scores.values()]),
            jnp.stack(list(tree.pruned_count(masks).values())),
            jnp.concatenate(list(scores.values())),
        )
        return params, masks, trace

    def defend(key: Key, view: DefenderView, hyper: Hyper) -> Defended:
        params, masks, trace = prune(view.variables, jax.tree.map(jnp.asarray, hyper))
        return Defended({**view.variables, "params": params}, masks, trace)

    along = outlier_curve(tuple(norm for norm, _ in paired), config.leave_out_non_finite)
    return Defense(defend, Hyper(), frozenset(), config, curve=along, keyed=False)


def pairs(arch: ArchSpec) -> tuple[tuple[str, str], ...]:
    """(norm, convolution registered last before it) for every norm, in registration order."""
    found, latest = [], None
    for kind, address in arch.registered:
        if kind == "conv":
            latest = address
        elif latest is not None:
            found.append((address, latest))
    return tuple(found)


def channel_scores(variables: Variables, paired: tuple[tuple[str, str], ...], eps: float) -> dict[str, Array]:
    """{norm: f[d]}: |scale| / sqrt(running variance + eps) times the largest singular value of the channel's kernel."""
    params, statistics = variables["params"], variables["batch_stats"]
    scores = {}
    for norm, conv in paired:
        gain = jnp.abs(tree.get(params, norm)["scale"]) / jnp.sqrt(tree.get(statistics, norm)["var"] + eps)
        scores[norm] = gain * largest_singular_value(tree.get(params, conv)["kernel"])
    return scores


def largest_singular_value(kernel: Float[Array, "kh kw c d"]) -> Float[Array, " d"]:
    """Per output channel, the spectral norm of the (input channels) x (positions) matrix."""
    kh, kw, c, d = kernel.shape
    rows = kernel.reshape(kh * kw, c, d)
    # The Gram matrix of the shorter side has the squared singular values; full precision also where products default to less.
    products = "pcd,qcd->dpq" if kh * kw <= c else "pcd,ped->dce"
    gram = jnp.einsum(products, rows, rows, precision="highest")
    return jnp.sqrt(jnp.maximum(_largest_eigenvalue(gram), 0))


def _largest_eigenvalue(gram: Float[Array, "d p p"]) -> Float[Array, " d"]:
    """Largest eigenvalue of positive semidefinite matrices, to rounding error.

    The matrix is squared 32 times, which leaves the projector on the top eigenvectors, and those alone: an eigenvalue that still
    has weight then agrees with the largest one to 1e-8. Products only, because a LAPACK call inside a larger compiled program
    can hang the CPU runtime of jax 0.10 on two cores.
    """
    tiny = jnp.finfo(gram.dtype).tiny

    def scaled(matrix: Array) -> Array:
        return matrix / jnp.maximum(jnp.trace(matrix, axis1=1, axis2=2), tiny)[:, None, None]

    def square(_: Any, matrix: Array) -> Array:
        return scaled(jnp.einsum("dpq,dqr->dpr", matrix, matrix, precision="highest"))

    projector = lax.fori_loop(0, 32, square, scaled(gram))
    return jnp.sum(gram * projector, (1, 2))
