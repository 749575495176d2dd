"""Words are explained once, where they are first met, and every column that has a number says what it is."""

import pytest

from bdjax.reporting import glossary, tables
from bdjax.reporting.glossary import WORDS, Part, meaning, parts

ASKED = ("ACC", "ASR", "RA", "ARR", "DER", "mitigated", "spc", "profile", "poison ratio", "member", *glossary.MARKS)


def test_every_word_is_explained_in_sentences():
    assert {word.name for word in WORDS} >= {*ASKED, "at chance", "hardly trained", "predicts one class"}
    assert len({word.name for word in WORDS}) == len(WORDS)
    for word in WORDS:
        assert word.sentence.endswith((".", "%.")) and word.sentence[0] not in "(†" and "\n" not in word.sentence, word.name


def test_the_heads_of_both_tables_are_explained(records):
    heads = {*tables.full(records).heads, *tables.board(records).heads}
    told = {head for head in heads if any(part.sentence for part in parts(head))}
    assert heads - told == {"attack", "defense", "not averaged"}


def test_a_text_is_cut_at_the_first_of_each_word():
    text = "ASR and ACC of 4 seeds; ASR again. Mitigated is no ASRx and no unmitigated, but grad_prune† is marked."
    found = parts(text)
    assert "".join(part.text for part in found) == text
    assert [part.text for part in found if part.sentence] == ["ASR", "ACC", "seeds", "Mitigated", "†"]
    assert found[0] == Part("ASR", meaning("ASR")) and found[1] == Part(" and ")
    assert parts("") == [] and parts("<b>plain</b>") == [Part("<b>plain</b>")]


def test_a_note_does_not_explain_what_it_says_itself():
    assert glossary.note("†").startswith("† is shown images with the true trigger")
    assert not any(part.sentence for part in parts(glossary.note("†")))
    with pytest.raises(KeyError):
        meaning("accuracy")


def test_marks_are_taken_off_a_name():
    assert glossary.split_marks("anp†‡") == ("anp", "†‡") and glossary.split_marks("anp") == ("anp", "")
    assert glossary.split_marks("–") == ("–", "")
