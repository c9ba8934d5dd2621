"""What every command shares: its parser, the types of its flags, and its start. Needs the standard library alone."""
import argparse
import sys


def start(main):
    """Runs the `main` of a command. Ctrl-C ends it with a word."""
    try:
        # A terminal may lack the letters of a file's name.
        sys.stdout.reconfigure(errors='backslashreplace')
        main()
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)


def fail(sentence):
    """Ends a command with a sentence about a user's mistake and exit code 2."""
    print(f'error: {" ".join(sentence.split())}', file=sys.stderr)
    sys.exit(2)


def flag(name):
    return '--' + name.replace('_', '-')


def outside(name, value, low, high):
    """The sentence about a value out of range."""
    # Python refuses to print integers of thousands of digits.
    large = type(value) is int and abs(value) > 10 ** 40
    text = 'a larger integer' if large else str(value)[:40]
    return f'{name} is {text}; give a value from {low} to {high}'


def filled(text):
    """argparse type: text that is not empty, which a shell makes of an unset variable."""
    if not text.strip():
        raise argparse.ArgumentTypeError(' is empty; give a value')
    return text


class Between:
    """argparse type: a number of this kind from low to high. NaN is in no range."""

    def __init__(self, low, high, kind=int):
        self.low = low
        self.high = high
        self.kind = kind
        self.__name__ = kind.__name__

    def __call__(self, text):
        value = self.kind(text)
        if not self.low <= value <= self.high:
            raise argparse.ArgumentTypeError(outside('', text, self.low, self.high))
        return value


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, or of one of its subcommands; its errors are one sentence. description: the text of
    the module."""

    def __init__(self, description=None, **options):
        super().__init__(description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            # Python 3.11 takes it for an empty list.
            if word.startswith('--') and word.endswith('=--'):
                self.error(f'argument {word[:-3]}: -- is no value')
        return super().parse_known_args(args, namespace)

    def error(self, message):
        name, _, reason = message.removeprefix('argument ').partition(': ')
        fail(f'{name}{reason}' if reason.startswith(' is ') else f'{message}; see {self.prog} --help')
