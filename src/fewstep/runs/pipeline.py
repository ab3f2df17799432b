"""A run: one stage, an evaluation, or a pipeline of stages one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.artifacts.lineage import PARENTS, find_newest_students, models_in_folder, only_model
from fewstep.artifacts.model_file import load_model
from fewstep.artifacts.run_folder import QUALITY, REPORT, RunFolder
from fewstep.data.labels import NONE
from fewstep.diffusion.sampling import Sampling
from fewstep.distributed.collectives import on_main_process
from fewstep.methods.base import Method, Parent
from fewstep.methods.readings import check_student_at_noise, check_teacher_at_noise
from fewstep.methods.student_settings import StudentSettings
from fewstep.runs.automatic import announced
from fewstep.runs.build import (
    build_callbacks,
    build_data,
    build_evaluator,
    build_exact_teacher,
    build_method,
    build_plan,
)
from fewstep.runs.config import EVALUATE, EXACT, NO_TEACHER, PIPELINE, Settings
from fewstep.runs.evaluate import evaluate
from fewstep.runs.folders import loggers_of, open_folder
from fewstep.runs.parent import find_parent, method_of, open_evaluator
from fewstep.runs.train import train
from fewstep.system.validation import checked
from fewstep.teachers.imported import imported, is_foreign
from fewstep.training.loop import quiet_lightning


def run(settings: Settings) -> None:
    """Do what the settings say.

    Raises:
        ValueError, OSError: one line that says what to change.
    """
    quiet_lightning()
    settings = announced(settings)
    build_callbacks(settings.trainer)  # refused now, not at the first phase
    for note in settings.trainer.notes:
        print(f"note: {note}", flush=True)
    if settings.name == PIPELINE:
        run_pipeline(settings)
    elif settings.name == EVALUATE:
        run_evaluate(settings)
    else:
        train(settings)


@dataclass
class Chain:
    """The models that a pipeline has made or was given, oldest first.

    Attributes:
        teacher: of the settings, until a stage has made a model.
        parents: files that may be a stage's parent. made: those of the latest trained stage.
    """

    teacher: str | None
    parents: list[Path] = field(default_factory=list)
    made: list[Path] = field(default_factory=list)

    @classmethod
    def begin(cls, teacher: str | None) -> "Chain":
        """With the model that teacher=PATH names, where it is one of ours."""
        if teacher is not None and models_in_folder(Path(teacher)):
            teacher = str(only_model(Path(teacher), "teacher"))
        is_ours = teacher is not None and Path(teacher).suffix == ".safetensors"
        return cls(teacher, [Path(teacher)] if teacher is not None and is_ours else [])

    def parent_for(self, method: Method) -> str | None:
        """The newest model that can be the method's parent, as teacher= has it.

        Raises:
            ValueError: there is none.
        """
        wanted = method.parent()
        if wanted is None:
            return self.teacher if self.teacher == NO_TEACHER else None
        for path in reversed(self.parents):
            if accepts(wanted, load_model(path)[1].sampling):
                return str(path)
        return self.teacher

    def skips(self, method: Method) -> bool:
        """Whether a stage is left out, since a model that it would only lead up to was given."""
        if self.teacher is None or self.made:
            return False
        wanted = method.parent()
        if self.teacher == NO_TEACHER:
            return False
        if wanted is None:
            return True
        given = load_model(self.parents[0])[1].sampling if self.parents else wanted.teacher or Sampling()
        return not accepts(wanted, given)

    def add(self, files: Sequence[Path]) -> None:
        """What a stage has made."""
        self.parents.append(files[-1])
        self.made = [*files]


def accepts(parent: Parent, sampling: Sampling) -> bool:
    """Whether a model that is sampled so can be such a parent."""
    same = sampling.times is None and sampling.direction == "decode" and sampling.guidance in parent.accepted
    return same or sampling == parent.continues


def trained_stages(settings: Settings) -> list[str]:
    """A pipeline's stages but the evaluation; with teacher=none those that need no teacher and are none.

    Of data without labels those before the last that need them are left out: there is nothing to guide by.
    """
    stages = [stage for stage in settings.stages if stage != EVALUATE]
    if settings.labels == NONE:
        stages = [s for s in stages if s == stages[-1] or not build_method(settings.of_stage(s).stage).needs_labels]
    if settings.teacher != NO_TEACHER:
        return stages
    return [stage for stage in stages if method_named(settings.of_stage(stage)).parent() is not None][-1:]


def method_named(settings: Settings) -> Method:
    """The method of a stage whatever the teacher."""
    return method_of(settings.with_values({"teacher": None}))


def run_pipeline(settings: Settings) -> None:
    """The stages of `stage.stages`, each in its own folder, named by the pipeline's time; an evaluation judges all."""
    check_pipeline(settings)
    if settings.labels == NONE and (left_out := [*{*settings.stages} - {*trained_stages(settings), EVALUATE}]):
        words = f"dataset.labels=none: nothing to guide by, so without stage {', '.join(sorted(left_out))}"
        on_main_process(lambda: print(words, flush=True))
    judged = EVALUATE in settings.stages
    with open_folder(settings, [QUALITY, REPORT]) as folder:
        if folder.finished and settings.run_name is not None:
            return
        chain, files = Chain.begin(settings.teacher), []
        for stage in trained_stages(settings):
            own = settings.of_stage(stage, settings.teacher)
            method = method_of(own)
            if chain.skips(method):
                continue
            made = train(settings.of_stage(stage, chain.parent_for(method)), folder.path.name)
            chain.add(made)
            files = [*files, *made]
        if judged:
            own = settings.of_stage(EVALUATE)
            judge(own, folder, [*dict.fromkeys([*files, *chain.parents, *more_models(own)])])


def check_pipeline(settings: Settings) -> None:
    """Refuse at once what a pipeline's later stages would refuse after minutes.

    Raises:
        ValueError: names the setting.
    """
    chain = Chain.begin(settings.teacher)
    for stage in settings.stages:
        own = settings.of_stage(stage, settings.teacher)
        if stage == EVALUATE:
            build_plan(own.stage, settings.trainer)
    if chain.teacher is None:
        check_parents(settings)
        check_readings(settings)
    for stage in trained_stages(settings):
        own = settings.of_stage(stage, settings.teacher)
        method = method_of(own)
        settings.trainer.check_batch(method.training.batch_size)
        if chain.teacher == EXACT and not chain.skips(method):
            parent = method.parent()
            if parent is not None and parent.teacher is not None:
                build_exact_teacher(own, method, build_data(own, 1, "facts"))
        elif chain.teacher is not None and chain.teacher != NO_TEACHER and not chain.skips(method):
            find_parent(own, method, open_evaluator(own, method))
            break


def check_parents(settings: Settings) -> None:
    """Refuse a chain from a new teacher on, one of whose stages cannot follow from any of those before it.

    Raises:
        ValueError: names the stage, what it needs, and how the models before it are guided.
    """
    made: list[Sampling] = []
    for stage in trained_stages(settings):
        method = method_of(settings.of_stage(stage))
        parent = method.parent()
        if made and parent is not None and not any(accepts(parent, sampling) for sampling in made):
            needed = " or a ".join(PARENTS[kind].title for kind in parent.guidance)
            given = ", ".join(dict.fromkeys(PARENTS[sampling.guidance].title for sampling in made))
            raise ValueError(
                f"stage={stage} needs a {needed}, and the stages before it make a {given}; change stage.stages: for "
                "super-resolution it is [teacher,flow_trajectory,evaluate], for a class and a style "
                "[teacher,two_guidances,evaluate]"
            )
        if made or parent is None:
            made += [phase.sampling for phase in method.phases()]


def check_readings(settings: Settings) -> None:
    """Refuse a chain from a new teacher on whose networks' readings a later stage cannot build.

    Raises:
        ValueError: see `check_student_at_noise`.
    """
    model = settings.values["model"]
    kind = model["prediction"]
    for stage in () if model.get("native_schedule") else trained_stages(settings):
        method = method_of(settings.of_stage(stage))
        for phase in method.phases():
            if method.parent() is not None:
                check_teacher_at_noise(method, phase, kind, settings.schedule)
            kind = (method.prediction if isinstance(method, StudentSettings) else None) or kind
            check_student_at_noise(method, phase, kind, settings.schedule)


def run_evaluate(settings: Settings) -> None:
    """Judge the newest few-step students, or what teacher=PATH names: a model, or a run folder with all its models."""
    more = more_models(settings)
    with open_folder(settings, [QUALITY, REPORT]) as folder:
        own = [] if more and settings.teacher in (None, EXACT, NO_TEACHER) else models_to_judge(settings)
        judge(settings, folder, [*more, *own])


def more_models(settings: Settings) -> list[Path]:
    """The models of `stage.models`: files, or run folders with all their models.

    Raises:
        ValueError: it is no list of paths, or one holds no model.
    """
    paths = checked(settings.stage.get("models", ()), tuple[str, ...], "stage.models")
    return [model for path in paths for model in models_at(Path(path), "stage.models")]


def models_at(path: Path, setting: str) -> list[Path]:
    """The model file at `path`, or all of a run folder.

    Raises:
        ValueError: there is none.
    """
    models = models_in_folder(path) if path.is_dir() else [path]
    if not models:
        raise ValueError(f"{setting}={path} must be a model file or a folder that holds one, and holds none")
    return models


def models_to_judge(settings: Settings) -> list[Path]:
    """The model files that stage=evaluate is about.

    Raises:
        ValueError: there are none.
    """
    teacher = settings.teacher
    if teacher in (None, EXACT, NO_TEACHER):
        return find_newest_students(settings.outputs, settings.dataset_name)
    if is_foreign(teacher):
        return [imported(teacher, settings.outputs, build_data(settings, 1, "facts").facts)]
    return models_at(Path(teacher), "teacher")


def judge(settings: Settings, folder: RunFolder, models: Sequence[Path]) -> None:
    """Write quality.json, provenance.json, pictures and report.html of these models and their ancestors."""
    plan, evaluator, trainer = build_plan(settings.stage, settings.trainer), build_evaluator(settings), settings.trainer
    with loggers_of(settings, folder.path) as loggers:
        evaluate(
            models,
            plan,
            evaluator,
            folder.path,
            loggers,
            accelerator=trainer.accelerator,
            compiled=trainer.compile,
            samples=settings.samples,
        )
