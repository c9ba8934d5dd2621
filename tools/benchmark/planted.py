"""People planted into the outputs of a network, so that a known number is decoded."""
import torch

from uniparser import Config

BANDS = 6                                    # parts of a planted person
BACKGROUND = -9.0                            # logit of a cell of the heat map without a center


def plant_people(out: dict, people: int, config: Config) -> dict:
    """Outputs of the network in which people stand side by side, of BANDS parts each.

    Args:
        out: outputs of a UniParser for one photo, which give the sizes.
        people: their number; at most C - 1, because kernels are orthogonal.
    """
    S = config.grid
    C, h, w = out['f_ins'].shape[1:]
    K = len(out['k_cate'])
    people = min(people, C - 1)
    unit = torch.eye(C)
    heatmap = torch.full((S, S), BACKGROUND)
    k_ins = torch.zeros(C, S, S)
    f_ins = torch.zeros(C, h, w)
    f_cate = torch.zeros(C, h, w)
    # The background has a direction of its own in both spaces.
    f_ins[people] = 1
    f_cate[C - 1] = 1
    for n in range(people):
        x0 = int((n + 0.1) * w / people)
        x1 = max(int((n + 0.9) * w / people), x0 + 1)
        y0 = h // 8
        y1 = h - h // 8
        f_ins[:, y0:y1, x0:x1] = unit[n].view(-1, 1, 1)
        for band in range(BANDS):
            top = y0 + band * (y1 - y0) // BANDS
            bottom = y0 + (band + 1) * (y1 - y0) // BANDS
            category = (n + band) % min(K, C - 1)
            f_cate[:, top:bottom, x0:x1] = unit[category].view(-1, 1, 1)
        # A center is the maximum of 5x5 cells: neighbors are four rows apart.
        row = S // 2 - 6 + 4 * (n % 4)
        column = (x0 + x1) * S // (2 * w)
        heatmap[row, column] = 5 - n / people
        k_ins[:, row, column] = unit[n]
    planted = dict(heatmap=heatmap[None, None], f_ins=f_ins[None], k_ins=k_ins[None],
                   f_cate=f_cate[None], k_cate=unit[:K], flip_pairs=out['flip_pairs'])
    return {name: tensor.to(out['f_ins'].device) for name, tensor in planted.items()}
