"""Eight attacks at four poison ratios: does each leave a backdoor, and only where there is poison?

Command:      bdjax sweep experiments/attacks.py --data-dir DIR --out attacks
              small: bdjax sweep experiments/attacks.py --scale small --data-dir DIR --out attacks
              small, Bpp longer: … --only attack=bpp --poison-ratio 0.1 --train-images 50000 --out attacks_bpp \
                --config bpp.recipe.epochs=36
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores (experiments/results/attacks_cpu.md)
Time:         small: an hour and a half, Bpp longer: half an hour; one attack at a time with --only attack=NAME
Expectation:  at 10 % each attack is learned; at ratio 0 triggered images are called the target as often as a model that was never
              attacked does. Input-aware, WaNet and SIG need longer schedules than a CPU has.
"""

import dataclasses

from bdjax.attacks.table import ATTACKS
from bdjax.sweep.grid import Grid

grid = Grid(
    dataset=("cifar10",),
    model=("preactresnet18",),
    attack=tuple(ATTACKS),
    defense=(),
    poison_ratio=(0.0, 0.01, 0.05, 0.1),
    seeds=(0, 1, 2),
)
small = dataclasses.replace(
    grid,
    model=("cnn",),
    width=16,
    epochs=15,
    batch=32,
    train_images=5000,
    test_images=1000,
    recipe={"lr": 0.03},
    attack_recipe={
        # Crops shift a fixed trigger and hide a patch: learned, but not in so few steps.
        **{name: {"augment": "none"} for name in ("badnets", "blended", "sig", "low_frequency")},
        # Poison made anew in every batch: three of 32 images, and a trigger to be told from decoys.
        "input_aware": {"epochs": 20},
        "wanet": {"epochs": 40, "lr": 0.1, "schedule": "cosine"},
        "bpp": {"epochs": 60, "lr": 0.1, "schedule": "cosine"},
    },
    attack_config={
        "ssba": {"width": 8, "bits": 16, "epochs": 10, "batch": 16, "lr": 5e-4},
        "input_aware": {"width": 4, "mask_epochs": 3, "mask_batch": 32},
        "bpp": {"augment": "none"},
    },
)
