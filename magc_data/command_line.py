"""What the programs' command lines share: whole numbers stay whole, and every expected failure is one sentence.

Exit codes: 0 done, 1 the job failed, 2 bad usage, 130 interrupted; errors carry theirs in `exit_code`.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter, Token, convert

from magc_data.errors import MagcDataError
from magc_data.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


def _convert(type_: Any, tokens: Sequence[Token]) -> Any:
    """Convert as cyclopts does, except that 17.5 is no whole number (cyclopts would cut it to 17).

    An address stays text where one may be given, and is refused where not (as a path, it would lose a slash).
    """
    value = tokens[0].value
    if type_ == Path | str:
        return value if "://" in value else Path(value)
    if type_ in (Path, Path | None) and "://" in value:
        raise ValueError(f'"{value}" is an address: this needs a path, so copy what is there to this machine first')
    if type_ in (int, int | None) and not re.fullmatch(r"[+-]?\d+", tokens[0].value):
        raise ValueError(f'unable to convert "{tokens[0].value}" into a whole number')
    return convert(type_, tokens)


def new_app(program: str, help_text: str) -> App:
    """An empty command line, to be filled with commands and given to `run`."""
    return App(
        default_parameter=Parameter(converter=_convert),
        name=program,
        help=help_text,
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # `run` says what an interruption means
    )


def run(
    app: App,
    arguments: Sequence[str] | None,
    program: str,
    errors: tuple[type[Exception], ...] = (MagcDataError,),
    interrupted_sentence: str = "interrupted: what is finished is kept, and the same command continues",
    requirement: str = "magc",
) -> NoReturn:
    """Run a command and end the process: every expected failure becomes a sentence on stderr and an exit code.

    Args:
        app: the commands; one that returns a whole number names its exit code.
        arguments: None for those of the process.
        program: what sentences begin with.
        errors: the expected failures; their classes have an `exit_code`.
        interrupted_sentence: what Ctrl-C means.
        requirement: what pip installs the third-party modules with that the commands import.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of places and files in any script must not stop a command where the terminal cannot show them.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(program, str(error), 2)
    except errors as error:
        _fail(program, str(error), getattr(error, "exit_code", 1))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("magc_"):
            raise
        wanted = "PyTorch and other packages" if error.name.startswith("torch") else f"the package {error.name}"
        _fail(program, f'this command needs {wanted}, not installed here: pip install "{requirement}"', 1)
    except KeyboardInterrupt:
        _fail(program, interrupted_sentence, 130)
    except UnicodeEncodeError as error:
        _fail(program, f"a name holds bytes that are no text ({error.object!r}): rename the file or folder", 2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        way_out = "what is finished is kept: put this right and run the command again"
        _fail(program, f"{where}{error.strerror or error} ({way_out})", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(program: str, sentence: str, code: int) -> NoReturn:
    sys.stderr.write(f"{program}: {' '.join(sentence.split())}\n")
    sys.exit(code)
