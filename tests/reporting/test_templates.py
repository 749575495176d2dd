"""The pages are templates: every value in them is escaped, and no other code puts HTML together."""

import ast
from pathlib import Path

import jinja2
import pytest

import bdjax.reporting
from bdjax.reporting import layout
from bdjax.reporting.render import render
from bdjax.reporting.tables import Cell, Printed

EVIL = "<b>'&\"</b>"
ESCAPED = "&lt;b&gt;&#39;&amp;&#34;&lt;/b&gt;"


def test_no_module_of_the_report_puts_html_together_itself():
    modules = sorted(Path(bdjax.reporting.__file__).parent.glob("*.py"))
    assert len(modules) > 10
    for module in modules:
        nodes = list(ast.walk(ast.parse(module.read_text())))
        parts = [
            part.value for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values if hasattr(part, "value")
        ]
        texts = [part for part in parts if isinstance(part, str)]
        assert not [text for text in texts if "<" in text], f"{module.name} writes HTML in an f-string"
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        assert "html" not in imported, f"{module.name} escapes by hand"


def test_a_table_escapes_names_heads_notes_orders_and_links():
    printed = Printed(
        heads=(EVIL,), numeric=(False,), rows=((Cell(f"{EVIL} [{EVIL}]", EVIL),),), columns=(EVIL,), about=({},),
        constants={EVIL: EVIL}, notes=(EVIL,),
    )  # fmt: skip
    text = layout.table(printed, EVIL, "mine", link=lambda about: EVIL)
    assert EVIL not in text and text.count(ESCAPED) == 10


def test_a_page_escapes_its_title_and_what_its_script_reads():
    text = layout.shell(EVIL, EVIL, [layout.Tile(EVIL, EVIL)], [layout.Section("a", EVIL, "body", EVIL)], {"facets": [EVIL]})
    assert EVIL not in text and "</b>" not in text.partition('id="facets"')[2].partition("</script>")[0]
    assert text.count(ESCAPED) == 8 and "\\u003cb\\u003e" in text


def test_a_value_that_a_template_does_not_get_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render("pictures.html")
