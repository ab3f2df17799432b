"""The cycle error, on data whose flow is known: a coder that is off by so much is off by so much."""

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.prediction import Denoise, Prediction, interpret
from fewstep.diffusion.sampler import invert_ddim
from fewstep.diffusion.schedule import CosineSchedule, alpha, expand, sigma
from fewstep.evaluation.cycle import Coder, cycle_rows

SCHEDULE = CosineSchedule()
STD = 0.4


def flow(direction: int, steps: int) -> Denoise:
    """The perfect coder of N(0, STD^2): towards data (-1) or noise (+1)."""

    def denoise(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        there = SCHEDULE.log_snr(SCHEDULE.time(log_snr) + direction / steps)
        now, then = (((alpha(at) * STD) ** 2 + sigma(at) ** 2).sqrt() for at in (log_snr, there))
        return invert_ddim(z=z, z_next=expand(then / now, z) * z, log_snr=log_snr, log_snr_next=there)

    return denoise


def shifted(denoise: Denoise, by: float) -> Denoise:
    """One whose predicted x is off by `by`, all the way to the sample."""

    def moved(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Prediction:
        return interpret("x", denoise(z, log_snr, label, w).x + by, z=z, log_snr=log_snr)

    return moved


def test_the_cycle_error_is_that_of_the_worse_coder() -> None:
    x = STD * torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = Coder("guided", flow(1, 64), 64), Coder("guided", shifted(flow(-1, 64), 0.01), 64)
    few = Coder("encoder", flow(1, 2), 2), Coder("progressive", shifted(flow(-1, 1), 0.05), 1)
    rows = list(cycle_rows([many, few], x, torch.zeros(500).long(), 0.0, schedule=SCHEDULE, clip=(-99.0, 99.0)))
    assert [(row.encoder, row.encoder_steps, row.decoder, row.decoder_steps) for row in rows] == [
        ("guided", 64, "guided", 64),
        ("encoder", 2, "progressive", 1),
    ]
    assert rows[1].cycle_rmse == pytest.approx(0.05, rel=0.02)
    assert rows[0].ratio == 1
    assert rows[1].ratio == pytest.approx(rows[1].cycle_rmse / rows[0].cycle_rmse)
    assert rows[0].code_rmse == 0
    assert rows[1].code_rmse < 1e-6
    assert rows[1].code_std == pytest.approx(1, abs=0.05)
    assert rows[1].as_dict()["num_images"] == 500


def test_what_is_decoded_is_held_in_the_data_range() -> None:
    x = torch.ones(8, 2, dtype=torch.float64)
    pair = Coder("encoder", flow(1, 1), 1), Coder("decoder", shifted(flow(-1, 1), 0.5), 1)
    (row,) = cycle_rows([pair], x, torch.zeros(8).long(), 0.0, schedule=SCHEDULE, clip=(-1.0, 1.0))
    assert row.cycle_rmse < 1e-3
