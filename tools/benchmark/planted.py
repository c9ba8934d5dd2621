"""People planted into the outputs of a network, so that a known number is decoded."""
import torch

from uniparser import Config

BANDS = 6                                    # parts of a planted person
BACKGROUND = -9.0                            # logit of a cell of the heat map without a center
IN_ROW = 25                                  # people who stand side by side


def person_boxes(people: int, height: int, width: int) -> list[tuple]:
    """Where people stand: boxes (x0, y0, x1, y1) of whole pixels, ends excluded, of at least one
    pixel. IN_ROW people at most share a row."""
    rows = -(-people // IN_ROW)
    columns = -(-people // rows)
    boxes = []
    for n in range(people):
        row, column = divmod(n, columns)
        x0 = int((column + 0.1) * width / columns)
        x1 = max(int((column + 0.9) * width / columns), x0 + 1)
        top = row * height // rows
        bottom = (row + 1) * height // rows
        margin = (bottom - top) // 8
        boxes.append((x0, top + margin, x1, bottom - margin))
    return boxes


def plant_people(out: dict, people: int, config: Config) -> dict:
    """Outputs of the network in which people stand as in `person_boxes`, of BANDS parts each.

    Args:
        out: outputs of a UniParser for one photo, which give the sizes.
        people: their number; at most 2 (C - 1), because kernels are orthogonal or opposite.

    ValueError if a center lies outside the heat map.
    """
    S = config.grid
    C, h, w = out['f_ins'].shape[1:]
    K = len(out['k_cate'])
    people = min(people, 2 * (C - 1))
    unit = torch.eye(C)
    heatmap = torch.full((S, S), BACKGROUND)
    k_ins = torch.zeros(C, S, S)
    f_ins = torch.zeros(C, h, w)
    f_cate = torch.zeros(C, h, w)
    # The background has a direction of its own in both spaces.
    f_ins[C - 1] = 1
    f_cate[C - 1] = 1
    for n, (x0, y0, x1, y1) in enumerate(person_boxes(people, h, w)):
        # Opposite directions correlate as little as orthogonal ones: no pixel is above a threshold.
        kernel = unit[n % (C - 1)]
        if n >= C - 1:
            kernel = -kernel
        f_ins[:, y0:y1, x0:x1] = kernel.view(-1, 1, 1)
        for band in range(BANDS):
            top = y0 + band * (y1 - y0) // BANDS
            bottom = y0 + (band + 1) * (y1 - y0) // BANDS
            category = (n + band) % min(K, C - 1)
            f_cate[:, top:bottom, x0:x1] = unit[category].view(-1, 1, 1)
        # A center is the maximum of 5x5 cells. So neighboring centers differ by four rows, or by
        # more than two columns.
        row = (y0 + y1) * S // (2 * h) + center_shift(n, people)
        column = (x0 + x1) * S // (2 * w)
        if not (0 <= row < S and 0 <= column < S):
            raise ValueError(f'{people} people do not fit into a heat map of {S}x{S} cells; '
                             'choose a smaller number')
        heatmap[row, column] = 5 - n / people
        k_ins[:, row, column] = kernel
    planted = dict(heatmap=heatmap[None, None], f_ins=f_ins[None], k_ins=k_ins[None],
                   f_cate=f_cate[None], k_cate=unit[:K], flip_pairs=out['flip_pairs'])
    return {name: tensor.to(out['f_ins'].device) for name, tensor in planted.items()}


def center_shift(n: int, people: int) -> int:
    """Rows of the heat map between the middle of person n and the person's center."""
    if people <= IN_ROW:
        return 4 * (n % 4) - 6
    return 4 * (n % 2) - 2
