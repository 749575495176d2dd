"""What code says of itself: paragraphs of docstrings and the comments behind fields."""

from typing import Annotated, NamedTuple

from bdjax.sweep.comments import comments, paragraph, summary


class Config(NamedTuple):
    """Fields with comments."""

    epochs: int = 3  # of the tuning, see :func:`~bdjax.tree.get`
    plain: int = 4
    colour: Annotated[int | tuple[int, ...], "added"] = 255  # of ``the`` patch
    # below a field


def method():
    """Do one thing,
    on two lines.

    And more of it.

    Source: A. Nobody, "A title",
      somewhere, 2026.
    Differs: in :class:`Config`: as said.

    Then something else.
    """


def test_comments_belong_to_the_field_before_them():
    assert comments(Config, method) == {"epochs": "of the tuning, see bdjax.tree.get", "colour": "of `the` patch"}


def test_paragraphs_are_one_line_each():
    assert summary(method) == "Do one thing, on two lines."
    assert paragraph(method, "Source") == 'A. Nobody, "A title", somewhere, 2026.'
    assert paragraph(method, "Differs") == "in Config: as said."
    assert paragraph(method, "Returns") == summary(lambda: None) == ""
