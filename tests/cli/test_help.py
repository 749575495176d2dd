"""What help says: real defaults, short words for values, one example that runs as it is printed; and what completes commands."""

import dataclasses
import functools
import re
import shlex
import shutil
import subprocess

import pytest

from bdjax.cli import flags, mistakes
from bdjax.cli import main as cli
from bdjax.cli.examples import EXAMPLES
from bdjax.sweep.grid import Grid


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "129")  # from 130 on help has two columns


def shown(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments, "--help"])
    told = capsys.readouterr()
    assert left.value.code == 0 and told.err == ""
    return told.out


def entries(capsys, name):
    """What help says of each flag and word of a command, one line each: the flag, the word for its value, and the text."""
    inside = [line[2:].rstrip(" │") for line in shown(capsys, name).splitlines()]  # the boxes have no lines on some terminals
    found = [line for line in re.sub(r"\n +", " ", "\n".join(inside)).splitlines() if re.match(r"--[a-z]|[\[{]|[A-Z]{2}", line)]
    assert found
    return found


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_flag_shows_its_default_in_words_and_a_short_word_for_its_value(capsys, name):
    for line in entries(capsys, name):
        assert re.search(r"\((default: .+|required)\)$", line), line
        assert not re.search(r"default: \)|default: None|\{None\}|STR|\[\[|\[(INT|FLOAT)", line), line


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_flags_that_are_known_beforehand_are_those_of_the_parser(capsys, name):
    found = [re.findall(r"^(--[a-z-]+)(?:, (--no-[a-z-]+))?", line) for line in entries(capsys, name)]
    assert {flag for pairs in found for pair in pairs for flag in pair if flag} == {*mistakes.flags(cli.COMMANDS[name])}


@pytest.mark.parametrize(
    ("name", "flag", "said"),
    [
        ("run", "--defense NAME ...", '"none" only trains. (default: ft fp clp)'),
        ("run", "--seeds INT ...", "(default: 0)"),
        ("run", "--width INT", "Channels of the model's first stage. (default: the model's own)"),
        ("run", "--profile {corrected,reference}", "(default: corrected)"),
        ("run", "--strategy {vmap,map,unrolled,sequential}", "(default: as tuned, else as measured for this platform)"),
        ("plan", "[FILE]", "(default: the grid is what the flags say)"),
        ("check", "--scale {full,small}", "(default: full)"),
        ("report", "--data-dir DIR", "(default: the environment's BDJAX_DATA_DIR)"),
        ("show-attack", "--results DIR", "(default: one is trained now)"),
        ("export-torch", "--defense NAME", "(default: none, the network as it was trained)"),
    ],
)
def test_a_default_is_what_happens_without_the_flag(capsys, name, flag, said):
    (line,) = [line for line in entries(capsys, name) if line.startswith(f"{flag} ")]
    assert line.endswith(said)


def test_the_defaults_of_a_scenario_are_those_of_a_grid(capsys):
    lines = entries(capsys, "sweep")
    plain = {field.name: getattr(Grid(), field.name) for field in dataclasses.fields(Grid) if field.name not in flags.SETTINGS}
    for name, value in plain.items():
        (line,) = [line for line in lines if line.startswith(f"--{name.replace('_', '-')} ")]
        words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert line.endswith(f"(default: {words})") or value is None


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_ends_with_an_example_that_the_parser_takes(capsys, monkeypatch, name):
    assert shown(capsys, name).endswith(f"\n\nexample: {EXAMPLES[name]}\n")
    called = []

    @functools.wraps(cli.COMMANDS[name])
    def command(*given, **named):
        called.append((given, named))
        return 0

    monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, name: command})
    program, first, *words = shlex.split(EXAMPLES[name])
    assert (program, first) == ("bdjax", name) and not re.search(r"\b[A-Z]{2,}\b", EXAMPLES[name])
    assert cli.main([first, *words]) == 0 and len(called) == 1


def test_every_command_has_an_example():
    assert list(EXAMPLES) == list(cli.COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_flags(capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["--tyro-print-completion", "bash"])
    script = tmp_path / "bdjax.bash"
    script.write_text(capsys.readouterr().out)
    ask = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_bdjax; echo "${COMPREPLY[*]}"'

    def completed(*words):
        done = subprocess.run(["bash", "-c", ask, str(script), *words], capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    assert completed("bdjax", "ru") == ["run"]
    assert completed("bdjax", "run", "--da") == ["--data-dir", "--dataset"]
    assert completed("bdjax", "check", "--sc") == ["--scale"]


def test_zsh_has_a_script_too(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--tyro-print-completion", "zsh"])
    assert capsys.readouterr().out.startswith("#compdef bdjax\n")
