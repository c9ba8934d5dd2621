"""Everything around a training loop: settings as flags, processes, device, signals, folder and log."""
import argparse
import json
import os
import re
import signal
import sys
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from util.cli import Between, filled, flag, outside
from util.checkpoints import FORMAT
from util.files import MARK, is_ours, make_folder, remove_temporaries, write_file, writing


# ---- settings ----------------------------------------------------------------------------------------------


def add_settings(parser, config_class, ranges, choices, skip=(), only=None, default='those of the preset'):
    """The fields of a config dataclass become flags: all except those in `skip`, or those in `only`. Numbers have
    ranges: {field: (low, high)}."""
    group = parser.add_argument_group(f'settings (default: {default})')
    for field in fields(config_class):
        if field.name in skip or only and field.name not in only:
            continue
        name, kind = flag(field.name), type(field.default)
        if kind is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        elif kind is tuple:
            group.add_argument(name, type=Between(*ranges[field.name]), nargs='*', default=argparse.SUPPRESS,
                               metavar='N')
        else:
            limits = Between(*ranges[field.name], kind) if field.name in ranges else kind
            group.add_argument(name, type=limits, default=argparse.SUPPRESS, choices=choices.get(field.name),
                               metavar=None if field.name in choices else kind.__name__.upper())


def add_run_flags(parser):
    """The flags that every training command has."""
    parser.add_argument('--root', help='folder of the data set, as downloaded')
    parser.add_argument('--out', help='folder of the run; default runs/NAME, the first free name')
    parser.add_argument('--resume', type=filled, metavar='RUN', help='folder of a run to continue')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    parser.add_argument('--amp', action=argparse.BooleanOptionalAction, help='half precision; default: on CUDA')
    parser.add_argument('--skip-bad', action='store_true', help='leave out unreadable images and name them')


def given_settings(args, config_class, skip=('data', 'recipe')):
    """The settings among the arguments: {field: value}, lists as tuples."""
    names = {f.name for f in fields(config_class)} - set(skip)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}


def check_ranges(config, ranges, choices):
    """ValueError, naming the flag, where a setting is not one of its choices or not in its range (low, high); NaN is in
    none. Each value of a tuple is checked."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f'{flag(name)} is {getattr(config, name)!r:.40}; choose one of '
                             f'{", ".join(map(str, allowed))}')
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        for number in values:
            if not low <= number <= high:
                raise ValueError(outside(flag(name), number, low, high))


def as_flags(changes):
    """{'light': True, 'dcn': False, 'grid': 20} -> '--light --no-dcn --grid 20'."""
    words = []
    for name, value in changes.items():
        words += [flag(name) if value is not False else flag(f'no_{name}')]
        if not isinstance(value, bool):
            words += [f'{v:g}' if isinstance(v, float) else str(v) for v in
                      (value if isinstance(value, tuple) else [value])]
    return ' '.join(words)


def describe(config):
    """The settings that differ from the defaults, as text: 'backbone=resnet18 dcn=False'."""
    default = type(config)()
    return ' '.join(f'{k}={v}' for k, v in asdict(config).items() if v != getattr(default, k)) or 'the defaults'


# ---- devices and processes ---------------------------------------------------------------------------------


def find_device(name):
    """'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or a torch.device -> one that this machine has, or ValueError."""
    if name == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    kind = str(name).partition(':')[0]
    if not re.fullmatch(r'(cpu|cuda|mps)(:\d+)?', str(name)):
        raise ValueError(f'--device is {name}; give auto, cpu, cuda, cuda:1 .. or mps')
    if kind == 'cuda' and not torch.cuda.is_available() or kind == 'mps' and not torch.backends.mps.is_available():
        raise ValueError(f'--device {name}: this machine or this torch has none; use --device cpu')
    return str(name)


def memory(device):
    """Gigabytes: the peak on CUDA, the peak of the resident set elsewhere."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    try:
        import resource                                  # only on Unix
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2 ** 30 if sys.platform == 'darwin' else 2 ** 20)


def synchronize(device):
    """Waits for the work queued on the device."""
    if device.type != 'cpu':
        getattr(torch, device.type).synchronize()


def thread_advice(device):
    """A sentence for a CPU that other processes keep busy: there, several threads that wait for each other were up to
    30 times slower than one. '' elsewhere."""
    if device.type != 'cpu' or torch.get_num_threads() == 1 or not hasattr(os, 'getloadavg'):
        return ''
    load, count = os.getloadavg()[0], os.cpu_count()
    if load < 0.6 * count:
        return ''
    return (f'the load of this machine is {load:.1f} on {count} processors: if the training is slow, stop it and '
            'continue with OMP_NUM_THREADS=1')


@contextmanager
def catching_signals():
    """Inside, SIGINT and SIGTERM are collected in a list, which this yields, and end nothing."""
    seen = []
    former = {n: signal.signal(n, lambda *_: seen.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def sum_over_processes(number):
    """The sum of a number over torchrun's processes. torchrun ends all processes as soon as one exits with an error, so
    they wait for each other here."""
    if not dist.is_torchelastic_launched():
        return number
    dist.init_process_group('gloo', timeout=timedelta(days=30))
    number = torch.tensor(number)
    dist.all_reduce(number)
    dist.destroy_process_group()
    return number.item()


NAMES = 'config.json', 'log.jsonl', 'last.pt', 'best.pt', 'cycle_*.pt'           # of the files of a run, as globs


def is_of_a_run(path):
    """Whether this program wrote a file with one of these names. A log, which is only appended to, belongs to the
    config.json or last.pt beside it."""
    if path.name == 'log.jsonl':
        return any(is_of_a_run(path.with_name(name)) for name in ('config.json', 'last.pt'))
    if path.suffix != '.pt':
        return path.is_file() and is_ours(path)
    try:
        with open(path, 'rb') as file:                    # the format is the first entry
            return FORMAT.encode() in file.read(2048)
    except OSError:
        return False


class Run:
    """One training: its process among all (rank of world), device, amp (type of half precision, or None), folder and
    log; seen: the signals received; best: the best validation score so far. The first process alone writes files."""

    def __init__(self, device='auto', amp=None):
        device, self.rank, self.world = find_device(device), 0, 1
        if 'RANK' in os.environ:                          # torchrun's
            local = torch.device(device, int(os.environ['LOCAL_RANK']) if device == 'cuda' else None)
            if device == 'cuda':
                torch.cuda.set_device(local)
            dist.init_process_group('nccl' if device == 'cuda' else 'gloo')
            device, self.rank, self.world = local, dist.get_rank(), dist.get_world_size()
        self.device, self.folder, self.locked = torch.device(device), None, None
        self.seen, self.best = [], -1.0
        half = self.device.type == 'cuda' if amp is None else amp
        bfloat16 = self.device.type != 'cuda' or torch.cuda.is_bf16_supported()
        self.amp = (torch.bfloat16 if bfloat16 else torch.float16) if half else None

    @property
    def first(self):
        return self.rank == 0

    def autocast(self):
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    def open(self, folder, name):
        """Makes the folder of the run; by default runs/NAME, runs/NAME-2, ..: the first that does not exist."""
        if folder is None:
            free = (Path('runs', name if n == 1 else f'{name}-{n}') for n in range(1, 10 ** 6))
            found = [next(path for path in free if not path.exists())]
            if self.world > 1:
                dist.broadcast_object_list(found)
            folder = found[0]
        self.folder = Path(folder)
        make_folder(self.folder)
        if self.first:
            self.lock()

    def lock(self):
        """One process per folder: ValueError where another one trains in it. The lock ends with the process, killed or
        not; workers do not inherit it."""
        try:
            import fcntl                                 # only on Unix
        except ImportError:
            return
        lock = open(self.folder / '.lock', 'a')
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f'another process trains in {self.folder}; wait for its end or choose another '
                             '--out') from None
        except OSError:                                  # a file system without locks
            return
        self.locked = lock                               # held for as long as the run lives

    def write_config(self, config):
        """config.json. ValueError where the folder has files with the names of a run that no run wrote."""
        if not self.first:
            return
        foreign = [path for name in NAMES for path in self.folder.glob(name) if not is_of_a_run(path)]
        if foreign:
            raise ValueError(f'{foreign[0]} exists and this program did not write it; choose another folder or move '
                             'that file')
        if self.locked:
            remove_temporaries(self.folder, NAMES)
        write_file(self.folder / 'config.json', json.dumps(dict(software=MARK, **asdict(config)), indent=1) + '\n')

    def log(self, text, **record):
        """Prints the text and appends the record to log.jsonl."""
        if not self.first:
            return
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        if record:
            with writing(self.folder / 'log.jsonl'), open(self.folder / 'log.jsonl', 'a') as f:
                f.write(json.dumps(record) + '\n')

    def told_to_stop(self, position):
        """Whether any process received a signal. All must stop after the same step: they ask at every fifth."""
        if self.world == 1:
            return bool(self.seen)
        if position % 5:
            return False
        flag = torch.tensor(len(self.seen), device=self.device)
        dist.all_reduce(flag)
        return flag.item() > 0

    def gather(self, thing):
        """List of the things of all processes."""
        things = [thing] * self.world
        if self.world > 1:
            dist.all_gather_object(things, thing)
        return things

    @torch.no_grad()
    def average(self, tensors):
        """Replaces each tensor by its mean over all processes."""
        for tensor in tensors if self.world > 1 else ():
            dist.all_reduce(tensor)
            tensor /= self.world
