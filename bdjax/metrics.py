"""What is reported: ACC, ASR, RA and what a defense changed (ARR, RDR, DER).

Every number is a fraction; percent is for printing. Every function is NumPy in float64, works element by element on arrays, and
answers NaN (stored as null) where a number is not defined. Let "before" be the backdoored model and "after" the defended one:

* ACC: clean test images classified as their true class (all classes).
* ASR: triggered test images whose attack label differs from their true one, classified as the attack label.
* RA: the same triggered images, classified as their true class. So ASR + RA <= 1.

Source: Wu et al., "BackdoorBench", NeurIPS Datasets and Benchmarks 2022 (ACC, ASR, RA); Zhu et al., "Enhancing Fine-Tuning Based
Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023 (DER).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def rates(counts: Any) -> tuple[Floats, Floats, Floats]:
    """ACC, ASR and RA from counts of test images.

    Args:
      counts: anything with the integer arrays ``clean, correct, triggered, attacked, recovered`` (``evaluation.Counts``), of one
        shape: [] for one member, [m] for a population.

    Returns:
      (ACC, ASR, RA), float64 arrays of that shape, in [0, 1]; NaN where no image counts.
    """
    return (
        _ratio(counts.correct, counts.clean),
        _ratio(counts.attacked, counts.triggered),
        _ratio(counts.recovered, counts.triggered),
    )


def one_class(counts: Any) -> Floats:
    """The share of the clean test images that is predicted as the most predicted class.

    Args:
      counts: as of :func:`rates`, with ``predicted`` i[k] or i[m k].

    Returns:
      float64 of the shape of ``counts.clean``, in [1/k, 1]: 1 for a network that calls every image the same; NaN without images.
    """
    return _ratio(np.asarray(counts.predicted).max(axis=-1), counts.clean)


def arr(acc_before: ArrayLike, acc: ArrayLike) -> Floats | np.float64:
    """Accuracy reduction rate, 1 - ACC_after / ACC_before: the share of the accuracy a defense costs.

    Args:
      acc_before: ACC of the backdoored model, in [0, 1].
      acc: ACC of the defended model, in [0, 1].

    Returns:
      float64, at most 1, negative where accuracy rose; NaN where ``acc_before`` is 0.
    """
    return 1.0 - _ratio(acc, acc_before)


def rdr(acc_before: ArrayLike, ra: ArrayLike) -> Floats | np.float64:
    """Recovery difference rate, 1 - RA_after / ACC_before: how far triggered images stay from the accuracy before.

    Args:
      acc_before: ACC of the backdoored model, in [0, 1].
      ra: RA of the defended model, in [0, 1].

    Returns:
      float64, at most 1, negative where RA exceeds ``acc_before``; NaN where ``acc_before`` is 0.
    """
    return 1.0 - _ratio(ra, acc_before)


def der(acc_before: ArrayLike, asr_before: ArrayLike, acc: ArrayLike, asr: ArrayLike) -> Floats:
    """Defense effectiveness rate, (max(0, ASR_before - ASR) - max(0, ACC_before - ACC) + 1) / 2.

    Args:
      acc_before: ACC of the backdoored model, in [0, 1].
      asr_before: ASR of the backdoored model, in [0, 1].
      acc: ACC of the defended model, in [0, 1].
      asr: ASR of the defended model, in [0, 1].

    Returns:
      float64 in [0, 1]: 1/2 where nothing changed, 1 where an ASR of 1 fell to 0 at no cost.
    """
    removed = np.maximum(0.0, _floats(asr_before) - _floats(asr))
    cost = np.maximum(0.0, _floats(acc_before) - _floats(acc))
    return np.asarray((removed - cost + 1.0) / 2.0)


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float64)


def _ratio(part: ArrayLike, total: ArrayLike) -> Floats:
    """part / total, NaN where total is 0."""
    numerator, denominator = np.broadcast_arrays(_floats(part), _floats(total))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0.0)
