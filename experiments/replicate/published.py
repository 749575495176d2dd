"""Figures that others published, to set beside our own: accuracy and attack success rate before and after a defense.

How they were collected: every figure was read in the place that ``where`` names (a table of a paper, a results file or a
picture of a table in a public repository, a log that authors publish), on CIFAR-10 and as near as possible to
PreActResNet-18, 10 % poisoned, all-to-one with target 0. None is from memory; a method for which none, or only a part, could
be read is in :data:`NOT_FOUND` with what was tried. Figures are facts and are cited; no text or code of the sources is here.

How they were checked: the FT-SAM paper was read in a machine-made transcript; the effectiveness ratings that it prints in its
Table 1 follow from the figures copied here, all 49 of them. Table 3 of that paper prints the row before the defense one
column out of place from SIG on (its SSBA column shows the SIG network), so the figures before are those of Table 1.

What to mind when comparing:

* SIG at 10 % is the whole target class, here as in this package.
* One run each, as far as the sources say: no spread is given anywhere.
* The clean budget is mostly 5 % of the training data, 250 per class: more than twice the largest of this package's three.
* Two published sources differ by tens of points for the same pair of methods (FP or i-BAU on Blended, ANP on SIG), with attacked
  networks that are nearly alike.
* BackdoorBench's version 1 prints the figures of :data:`BACKDOORBENCH` in its README as those of a 1 % ratio; its leaderboard
  and its results file have the same figures under 10 % and others under 1 %. The leaderboard is followed here.
* BackdoorBench's code chooses ANP's threshold with test data (its issue 35), which a defender does not have.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Published(NamedTuple):
    """One published figure; percent, None where the source does not say.

    For ``kind`` "attack" the attacked network is in ``acc``, ``asr`` and ``ra``, and nothing is before.
    """

    method: str  # as this package names it
    kind: str  # "attack" or "defense"
    attack: str  # as this package names it, or in words
    dataset: str
    model: str
    ratio: float | None  # poisoned share of all training rows
    clean: str  # what the defender had, in words
    acc_before: float | None
    asr_before: float | None
    acc: float | None
    asr: float | None
    ra: float | None
    source: str  # authors, title, venue and year
    where: str  # table, section, or file of a repository


BACKDOORBENCH = (
    'B. Wu, H. Chen, M. Zhang, Z. Zhu, S. Wei, D. Yuan, C. Shen, "BackdoorBench: A Comprehensive Benchmark of Backdoor '
    'Learning", NeurIPS 2022 Datasets and Benchmarks'
)
FT_SAM = (
    'M. Zhu, S. Wei, L. Shen, Y. Fan, B. Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware '
    'Minimization", ICCV 2023'
)
NFT = (
    'N. Karim, A. Al Arafat, U. Khalid, Z. Guo, N. Rahnavard, "Augmented Neural Fine-Tuning for Efficient Backdoor '
    'Purification", ECCV 2024'
)
RNP = (
    'Y. Li, X. Lyu, X. Ma, N. Koren, L. Lyu, B. Li, Y.-G. Jiang, "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023'
)
NAD = (
    'Y. Li, X. Lyu, N. Koren, L. Lyu, B. Li, X. Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural '
    'Networks", ICLR 2021'
)
I_BAU = (
    'Y. Zeng, S. Chen, W. Park, Z. M. Mao, M. Jin, R. Jia, "Adversarial Unlearning of Backdoors via Implicit '
    'Hypergradient", ICLR 2022'
)
FMP = 'D. Huang, Q. Bu, "Adversarial Feature Map Pruning for Backdoor", ICLR 2024'
INPUT_AWARE = 'T. A. Nguyen, A. T. Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020'
WANET = 'T. A. Nguyen, A. T. Tran, "WaNet – Imperceptible Warping-based Backdoor Attack", ICLR 2021'
SURVEY = (
    'K. Dunnett, R. Arablouei, D. Miller, V. Dedeoglu, R. Jurdak, "Countering Backdoor Attacks in Image Recognition: A Survey '
    'and Evaluation of Mitigation Strategies", arXiv 2411.11200, 2024'
)
IMS = (
    'K. Dunnett, R. Arablouei, D. Miller, V. Dedeoglu, R. Jurdak, "Backdoor Mitigation via Invertible Pruning Masks", '
    "NeurIPS 2025, arXiv 2509.15497"
)
FST = 'R. Min, Z. Qin, L. Shen, M. Cheng, "Towards Stable Backdoor Purification through Feature Shift Tuning", NeurIPS 2023'

# Each cell is accuracy/success, and recovered accuracy where the source has it; the column "none" is the attacked network.
_BACKDOORBENCH = """
attack none ft fp nad nc
badnets 91.32/95.03/4.67 89.96/1.48/89.39 91.31/57.13/41.62 89.87/2.14/88.71 89.05/1.27/89.16
blended 93.47/99.92/0.08 92.78/96.11/3.57 93.17/99.26/0.73 92.17/97.69/2.14 93.47/99.92/0.08
sig 84.48/98.27/1.72 90.80/2.37/69.74 89.10/26.20/20.61 90.02/10.66/64.20 84.48/98.27/1.72
low_frequency 93.19/99.28/0.71 92.37/78.44/19.42 92.90/98.97/1.02 92.37/47.83/47.49 91.62/1.41/87.48
ssba 92.88/97.86/1.99 92.14/74.79/23.31 92.54/83.50/15.36 91.91/77.40/20.86 90.99/0.58/87.04
input_aware 90.67/98.26/1.66 93.12/1.72/90.53 91.74/0.04/44.54 93.18/1.68/91.12 92.61/0.76/90.87
wanet 91.25/89.73/9.76 93.48/17.10/78.29 91.46/1.09/69.73 93.17/22.98/72.69 91.80/7.53/85.09
bpp 90.69/99.78/0.21 93.25/2.54/87.00 92.70/18.39/72.20 92.81/2.46/86.22 92.68/2.84/85.18
"""
_BACKDOORBENCH_MORE = """
attack none i_bau anp clp
badnets 91.32/95.03/4.67 89.16/1.29/89.24 84.17/0.73/84.04 90.07/77.56/21.44
blended 93.47/99.92/0.08 87.00/50.53/33.21 86.58/2.19/61.17 91.32/99.74/0.23
sig 84.48/98.27/1.72 85.67/3.68/54.10 77.97/0.01/48.80 83.80/98.91/1.09
low_frequency 93.19/99.28/0.71 84.36/44.96/48.00 85.15/0.60/82.72 92.84/99.18/0.80
ssba 92.88/97.86/1.99 87.67/3.97/74.23 86.54/0.39/79.87 91.38/68.13/29.16
input_aware 90.67/98.26/1.66 89.17/27.08/56.73 90.36/1.64/86.99 90.30/2.17/85.51
wanet 91.25/89.73/9.76 89.49/5.21/86.60 85.73/0.43/86.50 81.91/78.42/17.68
bpp 90.69/99.78/0.21 90.99/6.24/82.34 81.78/0.24/75.37 90.40/2.18/83.97
"""
_FT_SAM_5 = """
attack none ft fp nad nc anp i_bau ft_sam
badnets 91.82/93.79 90.29/1.70 91.77/0.84 88.82/1.96 57.22/0.90 91.65/3.83 87.43/4.48 92.21/1.63
blended 93.44/97.71 92.48/82.22 92.57/8.32 92.09/55.04 91.91/84.31 93.00/57.38 88.24/6.00 92.44/4.91
input_aware 94.03/98.35 93.00/65.85 94.05/10.95 94.08/10.43 94.11/98.98 94.06/11.10 89.91/8.92 93.76/1.07
low_frequency 93.01/99.06 92.37/93.89 92.05/21.32 91.72/75.47 93.01/99.06 92.53/26.38 88.92/11.99 91.07/3.81
sig 84.49/97.87 90.47/5.74 90.81/7.06 90.05/6.60 84.50/97.87 83.87/97.24 85.87/1.32 91.16/0.80
ssba 92.88/97.07 92.47/90.04 92.21/20.27 92.15/70.77 92.88/97.07 92.02/16.18 86.53/2.89 92.12/2.80
wanet 92.80/98.90 93.14/1.26 92.94/0.66 93.07/0.73 92.80/98.90 93.24/1.54 90.70/0.88 92.87/0.96
"""
_FT_SAM_1 = """
attack none ft ft_sam
badnets 91.82/93.79 89.25/6.14 88.96/1.29
blended 93.44/97.71 92.09/87.98 90.83/3.01
input_aware 94.03/98.35 92.23/69.51 93.12/0.81
low_frequency 93.01/99.06 92.36/98.87 90.88/4.64
sig 84.49/97.87 87.80/3.07 88.31/1.00
ssba 92.88/97.07 92.08/94.87 91.11/1.51
wanet 92.80/98.90 92.65/9.79 90.79/0.91
"""
_NFT = """
attack none anp i_bau awn ft_sam rnp nft
badnets 92.96/100 85.92/4.87 85.96/2.84 87.85/5.72 86.17/4.34 88.46/2.75 90.82/1.74
blended 94.11/100 87.61/4.77 89.10/3.81 90.84/5.53 88.93/2.13 91.53/0.91 93.17/0.31
sig 88.64/100 81.92/1.04 83.60/0.37 83.57/4.12 85.38/0.90 86.46/0.51 87.16/0.12
ssba 92.78/99.80 85.42/6.76 89.20/3.82 90.03/12.48 89.59/4.57 88.62/7.58 90.18/4.24
wanet 92.29/98.64 86.70/5.81 89.24/3.18 86.94/7.72 88.45/2.96 90.26/8.10 89.65/2.38
bpp 93.82/99.70 90.23/9.94 90.57/10.46 90.68/9.94 90.88/10.60 91.37/9.74 91.78/5.04
"""
_DATA_FREE = ("clp",)


def _cell(text: str) -> tuple[float, float, float | None]:
    acc, asr, *ra = (float(one) for one in text.split("/"))
    return acc, asr, ra[0] if ra else None


def _rows(table: str, model: str, ratio: float, clean: str, source: str, where: str) -> Iterator[Published]:
    """The figures of one table."""
    (_, _, *defenses), *lines = (line.split() for line in table.strip().splitlines())
    for attack, before, *after in lines:
        acc_0, asr_0, ra_0 = _cell(before)
        yield Published(attack, "attack", attack, "cifar10", model, ratio, "", None, None, acc_0, asr_0, ra_0, source, where)
        for defense, text in zip(defenses, after, strict=True):
            acc, asr, ra = _cell(text)
            had = "none" if defense in _DATA_FREE else clean
            yield Published(defense, "defense", attack, "cifar10", model, ratio, had, acc_0, asr_0, acc, asr, ra, source, where)


def _defenses(rows: Iterable[Published]) -> Iterator[Published]:
    return (row for row in rows if row.kind == "defense")


def _leaderboard() -> Iterator[Published]:
    page = "backdoorbench/backdoorbench.github.io b98eab4, leaderboard-cifar10.html, tab 10 %, lines 1759-1767"
    data = "backdoorbench/backdoorbench.github.io b98eab4, static/data/results.csv, ratio 0.1 (the page has N/A for SIG)"
    clean = "5 % of training data (the published configurations; version 1 has all of it for NC)"
    same = ("PreActResNet-18", 10.0, clean, BACKDOORBENCH, page)
    for row in (*_rows(_BACKDOORBENCH, *same), *_defenses(_rows(_BACKDOORBENCH_MORE, *same))):
        yield row._replace(where=data) if row.attack == "sig" else row


PUBLISHED: tuple[Published, ...] = (
    *_leaderboard(),
    *_rows(
        _FT_SAM_5,
        "PreActResNet-18",
        10.0,
        "5 % of training data",
        FT_SAM,
        "Table 1; settings in Section 4.1 (BackdoorBench's attacks)",
    ),
    *_defenses(
        _rows(
            _FT_SAM_1,
            "PreActResNet-18",
            10.0,
            "1 % of training data",
            FT_SAM,
            "Table 3, benign ratio 1 %; before: Table 1",
        )
    ),
    *_rows(
        _NFT,
        "not stated in the table (the code's default: resnet18)",
        10.0,
        "1 % of training data (the README's command; the table does not say)",
        NFT,
        "Table 1 as shown in nazmul-karim170/NFT-Augmented-Backdoor-Purification 9e40cac, assets/nft_results.png; "
        "AWM is awn here, ISSBA ssba, BPPA bpp; ratio: the README's command and the code's default",
    ),
    Published(
        "rnp", "defense", "badnets", "cifar10", "ResNet-18", 10.0, "500 training images (1 %)", 93.40, 100.0, 92.77, 1.72, None,
        RNP, "bboylyg/RNP eeae192, README.md, log of 2023-07-09: no pruning, and the last line shown (mask threshold 0.30); "
        "at the thresholds 0.20 and 0.50 logs/pruning_by_threshold.txt has 92.80/6.61 and 90.12/0.60; target 0",
    ),
    Published(
        "ft", "defense", "badnets", "cifar10", "WRN-16-1", 10.0, "5 % of training data", 85.65, 100.0, 82.32, 18.13, None, NAD,
        "bboylyg/NAD f17b713, README.md, Erasing Results on BadNets; ratio, budget and target 5: config.py",
    ),
    Published(
        "nad", "defense", "badnets", "cifar10", "WRN-16-1", 10.0, "5 % of training data", 85.65, 100.0, 82.12, 3.57, None, NAD,
        "bboylyg/NAD f17b713, README.md, Erasing Results on BadNets; ratio, budget and target 5: config.py",
    ),
    Published(
        "i_bau", "defense", "badnets", "cifar10", "small VGG-16", None, "5,000 test images", 84.94, 97.64, 83.08, 9.36, None,
        I_BAU, "YiZeng623/I-BAU d4bfa52, clean_solution_batch_opt_hyperdimentional_cifar.ipynb, outputs of one round; target 8",
    ),
    Published(
        "fmp", "defense", "not named (abstract)", "cifar10", "not stated there", None, "not stated there", None, None, None,
        2.86, 87.40, FMP, "abstract, as in hku-systems/FMP 8d1cb59, README.md",
    ),
    Published(
        "input_aware", "attack", "input_aware", "cifar10", "PreActResNet-18", 10.0, "", None, None, 94.65, 99.32, None,
        INPUT_AWARE,
        "VinAIResearch/input-aware-backdoor-attack-release 1750e4f, README.md, Results; model and ratio: train.py, config.py",
    ),
    Published(
        "wanet", "attack", "wanet", "cifar10", "PreActResNet-18", 10.0, "", None, None, 94.15, 99.55, None, WANET,
        "VinAIResearch/Warping-based_Backdoor_Attack-release 45e8c33, README.md, Results; model and ratio: train.py, config.py",
    ),
)  # fmt: skip


class Finding(NamedTuple):
    """What a source claims without a figure of ours to match, in our own words."""

    claim: str
    source: str
    where: str


QUALITATIVE: tuple[Finding, ...] = (
    Finding(
        "Sixteen defenses: many protect somewhat, and how well they do varies considerably with the setting.",
        SURVEY,
        "abstract of v2",
    ),
    Finding(
        "Beside two seminal defenses, most newer ones are not substantially better, neither overall nor in how steady they are.",
        SURVEY,
        "abstract of v2 (it does not name the two)",
    ),
    Finding(
        "The evidence is 122,236 experiments: eight attacks, three data sets, four architectures, three ratios.",
        SURVEY,
        "abstract of v2",
    ),
    Finding(
        "A low success rate does not bring the right class of triggered images back, and methods depend on the amount of clean "
        "data and on their hyper-parameters.",
        SURVEY,
        "second hand: a published summary of the paper (sciencestack.ai/paper/2411.11200), not the paper itself",
    ),
    Finding(
        "IMS beats earlier pruning defenses, stays strong with little data, is on a par with the best fine-tuning, and is good "
        "at giving triggered images their class back.",
        IMS,
        "abstract of v2",
    ),
    Finding(
        "Plain tuning works at high poison ratios and fails at low ones, where the two kinds of features are entangled; FST is "
        "steady over both.",
        FST,
        "abstract",
    ),
    Finding(
        "With 5 % clean data, plain fine-tuning removes BadNets and WaNet but not Blended, LF or SSBA; NAD does much as "
        "fine-tuning; i-BAU lowers almost every attack at a cost in accuracy; ANP's results vary from attack to attack.",
        FT_SAM,
        "Section 4.2 on Table 1",
    ),
    Finding(
        "CLP as its authors published it fails on pre-activation networks, because it takes each convolution to be followed by "
        "its norm; a user measured 94.15/99.50 before and 53.50/93.96 after on WaNet's own checkpoint at u = 3.",
        'R. Zheng, R. Tang, J. Li, L. Liu, "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022',
        "rkteddy/channel-Lipschitzness-based-pruning, issue 2, a user's report and the author's answer of 2022-12-20",
    ),
    Finding(
        "In BackdoorBench the pruning threshold of ANP is chosen with the attack success rate on test data.",
        BACKDOORBENCH,
        "SCLBD/BackdoorBench, issue 35",
    ),
    Finding(
        "A user who repeated NAD on Blended got less bad figures than the leaderboard's; its authors point to their high "
        "blending strength.",
        BACKDOORBENCH,
        "SCLBD/BackdoorBench, issue 19",
    ),
)

_NO_TABLE = "abstract read, tables of the paper not readable; "
NOT_FOUND: tuple[tuple[str, str], ...] = (
    ("fst", _NO_TABLE + "AISafety-HKUST/Backdoor_Safety_Tuning 37d2ef5 (README.md) has none"),
    (
        "sau",
        _NO_TABLE + "shawkui/Shared_Adversarial_Unlearning ddff2fc and shawkui/MindTrojan have none; not on the leaderboard; "
        "a third party's notes on a later paper (D3, ICCV 2025) print ASR "
        "from 0.6 to 1.8, with an average that does not follow from them",
    ),
    ("bnp", _NO_TABLE + "RJ-T/NIPS2022_EP_BNP af5150d has none; not on the leaderboard"),
    ("npd", _NO_TABLE + "JulieCarlon/NPD-MindSpore has none; not on the leaderboard"),
    ("pbe", "tables of the paper not readable; a README of its code has none"),
    ("mm_bd", "tables of the paper not readable; wanghangpsu/MM-BD 9033386 has none"),
    ("grad_prune", _NO_TABLE + "WhoDunnett/Grad-Prune has none"),
    ("ims", _NO_TABLE + "WhoDunnett/BackdoorBenchmark 8613640 has none"),
    ("bti_dbf", _NO_TABLE + "xuxiong0214/BTIDBF e680dda has none; public reviews give bounds only"),
    ("fmp", "only the two figures of the abstract, without the network before"),
)
