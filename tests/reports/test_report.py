"""report.html from a made-up run folder."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from fewstep.artifacts.quality_file import names_in_order, read_rows
from fewstep.reports.charts import COLOURS, colours
from fewstep.reports.report import write_report
from fewstep.reports.summary import fid_ratio, fid_ratio_half_width, headline, references, speed_table
from fewstep.system.files import write_json

HOSTILE = '</pre><script>alert("x")</script><img src="http://example.org/x.png">'


class Page(HTMLParser):
    """The tags of a page, the addresses it asks for and its text; every element is closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name.split(":")[-1] in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def edit(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def report(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_the_page_asks_for_nothing_and_is_small(run):
    page = report(run)
    assert (run / "report.html").stat().st_size < 5_000_000
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "http" not in html.replace("http-equiv", "")
    assert not re.search(r"@import|url\((?!#)", html)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml",
        "provenance.json",
        "quality.json",
        "report.html",
        "samples",
    ]


def test_every_part_is_there(run):
    page = report(run)
    text = page.text
    assert "2 steps, 2 evaluations per image instead of 128: FID 3.16 against the teacher’s 3.12 at w = 0" in text
    assert len([a for a in page.addresses if a.startswith("data:image/png")]) == 48
    assert page.tags.count("svg") == 4 + 5 + 3  # a panel per w, per number of student's steps, per training run
    for heading in (
        "Same noise",
        "FID against steps",
        "inception score",
        "Speed",
        "Quality",
        "Training loss",
    ):
        assert heading in text
    assert "w = 4 (scale 5)" in text
    assert page.tags.count("mark") == 48 + 3  # a ratio per row, and the key
    assert "name: pipeline" in text
    assert "abc12345" in text
    assert "a processor" in text
    assert "5e5e5e5e5e5e5e5e" in text


def test_the_mixture_shows_scatter_plots_and_no_accuracy(run):
    for path in (run / "samples" / "same-noise").iterdir():
        Image.new("RGB", (160, 160), "white").save(path)
    edit(
        run / "quality.json",
        lambda rows: [{**row, "accuracy": None, "fid": row["fid"] / 1000} for row in rows],
    )
    page = report(run)
    assert "Class accuracy" not in page.text
    assert 'width="120" height="120"' in (run / "report.html").read_text(encoding="utf-8")


def test_large_pictures_still_fit(run):
    first, *others = (run / "samples" / "same-noise").iterdir()
    Image.effect_noise((2560, 64), 100).save(first)
    for path in others:
        shutil.copy(first, path)
    page = report(run)
    assert (run / "report.html").stat().st_size < 5_000_000
    assert sum(a.startswith("data:image/jpeg") for a in page.addresses) == 48


def test_what_is_missing_is_said(run):
    shutil.rmtree(run / "samples")
    shutil.rmtree(run.parent.parent / "guided")
    (run / "config.yaml").unlink()
    text = report(run).text
    assert "There are no pictures" in text
    assert text.count("Its run folder has no metrics.csv any more") == 1
    assert "There is no config.yaml" in text

    before = (run / "report.html").read_bytes()
    assert write_report(run).read_bytes() == before  # nothing but the files enters

    (run / "provenance.json").unlink()
    text = report(run).text
    assert "no training run" in text
    assert "There is no provenance.json" in text


def test_a_broken_picture_leaves_its_cell_empty(run):
    broken = run / "samples" / "same-noise" / "teacher-64-w0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert sum(a.startswith("data:image/") for a in report(run).addresses) == 47


def test_one_model_alone_has_a_page_too(run):
    edit(run / "quality.json", lambda rows: [row for row in rows if row["model"] == "teacher"])
    assert "no gain to state" in report(run).text


def test_hostile_strings_stay_text(run):
    (run / "config.yaml").write_text(f"name: {HOSTILE}\n")
    edit(run / "provenance.json", lambda content: content.update(device=HOSTILE))
    edit(run / "quality.json", lambda rows: [{**row, "sampler": HOSTILE} for row in rows])
    page = report(run)
    assert "script" not in page.tags
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert page.text.count(HOSTILE) >= 3


def test_rows_of_two_protocols_never_share_a_page(run):
    edit(run / "quality.json", lambda rows: rows[0].update(protocol="other678"))
    with pytest.raises(ValueError, match="abc12345, other678") as refused:
        write_report(run)
    assert "\n" not in str(refused.value)
    assert not (run / "report.html").exists()


def test_provenance_of_another_protocol_is_refused(run):
    edit(run / "provenance.json", lambda content: content["protocol"].update(id="other678"))
    with pytest.raises(ValueError, match="other678"):
        write_report(run)


@pytest.mark.parametrize("content", ["[", "{}", "[]", "[1]", '[{"model": "teacher"}]'])
def test_a_malformed_table_is_one_clear_line(run, content):
    (run / "quality.json").write_text(content)
    with pytest.raises(ValueError, match="evaluate") as refused:
        write_report(run)
    assert "\n" not in str(refused.value)


def test_no_table_names_the_next_command(tmp_path):
    with pytest.raises(ValueError, match="fewstep evaluate MODEL"):
        write_report(tmp_path)


def test_the_headline_is_the_fewest_steps_within_a_tenth_of_the_teacher(run):
    rows = read_rows(run / "quality.json")
    best = headline(rows)
    assert best is not None
    assert (best.speed.model, best.speed.steps, best.speed.nfe, best.reference_speed.nfe) == ("progressive", 2, 2, 128)
    assert best.within
    assert best.reference_speed.images_per_second == pytest.approx(2500 / 64)
    assert best.speed.faster == pytest.approx(2500 / (2500 / 64))
    assert [w for w, _ in sorted(references(rows).items())] == [0.0, 1.0, 2.0, 4.0]
    assert all(row.steps == 64 for row in references(rows).values())

    bad = [row for row in rows if row.model != "progressive"]
    nearest = headline(bad)
    assert nearest is not None
    assert not nearest.within or nearest.speed.model == "guided"


def test_ratios_are_to_the_teacher_at_the_same_w(run):
    rows = read_rows(run / "quality.json")
    reference = references(rows)
    assert all(fid_ratio(row, reference) == 1.0 for row in reference.values())
    without = {w: row for w, row in reference.items() if w != 4.0}
    assert {row.w for row in rows if fid_ratio(row, without) is None} == {4.0}


def test_a_teacher_that_skips_the_branch_at_w_0_is_not_the_reference_of_speed(run):
    edit(
        run / "quality.json",
        lambda rows: [
            {**row, "nfe": row["steps"], "images_per_second": row["images_per_second"] * 2}
            if (row["model"], row["w"]) == ("teacher", 0.0)
            else row
            for row in rows
        ],
    )
    speeds = speed_table(read_rows(run / "quality.json"))
    assert [(s.nfe, s.fewer_evaluations) for s in speeds if (s.model, s.steps) == ("teacher", 64)] == [
        (128, 1.0),
        (64, 2.0),
    ]


def test_intervals_and_the_energy_distance_are_shown_where_rows_have_them(run):
    assert "±" not in report(run).text
    own = {"energy_distance": 0.5, "energy_floor": 0.125}

    def judged(row):
        return row | own | {"intervals": {"fid": [0.9 * row["fid"], 1.1 * row["fid"]], "energy_distance": [0.25, 0.75]}}

    edit(run / "quality.json", lambda rows: [judged(row) for row in rows])
    (row, *_), text = read_rows(run / "quality.json"), report(run).text
    assert row.half_width("fid") == pytest.approx(0.1 * row.fid)
    assert row.half_width("accuracy") is None
    width = fid_ratio_half_width(row, {row.w: row})
    assert width == pytest.approx(0.1 * 2**0.5)
    assert all(words in text for words in ("0.500 ± 0.250", "0.125", "3.12 ± 0.312", "± 0.14", "over the noise"))


@pytest.mark.parametrize("wrong", [{"fid": [2, 1]}, {"fid": [1]}, {"fid": 3}, 3])
def test_an_interval_that_is_none_is_refused(run, wrong):
    edit(run / "quality.json", lambda rows: [row | {"intervals": wrong} for row in rows])
    with pytest.raises(ValueError, match="evaluate again"):
        write_report(run)


def test_figures_of_text_have_their_columns(run):
    assert "CLIP" not in write_report(run).read_text()
    rows = json.loads((run / "quality.json").read_text())
    (run / "quality.json").write_text(json.dumps([{**row, "kid": 0.125, "clip_score": 31.25} for row in rows]))
    page = write_report(run).read_text()
    assert "<th>KID</th><th>CLIP<br>score</th>" in page
    assert page.count("31.2") >= len(rows)


def test_the_students_of_every_method_stand_side_by_side(run):
    rows = read_rows(run / "quality.json")
    students = [row for row in rows if row.is_few_step]
    methods = ("zeta", "alpha")  # in the order of the file, not of the alphabet
    others = [replace(row, model=method, fid=row.fid * 1.01) for method in methods for row in students]
    baselines = [replace(row, sampler="unipc") for row in rows if row.model == "teacher" and row.steps == 8]
    write_json(run / "quality.json", [row.as_dict() for row in [*rows, *baselines, *others]])
    rows = read_rows(run / "quality.json")
    names = ["teacher", "guided", "progressive", "zeta", "alpha", "teacher, unipc"]
    assert names_in_order(rows) == names
    assert {row.name for row in rows if row.is_few_step} == {"progressive", *methods}
    colour = colours(names)
    assert len(set(colour.values())) == len(names)
    assert (colour["teacher"], colour["guided"]) == (COLOURS["teacher"], COLOURS["guided"])

    page = report(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    for name in names:
        assert f'<i style="color: {colour[name]}"></i>{name}</li>' in html
        assert f'<td class="left">{name}</td>' in html  # of the table of speed
    assert "2 steps, 2 evaluations per image instead of 128: FID 3.16" in page.text  # of the best of the three


def test_students_after_a_base_and_traces_have_their_place(run):
    rows = json.loads((run / "quality.json").read_text())
    hybrids = [
        row | {"sampler": "base + ddim", "base_steps": 1, "base_w": 0.0, "fid": 0.5 * row["fid"]}
        for row in rows
        if row["model"] == "progressive" and row["steps"] > 1
    ]
    (run / "quality.json").write_text(json.dumps([row | {"vendi": 3.25} for row in rows + hybrids]))
    curves = [
        {"model": model, "w": 1.0, "times": [1.0, 0.5], "rmse": [0.4, 0.0], "features": [0.8, 0.0]}
        for model in ("teacher", "progressive")
    ]
    (run / "trace.json").write_text(json.dumps(curves))
    (run / "samples" / "trace").mkdir()
    Image.new("L", (96, 96), 100).save(run / "samples" / "trace" / "teacher, 2 steps.png")
    page = write_report(run).read_text()
    assert "progressive + base" in page
    assert "the teacher takes 1 step at w = 0" in page
    assert page.count("<td>3.25</td>") == len(rows + hybrids)
    assert "When an image is decided" in page
    assert page.count("predictions of teacher, 2 steps") == 1
    best = headline(read_rows(run / "quality.json"))
    assert best is not None
    assert best.speed.model == "progressive"  # what a base repairs is not the student's gain
    for wrong in ("{", "[1]", '[{"model": "a"}]', json.dumps([curves[0] | {"rmse": []}])):
        (run / "trace.json").write_text(wrong)
        with pytest.warns(UserWarning, match=r"trace\.json is left out: .*evaluate again"):
            assert "When an image is decided" not in write_report(run).read_text()
