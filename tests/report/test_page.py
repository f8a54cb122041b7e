"""The report as a reader has it: a real browser, the file on disk, the network off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies import build

from gift_ray.report.collect import collect
from gift_ray.report.page import render, write_report

SCRIPT = "<script>alert(1)</script>"
LONG = ("very long name " * 20).strip()
SNOW = "雪だるま é ß $x_1$ & co, {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(
        build(tmp_path_factory.mktemp("finished") / "study", labels=True, nudity=True)
    )


@pytest.fixture(scope="module")
def opened(finished: Path, open_page):
    """The finished study's page, opened once; every test sets the controls that it looks at."""
    return open_page(finished)


def page_of(folder: Path) -> Path:
    """The page alone: figures and tables for papers have tests of their own."""
    path = folder / "report.html"
    path.write_text(render(collect(folder)), encoding="utf-8", newline="\n")
    return path


def traces(page, figure: str) -> list[str]:
    return page.evaluate(f"[...document.getElementById('{figure}').data].map(t => t.name || '')")


def test_opens_from_disk_without_an_error_or_a_request(finished: Path, opened) -> None:
    assert opened.errors == []
    assert [u for u in opened.requests if not u.startswith(("data:", "blob:"))] == [
        finished.as_uri()
    ]
    assert finished.stat().st_size < 10 * 2**20
    for figure in ("curves", "plane", "parallel", "cross", "training", "labels", "nudity"):
        assert traces(opened.page, figure), figure


def test_every_control_changes_what_is_shown(opened) -> None:
    page = opened.page
    for control in page.locator("select[data-figure]").all():
        figure = control.get_attribute("data-figure")
        options = control.locator("option:not([disabled])").all_text_contents()
        before = page.evaluate(f"JSON.stringify(document.getElementById('{figure}').data)")
        if len(options) > 1:
            control.select_option(options[-1])
            page.wait_for_function(
                "([id, old]) => JSON.stringify(document.getElementById(id).data) !== old",
                arg=[figure, before],
            )
            control.select_option(options[0])
    box = page.locator("input[data-group][value='abc_1/cat']")
    assert not any("trial 1" in name for name in traces(page, "curves"))
    box.check()
    page.wait_for_function(
        "document.getElementById('curves').data.some(t => (t.name || '').includes('trial 1'))"
    )
    assert "trial 1" in page.locator("#malicious-grid").inner_text()
    box.uncheck()
    for panel in ("malicious", "safe"):
        select = page.locator(f"select[data-panel={panel}]")
        last = select.locator("option").all_text_contents()[-1]
        shown = page.locator(f"#{panel}-grid img").first.get_attribute("src")
        select.select_option(last)
        assert page.locator(f"#{panel}-grid img").first.get_attribute("src") != shown
    for summary in page.locator("summary").all():
        summary.click()
    for link in page.locator("nav a").all():
        link.click()


def test_slider_moves_through_the_attack_by_keyboard(opened) -> None:
    page = opened.page
    slider = page.locator("#step")
    page.locator("select[data-panel=malicious]").select_option("cat: dreambooth, seed 0")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator("#step-value").inner_text() == "20 of 20"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#step-value").inner_text() == "5 of 20"
    assert "step 5" in page.locator("#malicious-grid").inner_text()


def test_pointing_at_a_marker_shows_its_images(opened) -> None:
    page = opened.page
    page.locator("#curves").scroll_into_view_if_needed()
    page.locator("#curves .scatterlayer .point").last.hover(force=True)
    page.wait_for_selector("#hovered img")
    assert "step" in page.locator("#hovered").inner_text()


def test_clicking_a_trial_leads_to_its_mlflow_run(opened) -> None:
    page = opened.page
    page.locator("#plane").scroll_into_view_if_needed()
    page.locator("#plane .scatterlayer .point").first.click(force=True)
    page.wait_for_selector("#trial a")
    assert "/runs/run" in page.locator("#trial a").get_attribute("href")
    links = page.locator("#search table a").evaluate_all("links => links.map(a => a.href)")
    assert {link.rsplit("/", 1)[1] for link in links} == {"run1", "run2", "run3"}


def test_dark_mode_follows_the_system_and_the_button(finished: Path, open_page) -> None:
    page = open_page(finished, scheme="dark").page
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    page.locator("#theme").click()
    assert page.evaluate(background) != dark
    assert page.locator("#theme").get_attribute("aria-pressed") == "false"


def test_unsafe_images_are_blurred_until_clicked(opened) -> None:
    page = opened.page
    select = page.locator("select[data-panel=malicious]")
    select.select_option("weapon: dreambooth, seed 0")
    images = page.locator("#malicious-grid img")
    blur = "image => getComputedStyle(image).filter"
    assert images.count() > 0
    assert all("blur" in image.evaluate(blur) for image in images.all())
    page.locator("#malicious-grid button").first.click()
    assert images.first.evaluate(blur) == "none"
    assert "blur" in images.nth(1).evaluate(blur)
    assert page.locator("#safe-grid button").count() == 0


@pytest.mark.parametrize(("show", "malicious", "safe"), [("none", 0, 0), ("safe_only", 1, 1)])
def test_images_are_absent_as_configured(
    show: str, malicious: int, safe: int, tmp_path: Path
) -> None:
    folder = build(tmp_path / "study", show=show, trials=1, ended=1)
    html = render(collect(folder))
    scenes = html.split('id="data"')[1].split("</script>")[0]
    assert ("data:image/webp" in scenes) == (show != "none")
    assert '"label": "weapon' not in scenes
    assert ('"label": "cat' in scenes) == bool(malicious)
    assert ('"label": "car' in scenes) == bool(safe)


def test_hostile_and_unusual_names_are_text(tmp_path: Path, open_page) -> None:
    names = {SCRIPT: "object", LONG: "unsafe", SNOW: "object"}
    folder = build(
        tmp_path / "study", malicious=names, safe={"a/b, c": "object"}, trials=1, ended=1
    )
    opened = open_page(write_report(folder))
    assert opened.errors == []
    shown = opened.page.locator("article h3").all_inner_texts()
    assert shown == [SCRIPT, LONG, SNOW]
    assert "<script>alert" in opened.page.locator("#cross").text_content()
    wide = opened.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


def test_a_comparison_shows_its_defenses_side_by_side(tmp_path: Path, open_page) -> None:
    folder = build(tmp_path / "study", rivals=("gift", "esd + imma"), labels=True)
    opened = open_page(page_of(folder))
    assert opened.errors == []
    page = opened.page
    for figure in ("standings", "curves", "plane", "cross", "training", "labels"):
        assert traces(page, figure), figure
    assert {"gift against cat", "esd + imma against cat"} <= set(traces(page, "curves"))
    page.locator("input[data-group][value='gift']").uncheck()
    page.wait_for_function(
        "!document.getElementById('curves').data.some(t => (t.name || '').startsWith('gift'))"
    )
    assert "esd + imma against cat" in page.locator("#malicious-grid").inner_text()
    for concept, other in (("cat", "weapon"), ("weapon", "cat")):
        page.locator("select[data-panel=malicious]").select_option(f"{concept}: dreambooth, seed 0")
        beside = page.locator("#safe-grid").inner_text()
        assert f"against {concept}" in beside
        assert f"against {other}" not in beside
    bands = len(traces(page, "curves"))
    page.locator("#bands").uncheck()
    page.wait_for_function(f"document.getElementById('curves').data.length < {bands}")
    assert page.locator("#standings .errorbars path").count() > 0
    assert "esd + imma" in page.locator("#verdict table").first.inner_text()


def test_a_half_done_comparison_says_so(tmp_path: Path) -> None:
    folder = build(tmp_path / "study", rivals=("gift", "esd"), finished=False, undone=("esd",))
    html = render(collect(folder))
    assert "This study is not finished" in html
    assert "The defenses have not been scored yet" in html
    assert "esd against cat: dreambooth on cat, seed 0: not done yet" in html


def test_a_half_done_study_says_so(tmp_path: Path, open_page) -> None:
    folder = build(
        tmp_path / "study", trials=3, ended=2, failed=1, finished=False, unscored=True,
        undone=("undefended: dreambooth on weapon",),
    )  # fmt: skip
    records = (folder / "steps").glob("evaluate-*/record.json")
    scores = next(path.parent for path in records if "chance car" in path.read_text())
    (scores / "scores.parquet").write_bytes(b"cut off")
    opened = open_page(page_of(folder))
    assert opened.errors == []
    text = opened.page.locator("main").inner_text()
    assert "This study is not finished" in text
    assert "2 of 3 trials" in text
    assert "undefended: dreambooth on weapon, seed 0: not done yet" in text
    assert "round 3: the loss is not finite" in text
    assert "clip_text could not score 1 of 2 images" in text
    assert "is damaged" in text
    assert "… undecided" in text


def test_what_a_trial_that_ended_early_left_out_is_not_missing(tmp_path: Path) -> None:
    study = collect(build(tmp_path / "study", failed=1))
    assert study.finished
    done, known = study.units
    assert done == known > 0
    assert "not done yet" not in {problem.why for problem in study.problems}
    html = render(study)
    assert "This study is not finished" not in html
    assert "round 3: the loss is not finite" in html


def test_a_study_that_has_just_begun_has_a_page(tmp_path: Path, open_page) -> None:
    opened = open_page(page_of(build(tmp_path / "study", ended=0, finished=False, undone=("",))))
    assert opened.errors == []
    assert "0 of 3 trials" in opened.page.locator("main").inner_text()


def test_the_verdict_is_the_one_that_the_gate_read(tmp_path: Path) -> None:
    folder = build(tmp_path / "study", registered=False, malicious={"cat": "object"})
    assert "<b>resists</b></p>" in render(collect(folder))
    summary = json.loads((folder / "summary.json").read_text())
    read = {"verdict": "not shown", "recovery": {"mean": 0.68, "low": 0.412, "high": 0.834},
            "needed": {"images": 96, "seeds": 3}}  # fmt: skip
    summary["chosen"][0]["concepts"] = {"cat": read}
    (folder / "summary.json").write_text(json.dumps(summary))
    html = " ".join(render(collect(folder)).split())
    assert "<b>not shown</b></p>" in html
    assert "<b>0.412 to 0.834</b>" in html
    assert "96 images at each step of 3 seeds" in html
    assert "blind: no part of a verdict" in html


def test_a_refused_study_gives_the_reason(tmp_path: Path) -> None:
    html = render(collect(build(tmp_path / "study", registered=False, trials=1, ended=1)))
    assert "cat: regained, recovery 0.90 (0.80 to 1.00)" in html
