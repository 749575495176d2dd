"""``python -m bdjax`` is the command ``bdjax``."""

import sys

from bdjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
