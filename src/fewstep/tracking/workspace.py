"""The W&B workspace of a project or a sweep, made from code: panels by question, from the names that are logged."""

import json
import os
from collections.abc import Sequence
from typing import Any

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

from fewstep.tracking import names
from fewstep.tracking.names import IMAGES, SAMPLE_FID
from fewstep.tracking.wandb_run import PROJECT, in_one_line, logged_in

NAME = "fewstep"
STAGE_GROUPS = ("training", "student")  # groups of settings inside a stage; any other group of `stage` is a stage
SCATTER, LINES = "wandb/scatter/v0", "wandb/line/v0"  # W&B's own charts of a table


def workspace(
    project: str, entity: str, *, sweep: str | None, outputs: str | None, swept: Sequence[str]
) -> ws.Workspace:
    """A workspace that is not saved yet.

    Args:
        sweep: id of a W&B sweep; only its runs are shown. outputs: the same for the folder of a local sweep.
        swept: what differs between the runs, as keys of their settings.
    """
    filters = []
    if sweep is not None:
        filters.append(expr.Metric("Sweep") == sweep)
    if outputs is not None:
        filters.append(expr.Config("outputs") == outputs)
    sections = [*([which_setting(swept)] if filters else []), *sections_of_any_project()]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=": ".join(filter(None, (NAME, sweep or (outputs and outputs.rstrip("/").rpartition("/")[2])))),
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=IMAGES, smoothing_type="none", max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=filters,
            pinned_columns=["run:displayName", "run:jobType", f"summary:{IMAGES}", f"summary:{SAMPLE_FID}"],
        ),
    )


def sections_of_any_project() -> list[ws.Section]:
    """Figures that compare where losses do not, quality by w and by steps, and what evaluations and training cost."""
    drifts = [over_images(f"{name} drift", names.drift_of(name)) for name in names.SAMPLE_STATISTICS]
    return [
        section(
            "Is it training?",
            over_images("loss", names.LOSS, log_y=True),
            over_images("gap to the teacher (0: a perfect student)", names.GAP, log_y=True),
            over_images("alarms", names.ALARMS),
            wr.MediaBrowser(title="samples, the same noise each time", media_keys=[names.SAMPLE_GRID], num_columns=3),
            over_images("gradient norm", names.GRADIENT_NORM, log_y=True),
            family("gradient norm by part", names.gradient_norm_of("")),
            *drifts,
            over_images("learning rate", names.LEARNING_RATE),
        ),
        section(
            "Which w?",
            of_table("quality over w", LINES, "w", "fid", "steps"),
            of_table("inception score over w", LINES, "w", "inception_score", "steps"),
            family("gap to the teacher by w", names.gap_at("w", 0, 0).rpartition("/")[0] + "/"),
        ),
        section(
            "Which steps?",
            of_table("quality over steps", LINES, "steps", "fid", "model"),
            family("error of one student step, by t", names.step_error_at(0).rpartition("=")[0] + "="),
            family("gap to the teacher by t", names.gap_at("t", 0, 0).rpartition("/")[0] + "/"),
            over_images("FID of the snapshots", SAMPLE_FID, log_y=True),
            over_images("inception score of the snapshots", names.SAMPLE_INCEPTION_SCORE),
        ),
        section(
            "What did it cost?",
            of_table("quality over evaluations an image", SCATTER, "nfe", "fid"),
            of_table("images per second over evaluations", SCATTER, "nfe", "images_per_second"),
            over_images("images per second of training", names.IMAGES_PER_SECOND),
            wr.BarPlot(title="images seen", metrics=[IMAGES], groupby="JobType", groupby_aggfunc="sum"),
            wr.BarPlot(title="seconds of each stage", metrics=["RelativeTime(Process)"], groupby="JobType"),
        ),
    ]


def which_setting(swept: Sequence[str]) -> ws.Section:
    """The settings in which a sweep's runs differ, beside their figures."""
    columns = [ParallelCoordinatesPlotColumn(metric=wr.Config(key_in_run(key))) for key in swept]
    last = ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(SAMPLE_FID), log=True)
    return section(
        "Which setting?",
        wr.BarPlot(title="FID of the last snapshot", metrics=[SAMPLE_FID], groupby="Group", max_bars_to_show=50),
        *([wr.ParallelCoordinatesPlot(title="settings and FID", columns=[*columns, last])] if columns else []),
        wr.ParameterImportancePlot(with_respect_to=SAMPLE_FID),
        wr.RunComparer(diff_only="split"),
    )


def key_in_run(key: str) -> str:
    """A sweep's key as the run of its stage has it: stage.guidance.w_max is stage.w_max there."""
    group, _, rest = key.lstrip("+~").partition(".")
    stage, _, inner = rest.partition(".")
    return f"{group}.{inner}" if group == "stage" and inner and stage not in STAGE_GROUPS else key.lstrip("+~")


def section(name: str, *panels: Any) -> ws.Section:
    layout = ws.SectionLayoutSettings(columns=3, rows=4)
    return ws.Section(name=name, panels=list(panels), is_open=True, layout_settings=layout)


def over_images(title: str, metric: str, *, log_y: bool = False) -> wr.LinePlot:
    """A metric over the images seen."""
    return wr.LinePlot(title=title, x=IMAGES, y=[metric], title_x="images", log_y=log_y or None)


def family(title: str, prefix: str) -> wr.LinePlot:
    """All metrics of a prefix, over the images seen."""
    return wr.LinePlot(title=title, x=IMAGES, metric_regex=f"{prefix}.*", title_x="images")


def of_table(title: str, chart: str, x: str, y: str, stroke: str | None = None) -> wr.CustomChart:
    """Two columns of the quality table against each other; a line for each value of `stroke`."""
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": names.QUALITY_TABLE}},
        chart_name=chart,
        chart_fields={"x": x, "y": y} | ({} if stroke is None else {"stroke": stroke}),
        chart_strings={"title": title},
    )


def as_json(made: ws.Workspace) -> str:
    """The workspace as W&B would get it."""
    view = made._to_model()
    about = {"entity": view.entity, "project": view.project, "name": view.display_name}
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps(about | {"spec": spec}, indent=1)


def save(made: ws.Workspace) -> str:
    """Save it in W&B and return its address.

    Raises:
        ValueError: there is no key, or W&B does not answer or refuses.
    """
    if not logged_in():
        raise ValueError("W&B has no key here, so no workspace was made: wandb login, or use --local or --json")
    try:
        import wandb

        made.entity = made.entity or str(wandb.Api(timeout=20).default_entity)
        return made.save().url
    except Exception as error:
        raise ValueError(
            f"W&B did not take the workspace ({in_one_line(error)}); check the key, --entity and --project"
        ) from error


def default_project() -> tuple[str, str]:
    """The project and entity that runs are logged to."""
    return os.environ.get("WANDB_PROJECT", PROJECT), os.environ.get("WANDB_ENTITY", "")
