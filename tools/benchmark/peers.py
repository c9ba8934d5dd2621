"""UniParser beside what people put together today: an instance segmentation, and a network for one
person on every person's crop.

All networks have random weights, except for the shipped model: their time does not depend on the
weights. People are planted, so that all pipelines find the same ones. Each pipeline runs in a
process of its own, from the photo in memory to label maps of the photo's size.
"""
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.transforms.functional import to_tensor

import data
from infer import WEIGHTS
from schp import build
from schp.config import SCHPConfig
from schp.crowd import choose_people
from tools.benchmark.child import Child
from tools.benchmark.planted import person_boxes, plant_people
from tools.benchmark.record import by, write_record
from uniparser import UniParser, decode, get_config
from util.files import counted
from util.images import read_photo
from util.labels import LABEL_SETS

# The planted masks of people fill their boxes: logits of this value.
SURE = 5.0


# --------------------------------------------------------------------------------------------------
# Pipelines: photo (Pillow) -> label maps, uint8 (N, H, W)


class OneStage:
    """A UniParser: all people in one pass."""

    def __init__(self, model: UniParser, people: int):
        self.model = model.fold()
        self.people = people
        self.planted = None

    def input(self, photo: Image.Image) -> str:
        return by(data.input_geometry(photo, self.model.config).size)

    def prepare(self, photo: Image.Image):
        """Plants the people, which is not measured."""
        out = self.model.outputs(data.network_input(photo, self.model.config))
        self.planted = plant_people(out, self.people, self.model.config)

    def __call__(self, photo: Image.Image) -> np.ndarray:
        config = self.model.config
        geometry = data.input_geometry(photo, config)
        self.model.outputs(data.network_input(photo, config, geometry))
        return decode(self.planted, 0, geometry, config).parsing


class TopDown:
    """Mask R-CNN, then a network for one person on the crop of each: the labels inside a person's
    mask are the person's."""

    def __init__(self, network: str, people: int, **sizes):
        self.detector = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sizes).eval()
        self.parser = single_person(network)
        self.people = people

    def input(self, photo: Image.Image) -> str:
        image = to_tensor(photo)
        size = self.detector.transform([image])[0].image_sizes[0]
        return f'{by(size)}, crops {by(self.parser.size)}'

    def prepare(self, photo: Image.Image):
        """Plants the people: the last step of the box branch also returns their boxes."""
        heads = self.detector.roi_heads
        torch.nn.init.constant_(heads.mask_predictor.mask_fcn_logits.bias, SURE)
        find_boxes = heads.postprocess_detections

        def find_planted(logits, regression, proposals, sizes):
            # All of its work; random weights give no box a score above the threshold.
            find_boxes(logits, regression, proposals, sizes)
            boxes = torch.tensor(person_boxes(self.people, *sizes[0])).float()
            labels = torch.ones(self.people, dtype=torch.int64)
            scores = torch.linspace(0.99, 0.9, self.people)
            return [boxes], [scores], [labels]

        heads.postprocess_detections = find_planted

    def __call__(self, photo: Image.Image) -> np.ndarray:
        found = self.detector([to_tensor(photo)])[0]
        masks = found['masks'][:, 0].numpy() > 0.5
        ids, people = choose_people(masks, found['scores'].numpy())
        pixels = np.asarray(photo)
        parsing = np.zeros((len(people), *ids.shape), np.uint8)
        for n, person in enumerate(people):
            x0, y0, x1, y1 = person.crop
            area = slice(y0, y1 + 1), slice(x0, x1 + 1)
            labels, = self.parser.predict_maps([np.ascontiguousarray(pixels[area])])
            parsing[n][area] = np.where(ids[area] == n + 1, labels, 0)
        return parsing


class Nothing:
    """No network: what Python and the imports hold."""

    def input(self, photo: Image.Image) -> str:
        return ''

    def prepare(self, photo: Image.Image):
        pass

    def __call__(self, photo: Image.Image) -> list:
        return []


class OneCrop:
    """A network for one person on the whole photo: classes, but no people."""

    def __init__(self, network: str):
        self.parser = single_person(network)

    def input(self, photo: Image.Image) -> str:
        return by(self.parser.size)

    def prepare(self, photo: Image.Image):
        pass

    def __call__(self, photo: Image.Image) -> list[np.ndarray]:
        return self.parser.predict_maps([photo])


def single_person(network: str):
    """A-CE2P or SegFormer-B4 with the crops of its labels, folded."""
    labels = LABEL_SETS['merged' if network == 'segformer' else 'lip']
    return build(SCHPConfig(network=network, size=labels.size), labels).fold()


def untrained(preset: str, **changes) -> UniParser:
    return UniParser(get_config(preset, pretrained='', **changes))


IMPORTS = 'Python and its imports'
# {name: people -> pipeline}
PIPELINES = {
    'UniParser, shipped model': lambda people: OneStage(UniParser.from_pretrained(WEIGHTS), people),
    'UniParser light, R-50': lambda people: OneStage(untrained('mhp', light=True), people),
    'UniParser, R-50': lambda people: OneStage(untrained('mhp'), people),
    'Mask R-CNN + SegFormer-B4': lambda people: TopDown('segformer', people),
    'Mask R-CNN + A-CE2P': lambda people: TopDown('ace2p', people),
    'SegFormer-B4, one crop': lambda people: OneCrop('segformer'),
    'A-CE2P, one crop': lambda people: OneCrop('ace2p'),
    IMPORTS: lambda people: Nothing(),
}
# Pipelines whose time does not depend on the people in the photo.
SEMANTIC = 'SegFormer-B4, one crop', 'A-CE2P, one crop', IMPORTS


# --------------------------------------------------------------------------------------------------
# The benchmark


def start_pipeline(name: str, photo: str, people: int) -> Callable:
    """In a Child: -> a function that runs a pipeline once on a photo in memory, and returns how
    many people it found and the size of its input."""
    torch.manual_seed(0)
    image = read_photo(Path(photo))
    with torch.inference_mode():
        pipeline = PIPELINES[name](people)
        pipeline.prepare(image)
    size = pipeline.input(image)

    @torch.inference_mode()
    def run() -> tuple[int, str]:
        return len(pipeline(image)), size
    return run


def benchmark_peers(args):
    """Prints CPU seconds and peak memory per photo of each pipeline, by number of people."""
    # A bad photo is reported before the processes start.
    read_photo(args.photo)
    rows = []
    for people in sorted(set(args.decode)):
        names = [name for name in args.only or PIPELINES if name not in SEMANTIC or not rows]
        rows += measure_pipelines(names, args.photo, people, args.repeats)
    write_record(args.json, args.command, rows)


def measure_pipelines(names: list[str], photo: str, people: int, repeats: int) -> list[dict]:
    """One row of each pipeline: medians of runs that alternate."""
    children = {name: Child(start_pipeline, name, photo, people) for name in names}
    runs = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name, child in children.items():
            runs[name].append(child())
    rows = []
    for name, child in children.items():
        with child:
            # The first run is not counted: kernels are chosen, and memory is taken.
            cpu = statistics.median(run.cpu for run in runs[name][1:])
            wall = statistics.median(run.wall for run in runs[name][1:])
        memory = runs[name][-1].memory
        found, size = runs[name][-1].result
        rows.append(dict(pipeline=name, input=size, people=found, cpu=round(cpu, 3),
                         wall=round(wall, 3), memory=round(memory, 2)))
        print(f'{name:28} {counted(found, "person", "people"):>11} {cpu:8.2f} CPU s {wall:8.2f} s '
              f'{memory:6.2f} GB  {size}', flush=True)
    return rows
