"""Lengths of defenses cut for tests, and what of them refuses a profile."""

LENGTHS = {
    "epochs": 2,
    "batch": 8,
    "teacher_epochs": 2,
    "search_epochs": 3,
    "rounds": 2,
    "attack_steps": 2,
    "iterations": 2,
    "unlearn_epochs": 2,
    "recover_epochs": 2,
    "warmup_epochs": 1,
    "pretrain_epochs": 2,
    "mask_epochs": 2,
    "generator_epochs": 2,
    "generator_width": 2,
    "generator_levels": 1,
    "prune_one_in": 4,  # small convolutions have fewer channels than are pruned one in
    "start_rounds": 2,
    "search_rounds": 2,
    "settle_rounds": 2,
}

REFUSED = {("nc", "reference")}  # the published code cannot run


def shortened(make, model, profile="corrected", **changed):
    """The defense of a factory with short lengths; of :data:`LENGTHS` and ``changed`` those fields that it has."""
    fields = make(model, profile=profile).config._fields
    return make(model, {k: v for k, v in {**LENGTHS, **changed}.items() if k in fields}, profile=profile)
