"""The survey's headline claims, asked of our own runs."""

import numpy as np
import polars as pl
from runs import Estimate, Runs, by_defense, estimate

from bdjax.results.statistics import probability_of_improvement

OLD = ("ft", "fp")
TUNING = ("ft", "nad", "nc", "ft_sam", "fst", "i_bau", "sau", "pbe")
PRUNING = ("fp", "anp", "rnp", "awn", "bnp", "grad_prune", "ims", "nft", "fmp")
LOW = 0.1  # an ASR up to here counts as a backdoor removed


def newer_against_old(budgets: dict[int, dict[str, Runs]]) -> str:
    """Claim (a): most newer defenses do not beat FT and FP overall."""
    lines, beats = ["| defense | DER above `ft` | DER above `fp` |", "|---|---:|---:|"], dict.fromkeys(OLD, 0)
    loses = dict.fromkeys(OLD, 0)
    names = [name for name in next(iter(budgets.values())) if name not in (*OLD, "none")]
    for name in names:
        cells = []
        for old in OLD:
            runs = [[of[which].rates["der"][i] for of in budgets.values() for i in range(len(of[which].rates["der"]))]
                    for which in (name, old)]  # fmt: skip
            chance = probability_of_improvement(*runs)
            beats[old] += chance.low > 0.5
            loses[old] += chance.high < 0.5
            text = f"{100 * chance.value:.0f} [{100 * chance.low:.0f}, {100 * chance.high:.0f}]"
            cells.append(f"**{text}**" if chance.low > 0.5 else text)
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    told = "; ".join(f"against `{old}` {beats[old]} of {len(names)} win and {loses[old]} lose" for old in OLD)
    return "\n".join([*lines, "", f"Chance in percent that a run has the larger DER, same attack and clean samples: {told}."])


def few_samples(few: dict[str, Runs], more: dict[str, Runs]) -> str:
    """Claim (c): fewer clean samples hurt tuning more than pruning."""
    lines = ["| defenses | ΔDER | ΔACC | ΔASR |", "|---|---:|---:|---:|"]
    groups = {"tuning": [n for n in TUNING if n in few], "pruning": [n for n in PRUNING if n in few]}

    def change(names: list[str], rate: str) -> np.ndarray:
        return np.mean([few[name].rates[rate] - more[name].rates[rate] for name in names], axis=0)

    def told(values: np.ndarray) -> Estimate:
        return estimate(lambda a, s: float(np.nanmean(values[a, s])), *values.shape)

    for title, names in groups.items():
        cells = [told(change(names, rate)).text() for rate in ("der", "acc", "asr")]
        lines.append(f"| {title} ({len(names)}) | " + " | ".join(cells) + " |")
    apart = [told(change(groups["tuning"], rate) - change(groups["pruning"], rate)).text() for rate in ("der", "acc", "asr")]
    return "\n".join([*lines, "| tuning less pruning | " + " | ".join(apart) + " |"])


def recovered(budgets: dict[int, dict[str, Runs]]) -> str:
    """Claim (d): a low ASR does not imply that accuracy on triggered images is recovered."""
    lines = [
        "| clean samples per class | repairs | ASR ≤ 10 % | of them RA / ACC before | RA below half of it |",
        "|---:|---:|---:|---:|---:|",
    ]
    for spc, of in budgets.items():
        names = [name for name in of if name != "none"]
        every = {rate: np.stack([of[name].rates[rate] for name in names]) for rate in ("asr", "ra", "acc_before", "asr_before")}
        low = (every["asr"] <= LOW) & (every["asr_before"] > 0.5)
        share = every["ra"] / every["acc_before"]

        def mean(a: np.ndarray, s: np.ndarray, low: np.ndarray = low, share: np.ndarray = share) -> float:
            chosen = low[:, a, s]
            return float(share[:, a, s][chosen].mean()) if chosen.any() else np.nan

        def half(a: np.ndarray, s: np.ndarray, low: np.ndarray = low, share: np.ndarray = share) -> float:
            chosen = low[:, a, s]
            return float((share[:, a, s][chosen] < 0.5).mean()) if chosen.any() else np.nan

        size = low.shape[1:]
        lines.append(
            f"| {spc} | {(every['asr_before'] > 0.5).sum()} | {low.sum()} | {estimate(mean, *size).text()} | "
            f"{estimate(half, *size).text()} |"
        )
    return "\n".join(lines)


def variation(rows: pl.DataFrame) -> str:
    """Claim (b): shares of the variance of DER, per defense, that attack, network and ratio explain alone.

    The design is balanced, so the main effects are orthogonal; what is left are interactions and seeds.
    """
    factors = ("attack", "model", "ratio")
    lines = [
        "| defense | " + " | ".join(factors) + " | interactions | seeds | DER, lowest to highest setting |",
        "|---|" + "---:|" * 6,
    ]
    for (name,), part in rows.filter(pl.col("defense") != "none").group_by("defense", maintain_order=True):
        levels = [sorted(part[factor].unique()) for factor in factors]
        values = np.full((*(len(level) for level in levels), part["seed"].n_unique()), np.nan)
        for row in part.iter_rows(named=True):
            place = tuple(level.index(row[factor]) for level, factor in zip(levels, factors, strict=True))
            values[(*place, row["seed"])] = row["der"]
        if np.isnan(values).any():
            raise ValueError(f"{name}: a run is missing")
        settings = values.mean(-1)
        whole = values.var()
        shares = [settings.mean(tuple(j for j in range(3) if j != i)).var() / whole for i in range(3)]
        between = settings.var() / whole
        cells = [*shares, between - sum(shares), 1 - between]
        span = f"{100 * settings.min():.0f} to {100 * settings.max():.0f}"
        lines.append(f"| `{name}` | " + " | ".join(f"{100 * share:.0f}" for share in cells) + f" | {span} |")
    return "\n".join(lines)


def spread_over_attacks(of: dict[str, Runs]) -> str:
    """Claim (b) again, over all attacks of one ratio and network: the lowest and highest mean DER of each defense."""
    spans = {name: runs.rates["der"].mean(1) for name, runs in of.items() if name != "none"}
    widths = {name: 100 * (span.max() - span.min()) for name, span in spans.items()}
    wide = sorted(widths, key=lambda name: -widths[name])
    told = ", ".join(f"`{name}` {100 * spans[name].min():.0f} to {100 * spans[name].max():.0f}" for name in wide[:5])
    return (
        f"Between the attack that a defense does worst and best against lie {np.median(list(widths.values())):.0f} points of DER "
        f"in the median over the defenses; most for {told}."
    )


def budgets_of(rows: pl.DataFrame, spc: tuple[int, ...]) -> dict[int, dict[str, Runs]]:
    """{clean samples per class: the runs of every defense}; those that take none are in each."""
    free = by_defense(rows.filter(pl.col("defense") != "none"), spc=None)
    return {budget: {**by_defense(rows, spc=budget), **free} for budget in spc}
