"""The command line: parse, delegate, print."""

from __future__ import annotations

import sys
import traceback

import click

from qwen_local import __version__
from qwen_local.cli.chat import chat
from qwen_local.cli.data import data
from qwen_local.cli.demo import demo
from qwen_local.cli.doctor import doctor
from qwen_local.cli.export import export
from qwen_local.cli.flags import command_of, flags_of, with_flags
from qwen_local.cli.fuse import fuse
from qwen_local.cli.generate import generate
from qwen_local.cli.plan import plan
from qwen_local.cli.train import train
from qwen_local.console.log import lasting_stderr
from qwen_local.console.signals import Stopped, ends_by_signal
from qwen_local.errors import QwenLocalError
from qwen_local.training.child import CRASHED, end_with_parent, this_child

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qwen-local")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Fine-tune Qwen models: one LoRA job, two engines (MLX and PyTorch), one adapter."""


for command in (train, plan, data, generate, chat, fuse, export, demo, doctor):
    cli.add_command(command)


def main() -> None:
    """Run the command line: an error of this program becomes one message and its exit code."""
    with lasting_stderr():
        sys.exit(_status())


def _status() -> int:
    """Run the command, print the error that ended it, and return the exit code."""
    child = this_child()
    try:
        with ends_by_signal():
            if child is not None:
                end_with_parent(child.pipe)
            status = cli.main(prog_name="qwen-local", standalone_mode=False)
    except QwenLocalError as error:
        flags = flags_of(command_of(cli, sys.argv[1:]))
        _print_error(with_flags(str(error), flags))
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OSError as error:  # a disk that is full, a pipe that nobody reads
        _print_error(": ".join(filter(None, (error.strerror or str(error), error.filename))))
        return QwenLocalError.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        ended_by = error.__cause__ or error  # click makes an Abort of what it catches
        if isinstance(ended_by, Stopped):
            _print_error(str(ended_by))
            return ended_by.exit_code
        _print_error("interrupted")
        return INTERRUPTED
    except Exception:
        if child is None:
            raise
        traceback.print_exc()
        return CRASHED
    return status if isinstance(status, int) else 0


def _print_error(message: str) -> None:
    """Print the message or, with --debug, the traceback, which ends with it."""
    from qwen_local.console.visible import visible

    debug = "--debug" in sys.argv[1:2]  # an option of the whole program, so before any command
    # Text from data, file names or templates must not control the terminal.
    click.echo(traceback.format_exc() if debug else visible(message), err=True)
