"""The `ae` command: our verbs, what there is to list, and the commands that plugins add.

Nothing heavy is imported before a verb runs, so that `ae --help` answers at once.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import IO, Any

import click

from ae_toolkit import registry
from ae_toolkit.cli.measure import MEASURE_COMMANDS
from ae_toolkit.cli.models import MODEL_COMMANDS
from ae_toolkit.cli.options import json_option, print_json, print_table
from ae_toolkit.cli.train import RUN_COMMANDS
from ae_toolkit.errors import (
    Interrupted,
    RunError,
    UsageError,
    describe_error,
    did_you_mean,
    handling_signals,
)
from ae_toolkit.files import outputs, printable
from ae_toolkit.version import __version__


class Sentence(click.ClickException):
    """One of our errors as click shows it: a sentence and an exit code, no traceback."""

    def __init__(self, error: UsageError | RunError):
        super().__init__(printable(str(error)))
        vars(self)["exit_code"] = error.exit_code  # click declares it for the class
        self.stopped = isinstance(error, Interrupted)

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints it; whoever stops a command knows that nothing has gone wrong."""
        if self.stopped:
            click.echo(self.message, file=file or sys.stderr)
        else:
            super().show(file)


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end a command as Ctrl-C does, so that nothing half-done is left."""
    owner = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a child of ours, which was born with our handlers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt(number)

    # What is ignored stays so: nohup ignores what hangs up.
    with handling_signals(stop, replaces=lambda former: former is signal.SIG_DFL):
        yield


class Commands(click.Group):
    """Our verbs and, from metadata alone, every plugin's command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *registry.commands.names()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if command := super().get_command(ctx, cmd_name):
            return command
        if cmd_name.rpartition(":")[2] not in registry.commands.names():
            near = did_you_mean(cmd_name, self.list_commands(ctx))
            raise click.UsageError(f"there is no command {cmd_name!r}: {near}")
        command = registry.commands.get(cmd_name)
        if not isinstance(command, click.Command):
            whose = registry.commands.describe(command)
            raise RunError(f"{whose} is no click command, but {type(command).__name__}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, command.get_short_help_str(60)) for name, command in self.commands.items()]
        plugins = []
        for name, origin, value in registry.commands.origins():
            full = registry.commands.full_name(name, origin)
            full = f"{origin.distribution}:{name}" if name in self.commands else full
            package = value.partition(":")[0].partition(".")[0]
            plugins.append((full, f"Commands of {package} ({origin})"))
        for title, rows in (("Commands", own), ("Plugins", plugins)):
            with formatter.section(title):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        ended: BaseException
        try:
            with _ending_cleanly(), outputs():  # what is written appears when a command succeeds
                try:
                    return super().invoke(ctx)
                except click.exceptions.Exit as error:  # an exit code is no reason to lose it
                    ended = error
                except SystemExit as error:
                    if error.code:
                        raise
                    ended = error
            raise ended
        except (UsageError, RunError) as error:
            raise Sentence(error) from error
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else signal.SIGINT
            raise Sentence(Interrupted("Stopped", number=number)) from None
        except SystemExit as error:
            whose = registry.find_plugin_in_traceback(error)
            if whose and ctx.invoked_subcommand in self.commands:  # a command of theirs may exit
                raise Sentence(RunError(whose)) from error
            raise
        except Exception as error:
            if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
                where = error.filename or "standard output"
                raise Sentence(RunError(f"{where}: {error.strerror}")) from error
            if whose := registry.find_plugin_in_traceback(error):
                raise Sentence(RunError(whose)) from error
            raise  # a defect of ours


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ae-toolkit")
@click.option("--import", "scripts", multiple=True, metavar="FILE",
              type=click.Path(path_type=Path),
              help="Run a Python file first, which registers parts of yours.")  # fmt: skip
def main(scripts: tuple[Path, ...]) -> None:
    """Autoencoders: train them, look at them, use them.

    MODEL is a bundled name (see 'ae models'), a run directory or a hub id.

    \b
    Examples:
      ae image grid -o grid.png          a latent space laid out, at once
      ae train mnist-2d --out runs/mine  a model of your own
      ae evaluate runs/mine
      ae --import my_encoder.py train mnist-2d --set encoder.name=mine
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    for script in scripts:
        _run_script(script)


for verb in (*RUN_COMMANDS, *MEASURE_COMMANDS, *MODEL_COMMANDS):
    main.add_command(verb)


@main.command("recipes")
@click.argument("recipe", required=False)
@json_option
def recipes(recipe: str | None, as_json: bool) -> None:
    """List the recipes, or all the settings of RECIPE.

    \b
    Examples:
      ae recipes
      ae recipes mnist-2d        what --set can change, and what it is now
    """
    from ae_toolkit.recipe import named, summary

    if recipe is not None:
        settings = named(recipe).settings()
        if as_json:
            print_json(settings)
            return
        for name, value in settings.items():
            click.echo(f"{name:26} {json.dumps(value)}")
        return
    rows = []
    for name, origin, _ in registry.recipes.origins():
        try:
            text = summary(registry.recipes.get(f"{origin.distribution}:{name}"))
        except RunError as error:
            text = f"broken: {error}"
        full = registry.recipes.full_name(name, origin)
        rows.append({"name": full, "distribution": str(origin), "summary": text})
    _table(rows, as_json, columns=("name", "summary"))


@main.command("models")
@json_option
def models(as_json: bool) -> None:
    """List the bundled models."""
    from ae_toolkit.inference import zoo
    from ae_toolkit.runs import checkpoint

    rows = []
    for name, folder in zoo.bundled().items():
        weights = folder / checkpoint.WEIGHTS_FILE
        size = weights.stat().st_size if weights.is_file() else 0
        try:
            text = checkpoint.load_config(folder).card.get("summary", "")
            checkpoint.shapes(folder)
        except RunError as error:
            text = f"broken: {error}"
        rows.append({"name": name, "size": f"{size / 1e6:.2f} MB", "summary": text})
    _table(rows, as_json, columns=("name", "size", "summary"))


@main.command("plugins")
@json_option
def plugins(as_json: bool) -> None:
    """List what is installed, by package, and what is broken."""
    from ae_toolkit.testing.plugins import list_plugins

    with redirect_stdout(sys.stderr):  # what strangers' modules print
        found = list_plugins(verbs=main.commands)
    if as_json:
        print_json([entry._asdict() for entry in found])
        return
    for entry in found:
        click.echo(entry)
        for kind, names in entry.parts.items():
            click.echo(f"  {len(names):3} {kind:11} {', '.join(names)}")
        for sentence in entry.broken:
            click.echo(f"      broken: {sentence}")


@main.group("plugin")
def plugin() -> None:
    """Write a plugin of your own, or check one."""


@plugin.command("new")
@click.argument("name")
@click.option("-o", "--out", type=click.Path(path_type=Path),
              help="Folder to make.  [default: NAME]")  # fmt: skip
def plugin_new(name: str, out: Path | None) -> None:
    """Write a package that brings a data type NAME, ready to be installed and trained.

    \b
    Example:
      ae plugin new ecg
    """
    from ae_toolkit.testing.scaffold import write_plugin

    folder = out or Path(name)
    for path in write_plugin(name, folder):
        click.echo(path)
    place = shlex.quote(str(folder if folder.is_absolute() else f"./{folder}"))
    click.echo(
        f"\nNext:\n  pip install {place}\n  ae plugin check {name}\n  ae train {name}-vae\n"
        f"  ae interpolate runs/{name}-vae {place}/a.csv {place}/b.csv -o walk.csv"
    )


@plugin.command("check")
@click.argument("name")
@json_option
@click.pass_context
def plugin_check(ctx: click.Context, name: str, as_json: bool) -> None:
    """Check that everything in the installed package NAME keeps its contract.

    \b
    Examples:
      ae plugin check ecg
      ae plugin check ecg --json
    """
    from ae_toolkit.testing.plugins import examine

    with redirect_stdout(sys.stderr):  # what strangers' modules print
        checks = examine(name, verbs=main.commands)
    wrong = sum(not check.ok for check in checks)
    untried = sum(check.ok and not check.tried for check in checks)
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        for check in checks:
            state = "ok   " if check.ok else "wrong"
            click.echo(f"{state}  {check.what}" + (f": {check.why}" if check.why else ""))
        well = f"all well, but {untried} of its parts not tried" if untried else "all well"
        click.echo(f"{wrong} of {len(checks)} checks found something wrong" if wrong else well)
    ctx.exit(1 if wrong else 0)


def _run_script(path: Path) -> None:
    """Runs a user's file for what it registers, as a module whose code a cache can know."""
    if not path.is_file():
        raise UsageError(f"--import {path}: there is no such file")
    module = ModuleType(f"imported_{path.stem}")
    module.__file__ = str(path.resolve())
    sys.modules[module.__name__] = module
    try:
        exec(compile(path.read_bytes(), module.__file__, "exec"), vars(module))
    except (UsageError, RunError):
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        lines = [n for f, n in walk_tb(error.__traceback__) if f.f_globals is vars(module)]
        where = f" (line {lines[-1]})" if lines else ""
        raise RunError(f"--import {path}: {describe_error(error)}{where}") from error


def _table(rows: list[dict[str, Any]], as_json: bool, *, columns: tuple[str, ...]) -> None:
    if as_json:
        print_json(rows)
    else:
        print_table([[str(row[c]) for c in columns] for row in rows])
