"""schp evaluate: mIoU, pixel accuracy and mean accuracy of a split, of a network or of label maps.

The numbers are those of SCHP's released evaluation.
"""
import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from schp.data import DATASETS, check_classes, flatten, open_dataset
from schp.network import load_model
from util.cli import Between, Ending, add_shared, filled, refuse_given
from util.datasets import Photos
from util.files import write_json, write_png
from util.images import read_prediction
from util.metrics import confusion_matrix
from util.pictures import compare_labels

# predict(id, photo (H, W, 3), its size (H, W)) -> label map (H, W).
Predict = Callable[[str, np.ndarray, tuple], np.ndarray]


# ---- numbers -----------------------------------------------------------------------------------


def compare_image(dataset: Photos, i: int, predict: Predict,
                  picture: Path | None = None) -> np.ndarray:
    """The confusion matrix of image i of a data set. picture: the path of a picture of the photo,
    the truth and the prediction."""
    image, parsing, ignore = dataset.read(i)
    truth = flatten(parsing, ignore)
    prediction = predict(dataset.ids[i], image, truth.shape)
    if picture:
        maps = truth[None], prediction[None]
        write_png(picture, compare_labels(image, maps, dataset.class_names))
    return confusion_matrix(prediction, truth, len(dataset.class_names))


def semantic_metrics(matrix: np.ndarray) -> dict:
    """Confusion matrix (C, C), rows the truth -> fractions: IoU (a list of C), mIoU,
    pixel_accuracy, mean_accuracy. The means run over all classes: one that no ground truth has
    counts as 0."""
    right = np.diag(matrix)
    truth = matrix.sum(1)
    prediction = matrix.sum(0)
    iou = right / np.maximum(1, truth + prediction - right)
    accuracy = right / np.maximum(1, truth)
    return dict(mIoU=float(iou.mean()), pixel_accuracy=float(right.sum() / max(1, truth.sum())),
                mean_accuracy=float(accuracy.mean()), IoU=iou.tolist())


def semantic_table(metrics: dict, class_names: Sequence[str]) -> str:
    """The numbers of `semantic_metrics` as text, in percent."""
    lines = [f'{"class":20}    IoU']
    for name, iou in zip(class_names, metrics['IoU']):
        lines.append(f'{name:20} {100 * iou:6.2f}')
    lines.append('')
    lines.append(f'mIoU {100 * metrics["mIoU"]:.2f}   '
                 f'pixel accuracy {100 * metrics["pixel_accuracy"]:.2f}   '
                 f'mean accuracy {100 * metrics["mean_accuracy"]:.2f}')
    return '\n'.join(lines)


# ---- the command -------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser):
    add_shared(parser, 'data', choices=list(DATASETS), default='LIP')
    add_shared(parser, 'root')
    add_shared(parser, 'split')
    parser.add_argument('--predictions', type=filled, metavar='DIR',
                        help='label maps DIR/ID.png of any model, instead of --weights')
    parser.add_argument('--flip', action='store_true', help='average with the mirrored photo')
    parser.add_argument('--scales', type=Between(0.1, 10, float), nargs='+',
                        help='scales to average over (default: 1)')
    parser.add_argument('--centers', choices=['int', 'float'],
                        help='centers of the crops; int truncates them, as published numbers do '
                             '(default: float)')
    parser.add_argument('--json', type=Ending('.json'), metavar='FILE',
                        help='write all numbers to it')


def evaluate(args: argparse.Namespace):
    """`python -m schp evaluate`."""
    if bool(args.weights) == bool(args.predictions):
        raise ValueError('give either --weights or --predictions')
    if args.predictions:
        refuse_given(args, ('labels', 'flip', 'scales', 'centers'),
                     'is for --weights; predictions are compared as they are')
    args.scales = args.scales or [1.0]
    args.centers = args.centers or 'float'
    dataset = open_dataset(args.data, args.root, args.split)
    if args.weights:
        predict = network_predictions(args, dataset)
    else:
        predict = stored_predictions(Path(args.predictions), dataset)

    matrix = np.zeros((len(dataset.class_names),) * 2, np.int64)
    for i in tqdm(range(len(dataset)), desc='evaluate', unit='photo', disable=None):
        matrix += compare_image(dataset, i, predict)
    result = semantic_metrics(matrix)
    print(semantic_table(result, dataset.class_names))

    if args.json:
        names = 'data', 'split', 'weights', 'predictions', 'flip', 'scales', 'centers'
        settings = {name: getattr(args, name) for name in names}
        write_json(args.json, dict(settings, class_names=dataset.class_names, **result))


def network_predictions(args: argparse.Namespace, dataset: Photos) -> Predict:
    """The label maps of --weights. ValueError where the network has other classes."""
    model = load_model(args.weights, args.labels, args.device)
    check_classes(args.weights, model, args.data, dataset)

    def predict(name, image, size):
        options = dict(centers=args.centers, flip=args.flip, scales=args.scales)
        return model.predict_maps([image], **options)[0]
    return predict


def stored_predictions(folder: Path, dataset: Photos) -> Predict:
    """The label maps of --predictions."""
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is not a folder; --predictions is the folder of the '
                                'label maps ID.png')
    most = len(dataset.class_names) - 1
    return lambda name, image, size: read_prediction(folder / f'{name}.png', size, most)
