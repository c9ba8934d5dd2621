"""schp evaluate: mIoU, pixel accuracy and mean accuracy of a split, of a model or of anybody's label maps."""
from pathlib import Path

import numpy as np
from tqdm import tqdm

from util.cli import Between
from util.files import read_prediction, write_json, write_png
from util.labels import check_classes
from util.metrics import confusion_matrix
from util.pictures import compare_labels
from schp.data import DATASETS, flatten, open_dataset
from schp.network import load_model


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


def evaluate(args):
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


def compare_image(dataset, i, predict, picture=None):
    """Confusion matrix of image i of a data set. predict(id, image (H,W,3), its size (H,W)) -> label map. picture: a
    path for photo, truth and prediction side by side."""
    image, parsing, ignore = dataset.read(i)
    truth = flatten(parsing, ignore)
    prediction = predict(dataset.ids[i], image, truth.shape)
    if picture:
        write_png(picture, compare_labels(image, (truth[None], prediction[None]), dataset.class_names))
    return confusion_matrix(prediction, truth, len(dataset.class_names))

def semantic_metrics(matrix):
    """Confusion matrix -> dict of fractions: IoU (one for each class), mIoU, pixel_accuracy, mean_accuracy.

    The means run over all classes: a class that no ground truth has counts as 0."""
    right, truth, prediction = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    iou = right / np.maximum(1, truth + prediction - right)
    accuracy = right / np.maximum(1, truth)
    return dict(mIoU=float(iou.mean()), pixel_accuracy=float(right.sum() / max(1, truth.sum())),
                mean_accuracy=float(accuracy.mean()), IoU=iou.tolist())


def semantic_table(metrics, class_names):
    """The numbers of `semantic_metrics` as text, in percent."""
    rows = [f'{name:20} {100 * iou:6.2f}' for name, iou in zip(class_names, metrics['IoU'])]
    return '\n'.join([f'{"class":20}    IoU', *rows, '', f'mIoU {100 * metrics["mIoU"]:.2f}   pixel accuracy '
                      f'{100 * metrics["pixel_accuracy"]:.2f}   mean accuracy {100 * metrics["mean_accuracy"]:.2f}'])


def predictor(args, model, dataset):
    """-> predict, as `compare_image` takes it; ValueError where the model has other classes."""
    check_classes(args.weights, model, args.data, dataset)
    return lambda name, image, size: model.predict([image], centers=args.centers, flip=args.flip,
                                                   scales=args.scales)[0]


def reader(folder, dataset):
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is no folder; --predictions is the folder of the label maps ID.png')
    return lambda name, image, size: read_prediction(folder / f'{name}.png', size, len(dataset.class_names) - 1)
