"""What a critic knows: how often it is right, and how sure it is of what is real and of what is generated."""

from dataclasses import asdict, dataclass

from torch.nn import functional

from fewstep.distributed.collectives import all_gather_rows
from fewstep.methods.losses import Verdict
from fewstep.training.module import DistillationModule


@dataclass(frozen=True)
class CriticStatistics:
    """A critic's verdict on the examples of one step.

    Attributes:
        accuracy: share of real and generated examples whose logit has the right sign; 1/2 where it cannot tell.
        real_loss, generated_loss: its mean softplus loss on either, whatever the form it trains with; log 2 = 0.69 for
            logits of 0. They differ where it finds one of them easier.
    """

    accuracy: float
    real_loss: float
    generated_loss: float

    @classmethod
    def of(cls, verdict: Verdict) -> "CriticStatistics":
        """The statistics of logits over all processes."""
        real, generated = (all_gather_rows(logits).double() for logits in verdict)
        right = (real > 0).double().mean() + (generated < 0).double().mean()
        return cls(
            accuracy=float(right / 2),
            real_loss=float(functional.softplus(-real).mean()),
            generated_loss=float(functional.softplus(generated).mean()),
        )


def critics(module: DistillationModule) -> dict[str, dict[str, float]]:
    """The statistics of each critic in the last step that it moved in, by role. Called by all processes."""
    return {role: asdict(CriticStatistics.of(verdict)) for role, verdict in module.verdicts.items()}


def gradient_ratios(module: DistillationModule) -> dict[str, float]:
    """The latest gradient norm of each other role over the latest of the first, the student."""
    student, *others = module.method.roles
    norms = module.gradient_norms
    if student not in norms or float(norms[student]) == 0:
        return {}
    return {role: float(norms[role]) / float(norms[student]) for role in others if role in norms}
