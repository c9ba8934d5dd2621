"""Semantic segmentation's numbers, as SCHP's evaluation computes them: IoU, pixel accuracy, mean accuracy."""
import numpy as np

from util.files import write_png
from util.pictures import compare_labels


def flatten(parsing, ignore):
    """People (N,H,W) and ignore (H,W) -> one label map uint8 (H,W), 255 = unknown."""
    labels = parsing.max(0) if len(parsing) else np.zeros(ignore.shape, np.uint8)
    return np.where(ignore, 255, labels).astype(np.uint8)


def compare_image(dataset, i, predict, picture=None):
    """Confusion matrix of image i of a data set. predict(id, image (H,W,3), its size (H,W)) -> label map. picture: a
    path for photo, truth and prediction side by side."""
    image, parsing, ignore = dataset.read(i)
    truth = flatten(parsing, ignore)
    prediction = predict(dataset.ids[i], image, truth.shape)
    if picture:
        write_png(picture, compare_labels(image, (truth[None], prediction[None]), dataset.class_names))
    return confusion_matrix(prediction, truth, len(dataset.class_names))


def confusion_matrix(prediction, truth, num_classes, ignore=255):
    """Two label maps (H, W) -> int64 (num_classes, num_classes), rows the truth. Pixels whose truth is `ignore` are
    left out. Sum the matrices of a split, then call `semantic_metrics`."""
    if prediction.shape != truth.shape:
        raise ValueError(f'the prediction has shape {prediction.shape}, the ground truth {truth.shape}')
    known = truth != ignore
    truth, prediction = truth[known].astype(np.int64), prediction[known].astype(np.int64)
    for name, labels in (('prediction', prediction), ('ground truth', truth)):
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f'the {name} has labels {labels.min()} to {labels.max()}, not 0 to {num_classes - 1}')
    pairs = np.bincount(truth * num_classes + prediction, minlength=num_classes ** 2)
    return pairs.reshape(num_classes, num_classes)


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
