"""Reduced networks: fewer channels and blocks, the same structure and names."""

from bdjax.errors import UserError


def checked_depth(name: str, width: int, depth: int | None, most: int) -> int | None:
    """Return the depth of a network, None where nothing is cut, so that one network has one description.

    Args:
      name: of the network.
      width: channels of its first stage.
      depth: blocks per stage; None = all.
      most: blocks of its longest stage.

    Raises:
      UserError: a width or a depth below 1.
    """
    if width < 1 or (depth is not None and depth < 1):
        given = f"width {width}, depth {depth}"
        raise UserError(f"{name} needs a width of at least 1, and a depth of at least 1 or None; given {given}")
    return None if depth is None or depth >= most else depth


def scaled(channels: int, width: int, base: int) -> int:
    """Return ``channels`` in a network whose first stage has ``width`` channels instead of ``base``: rounded, at least 1."""
    return max(1, round(channels * width / base))


def kept(blocks: int, depth: int | None) -> int:
    """Return how many of a stage's ``blocks`` a network of ``depth`` has: the first ones."""
    return blocks if depth is None else min(blocks, depth)
