"""UniParser as an ONNX file, from the image to the correlations: `python infer.py --export model.onnx`.

    image      (1, 3, H, W) float32   RGB in 0..1, less mean, over std; H and W multiples of 32
    scores     (P,)                   of the max_people highest peaks of the heat map, best first          Eq. (1)
    centers    (P, 2)                 their pixels (x, y) in the image
    q_ins      (P, H/4, W/4)          correlations with their people; those of low scores mean nothing      Eq. (2)
    q_cate     (K, H/4, W/4)          correlations with the categories                                      Eq. (3)

mean, std, class_names and the settings named here are in the file's metadata, as JSON. A photo is scaled (bilinear)
to a short side of test_short_side, but no long side above long_side; after normalizing zeros are added right and below
(`predict.prepare`). People are those with scores > theta_center, each where its q_ins > theta_mask. The person's
classes are those whose mean q_cate in there is above theta_part (`predict.part_scores`), and a pixel's label is the one
among them of the largest q_cate, 0 where that is not above theta_mask. Last, all is scaled to the photo's size
(`predict.decode`).
"""
import importlib
import io
import json

import torch
import torch.nn as nn

from data import MEAN, STD
from predict import keep_peaks
from util.submissions import write_file
from uniparser import ConvTower, correlate

SETTINGS = 'test_short_side', 'long_side', 'theta_center', 'theta_mask', 'theta_part'        # that `predict` reads


class Correlations(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.people = model, min(model.config.max_people, model.config.grid ** 2)

    def forward(self, image):
        config, out = self.model.config, self.model(image)
        scores, cells = keep_peaks(out['heatmap'][0, 0].sigmoid(), config).flatten().topk(self.people)
        k_ins = out['k_ins'][0].flatten(1)[:, cells].T
        cell = torch.stack([cells % config.grid, cells // config.grid], dim=1)
        size = torch.tensor([image.shape[-1], image.shape[-2]])
        q_ins = correlate(k_ins, out['f_ins'][0], config.space)                                         # Eq. (2)
        q_cate = correlate(out['k_cate'], out['f_cate'][0], config.space)                               # Eq. (3)
        return scores, (2 * cell + 1) * size / (2 * config.grid), q_ins, q_cate


def export(model, path):
    """Writes a fused model on the CPU to `path`; ModuleNotFoundError with advice where a package is missing."""
    try:
        for name in 'onnx', 'onnxscript':                # what torch.onnx needs
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'--export needs {error.name}; pip install onnx onnxscript onnxruntime') from None
    if model.config.fusion != 'index':
        raise ValueError(f'--export writes correlations, but the fusion {model.config.fusion!r} does not use them')
    for module in model.modules():
        if isinstance(module, ConvTower):
            module.cache = None                          # the coordinates' share depends on the size
    height, width = (torch.export.Dim(name, min=2, max=256) for name in ('height', 'width'))
    program = torch.onnx.export(
        Correlations(model).eval(), (torch.zeros(1, 3, 256, 320),), dynamo=True, opset_version=19, verbose=False,
        input_names=['image'], output_names=['scores', 'centers', 'q_ins', 'q_cate'],
        dynamic_shapes=({2: 32 * height, 3: 32 * width},), external_data=False)
    settings = {key: getattr(model.config, key) for key in SETTINGS}
    for key, value in dict(settings, mean=MEAN, std=STD, class_names=model.class_names).items():
        program.model.metadata_props[key] = json.dumps(value)
    file = io.BytesIO()
    program.save(file, external_data=False)
    write_file(path, file.getvalue())
