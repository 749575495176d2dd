"""Made-up records, as the room reporting has them."""

from tests.reporting.conftest import one_seed, records, sketched  # noqa: F401  fixtures
