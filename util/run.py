"""What a run has around its training loop: flags, processes, device, signals, folder and log."""
import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from util.checkpoints import FORMAT, SAFE
from util.cli import add_shared, filled
from util.files import MARK, is_ours, make_folder, remove_temporaries, write_file, writing
from util.memory import peak_memory

# The files of a run, as globs.
NAMES = 'config.json', 'log.jsonl', 'last.pt', 'best.pt', 'cycle_*.pt'
# Steps between two questions of the processes whether one of them received a signal.
STOP_STEPS = 5


def add_run_flags(parser: argparse.ArgumentParser):
    """The flags that every training command has."""
    add_shared(parser, 'root')
    parser.add_argument('--out', type=filled,
                        help='folder of the run (default: runs/NAME, the first free name)')
    parser.add_argument('--resume', type=filled, metavar='RUN',
                        help='folder of a run to continue')
    add_shared(parser, 'device')
    add_shared(parser, 'amp')
    parser.add_argument('--skip-bad', action='store_true',
                        help='leave out unreadable images and name them')


# --------------------------------------------------------------------------------------------------
# Devices


def find_device(name: str | torch.device) -> str:
    """'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or a torch.device -> the name of a device that this
    machine has, or ValueError."""
    name = str(name)
    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if name == 'auto':
        return 'cuda' if cuda else 'mps' if mps else 'cpu'
    if not re.fullmatch(r'(cpu|cuda|mps)(:\d+)?', name):
        raise ValueError(f'--device is {name}; give auto, cpu, cuda, cuda:1 .. or mps')
    kind = name.partition(':')[0]
    if kind == 'cuda' and not cuda or kind == 'mps' and not mps:
        raise ValueError(f'--device {name}: this machine or this torch has none; use --device cpu')
    return name


def synchronize(device: torch.device):
    """Waits for the work queued on the device."""
    if device.type != 'cpu':
        getattr(torch, device.type).synchronize()


def memory(device: torch.device) -> float:
    """Gigabytes: the peak on CUDA; elsewhere the peak of the process, 0 where it is unknown."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    return peak_memory()


def thread_advice(device: torch.device) -> str:
    """A sentence for a CPU that other processes keep busy; '' elsewhere. There several threads that
    wait for each other were up to 30 times slower than one."""
    if device.type != 'cpu' or torch.get_num_threads() == 1 or not hasattr(os, 'getloadavg'):
        return ''
    load = os.getloadavg()[0]
    count = os.cpu_count()
    if load < 0.6 * count:
        return ''
    return (f'the load of this machine is {load:.1f} on {count} processors: if the training is '
            'slow, stop it and continue with OMP_NUM_THREADS=1')


# --------------------------------------------------------------------------------------------------
# Signals and processes


@contextmanager
def catching_signals() -> Iterator[list]:
    """Inside, SIGINT and SIGTERM end nothing. They are collected in the list that this yields."""
    seen = []
    former = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        former[number] = signal.signal(number, lambda received, frame: seen.append(received))
    try:
        yield seen
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def sum_over_processes(number: int) -> int:
    """The sum of a number over the processes of torchrun. torchrun ends all processes as soon as
    one exits with an error, so they wait for each other here."""
    if not dist.is_torchelastic_launched():
        return number
    dist.init_process_group('gloo', timeout=timedelta(days=30))
    total = torch.tensor(number)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return total.item()


# --------------------------------------------------------------------------------------------------
# A run


class Run:
    """One training, as one of its processes sees it. The first process alone writes files.

    device, amp: as the flags give them. Attributes:

    rank, world  number of this process, and of all
    device       a torch.device
    amp          type of half precision, or None
    folder       of the run, after `open`
    seen         the signals received so far
    best         the best validation score so far
    """

    def __init__(self, device: str = 'auto', amp: bool | None = None):
        self.rank = 0
        self.world = 1
        self.device = torch.device(find_device(device))
        # torchrun sets RANK.
        if 'RANK' in os.environ:
            self.join()
        self.amp = self.half_precision(amp)
        self.folder = None
        self.locked = None
        self.seen = []
        self.best = -1.0

    def join(self):
        """Meets the other processes. Each has a GPU of its own."""
        on_gpus = self.device.type == 'cuda'
        if on_gpus:
            self.device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
            torch.cuda.set_device(self.device)
        dist.init_process_group('nccl' if on_gpus else 'gloo')
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def half_precision(self, amp: bool | None) -> torch.dtype | None:
        on_gpus = self.device.type == 'cuda'
        if not (on_gpus if amp is None else amp):
            return None
        # Older GPUs have float16 alone.
        if on_gpus and not torch.cuda.is_bf16_supported():
            return torch.float16
        return torch.bfloat16

    @property
    def first(self) -> bool:
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    # ---- folder and log

    def open(self, folder: str | Path | None, name: str):
        """Makes the folder of the run; by default runs/NAME, runs/NAME-2, ..: the first that does
        not exist."""
        if folder is None:
            folder = self.free_folder(name)
        self.folder = Path(folder)
        make_folder(self.folder)
        if self.first:
            self.lock()

    def free_folder(self, name: str) -> Path:
        """The same for all processes, whichever looks first."""
        path = Path('runs', name)
        number = 1
        while path.exists():
            number += 1
            path = Path('runs', f'{name}-{number}')
        found = [path]
        if self.world > 1:
            dist.broadcast_object_list(found)
        return found[0]

    def lock(self):
        """One process per folder: ValueError where another one trains in it. The lock ends with the
        process, killed or not; workers do not inherit it."""
        try:
            # Only on Unix.
            import fcntl
        except ImportError:
            return
        lock = open(self.folder / '.lock', 'a')
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f'another process trains in {self.folder}; wait for its end or choose '
                             'another --out') from None
        except OSError:
            # A file system without locks.
            return
        # The lock lasts as long as the file is open, which is as long as the run lives.
        self.locked = lock

    def write_config(self, config: Any):
        """Writes config.json. ValueError where the folder has files with the names of a run that no
        run wrote."""
        if not self.first:
            return
        for name in NAMES:
            for path in self.folder.glob(name):
                if not is_of_a_run(path):
                    raise ValueError(f'{path} exists and this program did not write it; choose '
                                     'another folder or move that file')
        # Without a lock they may belong to another process.
        if self.locked:
            remove_temporaries(self.folder, NAMES)
        text = json.dumps(dict(software=MARK, **asdict(config)), indent=1)
        write_file(self.folder / 'config.json', text + '\n')

    def log(self, text: str, **record):
        """Prints the text and appends the record to log.jsonl."""
        if not self.first:
            return
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        if record:
            path = self.folder / 'log.jsonl'
            with writing(path), open(path, 'a') as file:
                file.write(json.dumps(record) + '\n')

    # ---- between the processes

    def told_to_stop(self, step: int) -> bool:
        """Whether any process received a signal. All must stop after the same step, so they ask
        each other, but only at every fifth step."""
        if self.world == 1:
            return bool(self.seen)
        if step % STOP_STEPS:
            return False
        count = torch.tensor(len(self.seen), device=self.device)
        dist.all_reduce(count)
        return count.item() > 0

    def gather(self, thing: Any) -> list:
        """The things of all processes."""
        things = [thing] * self.world
        if self.world > 1:
            dist.all_gather_object(things, thing)
        return things

    @torch.no_grad()
    def average(self, tensors: Iterable[torch.Tensor]):
        """Replaces each tensor by its mean over all processes."""
        if self.world == 1:
            return
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.world


def is_of_a_run(path: Path) -> bool:
    """Whether this program wrote a file with one of NAMES. A log, which is only appended to,
    belongs to the config.json or last.pt beside it."""
    if path.name == 'log.jsonl':
        return any(is_of_a_run(path.with_name(name)) for name in ('config.json', 'last.pt'))
    if path.suffix not in ('.pt', SAFE):
        return path.is_file() and is_ours(path)
    try:
        with open(path, 'rb') as file:
            # The format is the first entry.
            return FORMAT.encode() in file.read(2048)
    except OSError:
        return False
