"""A judge beside a method's own loss: a critic on the frozen teacher's features, which the student shall please."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fewstep.diffusion.prediction import Condition, Denoise, Weights, diffuse
from fewstep.diffusion.schedule import Images, Schedule
from fewstep.methods.critic import CRITIC, Critic
from fewstep.methods.draws import Draws, standard_normal
from fewstep.methods.losses import ADVERSARIAL, Loss, Verdict, frozen, gradient_penalty, weighted_over_w
from fewstep.methods.training import STUDENT
from fewstep.networks.features import network_of
from fewstep.system.seeds import reseed, seed_for
from fewstep.system.validation import Bounded, NotNegative, build

Weight = Annotated[float, Field(gt=0, description="above 0; stage.judge=null is no judge")]


@dataclass(frozen=True, kw_only=True)
class Judge(Bounded):
    """How a student's x is judged: noised, in the frozen teacher's features at each of its blocks (LADD, 2403.12015).

    The student's x and a real one are noised to the same time t = sigmoid(t_mean + t_std n), n ~ N(0, 1), each with
    noise of its own. The teacher, which is told t, the condition and w, gives the features; a head on each block is
    trained to tell the two apart, and the student to be taken for real. Losses are the mean over heads.

    What it costs is counted: 4 evaluations of the teacher an example.

    Args:
        weight: of the judge in the student's loss, which over w has the method's own `training.guidance_weight`.
        real: what is real: target, what the student regresses to, which has the teacher's guidance; or data, which
            has none: then the student of any w is pulled towards the data.
        form: of the losses, see `ADVERSARIAL`.
        r1: weight of the squared gradient of the logits by the heads' inputs, at real ones (`gradient_penalty`).
        t_mean, t_std: see above; a larger t judges layout, a smaller one detail.

    Raises:
        ValueError: a weight that is not positive, a negative penalty or deviation.
    """

    settings_key: ClassVar[str] = "stage.judge"

    weight: Weight
    real: Literal["target", "data"] = "target"
    form: Literal["hinge", "softplus"] = "hinge"
    r1: NotNegative = 0.0
    t_mean: float = 1.0
    t_std: NotNegative = 1.0

    def critic(self, teacher: Denoise | None, stream: str) -> Critic:
        """A new critic on the teacher's blocks, whose weights follow from `stream`.

        Raises:
            ValueError: the teacher is no network, is clipped, or has several networks.
        """
        network = network_of(teacher, "stage.judge", none="null")
        reseed(seed_for(stream, CRITIC), torch.device("cpu"))
        return Critic(network, every_block=True)

    def losses(
        self,
        x: Images,
        real: Images,
        *,
        critic: nn.Module,
        schedule: Schedule,
        label: Condition,
        w: Weights | None,
        draws: Draws,
    ) -> tuple[Float[Tensor, "batch"], Loss]:
        """The student's error for its x, `weight` times, and the critic's loss.

        Args:
            real: without gradients. label, w: what both were made for.
        """
        assert isinstance(critic, Critic), "as `critic` makes it"
        of_critic, of_student = ADVERSARIAL[self.form]
        t = torch.sigmoid(self.t_mean + self.t_std * standard_normal(draws))
        generated, true = (
            critic.features(diffuse(x=each, eps=draws.normal(), log_snr=schedule.log_snr(t)), label, w)
            for each in (x, real)
        )
        with frozen(critic):
            pleased = of_student(critic.logits(generated)).mean(1)
        true = [each.requires_grad_(self.r1 > 0) for each in true]
        on_real, on_generated = critic.logits(true), critic.logits([each.detach() for each in generated])
        error = of_critic(on_real, on_generated).mean(1)
        if self.r1:
            error = error + self.r1 * gradient_penalty(on_real, true)
        return self.weight * pleased, Loss(error, t, w, Verdict(on_real.mean(1), on_generated.mean(1)))


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """A judge beside a method's own loss; fields of every method whose student regresses to an x.

    Progressive distillation with a judge is SDXL-Lightning's recipe (Lin et al. 2024), consistency with one that takes
    data for real the last stage of CTM (Kim et al. 2024).

    Args:
        judge: settings of a `Judge`; None for none.
    """

    judge: Mapping[str, Any] | None = None

    @cached_property
    def judge_term(self) -> Judge | None:
        """The judge that `judge` says."""
        return None if self.judge is None else build(Judge, self.judge, "stage.judge")

    @property
    def judge_roles(self) -> tuple[str, ...]:
        """The critic, where there is one."""
        return (CRITIC,) if self.judge_term else ()

    def judge_networks(self, teacher: Denoise | None, stream: str) -> dict[str, nn.Module]:
        """The critic by its role, where there is one."""
        return {CRITIC: self.judge_term.critic(teacher, stream)} if self.judge_term else {}

    def judged(
        self,
        losses: dict[str, Loss],
        x: Images,
        *,
        target: Images,
        data: Images,
        trained: Mapping[str, nn.Module],
        schedule: Schedule,
        label: Condition,
        guidance_weight: str,
        draws: Draws,
    ) -> dict[str, Loss]:
        """The losses with the judge's, where there is one.

        Args:
            x: the student's. target, data: of which `Judge.real` takes one. trained: networks by role.
            guidance_weight: of the student's loss over w.
        """
        if self.judge_term is None:
            return losses
        own, real = losses[STUDENT], target if self.judge_term.real == "target" else data
        error, critic = self.judge_term.losses(
            x, real.detach(), critic=trained[CRITIC], schedule=schedule, label=label, w=own.w, draws=draws
        )
        error = weighted_over_w(error, guidance_weight, own.w)
        return {**losses, STUDENT: replace(own, error=own.error + error), CRITIC: critic}
