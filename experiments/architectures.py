"""BadNets on four architectures and two data sets: do they all learn the task and the backdoor?

Command:      bdjax sweep experiments/architectures.py --data-dir DIR --out architectures
              small: one command per network, since each wants its own rate and length in so few steps; they stand in
              experiments/results/architectures_cpu.md
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores
Time:         small: about an hour
Expectation:  ratio 0.1 teaches every network the backdoor; ratio 0 stays at the rate at which a model that was never attacked
              calls triggered images the target. EfficientNet is the slowest to learn and would need more steps than a CPU has.
"""

import dataclasses

from bdjax.sweep.grid import Grid

grid = Grid(
    dataset=("cifar10", "gtsrb"),
    model=("preactresnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large"),
    attack=("badnets",),
    defense=(),
    poison_ratio=(0.0, 0.1),
    seeds=(0, 1, 2),
)
small = dataclasses.replace(
    grid,
    width=16,  # MobileNet's own; a quarter of PreActResNet-18's and VGG's, four tenths of EfficientNet's
    depth=2,  # of EfficientNet's 26 blocks 14, of MobileNet's 15 blocks 11, of VGG's 16 convolutions 10
    epochs=10,
    batch=32,
    train_images=4300,
    test_images=1290,
    recipe={"lr": 0.01, "augment": "none"},  # crops hide or cut the corner patch: see the README
)
