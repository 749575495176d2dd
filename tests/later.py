"""Parameters that wait for the slow run."""

import pytest


def some_later(names, later):
    """The names as parameters; those in ``later`` come with the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in later else name for name in names]
