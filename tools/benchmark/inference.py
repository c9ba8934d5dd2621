"""From reading a photo to writing its results, step by step."""
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from PIL import Image

import data
from infer import load_model
from tools.benchmark.clock import Clock, count_weights, multiply_adds
from tools.benchmark.planted import plant_people
from tools.benchmark.record import by, headline, write_record
from uniparser import INFERENCE, UniParser, decode, find_centers, get_config
from util.images import read_photo
from util.pictures import overlay
from util.results import write_results
from util.run import find_device, memory

REPEATS = 10                                 # of each step of inference
WARM_UP = 2                                  # repeats that are not counted


def start_onnx(path: str):
    """A session of ONNX Runtime with torch's number of threads."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModuleNotFoundError('--onnx needs onnxruntime; pip install onnxruntime') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def time_steps(model: UniParser, photo: Image.Image, people: int, session=None) -> tuple:
    """Times the steps from reading a photo to writing its results.

    Args:
        model: folded.
        photo: RGB.
        people: decoding is timed with this many planted people, and with one.
        session: the same network in ONNX Runtime, or None.

    Returns a Clock and the network's input.
    """
    device = model.device
    config = model.config
    geometry = data.input_geometry(photo, config)
    images = data.network_input(photo, config, geometry)
    images = images.to(device, memory_format=torch.channels_last)
    plain = torchvision.models.resnet50().eval().to(device)
    out = model.outputs(images)
    planted = {}
    for number in sorted({1, people}):
        scene = plant_people(out, number, config)
        planted[len(find_centers(scene['heatmap'][0, 0], config)[0])] = scene
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'photo.jpg')
        photo.save(file, quality=95)
        for repeat in range(WARM_UP + REPEATS):
            if repeat == WARM_UP:
                clock = Clock(device)
            clock('plain ResNet-50', plain, images)
            clock('load', read_photo, file)
            clock('preprocess', data.network_input, photo, config)
            features = clock('backbone', model.backbone, images)
            pyramid = clock('FPN', model.pyramid, features)
            clock('heads', model.heads, pyramid)
            clock('network', model.outputs, images)
            if session:
                clock('ONNX Runtime', session.run, None, dict(image=images.cpu().numpy()))
            for number, scene in planted.items():
                found = clock(f'decode {number}', decode, scene, 0, geometry, config)
            clock('overlay', overlay, photo, found.parsing, model.class_names)
            found = replace(found, class_names=model.class_names, photo=photo, path=file)
            clock('JSON', found.to_dict)
            # A new object does not know what the first one computed.
            clock('save', write_results, Path(folder), 'photo', replace(found))
    return clock, images


def count_operations(model: UniParser, images: torch.Tensor) -> tuple[dict, dict]:
    """{step: multiply-adds} and {step: parameters} of the network's steps."""
    plain = torchvision.models.resnet50().eval().to(images.device)
    features = model.backbone(images)
    pyramid = model.pyramid(features)
    operations = {
        'plain ResNet-50': multiply_adds(plain, images),
        'backbone': multiply_adds(model.backbone, images),
        'FPN': multiply_adds(model.pyramid, features),
        'heads': multiply_adds(model.heads, pyramid),
        'network': multiply_adds(model, images),
    }
    parameters = {
        'plain ResNet-50': count_weights(plain),
        'backbone': count_weights(model.backbone),
        'FPN': count_weights(model.fpn),
        'network': count_weights(model),
    }
    parameters['heads'] = parameters['network'] - parameters['backbone'] - parameters['FPN']
    return operations, parameters


@torch.inference_mode()
def benchmark_inference(args):
    """Prints a table of the steps from reading a photo to writing its results."""
    model = benchmarked_model(args)
    photo = read_photo(args.photo)
    if args.size:
        height, width = args.size
        photo = photo.resize((width, height))
    session = start_onnx(args.onnx) if args.onnx else None
    clock, images = time_steps(model, photo, args.decode, session)
    operations, parameters = count_operations(model, images)
    print(f'{headline(by(images.shape[2:]), model.device)}; median of {REPEATS}')
    print(f'{"":16} {"ms":>9} {"CPU ms":>9} {"ResNet-50":>10} {"params M":>9} {"MACs G":>9} '
          f'{"GFLOP/s":>9}')
    rows = []
    for name in clock.wall:
        wall, process = clock.median(name)
        units = clock.cost(name) / clock.cost('plain ResNet-50')
        line = f'{name:16} {wall:9.1f} {process:9.1f} {units:10.2f}'
        row = dict(step=name, ms=round(wall, 1), cpu_ms=round(process, 1), units=round(units, 2))
        if name in operations:
            line += f' {parameters[name] / 1e6:9.2f} {operations[name] / 1e9:9.1f}'
            line += f' {2 * operations[name] / wall / 1e6:9.0f}'
            row.update(parameters=parameters[name], multiply_adds=operations[name])
        print(line)
        rows.append(row)
    print(f'peak memory {memory(model.device):.2f} GB')
    size = list(images.shape[2:])
    write_record(args.json, args.command, [dict(row, size=size) for row in rows], model.device)


def benchmarked_model(args) -> UniParser:
    """The model of --weights, or an untrained one of --preset. Its test size is --size."""
    if args.size:
        args.test_short_side = min(args.size)
        args.long_side = max(args.size)
    if not args.preset:
        return load_model(args, args.device)
    changes = {name: getattr(args, name) for name in INFERENCE if hasattr(args, name)}
    if args.light:
        changes['light'] = True
    torch.manual_seed(0)
    model = UniParser(get_config(args.preset, pretrained='', **changes))
    return model.to(find_device(args.device)).fold()
