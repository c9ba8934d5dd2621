"""The ONNX file gives what the network gives."""
import json
import os
import sys

import numpy as np
import pytest
import torch

import data
from oneshot import EOPNet
from tests.helpers import call, tiny_model
from tools import export


@pytest.mark.parametrize('preset, changes', [
    ('mhp', dict(dcn=True)), ('mhp', dict(light=True, flip_test=True)), ('mhp_released', dict(dcn=True)), ('mhp_released', dict(light=True))])
def test_onnx_runtime_gets_the_same_correlations(preset, changes, tmp_path):
    pytest.importorskip('onnxscript', reason='the export needs onnx and onnxscript')
    runtime = pytest.importorskip('onnxruntime', reason='the check of the export needs onnxruntime')
    model = tiny_model(preset, max_people=9, channels=64, **changes).fold()      # of few channels lengths are near 0
    if model.config.dcn:
        torch.nn.init.normal_(model.backbone.layer3[0].conv2.conv_offset.weight, std=0.05)
    export.export_onnx(model, tmp_path / 'm.onnx')
    assert os.listdir(tmp_path) == ['m.onnx']
    session = runtime.InferenceSession(tmp_path / 'm.onnx', providers=['CPUExecutionProvider'])
    told = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert told['class_names'] == model.class_names and told['theta_part'] == 0.3 and told['recipe'] == model.config.recipe and told['mean'] == list(data.MEAN)
    for size in (256, 320), (96, 64), (128, 288):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            slow = export.Correlations(model)(image)
        for name, ours, theirs in zip(('scores', 'centers', 'q_ins', 'q_cate'), slow,
                                      session.run(None, dict(image=image.numpy()))):
            sure = slow[0].numpy() > 0 if len(ours) == 9 else slice(None)             # no peak: any cell may stand there
            assert ours.shape == theirs.shape and np.abs(ours.numpy() - theirs)[sure].max() < 1e-3, name
        assert (slow[0] > 0).any()


def test_the_next_command_follows_from_the_model_and_the_ending(tmp_path):
    model = tiny_model('cihp')
    assert export.next_step(model, 'u.onnx') == 'python -m tools.onnx_parse PHOTO --weights u.onnx'
    model.save(tmp_path / 'a.pt')
    done = call(export, '--weights', 'a.pt', '--out', 'b.pt', cwd=tmp_path)
    assert done.stdout.endswith(' MB, 19 classes; next: python infer.py PHOTO --weights b.pt\n'), done.stderr
    EOPNet(num_labels=7, stem=8, middle=1, channels=16, high_level=False).save(tmp_path / 'eop.pt')
    done = call(export, '--weights', 'eop.pt', '--out', 'c.pt', cwd=tmp_path)
    assert 'MB; next: python -m oneshot parse PHOTO --support EXAMPLE' in done.stdout, done.stderr


def test_flags_and_models_without_an_onnx_file_are_refused(tmp_path):
    EOPNet(num_labels=7, stem=8, middle=1, channels=16, high_level=False).save(tmp_path / 'eop.pt')
    for arguments, sentence in ((['--half'], '--half is for weights files'),
                                (['--weights', 'eop.pt'], 'eop.pt is of one-shot parsing')):
        done = call(export, *arguments, '--out', 'm.onnx', cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr and done.stderr.count('\n') == 1
    assert os.listdir(tmp_path) == ['eop.pt']


def test_missing_packages_for_the_export_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(SystemExit) as stopped:
        export.main(['--out', str(tmp_path / 'm.onnx')])
    assert stopped.value.code == 2 and 'pip install onnx onnxscript' in capsys.readouterr().err
    assert not os.listdir(tmp_path)
