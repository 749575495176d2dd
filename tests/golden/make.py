"""Store the golden numbers of methods: ``python -m tests.golden.make [NAME ...] [--unpublished NAME ...]``.

Without names, of every method: tens of minutes of compilation. A name is that of a method ("wanet"), or one of its entries
("attack/wanet-corrected"). Numbers of an edition that are stored already are not replaced: raise the edition of the method. Only
what ``--unpublished`` names may change, an edition with which nobody has made records yet.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS
from bdjax.types import PROFILES
from tests.golden import numbers
from tests.short import offered

TEST = "results_are_those_of_the_edition"


def nodes():
    """{name of an entry: the test that computes it}."""
    found = {}
    for kind, table in (("attack", ATTACKS), ("defense", DEFENSES)):
        ids = [f"{name}-{profile}" for name in table for profile in PROFILES if kind == "attack" or offered(name, profile)]
        found |= {f"{kind}/{one}": f"tests/contract/test_{kind}s.py::test_{TEST}[{one}]" for one in ids}
    for part, test in (("pass", "passes"), ("step", "steps")):
        found |= {f"network/{name}-{part}": f"tests/models/test_models.py::test_{test}_{TEST}[{name}]" for name in MODELS}
    return found


def short(name):
    """A method's own name, of the name of one of its entries."""
    return re.sub(r"-(corrected|reference|pass|step)$", "", name.rpartition("/")[2])


def chosen(names, wanted):
    """The entries that are meant; all where nothing is named."""
    return [name for name in names if not wanted or name in wanted or short(name) in wanted]


def main(arguments=None):
    """Run the tests that compute the numbers, and store what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--unpublished", nargs="+", default=[], metavar="NAME")
    given = parser.parse_args(arguments)
    wanted, known = [*given.names, *given.unpublished], nodes()
    for name in wanted:
        if not chosen(known, [name]):
            parser.error(f"no method and no entry is called {name!r}; entries: {', '.join(known)}")
    tests = [known[name] for name in chosen(known, wanted)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noted"
        path.touch()
        os.environ[numbers.NOTED] = str(path)
        try:
            code = pytest.main(["-q", "-m", "slow or not slow", "-p", "no:cacheprovider", *tests])
        finally:
            del os.environ[numbers.NOTED]
        noted = [json.loads(line) for line in path.read_text().splitlines()]
    if code or not noted:
        sys.exit(f"the tests failed or computed nothing (pytest's code {int(code)}): nothing is stored")
    kept = numbers.stored() if numbers.STORED.exists() else {}
    after, refused = numbers.merged(kept, noted, chosen(known, given.unpublished) if given.unpublished else ())
    if refused:
        sys.exit(f"the results of {', '.join(refused)} changed and their editions did not: raise them; nothing is stored")
    numbers.write(after)
    print(f"{len(noted)} entries computed, {sum(kept.get(name) != entry for name, entry in after.items())} of them new")


if __name__ == "__main__":
    main()
