"""The picture of paths."""

import numpy as np
import torch

from fewstep.artifacts.paths_picture import FAILED, PathsPanel, paths_picture


def test_paths_that_fail_are_red_and_others_are_not() -> None:
    paths = torch.stack([torch.tensor([[-0.5, -1.0], [0.5, -1.0]]), torch.tensor([[-0.5, 1.0], [0.5, 1.0]])])
    way, red = torch.tensor([2, 5]), tuple(int(FAILED[place : place + 2], 16) for place in (1, 3, 5))
    counts = []
    for success in ([True, True], [True, False]):
        image = paths_picture([PathsPanel("a", paths, torch.tensor(success), way)] * 2, [(0.0, 0.0, 0.2)])
        counts.append(int((np.abs(np.asarray(image).astype(int) - red).sum(-1) < 60).sum()))
    assert counts[0] == 0
    assert counts[1] > 20
