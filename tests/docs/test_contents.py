"""What the pages promise to say, they say: every method, setting, column and word; and the README is short."""

import re

import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.data import spec
from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS
from bdjax.store.rows import COLUMNS
from docs.generators.markdown import outside_code
from docs.generators.methods import TABLES
from tests.docs.pages import TOP, generated, written

WORDS = ["member", "population", "cell", "profile", "spc", "ACC", "ASR", "RA", "ARR", "DER", "mitigated", "lowering", "strategy"]
WORDS += ["edition", "record", "lease", "seed", "hardware", "estimate"]
PARTS = ("**Paper.**", "**Costs.**", "**Needs**", "## What differs", "## Where it is checked", "```bibtex")
MOST = 900


def test_every_method_has_its_settings_paper_cost_and_test():
    model = MODELS["cnn"](spec("cifar10"))
    built = {"attacks": {name: make(spec("cifar10")) for name, make in ATTACKS.items()}}
    built["defenses"] = {name: make(model) for name, make in DEFENSES.items()}
    for kind, methods in built.items():
        for name, method in methods.items():
            page = generated()[f"docs/methods/{kind}/{name}.md"]
            for field in (*method.config._fields, *getattr(getattr(method, "hyper", None), "_fields", ())):
                assert f"| `{field}` |" in page, (name, field)
            assert all(part in page for part in PARTS), name


def test_every_entry_of_a_table_has_a_page_and_is_listed():
    index = generated()["docs/methods/index.md"]
    for kind, names in TABLES.items():
        for name in names:
            assert f"docs/methods/{kind}/{name}.md" in generated() and f"({kind}/{name}.md)" in index


def test_the_test_files_that_pages_name_are_there():
    named = {path for text in {**written(), **generated()}.values() for path in re.findall(r"`(tests/[\w/]+\.py)`", text)}
    assert len(named) > 40 and all((TOP / path).is_file() for path in named)


def test_nothing_generated_is_committed():
    assert not [path for path in generated() if (TOP / path).exists()]


def test_every_column_of_a_record_is_described():
    described = set(re.findall(r"`(\w+)`", written()["docs/reference/records.md"]))
    assert set(COLUMNS) <= described


@pytest.mark.parametrize("word", WORDS)
def test_the_glossary_defines(word):
    assert re.search(rf"^\*\*{word}\*\*\{{ #[\w-]+ \}} — .+\.$", written()["docs/glossary.md"], re.M | re.I)


def count(text):
    """The words of a page: what stands between spaces and has a letter or digit, outside code blocks and tables.

    Targets of links and comments are no words; the texts of links and the descriptions of pictures are.
    """
    prose = "\n".join(line for line in outside_code(text) if not line.lstrip().startswith("|"))
    prose = re.sub(r"<!--.*?-->", "", prose, flags=re.S)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    return sum(bool(re.search(r"\w", word)) for word in prose.split())


def test_the_readme_is_short():
    assert count("a [b c](d.md) `e f`\n\n```bash\nnot these\n```\n\n| nor | these |\n") == 5
    assert count(written()["README.md"]) <= MOST
