"""Times and multiply-adds of functions."""
import math
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from util.run import synchronize


class Clock:
    """Median wall and process milliseconds of named functions, called alternately."""

    def __init__(self, device):
        self.device = device
        self.wall = {}
        self.process = {}

    def __call__(self, name: str, function, *arguments):
        """Calls the function, keeps its times under the name, and returns its result."""
        wall = time.perf_counter()
        process = time.process_time()
        result = function(*arguments)
        synchronize(self.device)
        self.wall.setdefault(name, []).append(1000 * (time.perf_counter() - wall))
        self.process.setdefault(name, []).append(1000 * (time.process_time() - process))
        return result

    def median(self, name: str) -> tuple[float, float]:
        return statistics.median(self.wall[name]), statistics.median(self.process[name])

    def cost(self, name: str) -> float:
        """Milliseconds for the unit: on a CPU the time of all threads."""
        wall, process = self.median(name)
        return process if self.device.type == 'cpu' else wall


def multiply_adds(function, *arguments) -> int:
    """Multiply-adds of the convolutions and matrix products of a call, without those of the
    sampling in deformable convolutions."""
    def deform_conv2d(x, weight, *_, out_shape, **__):
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    counted = {torch.ops.torchvision.deform_conv2d: deform_conv2d}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        function(*arguments)
    return counter.get_total_flops() // 2


def count_weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
