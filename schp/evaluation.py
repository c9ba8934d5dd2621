"""schp evaluate: mIoU, pixel accuracy and mean accuracy of a split, of a model or of anybody's label maps."""
from pathlib import Path

from tqdm import tqdm

from util.cli import Between
from util.files import write_json
from util.images import read_prediction
from util.labels import check_classes
from schp.semantic import compare_image, semantic_metrics, semantic_table
from schp.data import DATASETS, open_dataset


def add_flags(parser):
    parser.add_argument('--data', choices=list(DATASETS), default='LIP')
    parser.add_argument('--root', help='folder of the data set, as downloaded')
    parser.add_argument('--split', default='val')
    parser.add_argument('--predictions', metavar='DIR', help='label maps DIR/ID.png of any model, instead of --weights')
    parser.add_argument('--flip', action='store_true', help='average with the mirrored photo')
    parser.add_argument('--scales', type=Between(0.1, 10, float), nargs='+', default=[1.0],
                        help='average over these scales')
    parser.add_argument('--centers', choices=['int', 'float'], default='float',
                        help='of the crops; int truncates them, as published numbers do')
    parser.add_argument('--json', metavar='FILE', help='write all numbers')


def evaluate(args, load_model):
    """load_model(args) -> the Parser of --weights."""
    if bool(args.weights) == bool(args.predictions):
        raise ValueError('give either --weights or --predictions')
    dataset = open_dataset(args.data, args.root, args.split)
    predict = predictor(args, load_model(args), dataset) if args.weights else reader(Path(args.predictions), dataset)
    indices = tqdm(range(len(dataset)), desc='evaluate', unit='photo', disable=None)
    result = semantic_metrics(sum(compare_image(dataset, i, predict) for i in indices))
    print(semantic_table(result, dataset.class_names))
    if args.json:
        settings = {name: getattr(args, name) for name in ('data', 'split', 'weights', 'predictions', 'flip', 'scales',
                                                           'centers')}
        write_json(args.json, dict(settings, class_names=dataset.class_names, **result))


def predictor(args, model, dataset):
    """-> predict, as `compare_image` takes it; ValueError where the model has other classes."""
    check_classes(args.weights, model, args.data, dataset)
    return lambda name, image, size: model.predict([image], centers=args.centers, flip=args.flip,
                                                   scales=args.scales)[0]


def reader(folder, dataset):
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is no folder; --predictions is the folder of the label maps ID.png')
    return lambda name, image, size: read_prediction(folder / f'{name}.png', size, len(dataset.class_names) - 1)
