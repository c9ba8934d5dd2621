"""Weights files: reading anybody's, writing ours. This is the one place that reads untrusted
weights.

Ours are dictionaries with format, system (uniparser, schp, oneshot), config, class_names,
flip_pairs and model, the state dict. `last.pt` of a run holds the rest of the training state beside
them. A .safetensors file holds the model as its tensors and the rest as JSON in its metadata.
"""
import json
import os
import re
import reprlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn as nn

from util.files import no_file, replacing, short
from util.pickles import KINDS, STAND_INS, check_pickle

# Of damaged files, which are refused in a sentence.
warnings.filterwarnings('ignore', module='torch._weights_only_unpickler')

FORMAT = 'uniparser 1'
SAFE = '.safetensors'
METADATA = 'checkpoint'                           # of a .safetensors file: the key of our JSON
# Settings that may hold a folder of the user's machine.
PATHS = 'pretrained', 'backgrounds', 'people', 'tagged', 'coco', 'parts'
COMMANDS = {                                      # of each system: what its files are for
    'uniparser': 'of UniParser; use python infer.py PHOTO --weights FILE',
    'schp': 'of SCHP, for photos of one person; use python -m schp extract PHOTO --weights FILE',
    'oneshot': 'of one-shot human parsing; use python -m oneshot parse --weights FILE',
}
SIGNS = {                                         # an entry of each system's released files
    'mask_head.seg_kernels': 'uniparser',
    'fushion.3.weight': 'schp',
    'head.linear_pred.weight': 'schp',
    'xception_features.conv1.weight': 'oneshot',
}


# ---- reading: no code of a stranger runs, and no small file fills the memory --------------------

# What a pickle of weights needs. torch allows much more, such as bytearray and torch.ByteTensor,
# which allocate any size that they are told. The modules of the last line are blocked by torch
# itself, with a sentence of its own.
HARMLESS = re.compile('|'.join([
    r'(__builtin__|builtins)\.set',
    r'collections\.(OrderedDict|Counter)',
    r'_codecs\.encode',
    r'torch\.(cuda\.)?[A-Z]\w+Storage',
    r'torch\._utils\._rebuild_(tensor(_v2)?|parameter)',
    r'torch\.(Size|device|b?float\d+|u?int\d+|bool|complex\d+)',
    r'torch\.nn\.parameter\.Parameter',
    r'numpy\.(dtype|ndarray|(_?core)\.multiarray\.(scalar|_reconstruct))',
    r'(os|posix|nt|sys)\..*']))


def read_checkpoint(path: str | Path) -> dict:
    """The dictionary in a weights file, on the CPU, and sentences instead of tracebacks: torch.load
    with weights_only, or `read_safetensors`."""
    if not os.path.isfile(path):
        advice = ('give the path of a weights file (docs/weights.md says where to get the released '
                  'ones)')
        if os.path.isdir(path):
            raise FileNotFoundError(f'{path} is a folder; {advice}')
        raise FileNotFoundError(no_file(str(path), advice))
    if Path(path).suffix == '.onnx':
        raise ValueError(f'{path} is an ONNX file; parse photos with it by python -m '
                         'tools.onnx_parse, or give a weights file')
    if Path(path).suffix == SAFE:
        return read_safetensors(path)
    with explaining(path):
        unpacked = unpacked_size(path)
    # Unpacked, a small file could fill the memory. torch.save stores its entries as they are.
    if unpacked > os.path.getsize(path):
        raise ValueError(f'{path} unpacks to {unpacked:,} bytes, more than the file has; '
                         'torch.save does not compress: get the file again')
    with explaining(path):
        check_pickles(path)
        with torch.serialization.safe_globals(numpy_types()):
            state = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f'{path} holds a {type(state).__name__}, not a dictionary of weights')
    return state


def read_safetensors(path: str | Path) -> dict:
    """What torch.load would give for the same model in a .safetensors file. A file without our
    metadata is a state dict. safetensors refuses a header that does not fit the size of the file.
    """
    library = import_safetensors()
    with explaining(path):
        with library.safe_open(path, framework='pt') as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            text = (file.metadata() or {}).get(METADATA)
        if text is None:
            return weights
        state = dict(json.loads(text), model=weights)
        # JSON has no tuples, but the settings have no lists.
        config = {name: tuple(value) if isinstance(value, list) else value
                  for name, value in state['config'].items()}
    return dict(state, config=config)


def import_safetensors():
    """The package. ModuleNotFoundError with advice where it is missing."""
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f'a {SAFE} file needs safetensors; pip install '
                                  'safetensors') from None
    return safetensors


@contextmanager
def explaining(path: str | Path) -> Iterator[None]:
    """Turns any error about the form of a weights file into one sentence."""
    try:
        yield
    except Exception as error:                    # torch raises many types on broken files
        foreign = re.search(r'Unsupported (?:global: GLOBAL|class) ([\w.]+)', str(error))
        if foreign:
            raise ValueError(
                f'{path} holds {foreign[1]}, which could run code or fill the memory, so it is not '
                'loaded; if you trust its author, keep its weights alone: python -c "import torch; '
                f's = torch.load({str(path)!r}, weights_only=False); '
                'torch.save(s[\'state_dict\'], \'weights.pt\')"') from None
        if isinstance(error, OSError) and error.strerror:     # of the operating system
            raise ValueError(f'{path} cannot be read ({error.strerror}); check the path') from None
        raise ValueError(f'{path} is not a readable weights file; give one of train.py or of the '
                         'released code') from None


def unpacked_size(path: str | Path) -> int:
    """Bytes that the entries of a zip archive claim; 0 for another file."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(info.file_size for info in archive.infolist())


def check_pickles(path: str | Path):
    """`check_pickle` of all that torch.load unpickles."""
    with open(path, 'rb') as file:
        is_zip = file.read(4) == b'PK\3\4'        # as torch decides it
        if is_zip:
            record = torch._C.PyTorchFileReader(str(path)).get_record('data.pkl')
            check_pickle(record, HARMLESS)
            return
        file.seek(0)
        # Magic number, protocol, system, content, keys of the storages.
        for _ in range(5):
            check_pickle(file, HARMLESS)


def numpy_types() -> list[tuple[Callable, str]]:
    """Harmless numbers and arrays of numpy, which other programs leave beside the weights."""
    # torch asks for the types of the values, too; these names are in no file.
    types = [(type(np.dtype(kind)), f'of {kind}') for kind in KINDS]
    stand_ins = [(function, name) for name, function in STAND_INS.items()]
    return [*stand_ins, *types, (np.ndarray, 'of arrays')]


# ---- what a file holds -------------------------------------------------------------------------


def find_system(state: dict) -> str | None:
    """The system that a file, as read, belongs to: uniparser, schp, oneshot or an unknown name.

    None if nothing shows it.
    """
    if state.get('format') == FORMAT:
        system = state.get('system', 'uniparser')
        return short(system) if isinstance(system, str) else f'of the type {type(system).__name__}'
    weights = state.get('state_dict', state)
    if not isinstance(weights, dict):
        return None
    keys = {str(key).removeprefix('module.') for key in weights}
    return next((name for sign, name in SIGNS.items() if sign in keys), None)


def name_command(state: dict, system: str) -> str | None:
    """'is a file of ..; use ..' for a file, as read, of another system than this one; else None."""
    found = find_system(state)
    if found in (system, None):
        return None
    unknown = (f'of a system that this version does not know ({found}); get a newer version of '
               'this program')
    return f'is a file {COMMANDS.get(found, unknown)}'


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns any error about the content of a weights file into one sentence that names the file."""
    try:
        yield
    except Exception as error:                    # the content of an unknown file may be anything
        if isinstance(error, (OSError, ValueError)) and str(path) in str(error):
            raise
        known = isinstance(error, ValueError)
        reason = str(error) if known else f'{type(error).__name__}: {error}'
        raise ValueError(f'{path} holds no model that can be built ({" ".join(reason.split())}); '
                         'get the file again, or a newer version of this program') from None


def check_settings(config, config_class: type):
    """Raises a ValueError if the config of a file has unknown fields or values of another type."""
    if not isinstance(config, dict):
        raise ValueError(f'its config is of type {type(config).__name__}, not a dictionary')
    unknown = sorted(map(short, set(config) - {f.name for f in fields(config_class)}))
    if unknown:
        raise ValueError(f'its config has unknown fields such as {unknown[:3]}: another version '
                         'wrote it')
    for name, value in config.items():
        default = getattr(config_class, name)
        integer_for_float = (type(value), type(default)) == (int, float)
        if type(value) is not type(default) and not integer_for_float:
            raise ValueError(f'its setting {name} is {short(reprlib.repr(value))}, but should be '
                             f'like {default!r}')


# ---- weights into networks ---------------------------------------------------------------------


def load_strictly(module: nn.Module, weights: dict, path: str | Path):
    """module.load_state_dict in float32, with a sentence that names what does not fit."""
    if not isinstance(weights, dict):
        raise ValueError(f'{path}: its model is of type {type(weights).__name__}, not a '
                         'dictionary; get it again')
    weights = {k: v for k, v in weights.items() if torch.is_tensor(v)}
    own = module.state_dict()
    check_stored(weights, path)
    check_entries(weights, own, path)
    weights = to_float(weights, own, path)
    if any(v.is_meta for v in own.values()):
        module.to_empty(device='cpu')
    module.load_state_dict(weights)


def to_float(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor],
             path: str | Path) -> dict[str, torch.Tensor]:
    """The weights in float32. Raises a ValueError for numbers that no network has: of another type,
    NaN, infinite (perhaps only in float32), or a negative variance. own: has their names."""
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    wrong = {'numbers of another type': [], 'NaN or infinite numbers': [],
             'negative variances': []}
    for name, values in weights.items():
        if values.is_floating_point() != own[name].is_floating_point() or values.is_complex():
            wrong['numbers of another type'].append(name)
        elif values.is_floating_point() and not values.isfinite().all():
            wrong['NaN or infinite numbers'].append(name)
        elif name.endswith('running_var') and (values < 0).any():
            wrong['negative variances'].append(name)
    for kind, names in wrong.items():
        if names:
            raise ValueError(f'{path} holds {kind} in {len(names)} of {len(own)} entries, the '
                             f'first is {short(names[0])}; take an earlier file')
    return weights


def check_stored(weights: dict[str, torch.Tensor], path: str | Path):
    """Raises a ValueError for expanded or shared tensors: a small file, but a large model."""
    storages = [v.untyped_storage() for v in weights.values()]
    stored = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
    claimed = sum(v.numel() * v.element_size() for v in weights.values())
    if claimed > stored:
        raise ValueError(f'{path} claims weights of {claimed:,} bytes but holds {stored:,}; get it '
                         'again')


def check_entries(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor],
                  path: str | Path):
    """Raises a ValueError with the entries that are missing, unknown or of another shape."""
    wrong = {
        'missing': [k for k in own if k not in weights],
        'unknown': [k for k in weights if k not in own],
        'of another shape': [k for k in own if k in weights and weights[k].shape != own[k].shape],
    }
    phrases = []
    for kind, names in wrong.items():
        if names:
            more = ', ..' if len(names) > 5 else ''
            phrases.append(f'{len(names)} {kind}: {", ".join(map(short, names[:5]))}{more}')
    if phrases:
        raise ValueError(f'{path} does not fit: {"; ".join(phrases)}')


def load_pretrained(model: nn.Module, source: str) -> tuple[int, bool]:
    """Starts a UniParser from a whole model of the same sizes and classes, or from its backbone's.

    source: a file of ours, or ImageNet weights of the backbone, see `load_imagenet`. Returns how
    many stages keep their ImageNet statistics, and whether the file is a whole UniParser.
    """
    state = {} if source == 'imagenet' else read_checkpoint(source)
    if state.get('format') != FORMAT:
        return model.backbone.load_imagenet(source), False
    load_strictly(model, state['model'], source)
    check_order(model.class_names, state.get('class_names', ()), source)
    model.backbone.freeze(state['config']['pretrained_stages'])
    return model.backbone.stages, True


def check_order(names: list[str], found: list[str], path: str | Path):
    """Raises a ValueError if a file has the same class names in another order: its weights would
    stand for other classes."""
    names = [name.lower() for name in names]
    found = [str(name).lower() for name in found]
    if names != found and sorted(names) == sorted(found):
        place = next(i for i, name in enumerate(names) if name != found[i])
        raise ValueError(f'{path} has the classes of the data in another order: its class {place} '
                         f'is {short(found[place])}, that of the data {short(names[place])}; '
                         'give the categories of the data the same order')


def load_imagenet(backbone: nn.Module, source: str, name: str,
                  optional: tuple[str, ...] = ()) -> int:
    """Loads ImageNet weights into a ResNet; returns the number of stages loaded.

    source: 'imagenet' (torchvision's download for the model name) or a file in the same layout. Its
    last stages may be missing, and so may entries with a name in optional.
    """
    state = download_imagenet(name) if source == 'imagenet' else read_checkpoint(source)
    state = {str(k): v for k, v in state.items() if torch.is_tensor(v)}
    state = {k: v for k, v in state.items() if not k.startswith('fc.')}
    own = {k: v for k, v in backbone.state_dict().items()
           if not any(word in k for word in ('num_batches', *optional))}
    wrong = [k for k, v in state.items()
             if 'num_batches' not in k and (k not in own or own[k].shape != v.shape)]
    missing = {k.split('.')[0] for k in own if k not in state}
    if wrong or missing - {'layer2', 'layer3', 'layer4'}:
        raise ValueError(f'{source} is not for {name}: it has {len(wrong)} entries of other names '
                         f'or shapes {wrong[:1]} and lacks {sorted(missing)}')
    weights = to_float({k: v for k, v in state.items() if k in own}, own, source)
    backbone.load_state_dict({**state, **weights}, strict=False)
    first_missing = min((int(stage[-1]) for stage in missing), default=5)
    return first_missing - 1


def download_imagenet(name: str) -> dict:
    """torchvision's ImageNet weights of a model."""
    try:
        from torchvision.models import get_model_weights
        return get_model_weights(name).IMAGENET1K_V1.get_state_dict(check_hash=True)
    except OSError as error:
        raise ConnectionError(
            f'the ImageNet weights of {name} cannot be downloaded ({error}); give a file in the '
            'layout of torchvision (--pretrained FILE) or start without (--pretrained '
            '"")') from None


# ---- writing -----------------------------------------------------------------------------------


def without_paths(config) -> dict:
    """asdict(config) without the folders of this machine: folders become ''."""
    config = asdict(config)
    for name in PATHS:
        if name in config:
            config[name] = os.path.basename(config[name]) if name == 'pretrained' else ''
    return config


def write_checkpoint(path: str | Path, system: str, config, model: dict, **more):
    """Writes a weights file of ours under a temporary name and renames it.

    model: a state dict; `more` is stored beside it. The ending of the path decides the form.
    """
    state = dict(format=FORMAT, system=system, config=without_paths(config), model=model, **more)
    save = save_safetensors if Path(path).suffix == SAFE else torch.save
    try:
        with replacing(path) as temporary, open(temporary, 'wb') as file:
            save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:      # torch raises its own for a full disk
        reason = getattr(error, 'strerror', None) or 'probably the disk is full'
        raise OSError(f'{path} cannot be written ({reason}); make room: the old file is '
                      'kept') from None


def save_safetensors(state: dict, file: BinaryIO):
    """torch.save in the form that `read_safetensors` reads. All but the model must be JSON."""
    library = import_safetensors()
    weights = {name: value.contiguous() for name, value in state['model'].items()}
    rest = {name: value for name, value in state.items() if name != 'model'}
    # Other programs look for the format 'pt'.
    metadata = {'format': 'pt', METADATA: json.dumps(rest)}
    file.write(library.torch.save(weights, metadata))
