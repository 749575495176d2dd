"""The words and marks of tables, figures and pages, each explained once: tooltips, the glossary and the notes say the same."""

import functools
import re
from typing import NamedTuple

from bdjax.results.soundness import NOTES


class Word(NamedTuple):
    """A word, or a mark behind a name."""

    name: str  # as the glossary lists it
    sentence: str
    forms: tuple[str, ...] = ()  # as texts write it, where they write it otherwise


class Part(NamedTuple):
    """A piece of a text: a word with what it means, or what stands between two of them, without."""

    text: str
    sentence: str = ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


MARKS = "†‡¶§"  # behind names
BEFORE, AFTER = r"(?<![\w-])", r"(?![\w-])"  # where a whole word begins and ends
WORDS = (
    Word("ACC", "Accuracy: the share of the clean test images that a network calls what they are."),
    Word(
        "ASR",
        "Attack success rate: the share of the triggered test images, those of the target class left out, that a network calls "
        "the target.",
    ),
    Word(
        "RA", "Recovered accuracy: the share of the same triggered images that a network calls what they are. ASR + RA ≤ 100 %."
    ),
    Word("ARR", "Accuracy reduction rate, 1 − ACC after / ACC before: the share of the accuracy that a defense costs."),
    Word(
        "DER",
        "Defense effectiveness rate, (max(0, ASR drop) − max(0, ACC drop) + 1) / 2: 50 % where nothing changed, 100 % for a "
        "perfect defense. A network that is destroyed still scores.",
    ),
    Word(
        "mitigated",
        "Share of the attacked runs after which the backdoor is gone and the accuracy is kept, both at once. The limits "
        "of either stand below the table.",
    ),
    Word("not attacked", "Runs that mitigated does not count, because there was no attack to mitigate: the notes say why."),
    Word("cost", "What a defense takes from the accuracy (ARR) of networks that nobody attacked.", ("cost %",)),
    Word(
        "spc",
        "Clean samples per class that the defender holds. Any: the defense needs none, so its row holds for every number.",
        ("spc", "clean samples per class"),
    ),
    Word(
        "profile",
        "corrected: a method does what its paper says, with the survey's settings. reference: it does what the published code "
        "does, quirks included.",
    ),
    Word(
        "poison ratio",
        "Share of the training images that carry the trigger. At 0 nobody attacked the network.",
        ("poison ratio", "poison ratios"),
    ),
    Word("label rule", "all_to_one: triggered images are to be called one class, the target. all_to_all: each the next class."),
    Word("member", "One network of a population: one seed at one poison ratio.", ("member", "members")),
    Word("seed", "Names every random draw of a member: the same seed is the same network in any population.", ("seed", "seeds")),
    Word("task", "One training configuration at one poison ratio.", ("task", "tasks")),
    Word("n", "The runs behind a number, one for each seed; where some are missing, of all that were started."),
    Word("infeasible", "The run is impossible as asked, for want of clean rows or of rows to poison. It counts for no defense."),
    Word("non-finite", "The run diverged: a loss, a gradient or a weight is not finite."),
    *(Word(name, _capital(text.partition(": ")[2])) for name, text in NOTES.items()),
    Word("†", "Is shown images with the true trigger, which a defender rarely has."),
    Word("‡", "Reads the accuracy on test data, which a defender does not have."),
    Word(
        "¶", "Made with an earlier edition of a method, which has been corrected since. The same run makes these records again."
    ),
    Word(
        "§",
        "Does not answer the trigger that it is measured with: its ASR before a defense is that of a network without a backdoor. "
        "Or trained on exported data that were poisoned already. The note below the table says which.",
    ),
)
_SENTENCES = {form: word.sentence for word in WORDS for form in (word.forms or (word.name,))}


def meaning(word: str) -> str:
    """The sentence of a word, as the glossary lists it.

    Raises:
      KeyError: the glossary has no such word.
    """
    return {one.name: one.sentence for one in WORDS}[word]


def note(mark: str) -> str:
    """What a mark means, to stand below a table."""
    sentence = meaning(mark)
    return f"{mark} {sentence[0].lower()}{sentence[1:]}"


def parts(text: str) -> list[Part]:
    """A text in pieces, the first of every word with its sentence, unless the text holds it; the pieces add up to the text."""
    found, end, met = [], 0, set()
    for match in _pattern().finditer(text):
        sentence = _sentence(match[0])
        if sentence in met or sentence.lower() in text.lower():
            continue
        met.add(sentence)
        found += [Part(text[end : match.start()]), Part(match[0], sentence)]
        end = match.end()
    return [part for part in (*found, Part(text[end:])) if part.text]


def split_marks(text: str) -> tuple[str, str]:
    """A name and the marks behind it."""
    name = text.rstrip(MARKS)
    return name, text[len(name) :]


def _sentence(form: str) -> str:
    return _SENTENCES[form] if form in _SENTENCES else _SENTENCES[form[0].lower() + form[1:]]


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Every form as a whole word, the longest first; words in small letters may begin a sentence."""
    bounded = []
    for form in sorted(_SENTENCES, key=len, reverse=True):
        starts = f"[{form[0]}{form[0].upper()}]" if form[0].islower() and len(form) > 1 else re.escape(form[0])
        text = starts + re.escape(form[1:])
        bounded.append(text if form in MARKS else BEFORE + text + AFTER)
    return re.compile("|".join(bounded))
