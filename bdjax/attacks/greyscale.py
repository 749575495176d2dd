"""What attacks with a trigger in colour say of greyscale images."""

from bdjax.errors import UserError
from bdjax.types import DataSpec


def three_channels(owner: str, trigger: str, spec: DataSpec, other: str = "") -> UserError:
    """Return the error of an attack whose trigger has 3 channels, with the way to such images.

    Args:
      owner: the attack's name.
      trigger: what has the channels.
      spec: the data set, whose images have another number.
      other: another remedy, if there is one.
    """
    return UserError(
        f"{owner} has a {trigger} with 3 channels; {spec.name} has {spec.image_shape[2]}: to repeat the grey channel, put "
        '{"channels": 3} into a dataset.json in the folder of its files, and name that folder with --dataset'
        + (f"; {other}" if other else "")
    )
