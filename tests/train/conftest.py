"""The clean sets and the 64-bit switch of the defenses' tests, for tests of the descent that they share."""

from tests.defenses.conftest import clean, distance, padded, plain_spec, wide  # noqa: F401  fixtures
