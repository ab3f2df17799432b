"""Students of another size, and features held near the teacher's."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from small_methods import module, small
from torch import nn

from fewstep.data.batch import Batch
from fewstep.diffusion.guidance import Guided
from fewstep.methods.draws import Draws
from fewstep.methods.feature_matching import ATTENTION, FeatureMatching, relative_error
from fewstep.methods.guidance import PROJECTION
from fewstep.methods.losses import Loss
from fewstep.networks import Denoiser, DiT, Frozen, ResidualMLP, UNet, UNet2D, with_guidance_input, with_inputs
from fewstep.networks.denoiser import arguments_of
from fewstep.networks.features import MiddleAttention
from fewstep.networks.smaller import middle, smaller_student
from fewstep.training.module import DistillationModule

IMAGES = {"shape": (3, 8, 8), "num_classes": 3}
TEACHERS = {
    "mlp": lambda: ResidualMLP(shape=(2,), num_classes=3, width=16, num_blocks=2, embedding_dim=8),
    "unet": lambda: UNet(
        **IMAGES, channels=[8, 16], num_blocks=1, attention=[False, False], head_dim=8, norm_groups=4, guidance_dim=8
    ),
    "dit": lambda: DiT(
        **IMAGES, config={"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 4}, guidance_dim=8
    ),
}
ATTENDING = {
    "dit": TEACHERS["dit"],
    "attending": lambda: UNet(
        **IMAGES, channels=[8, 16], num_blocks=1, attention=[False, True], head_dim=8, norm_groups=4, guidance_dim=8
    ),
}
CHANGES = {
    "attending": {"channels": [8], "attention": [True]},
    "mlp": {"width": 8, "num_blocks": 1},
    "unet": {"channels": [8], "attention": [False]},
    "dit": {"config": {"num_layers": 2, "num_attention_heads": 1}},
}


def guided_of(teacher: Denoiser, changes: dict) -> Denoiser:
    """A smaller student with a w input."""
    return smaller_student(with_guidance_input(teacher), changes)


def teacher_of(kind: str) -> Denoiser:
    torch.manual_seed(0)
    network = {**TEACHERS, **ATTENDING}[kind]()
    for parameter in network.parameters():  # what is zero at first would hide mistakes
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return Denoiser(network)


def module_of(student: Denoiser, teacher: object, feature_matching: float) -> DistillationModule:
    method = small("guidance with features", {"weight": "snr"}, w_max=2.0, feature_matching=feature_matching)
    return module(method, student, teacher)  # pyright: ignore[reportArgumentType]


def projection_of(made: DistillationModule) -> FeatureMatching:
    matching = made.nets.trained[PROJECTION]
    assert isinstance(matching, FeatureMatching)
    return matching


def batch_for(denoiser: Denoiser) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(8, *arguments_of(denoiser.network)["shape"], generator=generator), torch.arange(8) % 3)


def losses_of(made: DistillationModule, batch: Batch) -> Mapping[str, Loss]:
    draws = Draws.begin(batch.x, made.stream, 0)
    return made.method.losses(batch, made.nets, draws, step=0, phase=made.phase)


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_smaller_student_keeps_the_weights_that_fit_and_takes_w(kind):
    teacher = teacher_of(kind)
    student = guided_of(teacher, CHANGES[kind])
    count = lambda model: sum(p.numel() for p in model.network.parameters())  # noqa: E731
    assert count(student) < count(teacher)
    assert student.has_guidance_input
    own, theirs = student.network.state_dict(), teacher.network.state_dict()
    same = [name for name in own if name in theirs and own[name].shape == theirs[name].shape]
    assert same
    assert all(torch.equal(own[name], theirs[name]) for name in same)
    if kind == "dit":  # nested arguments that were not named stay
        assert arguments_of(student.network)["config"]["attention_head_dim"] == 4


def test_of_the_same_size_it_is_the_teacher():
    teacher = teacher_of("mlp")
    for parent in (teacher, with_guidance_input(teacher)):
        student = smaller_student(parent, {})
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), parent.parameters(), strict=True))


@pytest.mark.parametrize("kind", TEACHERS)
def test_it_has_the_scalar_inputs_of_what_it_is_made_of(kind):
    """A student that is guided by two evaluations, or not at all, has no w input because it is smaller."""
    teacher = teacher_of(kind)
    assert not smaller_student(teacher, CHANGES[kind]).has_guidance_input
    assert smaller_student(with_inputs(teacher, ("w", "s")), CHANGES[kind]).extra_inputs == ("s",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"widht": 8}, "widht"), ({"num_classes": 4}, "num_classes"), ({"width": 0}, "width"), ({"width": "x"}, "width")],
)
def test_what_makes_no_network_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        guided_of(teacher_of("mlp"), changes)


@pytest.mark.parametrize("kind", TEACHERS)
def test_features_of_the_student_are_compared_with_the_conditional_branch(kind):
    """The error is that of a second computation, by hooks of this test, on the conditional call alone."""
    teacher = teacher_of(kind)
    student = guided_of(teacher, CHANGES[kind])
    made = module_of(student, Guided(Frozen(teacher), 3), feature_matching=0.5)
    assert made.nets.teacher is not None
    x, label = batch_for(teacher)
    log_snr, w = torch.linspace(-3, 3, 8), torch.linspace(0, 2, 8)
    with torch.no_grad():
        made.nets.teacher(x, log_snr, label, w)
        student(x, log_snr, label, w)
        error = projection_of(made)()
        seen: dict[str, torch.Tensor] = {}
        for name, model in (("own", student), ("goal", teacher)):
            handle = middle(model.network).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
            model(x, log_snr, label, w)
            handle.remove()
        own, goal = (each.movedim(1, -1) if each.ndim == 4 else each for each in (seen["own"], seen["goal"]))
        expected = relative_error(projection_of(made).projection, own, goal)
        weighted = losses_of(made, batch_for(teacher))[PROJECTION].error
        twice = module_of(student, Guided(Frozen(teacher), 3), feature_matching=1.0)
    assert error.shape == (8,)
    torch.testing.assert_close(error, expected)
    torch.testing.assert_close(2 * weighted, losses_of(twice, batch_for(teacher))[PROJECTION].error)
    assert float(error.min()) > 0


def test_the_error_is_zero_where_the_projection_finds_the_teachers_features_and_relative_elsewhere():
    goal = torch.randn(5, 3, 3, 4)  # channels last
    found = nn.Linear(4, 4, bias=False)
    nn.init.eye_(found.weight)
    torch.testing.assert_close(relative_error(found, goal, goal), torch.zeros(5))
    torch.testing.assert_close(relative_error(found, 2 * goal, goal), torch.ones(5))  # |2f - f|^2 / |f|^2
    torch.testing.assert_close(relative_error(found, 200 * goal, 100 * goal), torch.ones(5))
    larger = goal.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(relative_error(found, larger, goal), torch.zeros(5))


def test_the_projection_learns_with_the_student_and_is_no_part_of_the_model():
    teacher = teacher_of("mlp")
    student = guided_of(teacher, CHANGES["mlp"])
    made = module_of(student, Guided(Frozen(teacher), 3), feature_matching=1.0)
    optimiser = made.configure_optimizers()["optimizer"]  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue]
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    projection = projection_of(made).projection
    assert id(projection.weight) in trained
    assert {id(p) for p in student.parameters()} <= trained
    assert not any("projection" in name and "guidance" not in name for name in made.nets.model.state_dict())
    losses_of(made, batch_for(teacher))[PROJECTION].error.mean().backward()
    assert projection.weight.grad is not None
    assert projection.weight.grad.abs().max() > 0
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())  # which is the point of it
    assert all(p.grad is None for p in teacher.parameters())


def test_the_same_stream_gives_the_same_projection():
    teacher = Guided(Frozen(teacher_of("mlp")), 3)
    made = [FeatureMatching.between(guided_of(teacher_of("mlp"), {}), teacher, s) for s in ("a", "a", "b")]
    assert torch.equal(made[0].projection.weight, made[1].projection.weight)
    assert not torch.equal(made[0].projection.weight, made[2].projection.weight)


def test_features_of_no_network_are_refused(make_mixture):
    exact = Guided(make_mixture().denoise, 3)
    student = guided_of(teacher_of("mlp"), {})
    with pytest.raises(ValueError, match="trained teacher"):
        module_of(student, exact, feature_matching=1.0)
    with pytest.raises(ValueError, match="at least 0"):
        module_of(student, exact, feature_matching=-1.0)


def test_unet2d_has_a_middle():
    network = UNet2D(
        **IMAGES,
        guidance_dim=8,
        config={
            "block_out_channels": [4, 8],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "norm_num_groups": 4,
            "attention_head_dim": 4,
        },
    )
    assert isinstance(middle(network), nn.Module)


NEAREST = {"dit": "transformer.transformer_blocks.2.attn1", "attending": "unet.down_blocks.1.attentions.0"}


@pytest.mark.parametrize("kind", ATTENDING)
def test_attention_is_what_its_last_layer_gives(kind):
    """Of a U-Net, whose layer adds its input itself, as of a DiT: by a hook of this test on the layer inside."""
    teacher = teacher_of(kind)
    watched = MiddleAttention(teacher)
    layer = teacher.network.get_submodule(NEAREST[kind])
    seen: list[Any] = []
    layer.get_submodule("to_out.0").register_forward_hook(lambda module, inputs, output: seen.append(output))
    x, label = batch_for(teacher)
    with torch.no_grad():
        teacher(x, torch.linspace(-3, 3, 8), label, None)
    found = watched.take()
    assert found.shape[1:] == (*watched.places, watched.channels)
    torch.testing.assert_close(found.flatten(1, -2), seen[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ATTENDING)
def test_attention_is_matched_beside_features_each_by_its_own_projection(kind):
    teacher = teacher_of(kind)
    student, weights = guided_of(teacher, CHANGES[kind]), {"feature_matching": 0.5, "attention_matching": 2.0}
    method = small("guidance with features", {"weight": "snr"}, w_max=2.0, **weights)
    made = module(method, student, Guided(Frozen(teacher), 3))
    assert made.method.roles == ("student", PROJECTION, ATTENTION)
    found = losses_of(made, batch_for(teacher))
    found[ATTENTION].error.mean().backward()
    attends = {"dit": NEAREST["dit"].replace("2", "1"), "attending": "unet.down_blocks.0.attentions.0"}[kind]
    gradient = student.network.get_submodule(attends).get_parameter("to_q.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    matching = made.nets.trained[ATTENTION]
    assert isinstance(matching, FeatureMatching)
    assert matching.projection.weight.grad is not None
    assert projection_of(made).projection.weight.grad is None  # of features, which is another one


def test_attention_that_is_not_there_or_does_not_compare_is_one_line():
    mlp = teacher_of("mlp")
    with pytest.raises(ValueError, match=r"ResidualMLP has none; use attention_matching=0"):
        FeatureMatching.between(guided_of(mlp, {}), Guided(Frozen(mlp), 3), "a", ATTENTION)
    dit = teacher_of("dit")
    coarse = guided_of(dit, {"config": {"patch_size": 4}})
    with pytest.raises(ValueError, match="the student has 4 in its middle, its teacher 16"):
        FeatureMatching.between(coarse, Guided(Frozen(dit), 3), "a", ATTENTION)
