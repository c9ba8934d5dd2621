"""Writes ONNX files."""
import importlib
import io
import json

import torch

from util.files import write_file


def write_onnx(path, module, image, outputs, dims, settings):
    """Writes module(image) to `path`. image: an example (B, 3, H, W); outputs: names of its results; dims: {axis of the
    image: torch.export.Dim} of the axes that may vary; settings: {name: value} for the metadata, as JSON.
    ModuleNotFoundError with advice where a package is missing."""
    try:
        for name in 'onnx', 'onnxscript':                # what torch.onnx needs
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'an ONNX file needs {error.name}; pip install onnx onnxscript onnxruntime') from None
    program = torch.onnx.export(module.eval(), (image,), dynamo=True, opset_version=19, verbose=False,
                                input_names=['image'], output_names=outputs, dynamic_shapes=(dims,), external_data=False)
    for key, value in settings.items():
        program.model.metadata_props[key] = json.dumps(value)
    file = io.BytesIO()
    program.save(file, external_data=False)
    write_file(path, file.getvalue())
