"""The LightningModule that trains every method: seeds, weights, averages, the watch on the loss."""

from copy import deepcopy
from typing import Any

import lightning
import pytest
import torch
from small_methods import SMALL, at_step, batch, batch_for, fit, loss, module, network, small, weights_of
from torch import Tensor, nn

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Clipped
from fewstep.networks import Denoiser, Frozen, with_guidance_input
from fewstep.training.module import DistillationModule, NonFiniteLossError

EACH = pytest.mark.parametrize("name", SMALL)


def teacher(student: Denoiser | None = None, **plan: Any) -> DistillationModule:
    return module(small("teacher", plan), student or network(), stream="0/teacher")


@EACH
def test_a_step_depends_on_its_stream_and_number_alone(name: str) -> None:
    made = module(small(name))
    with torch.no_grad():  # a student that is its teacher has no error in some methods
        for weight in made.student.parameters():
            weight.add_(0.1)
    torch.manual_seed(1)
    data = batch_for(made.method)
    before = deepcopy(made.state_dict())  # of a memory, which a step adds to
    first = made.training_step(data, 0)
    torch.manual_seed(2)
    torch.rand(5)
    made.load_state_dict(before)
    again = made.training_step(data, 17)
    assert torch.equal(first, again)
    made.stream = "1/other"
    made.load_state_dict(before)
    draws_nothing = name in ("knowledge_distillation", "em_mixture")  # all is in the pairs, or in the data
    assert torch.equal(first, made.training_step(data, 0)) == draws_nothing


@EACH
def test_only_what_learns_and_its_averages_are_in_the_module(name: str) -> None:
    method = small(name)
    made = module(method)
    beside = {"trained"} if method.roles[1:] else set()
    assert {key.split(".")[0] for key in made.state_dict()} == {"student", "averages"} | beside
    configured = made.configure_optimizers()
    assert isinstance(configured, dict)
    groups = configured["optimizer"].param_groups
    warm_up = 0.5  # 32 of 64 images
    rates = [3e-3, *([2e-3] * len(method.roles[1:]))]
    assert [group["lr"] for group in groups] == pytest.approx([warm_up * rate for rate in rates])
    others = [{id(p) for p in made.trained[role].parameters()} for role in method.roles[1:]]
    own = {id(p) for p in made.student.parameters()}.difference(*others)  # a role may be a part of the student
    assert [{id(p) for p in group["params"]} for group in groups] == [own, *others]
    learning = own.union(*others)
    assert {id(p) for p in made.parameters() if p.requires_grad} == learning
    assert made.nets.model is made.nets.averages["model"].network
    assert made.nets.model is not made.student
    assert not any(average.network.training for average in made.nets.averages.values())


@EACH
def test_without_a_decay_the_student_is_the_model(name: str) -> None:
    made = module(small(name, {"ema_decay": 0.0}))
    assert "model" not in made.averages
    assert made.nets.model is made.student


def test_training_leaves_the_teacher_as_it_was() -> None:
    parent = network()
    student = with_guidance_input(parent)
    before = deepcopy(parent.state_dict())
    fit(module(small("guidance", {"images": 160}), student, Guided(Frozen(parent), 3)))
    assert all(torch.equal(before[key], value) for key, value in parent.state_dict().items())
    assert not torch.equal(student.state_dict()["network.inward.weight"], before["network.inward.weight"])


def test_a_clipped_teacher_counts_as_many_evaluations() -> None:
    counts = []
    for guided in (Guided(Frozen(network()), 3), Clipped(Guided(Frozen(network()), 3), -1.0, 1.0)):
        counts.append(module(small("guidance"), with_guidance_input(network()), guided).evaluations_per_image(batch()))
    assert counts[0] == counts[1] == 5  # two of the teacher, and the student's with its backward pass


class Weights(lightning.Callback):
    """The student's weights after each step."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.taken.append(dict(weights_of(pl_module.student)))


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_is_the_formula(decay: float) -> None:
    made, weights = teacher(ema_decay=decay, images=20 * 32), Weights()
    expected = {key: value.double() for key, value in weights_of(made.student)}
    fit(made, weights)
    assert len(weights.taken) == 20
    for step, student in enumerate(weights.taken):
        beta = min(decay, (1 + step) / (10 + step))
        expected = {key: beta * value + (1 - beta) * student[key] for key, value in expected.items()}
    for key, value in made.nets.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, made.student.state_dict()[key])


# Non-finite losses --------------------------------------------------------------------------------------------------


class BreaksAbove(nn.Module):
    """Says NaN for w above 3.5 (or, without w, for times above 0.9)."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments = {"guidance_input": True, "num_classes": 3}
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
        broken = time > 0.9 if w is None else w > 3.5
        return self.one * z.masked_fill(broken[:, None], torch.nan)


def test_a_non_finite_loss_names_stage_step_t_and_w(make_mixture: Any) -> None:
    made = module(small("guidance"), Denoiser(BreaksAbove()), Guided(make_mixture().denoise, 3))
    made.check_finite()  # nothing yet
    made.training_step(batch(256), 0)
    with pytest.raises(NonFiniteLossError) as caught:
        made.check_finite()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the loss must stay finite, got nan in stage guidance at step 0, t = 0.")
    assert float(message.split("w = ")[1].split(";")[0]) > 3.5
    assert message.endswith("lower stage.training.learning_rate (now 0.003)")


@pytest.mark.parametrize("role", ["fake", "critic"])
def test_a_non_finite_loss_of_another_role_names_it(role: str) -> None:
    made = module(small("dmd2 with critic"))
    with torch.no_grad():
        next(made.trained[role].parameters()).fill_(torch.nan)
    with at_step(1):  # where the student rests
        made.training_step(batch(), 0)
        with pytest.raises(NonFiniteLossError) as caught:
            made.check_finite()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"the loss of the {role} network must stay finite, got nan in stage dmd2 with critic")
    assert message.endswith(f"lower stage.training.roles.{role}.learning_rate (now 0.002)")
    assert caught.value.step == 1


def test_all_roles_that_are_not_finite_are_named() -> None:
    """The student's loss goes through the critic, whose divergence it shares in the same step."""
    made = module(small("dmd2 with critic"))
    with torch.no_grad():
        next(made.trained["critic"].parameters()).fill_(torch.nan)
    with at_step(2):  # where the student moves
        made.training_step(batch(), 0)
        with pytest.raises(NonFiniteLossError) as caught:
            made.check_finite()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the loss must stay finite, got nan in stage dmd2 with critic")
    assert (
        "; nor is that of the critic network finite, stage.training.roles.critic.learning_rate (now 0.002); " in message
    )
    assert message.endswith("lower stage.training.learning_rate (now 0.003)")


def test_a_non_finite_gradient_counts_as_one() -> None:
    """A finite loss can have an infinite gradient, which would spoil the weights before the next loss is seen."""
    made = teacher()
    made.training_step(batch(8), 0).backward()
    made.configure_gradient_clipping()
    made.check_finite()  # a good step
    made.training_step(batch(8), 1).backward()
    gradient = next(p.grad for p in made.student.parameters() if p.grad is not None)
    gradient.fill_(torch.inf)
    made.configure_gradient_clipping()
    with pytest.raises(NonFiniteLossError, match=r"gradient norm (inf|nan)"):
        made.check_finite()


def test_a_teachers_non_finite_loss_names_t() -> None:
    made = teacher(Denoiser(BreaksAbove()))
    made.training_step(batch(256), 0)
    with pytest.raises(NonFiniteLossError, match=r"stage teacher at step 0, t = 0\.9\d+; lower"):
        made.on_save_checkpoint({})


def test_a_mean_that_overflows_is_found_though_every_example_is_finite() -> None:
    class Huge(BreaksAbove):
        def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
            return self.one * torch.full_like(z, 1.5e19)

    made = teacher(Denoiser(Huge()))
    assert loss(made) == float("inf")
    with pytest.raises(NonFiniteLossError, match="in stage teacher at step 0, t = 0"):
        made.check_finite()


@EACH
def test_a_finite_loss_passes(name: str) -> None:
    made = module(small(name))
    made.training_step(batch_for(made.method), 0)
    made.check_finite()


def test_a_fit_stops_at_the_next_look() -> None:
    with pytest.raises(NonFiniteLossError, match="stage teacher at step 0"):
        fit(teacher(Denoiser(BreaksAbove()), images=51 * 256, batch_size=256))
