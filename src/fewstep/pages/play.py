"""The page of `fewstep play`: sliders for w, steps and seed; student beside teacher, redrawn while they move."""

import base64
import traceback
from collections.abc import Callable
from functools import partial
from io import BytesIO

import panel as pn
from markupsafe import Markup
from panel.viewable import Viewable

from fewstep.artifacts.model_file import ModelCard
from fewstep.pages.drawing import Asked, Chain, Drawn, Superseded
from fewstep.pages.newest import Newest
from fewstep.pages.serving import STYLE
from fewstep.system.durations import duration

CLASSES_AT_ONCE = 20  # at most so many classes are buttons
MOST_SEED = 99
EVERY = "all"

CARD = Markup(
    '<div class="picture-card {kind}{faded}"><h2>{title}</h2><p class="how">{how}</p>'
    '<div class="picture">{picture}</div><p class="time">{time}</p><p class="note">{note}</p></div>'
)
HEADER = Markup('<h1>{title}</h1><p>{about}</p><p class="path">{path}</p>')


class PlayPage:
    """One visitor's page. Whatever control moves, the student is drawn at once, and the teacher once they rest."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        card = chain.card
        low, high = chain.w_range
        steps = chain.steps
        best = card.num_steps if card.num_steps in steps else min(steps[-1], 8)
        if card.w_values:
            values = {f"{w:g}": w for w in sorted(card.w_values)}
            self.w = pn.widgets.DiscreteSlider(name="Guidance w", options=values, value=chain.model.default_w)
        else:
            self.w = pn.widgets.FloatSlider(
                name="Guidance w",
                start=low,
                end=max(high, low + 0.1),
                step=0.1,
                value=chain.model.default_w,
                disabled=low == high,
            )
        self.steps = pn.widgets.DiscreteSlider(name="Steps", options=steps, value=best)
        self.seed = pn.widgets.IntSlider(name="Seed", start=0, end=MOST_SEED, value=0)
        self.wanted = wanted_widget(card)
        self.student, self.teacher = (
            pn.pane.HTML(
                "", stylesheets=[STYLE], css_classes=["flush"], styles={"flex": "1 1 380px", "max-width": "640px"}
            )
            for _ in "ab"
        )
        self._teacher_drawn: Drawn | None = None
        self._document = pn.state.curdoc
        self._newest = Newest(self._draw)
        for widget in (self.w, self.steps, self.seed, self.wanted):
            widget.param.update(stylesheets=[STYLE], css_classes=["control"])
            widget.param.watch(lambda _: self._ask(), "value")  # not value_throttled: while the slider moves
        self._show(None, None)
        self._ask()

    def view(self) -> Viewable:
        """The page."""
        widgets = (self.w, self.steps, self.seed, self.wanted)
        for widget in widgets:
            widget.sizing_mode = "stretch_width"
        controls = pn.Column(*widgets, stylesheets=[STYLE], css_classes=["card"], styles={"flex": "0 1 310px"})
        sides = [self.student, *([self.teacher] if self.chain.teacher else [])]
        header = pn.pane.HTML(
            str(header_of(self.chain)), stylesheets=[STYLE], css_classes=["flush"], sizing_mode="stretch_width"
        )
        return pn.Column(
            header,
            pn.FlexBox(controls, *sides, gap="20px", margin=(18, 0, 0, 0), sizing_mode="stretch_width"),
            sizing_mode="stretch_width",
            styles={"max-width": "1500px", "margin": "0 auto", "padding": "26px 24px", "box-sizing": "border-box"},
        )

    def close(self) -> None:
        """Draw no more."""
        self._newest.close()

    def _ask(self) -> None:
        self._newest.ask(
            Asked(
                w=float(self.w.value),
                steps=int(self.steps.value),
                seed=int(self.seed.value),
                wanted=None if self.wanted.value == EVERY else self.wanted.value,
                num=self.chain.num,
            )
        )

    def _draw(self, asked: Asked, stop: Callable[[], bool]) -> None:
        """In the worker's thread: the student always, the teacher unless something newer is wanted."""
        try:
            student = self.chain.draw_student(asked)
            self._later(partial(self._show, student, None))
            if self.chain.teacher is not None:
                self._later(partial(self._show, student, self.chain.draw_teacher(asked, stop)))
        except Superseded:
            pass
        except Exception as error:
            if not isinstance(error, ValueError):
                traceback.print_exc()
            self._later(partial(self._show_problem, str(error) or type(error).__name__))

    def _later(self, action: Callable[[], None]) -> None:
        """In the page's own thread, when it comes to it."""
        if self._document is None:
            action()
        else:
            self._document.add_next_tick_callback(action)

    def _show(self, student: Drawn | None, teacher: Drawn | None) -> None:
        own = self.chain.card
        is_teacher = own.role == "teacher"
        faster = ""
        if teacher is not None:
            self._teacher_drawn = teacher
        if student is not None and (known := self._teacher_drawn) is not None:
            faster = Markup("<b>{:.3g} times</b> as fast as the teacher").format(known.seconds / student.seconds)
        note = faster or self.chain.why_alone
        if student is not None and student.made_for and student.made_for != student.steps:
            note = Markup('<span class="caution">made for {} steps, not {}: expect worse images</span>').format(
                student.made_for, student.steps
            )
        self.student.object = str(card_of("teacher" if is_teacher else "student", name_of(own), student, note))
        if self.chain.teacher is not None:
            shown, faded = (teacher, False) if teacher is not None else (self._teacher_drawn, True)
            self.teacher.object = str(card_of("teacher", "Teacher", shown, "", faded=faded))

    def _show_problem(self, problem: str) -> None:
        self.student.object = str(card_of("student", name_of(self.chain.card), None, "", problem=problem))


def page_of(chain: Chain) -> Callable[[], Viewable]:
    """What makes each visitor's page."""

    def page() -> Viewable:
        made = PlayPage(chain)
        pn.state.on_session_destroyed(lambda _: made.close())
        return made.view()

    return page


def wanted_widget(card: ModelCard) -> pn.widgets.Widget:
    """What chooses a class or a prompt."""
    if card.data.text is not None:
        return pn.widgets.TextInput(name="Prompt, then Enter", value="a photograph of a temple")
    if card.data.num_classes > CLASSES_AT_ONCE:
        return pn.widgets.IntSlider(name="Class", start=0, end=card.data.num_classes - 1, value=0)
    options = {EVERY: EVERY, **{str(label): label for label in range(card.data.num_classes)}}
    return pn.widgets.RadioButtonGroup(name="Class", options=options, value=EVERY, button_type="default")


def name_of(card: ModelCard) -> str:
    """The model in two or three words."""
    return {"teacher": "Teacher", "guided": "Guided student"}.get(card.role, "Student")


def header_of(chain: Chain) -> Markup:
    """What is played with."""
    card = chain.card
    parameters = sum(p.numel() for p in chain.model.denoiser.parameters())
    made_for = f"made for {card.num_steps} step{'s' * (card.num_steps != 1)}" if card.num_steps else "for any steps"
    guided = "" if card.w_max is None else f", w in [{card.w_min:g}, {card.w_max:g}]"
    about = (
        f"{name_of(card)} of {card.data.name}, {made_for}{guided}, {parameters:,} parameters. Both sides start from "
        "the same noise and ask for the same."
    )
    return HEADER.format(title="fewstep play", about=about, path=chain.path)


def card_of(
    kind: str, title: str, drawn: Drawn | None, note: str, *, faded: bool = False, problem: str | None = None
) -> Markup:
    """One side of the page."""
    if drawn is None:
        text = Markup('<div class="wait{}">{}</div>').format(" problem" if problem else "", problem or "drawing ...")
        return CARD.format(kind=kind, faded="", title=title, how="", picture=text, time="", note="")
    buffer = BytesIO()
    drawn.picture.save(buffer, format="PNG", compress_level=1)
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    width, height = drawn.picture.size
    image = Markup('<img src="{}" width="{}" height="{}" alt="{}">').format(address, width, height, f"samples, {title}")
    steps = f"{drawn.steps} step{'s' * (drawn.steps != 1)}"
    evaluations = f"{drawn.evaluations} evaluation{'s' * (drawn.evaluations != 1)}"
    how = f"{steps}, {evaluations} an image, w = {drawn.w:g} (scale {1 + drawn.w:g}), seed {drawn.seed}"
    time = Markup("<b>{}</b>for {} images, {} each").format(
        duration(drawn.seconds), drawn.num, duration(drawn.milliseconds / 1000)
    )
    return CARD.format(
        kind=kind, faded=" faded" if faded else "", title=title, how=how, picture=image, time=time, note=note
    )
