"""The command line: which commands there are, and how each ends."""

import signal
import sys
from collections.abc import Callable, Sequence
from typing import cast

from bdjax import __version__
from bdjax.cli import complaints, device_target, mistakes, stopping, terminal
from bdjax.cli.examples import EXAMPLES
from bdjax.cli.export_data import export_data
from bdjax.cli.folder import reproduce, status
from bdjax.cli.grids import check, plan, quickstart, run, sweep
from bdjax.cli.lists import data, ls
from bdjax.cli.report import cite, compare_masks, pruning_curve, report, verdicts
from bdjax.cli.show_attack import show_attack
from bdjax.cli.torch import export_torch, import_torch
from bdjax.errors import UserError
from bdjax.population import hosts, platforms
from bdjax.population.compilations import keep_compilations

COMMANDS = {
    "quickstart": quickstart,
    "run": run,
    "sweep": sweep,
    "plan": plan,
    "ls": ls,
    "check": check,
    "data": data,
    "status": status,
    "report": report,
    "reproduce": reproduce,
    "cite": cite,
    "show-attack": show_attack,
    "export-data": export_data,
    "compare-masks": compare_masks,
    "pruning-curve": pruning_curve,
    "verdicts": verdicts,
    "import-torch": import_torch,
    "export-torch": export_torch,
}


ABOUT = (
    "Backdoor attacks and defenses on image classifiers, run as populations. An error is one line; with the environment's "
    "BDJAX_DEBUG=1 its traceback comes before it. bdjax --tyro-print-completion bash (or zsh) prints what completes commands "
    "and flags in a shell."
)
RESUMING = ("quickstart", "run", "sweep")
COMPUTING = (*RESUMING, "plan", "check", "report", "reproduce", "show-attack", "export-data", "pruning-curve", "export-torch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    0; 1 a cell failed, or a record is not reproduced; 2 the user's mistake, or the system's; 70 an error nobody foresaw; 130
    interrupted, 143 terminated; 141 nobody reads. Every error is one line; with the environment's BDJAX_DEBUG=1 a traceback comes
    before it.

    Args:
      argv: the arguments. None: those of this process, which is then the command's own: Ctrl-C and SIGTERM end it within seconds.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    resumes = bool(arguments) and arguments[0] in RESUMING
    line = "bdjax: stopped" + ("; the same command goes on where this one stopped" if resumes else "")
    with terminal.printable(), complaints.one_line_each(), stopping.answered(line, watched=argv is None) as stop:
        try:
            return _ended(arguments)
        except hosts.Preempted:
            stop.number = signal.SIGTERM
            hosts.end_together()
            return stop.leave()
        except KeyboardInterrupt:
            return stop.leave()


def _ended(arguments: list[str]) -> int:
    """Run a command, and say in one line why it did not end well."""
    try:
        code = _command(arguments)
    except UserError as error:
        complaints.complain(str(error), error)
        code = 2
    except BrokenPipeError:  # as of "bdjax plan … | head": whoever reads has had enough
        code = 128 + signal.SIGPIPE
    except OSError as error:
        complaints.complain(complaints.of_system(error), error)
        code = 2
    except SystemExit:  # the parser has spoken
        terminal.flushed()
        raise
    except Exception as error:
        known = platforms.trouble(error)
        complaints.complain(known or complaints.unexpected(error), error)
        code = 70 if known is None else 2
    failed = terminal.flushed()  # a reader that has gone, or a full disk, is noticed here, not while Python ends
    if failed is None:
        return code
    if isinstance(failed, BrokenPipeError):
        return 128 + signal.SIGPIPE
    complaints.complain(f"cannot write the output: {complaints.of_system(failed)}")
    return 2


def _command(arguments: list[str]) -> int:
    import tyro

    arguments = device_target.apart(arguments)
    if arguments == ["--version"]:
        print(f"bdjax {__version__}")
        return 0
    commands = cast(dict[str, Callable[..., int]], COMMANDS)
    mistakes.look(arguments, commands)
    name = arguments[0].replace("_", "-") if arguments else ""
    platforms.without_absent_tpu()
    if name in COMPUTING:
        keep_compilations()
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="bdjax", description=ABOUT, args=arguments, config=(tyro.conf.OmitArgPrefixes,)
        )
    except SystemExit as left:
        if left.code == 0 and name in EXAMPLES:  # it has shown the help of a command
            print(f"\nexample: {EXAMPLES[name]}")
        raise


if __name__ == "__main__":
    sys.exit(main())
