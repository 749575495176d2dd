"""``plan --target`` is a class, as everywhere, or devices."""

import pytest

from bdjax.cli.device_target import apart


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["plan", "--target", "tpu:v5e-8", "--seeds", "0"], ["plan", "--hardware", "tpu:v5e-8", "--seeds", "0"]),
        (["plan", "--target=cuda:h200-8"], ["plan", "--hardware=cuda:h200-8"]),
        (["plan", "--target", "3"], ["plan", "--target", "3"]),
        (["plan", "--target=3", "--hardware", "tpu:v4-8"], ["plan", "--target=3", "--hardware", "tpu:v4-8"]),
        (["plan", "--target"], ["plan", "--target"]),
        (["run", "--target", "tpu:v5e-8"], ["run", "--target", "tpu:v5e-8"]),
        ([], []),
    ],
)
def test_devices_are_told_from_a_class(given, read):
    assert apart(given) == read
