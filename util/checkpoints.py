"""Weights files: reading any, writing ours.

Ours are dictionaries with format, system (uniparser, schp, oneshot), config, class_names, flip_pairs and model, the
state dict. `last.pt` of a run holds the rest of the training state beside them.
"""
import os
import re
import zipfile
from contextlib import contextmanager
from dataclasses import asdict, fields

import numpy as np
import torch

from util.files import replacing, short

FORMAT = 'uniparser 1'
PATHS = 'pretrained', 'backgrounds', 'people'            # settings that may hold a folder of the user's machine


def read_checkpoint(path):
    """torch.load on the CPU with weights_only, and sentences instead of tracebacks."""
    if not os.path.isfile(path):
        reason = 'is a folder' if os.path.isdir(path) else 'does not exist'
        raise FileNotFoundError(f'{path} {reason}; give the path of a weights file')
    check_archive(path)
    try:
        with torch.serialization.safe_globals(numpy_types()):
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:                            # torch raises many types on broken files
        if foreign := re.search(r'Unsupported (?:global: GLOBAL|class) ([\w.]+)', str(error)):
            raise ValueError(
                f'{path} holds {foreign[1]}, which could run code, so it is not loaded; if you trust its author, keep '
                f'its weights alone: python -c "import torch; s = torch.load({str(path)!r}, weights_only=False); '
                'torch.save(s[\'state_dict\'], \'weights.pt\')"') from None
        raise ValueError(f'{path} is not a readable weights file; give one of train.py or of the released '
                         'code') from None
    if not isinstance(state, dict):
        raise ValueError(f'{path} holds a {type(state).__name__}, not a dictionary of weights')
    return state


def check_archive(path):
    """ValueError for a zip archive whose entries claim more bytes than the file has: unpacked, they could fill the
    memory. torch.save stores its entries as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > os.path.getsize(path):
            raise ValueError(f'{path} unpacks to {unpacked:,} bytes, more than the file has; torch.save does not '
                             'compress: get the file again')


COMMANDS = dict(uniparser='of UniParser; use python infer.py PHOTO --weights FILE',
                schp='of SCHP, for photos of one person; use python schp.py extract PHOTO --weights FILE',
                oneshot='of one-shot human parsing; use python oneshot.py parse --weights FILE')
SIGNS = {'mask_head.seg_kernels': 'uniparser', 'fushion.3.weight': 'schp', 'head.linear_pred.weight': 'schp',
         'xception_features.conv1.weight': 'oneshot'}    # an entry of each system's released files


def find_system(state):
    """uniparser, schp or oneshot: the system that a file, as read, belongs to; None where nothing shows it."""
    if state.get('format') == FORMAT:
        return state.get('system', 'uniparser')
    weights = state.get('state_dict', state)
    keys = {str(key).removeprefix('module.') for key in weights} if isinstance(weights, dict) else ()
    return next((name for sign, name in SIGNS.items() if sign in keys), None)


def name_command(state, system):
    """Where a file, as read, belongs to another system than this one: 'is a file of ..; use ..'. Else None."""
    found = find_system(state)
    return f'is a file {COMMANDS[found]}' if found in COMMANDS and found != system else None


@contextmanager
def reading(path):
    """Turns any error about the content of a weights file into one sentence that names the file."""
    try:
        yield
    except Exception as error:                            # the content of an unknown file may be anything
        if isinstance(error, (OSError, ValueError)) and str(path) in str(error):
            raise
        reason = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
        raise ValueError(f'{path} holds no model that can be built ({" ".join(reason.split())}); get the file again, '
                         'or a newer version of this program') from None


def numpy_types():
    """Harmless numbers and arrays of numpy, which other programs leave beside the weights, under the module names of
    numpy 1 and 2."""
    core = (np._core if hasattr(np, '_core') else np.core).multiarray
    functions = [(getattr(core, name), f'numpy.{module}.multiarray.{name}')
                 for name in ('scalar', '_reconstruct') for module in ('core', '_core')]
    dtypes = [type(np.dtype(kind)) for kind in ('?', 'i1', 'u1', 'i4', 'i8', 'f2', 'f4', 'f8', 'U')]
    return [*functions, *dtypes, np.dtype, np.ndarray]


def load_strictly(module, weights, path):
    """module.load_state_dict in float32, with a sentence that names what does not fit."""
    own = module.state_dict()
    weights = {k: v for k, v in weights.items() if torch.is_tensor(v)}
    stored = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in weights.values()}
    claimed = sum(v.numel() * v.element_size() for v in weights.values())
    if claimed > sum(stored.values()):                    # expanded or shared tensors: a small file, a large model
        raise ValueError(f'{path} claims weights of {claimed:,} bytes but holds {sum(stored.values()):,}; get it again')
    lists = {'missing': [k for k in own if k not in weights], 'unknown': [k for k in weights if k not in own],
             'of another shape': [k for k in own if k in weights and weights[k].shape != own[k].shape]}
    if any(lists.values()):
        raise ValueError(f'{path} does not fit: ' + '; '.join(
            f'{len(v)} {k}: {", ".join(map(short, v[:5]))}' + ', ..' * (len(v) > 5) for k, v in lists.items() if v))
    if broken := [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(f'{path} holds NaN or infinite numbers in {len(broken)} of {len(own)} entries, the first is '
                         f'{short(broken[0])}; take an earlier file')
    if any(v.is_meta for v in own.values()):
        module.to_empty(device='cpu')
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})


def check_settings(config, config_class):
    """ValueError where the config of a file, a dict, has unknown fields or values of another type."""
    unknown = sorted(map(short, set(config) - {f.name for f in fields(config_class)}))
    if unknown:
        raise ValueError(f'its config has unknown fields such as {unknown[:3]}: another version wrote it')
    for name, value in config.items():
        default = getattr(config_class, name)
        if type(value) is not type(default) and (type(value), type(default)) != (int, float):
            raise ValueError(f'its setting {name} is {short(repr(value))}, but should be like {default!r}')


def load_pretrained(model, source):
    """Starts a UniParser from a whole model of the same sizes and classes, a file of ours, or from ImageNet weights of
    its backbone, see `load_imagenet`. Returns how many stages keep their ImageNet statistics."""
    state = {} if source == 'imagenet' else read_checkpoint(source)
    if state.get('format') != FORMAT:
        return model.backbone.load_imagenet(source)
    load_strictly(model, state['model'], source)
    model.backbone.freeze(state['config']['pretrained_stages'])
    return model.backbone.stages


def load_imagenet(backbone, source, name, optional=()):
    """Loads 'imagenet' (torchvision's download for the model `name`) or a file in the same layout into a ResNet. Its
    last stages may be missing, and entries with a name in `optional` too. Returns the number of stages loaded."""
    if source == 'imagenet':
        try:
            from torchvision.models import get_model_weights
            state = get_model_weights(name).IMAGENET1K_V1.get_state_dict(check_hash=True)
        except OSError as error:
            raise ConnectionError(
                f'the ImageNet weights of {name} cannot be downloaded ({error}); give a file in the layout of '
                'torchvision (--pretrained FILE) or start without (--pretrained "")') from None
    else:
        state = read_checkpoint(source)
    state = {k: v for k, v in state.items() if torch.is_tensor(v) and not str(k).startswith('fc.')}
    own = {k: v for k, v in backbone.state_dict().items() if not any(word in k for word in ('num_batches', *optional))}
    wrong = [k for k, v in state.items() if 'num_batches' not in k and (k not in own or own[k].shape != v.shape)]
    missing = {k.split('.')[0] for k in own if k not in state}
    if wrong or missing - {'layer2', 'layer3', 'layer4'}:
        raise ValueError(f'{source} is not for {name}: it has {len(wrong)} entries of other names or shapes '
                         f'{wrong[:1]} and lacks {sorted(missing)}')
    backbone.load_state_dict(state, strict=False)
    return min([int(m[-1]) for m in missing], default=5) - 1


def without_paths(config):
    """asdict(config) without the folders of this machine: a file name stays, a folder becomes ''."""
    config = asdict(config)
    for name in PATHS:
        if name in config:
            config[name] = os.path.basename(config[name]) if name == 'pretrained' else ''
    return config


def write_checkpoint(path, system, config, model, **more):
    """Writes a weights file of ours under a temporary name and renames it. `more` is stored beside the weights."""
    state = dict(format=FORMAT, system=system, config=without_paths(config), model=model, **more)
    try:
        with replacing(path) as temporary, open(temporary, 'wb') as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:              # torch raises its own for a full disk
        reason = getattr(error, 'strerror', None) or 'probably the disk is full'
        raise OSError(f'{path} cannot be written ({reason}); make room: the old file is kept') from None
