"""The first import of every file at the top: what must be right before torch is imported. Needs the standard library.

While a command of this repository imports its modules, Ctrl-C ends it with a word. `require` says which file is in the
way where another project has a data.py, too. `CommandParser`, `Between` and `filled` turn wrong flags into a sentence.
"""
import os
import signal
import sys

HERE = os.path.dirname(os.path.realpath(__file__))


def is_command():
    """Whether Python was started with a file of this repository, not with one that imports it."""
    path = getattr(sys.modules['__main__'], '__file__', None)
    return path is not None and os.path.dirname(os.path.realpath(path)) in (HERE, os.path.join(HERE, 'util'))


# ---- Ctrl-C ------------------------------------------------------------------------------------------------


def leave(*_):
    """The handler of Ctrl-C during the imports. No file is open yet, and an exception could be caught by the library
    that is being imported, or end in its own traceback."""
    os.write(2, b'stopped\n')
    os._exit(130)


if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:     # else ignored, as in `cmd &`
    signal.signal(signal.SIGINT, leave)

import argparse                                   # only now: they, too, take a moment
import importlib.util


def start(main):
    """Runs the `main` of a command, whose imports are done: from here on Ctrl-C is a KeyboardInterrupt."""
    try:
        if signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout.reconfigure(errors='backslashreplace')            # a terminal may lack the letters of a file's name
        main()
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)


# ---- files of the same name --------------------------------------------------------------------------------


def require(*names):
    """Ends with one sentence where an import of one of these modules would find another file than this repository's: an
    error of a command, an ImportError elsewhere."""
    for name in names:
        if name in sys.modules:
            found = getattr(sys.modules[name], '__file__', None)
        else:
            found = getattr(importlib.util.find_spec(name), 'origin', None)
        own = os.path.join(HERE, f'{name}.py'), os.path.join(HERE, name, '__init__.py')
        if found and os.path.realpath(found) not in own:
            sentence = (f'`import {name}` finds {found} instead of {own[os.path.isfile(own[1])]}; rename the former, '
                        f'or put {HERE} before its folder in sys.path or PYTHONPATH')
            if is_command():
                fail(sentence)
            raise ImportError(sentence)


# ---- flags -------------------------------------------------------------------------------------------------


def fail(sentence):
    """Ends a command."""
    print(f'error: {" ".join(sentence.split())}', file=sys.stderr)
    sys.exit(2)


def flag(name):
    return '--' + name.replace('_', '-')


def outside(name, value, low, high):
    """The sentence about a value out of range. Python refuses to print integers of thousands of digits."""
    large = type(value) is int and abs(value) > 10 ** 40
    return f'{name} is {"a larger integer" if large else str(value)[:40]}; give a value from {low} to {high}'


def filled(text):
    """argparse type: text that is not empty, which a shell makes of an unset variable."""
    if not text.strip():
        raise argparse.ArgumentTypeError(' is empty; give a value')
    return text


class Between:
    """argparse type: a number of this kind from low to high. NaN is in no range."""

    def __init__(self, low, high, kind=int):
        self.low, self.high, self.kind, self.__name__ = low, high, kind, kind.__name__

    def __call__(self, text):
        value = self.kind(text)
        if not self.low <= value <= self.high:
            raise argparse.ArgumentTypeError(outside('', text, self.low, self.high))
        return value


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, or one of its commands; its errors are one sentence. description: the module's text."""

    def __init__(self, description=None, **options):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if word.startswith('--') and word.endswith('=--'):       # Python 3.11 takes it for an empty list
                self.error(f'argument {word[:-3]}: -- is no value')
        return super().parse_known_args(args, namespace)

    def error(self, message):
        name, _, reason = message.removeprefix('argument ').partition(': ')
        fail(f'{name}{reason}' if reason.startswith(' is ') else f'{message}; see {self.prog} --help')
