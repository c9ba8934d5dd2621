"""schp.py export: both networks in ONNX Runtime."""
import json
import os

import numpy as np
import pytest
import torch

import schp
from schp import SCHP, build
from tests.helpers import call
from tests.seeded import noise, seeded
from util.labels import LabelSet
from util.schp_config import SCHPConfig

LABELS = LabelSet(('Background', 'Head', 'Left-arm', 'Right-arm'), (65, 49), ((2, 3),))


@pytest.mark.parametrize('network', schp.NETWORKS)
def test_onnx_runtime_gets_the_same_logits(network, tmp_path):
    pytest.importorskip('onnxscript', reason='the export needs onnx and onnxscript')
    runtime = pytest.importorskip('onnxruntime', reason='the check of the export needs onnxruntime')
    model = build(SCHPConfig(network=network, size=(65, 49), blocks=(1, 1, 1, 1), width=8), LABELS).eval()
    model.load_state_dict({k: torch.from_numpy(seeded(k, v.shape)) for k, v in model.state_dict().items()})
    model.save(tmp_path / 'model.pt')
    done = call(schp, 'export', '--weights', 'model.pt', '--out', 'model.onnx', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith('model.onnx: '), done.stderr
    assert sorted(os.listdir(tmp_path)) == ['model.onnx', 'model.pt']
    session = runtime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items() if k in (
        'size', 'class_names', 'flip_pairs', 'mean')}
    assert metadata == dict(size=[65, 49], class_names=list(LABELS.names), flip_pairs=[[2, 3]],
                            mean=[0.406, 0.456, 0.485])
    for count in (1, 3):
        images = noise(count, (count, 3, 65, 49))
        with torch.inference_mode():
            expected = SCHP.from_pretrained(tmp_path / 'model.pt').crop_logits(torch.from_numpy(images))
        logits, = session.run(None, {'image': images})
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_export_needs_weights(tmp_path):
    done = call(schp, 'export', '--out', 'model.onnx', cwd=tmp_path)
    assert done.returncode == 2 and '--weights' in done.stderr and not os.listdir(tmp_path)
