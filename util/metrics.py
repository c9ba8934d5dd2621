"""Numbers of semantic segmentation. Needs no torch."""
import numpy as np


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
