"""Training: the schedule, one step, resuming, several processes, mistakes."""
import json
import re
import signal
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import train
from evaluate import parsing_metrics
from tests.helpers import HERE, SHORT, call, run, stop_at_step, weights
from uniparser import Config, UniParser, get_config
from util.datasets import open_dataset
from util.run import Run


def rates(config, steps, steps_per_epoch=1):
    return [train.learning_rate(step, steps_per_epoch, config) for step in steps]


def test_learning_rate_by_hand():
    # 8 images x 6.25e-4; milestones after the epochs 9 and 11.
    config = replace(Config(), warmup=10, epochs=12)
    found = rates(config, (0, 9, 10, 899, 900, 1099, 1100), 100)
    assert np.allclose(found, [0.0005, 0.005, 0.005, 0.005, 0.0005, 0.0005, 0.00005])
    assert rates(replace(config, epochs=36, warmup=0), [0], 100) == [0.005]
    half_cosine = [1, 0.853553, 0.5, 0.146447, 0]
    found = np.array(rates(replace(config, schedule='cosine', epochs=4, warmup=0), range(5)))
    assert np.allclose(found / found[0], half_cosine, atol=1e-6)


@pytest.mark.parametrize('preset, epochs, milestones', [
    ('mhp', 36, (27, 33)), ('cihp', 75, (50, 65))])
def test_the_rate_falls_at_the_papers_milestones(preset, epochs, milestones):
    found = rates(get_config(preset, epochs=epochs, warmup=0), range(epochs))
    assert tuple(e for e in range(1, epochs) if found[e] < 0.5 * found[e - 1]) == milestones


def test_overfits_one_scene():
    """The whole path, photo to metric: a drawn scene of several people is learnt by heart."""
    torch.manual_seed(0)
    dataset = open_dataset('synthetic', None, 'val')
    image, parsing, ignore = dataset.read(1)
    config = get_config('synthetic', grid=20)
    model = UniParser(config, dataset.class_names, dataset.flip_pairs).train()
    batch = dict(images=data.normalize(image)[None], parsings=[torch.from_numpy(parsing)],
                 ignores=torch.from_numpy(ignore)[None], infos=[{}])
    optimizer = train.make_optimizer(model, config)
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    task = train.UniParserTask(config, model, None, None)
    run = Run('cpu')

    def loss(net, batch):
        return task.loss(net, batch, run)

    for _ in range(80):
        terms = train.train_step(model, loss, [batch], optimizer, scaler, 3e-3, config.clip)
    metrics = parsing_metrics(model.predict(image), [parsing], 6)
    assert len(parsing) > 1
    assert metrics['AP50'] == 1.0 and metrics['APvol'] > 0.6, (metrics['APvol'], terms)


def test_resume_equals_uninterrupted(tmp_path, monkeypatch):
    """Stopped in the middle of an epoch and resumed with other workers, training gives the same
    bits."""
    whole = tmp_path / 'whole'
    parts = tmp_path / 'parts'
    train.main([*SHORT, '--epochs', '2', '--out', str(whole)])
    count = stop_at_step(monkeypatch, 4)
    train.main([*SHORT, '--epochs', '2', '--out', str(parts), '--workers', '1'])
    state = torch.load(parts / 'last.pt', weights_only=True)
    assert (state['epoch'], state['position']) == (1, 1) and len(count) == 4
    # Nobody inherits the run's handler.
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train.main(['--resume', str(parts), '--workers', '2', '--device', 'cpu'])
    assert len(count) == 6
    for (name, a), b in zip(weights(whole).items(), weights(parts).values()):
        assert torch.equal(a, b), name
    logs = [(folder / 'log.jsonl').read_text().splitlines()[-1] for folder in (whole, parts)]
    assert logs[0] == logs[1] and 'AP50' in logs[0]


def test_a_run_leaves_what_it_promises(tmp_path):
    done = call(train, *SHORT, '--epochs', '1', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'runs' / 'synthetic'
    names = {path.name for path in folder.iterdir()}
    assert names >= {'config.json', 'log.jsonl', 'last.pt', 'best.pt', 'val'}
    assert len(list((folder / 'val').glob('*.png'))) == 4
    assert json.loads((folder / 'config.json').read_text())['channels'] == 8
    record = json.loads((folder / 'log.jsonl').read_text().splitlines()[0])
    assert set(record) >= {'center', 'aux_ins', 'aux_cate', 'aux_neg', 'parsing', 'metric', 'total',
                           'lr', 'images_per_second', 'memory'}
    last = done.stdout.strip().splitlines()[-1]
    assert re.search(r'AP50 [\d.]+ APvol [\d.]+ PCP50 [\d.]+ mIoU [\d.]+$', last)
    model = UniParser.from_pretrained(folder / 'best.pt')
    assert model.class_names[1] == 'head' and model.flip_pairs == [[3, 4], [5, 6]]
    assert not model.training
    assert not list(tmp_path.rglob('*.tmp*'))
    again = call(train, *SHORT, '--out', folder, cwd=tmp_path)
    assert again.returncode == 2 and 'holds a run already' in again.stderr
    assert 'Traceback' not in again.stderr


def test_the_time_left_is_that_of_the_whole_run(tmp_path, monkeypatch, capsys):
    """By a clock on which a step takes 100 s and a validation 10 minutes. A resumed run counts its own steps alone."""
    clock = [0.0]

    def taking(seconds, function):
        def slow(*args):
            clock[0] += seconds
            return function(*args)
        return slow

    monkeypatch.setattr(train, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(train, 'train_step', taking(100, train.train_step))
    monkeypatch.setattr(train.UniParserTask, 'validate', taking(600, train.UniParserTask.validate))
    train.main([*SHORT, '--epochs', '2', '--out', str(tmp_path / 'run')])
    found = re.findall(r'epoch (\d) iter (\d)/3 .* GB \| ends in ([\d:]+)$', capsys.readouterr().out, re.M)
    assert found == [('1', '1', '08:20'), ('1', '2', '06:40'), ('1', '3', '05:00'),
                     ('2', '1', '08:20'), ('2', '2', '03:40'), ('2', '3', '00:00')]
    train.main(['--resume', str(tmp_path / 'run'), '--epochs', '40', '--device', 'cpu'])
    assert 'epoch 3 iter 1/3' in (first := capsys.readouterr().out) and '| ends in 3:08:20\n' in first


def torchrun(*arguments):
    return run('python', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone',
               *arguments)


def test_two_processes_train_together(tmp_path):
    done = torchrun(HERE / 'train.py', *SHORT, '--epochs', '1', '--accumulate', '2',
                    '--out', tmp_path / 'run')
    assert done.returncode == 0, done.stderr[-2000:]
    assert '2 x cpu' in done.stdout and done.stdout.count('epoch 1: AP50') == 1
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / 'run').values())


STEP = '''
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
import train
from tests.helpers import tiny_model, two_people
from util.run import Run
torch.manual_seed(0)
model = tiny_model(num_classes=5)
parsing, ignore = two_people()
for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
    norm.eval()
    norm.train = lambda mode=True: norm
images = torch.randn(2, 3, 64, 96)
run = Run('cpu')
rank, world = run.rank, run.world
net = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
share = slice(rank, rank + 1) if world > 1 else slice(0, 2)
batch = dict(images=images[share], parsings=[parsing] * len(images[share]),
             ignores=torch.stack([ignore] * 2)[share])
optimizer = train.make_optimizer(model, replace(model.config, optimizer='sgd'))
config = replace(model.config, lambda_center=0.0)
scaler = torch.amp.GradScaler('cpu', enabled=False)
task = train.UniParserTask(config, model, None, None)
train.train_step(net, lambda net, batch: task.loss(net, batch, run), [batch], optimizer, scaler,
                 0.1, config.clip)
if world > 1:
    # A signal to one process stops both.
    run.seen = [1] if rank else []
    assert run.told_to_stop(20)
    run.seen = []
    assert not run.told_to_stop(40)
if rank == 0:
    torch.save(model.state_dict(), sys.argv[2])
if world > 1:
    # A process that leaves first may abort inside gloo.
    dist.barrier()
    dist.destroy_process_group()
'''


def test_processes_share_the_gradients(tmp_path):
    """Two processes with half of a batch each take the step that one takes with all of it.

    Terms are means over the images of a process, so each image is given the same label. BatchNorm
    keeps its statistics. The center loss, a sum over the positive cells + 1, is left out.
    """
    script = tmp_path / 'step.py'
    script.write_text(STEP)
    one = run('python', script, HERE, tmp_path / 'one.pt')
    two = torchrun(script, HERE, tmp_path / 'two.pt')
    assert one.returncode == two.returncode == 0, one.stderr[-1500:] + two.stderr[-1500:]
    first = torch.load(tmp_path / 'one.pt', weights_only=True)
    second = torch.load(tmp_path / 'two.pt', weights_only=True)
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name


def test_a_loss_that_is_not_finite_stops_and_names_terms_and_images(tmp_path, monkeypatch, capsys):
    def not_a_number(image):
        return torch.full((3, *np.asarray(image).shape[:2]), float('nan'))

    monkeypatch.setattr(data, 'normalize', not_a_number)
    with pytest.raises(SystemExit) as stop:
        train.main([*SHORT, '--epochs', '1', '--out', str(tmp_path / 'run')])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert 'not finite' in message and 'total' in message and 'train_00' in message
    assert not (tmp_path / 'run' / 'last.pt').exists()


def test_a_spike_of_the_loss_stops_and_names_terms_and_images():
    batches = [dict(infos=[dict(id='one')]), dict(infos=[dict(id='two')])]
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    losses = dict(center=torch.tensor(3.0), total=torch.tensor(0.9 * train.SPIKE))
    assert train.check_finite(losses, batches, scaler)['center'] == 3
    losses['total'] *= 2
    with pytest.raises(train.Diverged, match=r'above 10,000.*center.*images: one, two'):
        train.check_finite(losses, batches, scaler)


@pytest.mark.parametrize('arguments, message', [
    (['--data', 'MHP'], '--root'),
    (['--data', 'MHP', '--root', 'nowhere'], 'nowhere'),
    (['--batch-size', '3', '--accumulate', '2'], 'multiple of 2'),
    (['--backbone', 'vgg'], 'unknown backbone'),
    (['--batch-size', '0'], '--batch-size is 0'),
    (['--short-side'], '--short-side is empty'),
    (['--samples', '3', '--batch-size', '8', '--accumulate', '8'], 'too few'),
    (['--resume', 'nowhere'], 'nowhere'),
    (['--pretrained', 'nowhere.pth'], 'nowhere.pth')])
def test_mistakes_get_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments, '--device', 'cpu'])
    text = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in text and text.startswith('error: ') and text.count('\n') == 1
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('changes', [
    dict(space='cosin'), dict(fusion='idx'), dict(optimizer='adam'), dict(recipe='mine'),
    dict(schedule='cos'), dict(epochs=0)])
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        get_config(**changes)


@pytest.mark.parametrize('change', [
    ['--lr', '1'], ['--optimizer', 'sgd'], ['--data', 'synthetic'], ['--out', 'x']])
def test_resume_keeps_the_settings_of_the_run(checkpoint, tmp_path, capsys, change):
    state = torch.load(checkpoint, weights_only=True)
    torch.save(dict(state, optimizer={}), tmp_path / 'last.pt')
    with pytest.raises(SystemExit):
        train.main(['--resume', str(tmp_path), *change])
    assert f'{change[0]} cannot change' in capsys.readouterr().err


def test_every_setting_is_a_flag():
    given = ['--short-side', '10', '20', '--no-dcn', '--light', '--lr', '0.1', '--epochs', '7']
    config = train.fresh_config(train.parse_arguments(given))
    assert config.short_side == (10, 20) and config.light and not config.dcn
    assert config.lr == 0.1 and config.epochs == 7
    help_text = call(train, '--help').stdout.replace(',', ' ').replace('\n', ' ')
    for field in fields(Config):
        if field.name not in ('data', 'recipe', 'num_classes', 'pretrained_stages'):
            assert f'--{field.name.replace("_", "-")} ' in help_text, field.name
