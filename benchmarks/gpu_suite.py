"""What one lent GPU is to tell in a quarter of an hour, in the order of its worth.

    python -m benchmarks.gpu_suite --data-dir DATA --out benchmarks/results/gpu_suite_h200

1. The headline: training, by the three likeliest forms and the number of members, beside PyTorch (torch.compile, autocast,
   channels-last) in the same run.
2. Defenses of many networks at once on a few clean rows, beside one network at a time and, for FT, PyTorch.
3. CIFAR-10 with the rest of the time: BadNets, WaNet and no attack, seed by seed, then six repairs with 10 and 100 samples per
   class.

Every row is written as it is measured. What the rest of the time will not hold, by what was measured so far, is a row that says
so, and so is what fails. Imports jax, flax, optax and numpy, and pyarrow and Pillow for the archives; PyTorch runs in a process
of its own where it is installed. An archive is decoded once and then kept in the cache, so `bdjax data prepare` beforehand saves
its time.
"""

import argparse
import shlex
import sys
from pathlib import Path

from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS, PRECISIONS
from benchmarks.gpu_cifar import cifar
from benchmarks.gpu_defenses import defenses
from benchmarks.gpu_headline import VARIANTS, headline
from benchmarks.gpu_rows import Suite

NOTES = (
    "MFU = 6 x forward multiply-accumulates x images/s over the measured FLOP/s of a large matrix product in the same dtype. "
    "Weights are float32 on both sides; the dtype is that of activations (PyTorch: autocast). Rates leave out the first "
    "call, which compiles; the seconds of real training and repairs hold it. ACC, ASR and RA are fractions of the test images."
)
PARTS = {"headline": (headline, 4 / 14), "defenses": (defenses, 5 / 14), "cifar": (cifar, 1.0)}  # shares of the minutes


def main() -> None:
    """Measure, part by part."""
    args = parser().parse_args()
    suite = Suite(args.out, f"python -m benchmarks.gpu_suite {shlex.join(sys.argv[1:])}", NOTES, args.minutes)
    for name in args.parts:
        measure, share = PARTS[name]
        with suite.part(name, share * args.minutes):
            measure(suite, args)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=14.0, help="start nothing that is expected to end later")
    made.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    made.add_argument("--model", choices=sorted(MODELS), default="preactresnet18")
    made.add_argument("--width", type=int, default=64, help="channels of the first stage")
    made.add_argument("--dtype", choices=tuple(PRECISIONS), default="bfloat16", help="of the activations")
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--matmul", type=int, default=8192, help="side of the matrix product that sets the ceiling")
    made.add_argument("--size", type=int, default=32, help="side of the random images, in pixels")
    made.add_argument("--steps", type=int, default=20, help="of a timed training")
    made.add_argument("--members", type=int, nargs="+", default=[1, 8, 32], help="of the headline")
    made.add_argument("--torch-variants", nargs="*", choices=tuple(VARIANTS), default=["compiled"])
    made.add_argument("--population", type=int, default=64, help="networks that are defended")
    made.add_argument("--chunk", type=int, default=8, help="of them at once, where they run side by side")
    made.add_argument("--spc", type=int, default=10, help="clean rows per class of the timed defenses")
    made.add_argument("--defenses", nargs="+", choices=tuple(DEFENSES), default=["ft", "fp", "nc", "anp", "i_bau"])
    made.add_argument("--dataset", default="cifar10", help="a data set or a folder, as bdjax reads them")
    made.add_argument("--data-dir", help="folder of the archives; default: the environment's BDJAX_DATA_DIR")
    made.add_argument("--train-images", type=int, help="default: all")
    made.add_argument("--test-images", type=int, help="default: all")
    made.add_argument("--epochs", type=int, default=15, help="of training on real images")
    made.add_argument("--seeds", type=int, default=3)
    repairs = ["ft", "fp", "clp", "nad", "anp", "grad_prune"]
    made.add_argument("--repairs", nargs="+", choices=repairs, default=repairs, help="defenses on real images")
    made.add_argument("--repair-spc", type=int, nargs="+", default=[10, 100])
    made.add_argument("--out", type=Path, required=True)
    return made


if __name__ == "__main__":
    main()
