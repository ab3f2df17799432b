"""What `fewstep play` draws, and in which order."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from running import Commands, make_chain

import fewstep
from fewstep.artifacts.model_file import load_model, save_model
from fewstep.evaluation.images import evaluation_tensor
from fewstep.pages.drawing import Asked, Chain, Superseded
from fewstep.pages.newest import Newest
from fewstep.reports.pictures import picture

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
ASKED = Asked(w=2.0, steps=2, seed=3, wanted=7, num=20)


@pytest.fixture(scope="module")
def models(as_users_run, tmp_path_factory) -> dict[str, Path]:
    return make_chain(tmp_path_factory.mktemp("chain"))


def test_the_student_is_drawn_as_sample_would(models):
    chain = Chain(models["2"])
    drawn = chain.draw_student(ASKED)
    facts = chain.card.data
    x = fewstep.load(models["2"]).sample([7] * 20, steps=2, w=2.0, seed=3)
    expected = picture(evaluation_tensor(x, facts), torch.full((20,), 7), facts, 10)
    assert drawn.picture.tobytes() == expected.tobytes()
    assert (drawn.steps, drawn.evaluations, drawn.num, drawn.made_for) == (2, 2, 20, 2)
    assert drawn.seconds > 0


def test_all_classes_are_drawn_in_turn(models):
    chain = Chain(models["2"])
    every = chain.draw_student(replace(ASKED, wanted=None)).picture
    x = fewstep.load(models["2"]).sample([*range(10)] * 2, steps=2, w=2.0, seed=3)
    assert (
        every.tobytes()
        == picture(evaluation_tensor(x, chain.card.data), torch.arange(20), chain.card.data, 10).tobytes()
    )


def test_each_number_of_steps_has_its_own_rung(models):
    chain = Chain(models["2"])
    assert chain.steps == [1, 2, 4, 8, 16]
    assert (chain.student(1).card.num_steps, chain.student(2).card.num_steps) == (1, 2)
    assert chain.student(8).card.num_steps == 2  # no rung: the model itself
    assert chain.draw_student(replace(ASKED, steps=1)).made_for == 1
    assert Chain(models["guided"]).steps == [1, 2, 4, 8, 16, 32, 64]


def test_the_teacher_is_the_ancestor_of_the_card(models):
    chain = Chain(models["2"])
    drawn = chain.draw_teacher(ASKED, lambda: False)
    teacher = fewstep.load(models["teacher"])
    x = teacher.sample([7] * 20, steps=64, w=2.0, seed=3)
    assert (
        drawn.picture.tobytes()
        == picture(evaluation_tensor(x, chain.card.data), torch.zeros(20), chain.card.data, 10).tobytes()
    )
    assert (drawn.steps, drawn.evaluations) == (64, 128)


def test_a_teacher_plays_alone(models):
    chain = Chain(models["teacher"])
    assert chain.teacher is None
    assert "teacher itself" in chain.why_alone
    assert chain.w_range == (0.0, 8.0)
    assert chain.draw_student(replace(ASKED, steps=4)).evaluations == 8


def test_a_student_whose_teacher_is_gone_plays_alone(models, tmp_path):
    denoiser, card = load_model(models["2"])
    save_model(tmp_path / "model-2.safetensors", denoiser, card)
    chain = Chain(tmp_path / "model-2.safetensors")
    assert chain.teacher is None
    assert "which is gone" in chain.why_alone
    chain.draw_student(ASKED)


def test_the_teacher_is_left_when_it_is_not_wanted_any_more(models):
    calls = iter(range(1000))
    with pytest.raises(Superseded):
        Chain(models["2"]).draw_teacher(ASKED, lambda: next(calls) >= 10)
    assert next(calls) < 15


def test_an_encoder_is_refused(models, tmp_path, commands: Commands):
    denoiser, card = load_model(models["2"])
    path = tmp_path / "encoder.safetensors"
    save_model(path, denoiser, replace(card, role="encoder"))
    commands.fewstep("play", path).is_one_error("encoder", "student")


def test_only_the_newest_request_counts():
    begun, go_on, done, told = threading.Event(), threading.Event(), threading.Event(), []

    def work(number, stop):
        told.append((number, stop()))
        begun.set()
        go_on.wait(10)
        told.append((number, stop()))
        if number == 4:
            done.set()

    newest = Newest(work)
    newest.ask(1)
    assert begun.wait(10)
    for number in (2, 3, 4):
        newest.ask(number)
    go_on.set()
    assert done.wait(10)
    newest.close()
    assert told == [(1, False), (1, True), (4, False), (4, False)]
