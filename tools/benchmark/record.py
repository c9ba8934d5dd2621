"""The file of measured numbers, docs/speed.json: {command: its date, its machine, its rows}."""
import os
import platform
import re
import shlex
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import torch

from util.files import counted, printable, read_json, write_json

PROGRAM = 'python -m tools.benchmark'
SECTION = {'date', 'machine', 'rows'}
PHOTO = Path(__file__).resolve().parents[2] / 'assets' / 'street.jpg'


def describe_cpu() -> str:
    """The model of the processor, as Linux or else the platform names it."""
    try:
        found = re.search(r'^model name\s*: (.+)$', Path('/proc/cpuinfo').read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> dict:
    """What the numbers depend on, as in the file."""
    machine = dict(cpu=describe_cpu(), cores=os.cpu_count(), threads=torch.get_num_threads(),
                   torch=torch.__version__.partition('+')[0])
    if device.type == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name(device)
    return machine


def headline(measured: str, device: torch.device) -> str:
    """The start of every printed table: what is measured, device, threads, version of torch."""
    threads = counted(torch.get_num_threads(), 'thread')
    return f'{measured}, {device}, {threads}, torch {torch.__version__}'


def by(size: Iterable[int]) -> str:
    """'480x640' of (480, 640)."""
    return 'x'.join(map(str, size))


def read_record(path: str) -> dict:
    """The content of the file; ValueError for another JSON file, FileNotFoundError."""
    content = read_json(path)
    for command, section in content.items():
        if not isinstance(section, dict) or not SECTION <= section.keys():
            raise ValueError(f'{printable(path)} is no file of measured numbers ({command!r} has '
                             'no rows); choose another --json')
    return content


def open_record(path: str | None):
    """Refuses, before long work, a file that cannot be merged or written."""
    if path:
        write_json(path, read_record(path) if os.path.lexists(path) else {})


def write_record(path: str | None, command: str, rows: list[dict],
                 device: torch.device = torch.device('cpu')):
    """Merges the rows of a command into the file; those of an earlier run of it are replaced."""
    if not path:
        return
    content = read_record(path) if os.path.lexists(path) else {}
    content[command] = dict(date=date.today().isoformat(), machine=describe_machine(device),
                            rows=rows)
    write_json(path, content)


def command_of(argv: list[str]) -> str:
    """The command of these arguments, without --json."""
    words = list(argv)
    for i, word in enumerate(words):
        if word == '--json':
            del words[i:i + 2]
            break
        if word.startswith('--json='):
            del words[i]
            break
    return f'{PROGRAM} {shlex.join(words)}'
