"""Pickles of strangers, read without running code or filling the memory. Needs no torch."""
import pickletools
import re
from pickle import UnpicklingError
from typing import BinaryIO

import numpy as np

from util.files import short

MOST_REPEATED = 10 ** 6                           # values that stand twice, see `check_pickle`
KINDS = '?', 'b1', 'i1', 'u1', 'i2', 'i4', 'i8', 'f2', 'f4', 'f8', 'U'       # dtypes of numpy


def check_pickle(content: bytes | BinaryIO, harmless: re.Pattern):
    """Raises an UnpicklingError for a pickle that names anything but harmless things, or that would
    unfold to a giant.

    Tuples that hold the same tuple twice, and so on, are small in the file and in the memory, but
    their hash and their text take the time of all their paths. And the memory of an unpickler is as
    long as the largest number in it.
    """
    stack = []                                    # sizes: of a value, or of all that a tuple holds
    marks = []
    memo = {}
    repeated = 0                                  # size of what stands in several places
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name == 'GLOBAL' and not harmless.fullmatch(argument.replace(' ', '.')):
            raise UnpicklingError(f'Unsupported global: GLOBAL {argument.replace(" ", ".")}')
        if name == 'MARK':
            marks.append(len(stack))
        elif name == 'MEMOIZE' or name.endswith('PUT'):
            place = len(memo) if argument is None else argument
            if place > MOST_REPEATED:
                raise UnpicklingError('a memory of many places')
            memo[place] = stack[-1]
        elif name.endswith('GET'):
            stack.append(memo[argument])
            repeated += memo[argument] - 1
            if repeated > MOST_REPEATED:
                raise UnpicklingError('values within values')
        else:
            # The opcode takes values off the stack and puts another one there.
            taken = list(opcode.stack_before)
            size = 1
            if pickletools.markobject in taken:
                start = marks.pop()
                size += sum(stack[start:])
                del stack[start:]
                taken = taken[:taken.index(pickletools.markobject)]
            for _ in taken:
                size += stack.pop()
            stack += [size] * len(opcode.stack_after)


def numpy_dtype(kind: str, *_) -> np.dtype:
    """numpy.dtype as a pickle calls it: a number, or text."""
    if kind not in KINDS and not re.fullmatch(r'U\d{1,6}', kind):
        raise ValueError(f'no dtype of numbers: {short(kind)}')
    return np.dtype(kind)


def numpy_scalar(dtype: np.dtype, content: bytes | str):
    """numpy's scalar as a pickle calls it."""
    if isinstance(content, str):                  # of protocols before 3
        content = content.encode('latin1')
    if len(content) != dtype.itemsize:
        raise ValueError(f'{len(content)} bytes for one of {dtype.itemsize}')
    return np.frombuffer(content, dtype)[0]


def empty_array(_, shape: tuple, *__) -> np.ndarray:
    """numpy's _reconstruct as a pickle calls it: an array whose content follows."""
    if shape != (0,):
        raise ValueError(f'an array of shape {short(shape)} without content')
    return np.empty(0, np.int8)


# Functions that take no more memory than the file has stand for numpy's own, which have the module
# names of numpy 1 and 2.
STAND_INS = {
    'numpy.dtype': numpy_dtype,
    'numpy.ndarray': empty_array,
    'numpy.core.multiarray.scalar': numpy_scalar,
    'numpy._core.multiarray.scalar': numpy_scalar,
    'numpy.core.multiarray._reconstruct': empty_array,
    'numpy._core.multiarray._reconstruct': empty_array,
}
