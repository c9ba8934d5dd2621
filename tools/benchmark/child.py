"""Work in processes of their own, so that the peak memory of each is its own.

    child = Child(make, *arguments)    # calls make(*arguments) in a new process
    child(*more)                       # calls there what `make` returned -> Measured

    measure_program('infer.py', 'photo.jpg')          # a whole command -> Measured

As a program, `python -m tools.benchmark.child FILE PROGRAM ..` runs a program and writes what it
took to FILE. This module and what it imports need the standard library alone: more would count as
memory of the program.
"""
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from util.memory import peak_memory

ROOT = Path(__file__).resolve().parents[2]
ENDED = 'a process of this benchmark stopped unexpectedly; free memory and start again'


class Measured(NamedTuple):
    wall: float                         # seconds
    cpu: float                          # seconds of all threads
    memory: float                       # GB: the peak of the process so far
    result: Any = None                  # what the function returned


# --------------------------------------------------------------------------------------------------
# Functions


class Child:
    """A process that calls one function for its parent, again and again.

    make: a function at the top of a module; what it returns for the arguments is called
    """

    def __init__(self, make: Callable, *arguments):
        context = multiprocessing.get_context('spawn')
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, make, arguments), daemon=True)
        self.process.start()
        other.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pipe.close()
        self.process.join()

    def __call__(self, *arguments) -> Measured:
        try:
            self.pipe.send(arguments)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise ValueError(ENDED) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(pipe, make: Callable, arguments: tuple):
    """The life of a Child: answers each call with a Measured or with the error."""
    # Ctrl-C reaches all processes of a terminal; the parent reports it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function = None
    while True:
        try:
            given = pipe.recv()
        except EOFError:
            return
        try:
            if function is None:
                function = make(*arguments)
            pipe.send(measure(function, *given))
        except Exception as error:
            pipe.send(error)


def measure(function: Callable, *arguments) -> Measured:
    wall = time.perf_counter()
    cpu = time.process_time()
    result = function(*arguments)
    cpu = time.process_time() - cpu
    wall = time.perf_counter() - wall
    return Measured(wall, cpu, peak_memory(), result)


# --------------------------------------------------------------------------------------------------
# Programs


def measure_program(program: str, *arguments, processes: int = 1) -> Measured:
    """A command of this repository, from its start to its end.

    program: its file, such as infer.py. processes: more than one are started by torchrun; then
    memory is the sum of their peaks. ValueError with its error if it fails. Each process has one
    thread, as torchrun sets it for several, unless OMP_NUM_THREADS is set.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'measured')
        launcher = ['-m', 'torch.distributed.run', '--standalone',
                    '--nproc-per-node', str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), '-m',
                   'tools.benchmark.child', file, ROOT / program, *arguments]
        environment = {'OMP_NUM_THREADS': '1', **os.environ, 'PYTHONPATH': str(ROOT)}
        begin = time.perf_counter()
        done = subprocess.run(list(map(str, command)), env=environment, text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wall = time.perf_counter() - begin
        if done.returncode:
            raise ValueError(f'{program} failed: {error_of(done.stderr)}')
        parts = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    return Measured(wall, sum(part['cpu'] for part in parts),
                    sum(part['memory'] for part in parts))


def error_of(printed: str) -> str:
    """The last line that starts with 'error:', else the last line, of what a program printed."""
    lines = [line for line in printed.splitlines() if line.strip()]
    # Below the error of a process, torchrun prints a report of its own.
    errors = [line for line in lines if line.startswith('error:')]
    return (errors or lines or [ENDED])[-1]


def run_program(file: str, program: str, *arguments: str):
    """Runs a program in this process and writes {'cpu': seconds, 'memory': GB} to a file, whose
    name gets the rank of the process."""
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(program, run_name='__main__')
    finally:
        times = os.times()
        cpu = times.user + times.system + times.children_user + times.children_system
        rank = os.environ.get('RANK', '0')
        Path(f'{file}.{rank}').write_text(json.dumps(dict(cpu=cpu, memory=peak_memory())))


if __name__ == '__main__':
    run_program(*sys.argv[1:])
