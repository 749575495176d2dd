"""Reduced networks: fewer channels and blocks, the same structure and names."""

from bdjax.errors import UserError


def check_size(name: str, width: int, depth: int | None) -> None:
    """Refuse a network without channels or blocks.

    Args:
      name: of the network.
      width: channels of its first stage.
      depth: blocks per stage; None = all.

    Raises:
      UserError: a width or a depth below 1.
    """
    if width < 1 or (depth is not None and depth < 1):
        raise UserError(f"{name} needs a width and a depth of at least 1 (depth None: whole); given width {width}, depth {depth}")


def scaled(channels: int, width: int, base: int) -> int:
    """``channels`` in a network whose first stage has ``width`` channels instead of ``base``: rounded, at least 1."""
    return max(1, round(channels * width / base))


def kept(blocks: int, depth: int | None) -> int:
    """How many of a stage's ``blocks`` a network of ``depth`` has: the first ones."""
    return blocks if depth is None else min(blocks, depth)
