"""What every command shares: its start, its parser, and settings as flags. Needs the standard
library alone."""
import argparse
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import NoReturn, TextIO

BROKEN_PIPE = 141                                 # exit code of tools that SIGPIPE ends


class Output:
    """A standard stream. When it cannot be written, because its reader has left (| head) or its
    disk is full, the command goes on without it, so that its results are complete."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.error = None                         # the first OSError
        # A terminal may lack the letters of a file's name.
        stream.reconfigure(errors='backslashreplace')

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str):
        self.attempt(self.stream.write, text)

    def flush(self):
        self.attempt(self.stream.flush)

    def attempt(self, function: Callable, *arguments):
        try:
            function(*arguments)
        except OSError as error:
            self.error = error
            # What is still in the buffer goes nowhere: Python tries it again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def start(main: Callable[[], None]) -> None:
    """Runs the `main` of a command. Ctrl-C ends it with a word. Exit code 141 or a sentence tells
    at the end that the output had no reader or no room."""
    open_streams()
    try:
        main()
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)
    finally:
        sys.stdout.flush()
    error = sys.stdout.error
    if isinstance(error, BrokenPipeError):
        sys.exit(BROKEN_PIPE)
    if error:
        fail(f'the output of this command cannot be written ({error.strerror}); make room')


def open_streams() -> None:
    """Makes stdout and stderr an Output. Those that the shell has closed (>&-) are nobody's: Python
    has None for them, and the first file that is opened would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name) or open(os.devnull, 'w')
        setattr(sys, name, Output(stream))


def fail(sentence: str) -> NoReturn:
    """Ends a command with a sentence about a user's mistake and exit code 2."""
    print(f'error: {" ".join(sentence.split())}', file=sys.stderr)
    sys.exit(2)


def flag(name: str) -> str:
    """'theta_mask' -> '--theta-mask'."""
    return '--' + name.replace('_', '-')


def refuse_given(args: argparse.Namespace, names: Iterable[str], reason: str):
    """ValueError with the first of these flags that is given: '--fps REASON'. Those that are not
    given are None, False or an empty list."""
    for name in names:
        value = getattr(args, name)
        # 0 is given, though it equals False.
        if value is not None and value is not False and value != []:
            raise ValueError(f'{flag(name)} {reason}')


def check_source(photos: list, other: str | None, name: str, content: str, command: str):
    """ValueError where photos and another source, the flag `name`, are both given, or neither.

    content: what the flag names. command: whose --help says more.
    """
    if photos and other:
        raise ValueError(f'give photos or {name}, not both')
    if not photos and not other:
        raise ValueError(f'give photos, or {name} with {content} ({command} --help)')


def outside(name: str, value, low, high) -> str:
    """The sentence about a value out of range."""
    # Python refuses to print integers of thousands of digits.
    large = type(value) is int and abs(value) > 10 ** 40
    text = 'a larger integer' if large else str(value)[:40]
    return f'{name} is {text}; give a value from {low} to {high}'


def filled(text: str) -> str:
    """argparse type: text that is not empty. A shell makes empty text of an unset variable."""
    if not text.strip():
        raise argparse.ArgumentTypeError(' is empty; give a value')
    return text


class Ending:
    """argparse type: the name of an output, which replaces what the file held. One of the endings
    is demanded, so that a mixed-up argument replaces no photo and no weights."""

    def __init__(self, *endings: str):
        self.endings = endings

    def __call__(self, text: str) -> str:
        if not text.lower().endswith(self.endings):
            raise argparse.ArgumentTypeError(f' is {text!r}; give a name that ends in '
                                             f'{" or ".join(self.endings)}')
        return text


class Between:
    """argparse type: a number of this kind from low to high. NaN is in no range."""

    def __init__(self, low, high, kind: type = int):
        self.low = low
        self.high = high
        self.kind = kind
        self.__name__ = kind.__name__

    def __call__(self, text: str):
        value = self.kind(text)
        if not self.low <= value <= self.high:
            raise argparse.ArgumentTypeError(outside('', text, self.low, self.high))
        return value


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, or of one of its subcommands. Its errors are one sentence.

    description: the docstring of the module.
    """

    def __init__(self, description: str | None = None, **options):
        path = Path(sys.argv[0])
        if path.name == '__main__.py':
            # argparse would call each of the packages by this name.
            options.setdefault('prog', f'python -m {path.parent.name}')
        elif path.parent.name == 'tools':
            options.setdefault('prog', f'python -m tools.{path.stem}')
        self.is_command = False
        super().__init__(description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            # Python 3.11 takes it for an empty list.
            if word.startswith('--') and word.endswith('=--'):
                self.error(f'argument {word[:-3]}: -- is no value')
        found, rest = super().parse_known_args(args, namespace)
        if rest and self.is_command:
            # Otherwise the parser of all commands would report them, and point to its own help.
            self.error(f'unrecognized arguments: {" ".join(rest)}')
        return found, rest

    def error(self, message):
        name, _, reason = message.removeprefix('argument ').partition(': ')
        # Our own argparse types say what is wrong with the value of a flag: "--seed is -1; ..".
        if reason.startswith(' is '):
            fail(f'{name}{reason}')
        fail(f'{message}; see {self.prog} --help')


def add_command(commands, name: str, help: str, description: str = '') -> CommandParser:
    """Adds a subcommand.

    help: its line in the list of commands
    description: the text above its own flags; by default the same
    """
    sentence = f'{help[0].upper()}{help[1:]}.'
    parser = commands.add_parser(name, help=help, description=description or sentence)
    parser.is_command = True
    return parser


# The flags that many commands share.
SHARED = {
    'data': dict(help='data set'),
    'root': dict(help='folder of the data set, as downloaded', type=filled),
    'split': dict(help='split of the data set, such as train or val', default='val', type=filled),
    'recipe': dict(help="the paper's text, or the released code", choices=['paper', 'released']),
    'licenses': dict(help='COCO: licenses of its photos, free or ids such as 4,5 (default: all)'),
    'device': dict(help='device of the network; auto takes CUDA or MPS where there is one',
                   default='auto', choices=['auto', 'cpu', 'cuda', 'mps']),
    'agnostic': dict(help='for virtual try-on: also write where garments of this kind are to be '
                          'drawn anew, see docs/tryon.md', choices=['upper', 'lower', 'overall']),
    'amp': dict(help='half precision (default: on CUDA)', action=argparse.BooleanOptionalAction)}


def add_shared(parser: argparse.ArgumentParser, name: str, note: str = '', **options) -> None:
    """Adds one of SHARED with its help and its default.

    note: the default that the help gives where `args` holds None
    options: what differs from SHARED
    """
    options = {**SHARED[name], **options}
    default = note or options.get('default')
    if default:
        options['help'] += f' (default: {default})'
    parser.add_argument(flag(name), **options)


# -------------------------------------------------------------------------------------------------
# Settings as flags: the fields of a config dataclass, see `util.config.setting`


def add_settings(parser: argparse.ArgumentParser, config_class: type, skip=(), only=None,
                 default: str = 'presets change some of the defaults',
                 own: dict | None = None) -> None:
    """Adds the fields of a config dataclass as flags: all except those in `skip`, or those in
    `only`. A flag that is not given leaves no attribute behind, see `given_settings`.

    default: a note for the title of the group. With `only`, a weights file holds the defaults, and
        the help of a flag gives none.
    own: defaults of this command, {field: value}; these flags leave an attribute behind
    """
    own = own or {}
    group = parser.add_argument_group(f'settings ({default})')
    for field in fields(config_class):
        if field.name in skip or only and field.name not in only:
            continue
        choices = field.metadata['choices']
        kind = type(field.default)
        # argparse formats help with %, so a bare % in it would be an error.
        text = field.metadata['help']
        if field.name in own or not only:
            text += f' [{as_text(own.get(field.name, field.default))}]'
        options = dict(default=own.get(field.name, argparse.SUPPRESS), help=text)
        if kind is bool:
            options.update(action=argparse.BooleanOptionalAction)
        elif choices:
            options.update(type=kind, choices=choices)
        elif kind is str:
            options.update(metavar='TEXT')
        else:
            number = int if kind is tuple else kind
            between = Between(field.metadata['low'], field.metadata['high'], number)
            options.update(type=between, metavar='N')
        if kind is tuple:
            options.update(nargs='*')
        group.add_argument(flag(field.name), **options)


def as_text(value) -> str:
    """The default of a setting, as its flag would be given."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, tuple):
        return ' '.join(map(str, value)) or 'none'
    if isinstance(value, float):
        return f'{value:g}'
    return str(value) or 'none'


def given_settings(args: argparse.Namespace, config_class: type,
                   skip=('data', 'recipe')) -> dict:
    """The settings among the arguments: {field: value}, lists as tuples."""
    names = {field.name for field in fields(config_class)} - set(skip)
    given = {}
    for name, value in vars(args).items():
        if name in names:
            given[name] = tuple(value) if isinstance(value, list) else value
    return given


def as_flags(changes: dict) -> str:
    """{'light': True, 'dcn': False, 'grid': 20} -> '--light --no-dcn --grid 20'."""
    words = []
    for name, value in changes.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f'no_{name}'))
            continue
        words.append(flag(name))
        for item in value if isinstance(value, tuple) else (value,):
            words.append(f'{item:g}' if isinstance(item, float) else str(item))
    return ' '.join(words)


def describe(config) -> str:
    """The settings that differ from the defaults, as text: 'backbone=resnet18 dcn=False'."""
    default = type(config)()
    changed = [f'{k}={v}' for k, v in asdict(config).items() if v != getattr(default, k)]
    return ' '.join(changed) or 'the defaults'
