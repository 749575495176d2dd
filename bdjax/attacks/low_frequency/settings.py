"""The settings of LF."""

from typing import NamedTuple


class Config(NamedTuple):
    """Static configuration of LF."""

    target: int = 0  # the attack label of all_to_one, and the class an optimised trigger is driven to
    labels: str = "all_to_one"  # "all_to_one": y -> target; "all_to_all": y -> (y + 1) mod k
    trigger: str = "dome"  # "dome": the closed form; "optimised": searched for against a clean classifier, once per data set
    architecture: str | None = None  # network whose colour is taken, or against which is searched; None = FALLBACK, or "cnn"
    colour: tuple[int, ...] | None = None  # of the dome: peak level of each channel, 0 … 255; None = by data set and architecture
    vgg_without_effect: bool | None = None  # that of dome.UNSCALED stays in [0, 0.2] and changes no pixel
    # What follows is the search's alone.
    classifier_width: int | None = None  # channels of its first stage; None = its own
    classifier_depth: int | None = None  # at most so many blocks per stage; None = all
    classifier_epochs: int = 100
    classifier_batch: int = 128
    classifier_lr: float = 0.01
    images: int = 100  # training images the pattern is made from
    passes: int = 50  # over these images, at most
    fooling_rate: float = 0.2  # of held-out predictions that change, at which the search ends; in (0, 1]
    deepfool_steps: int = 200  # per image and pass, at most
