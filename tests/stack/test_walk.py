"""docs/nightly.md, followed in a browser: a port from the form, the night by schedule, broken, mended, retried."""

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, Page
from tests.flows.conftest import shipped_speech
from tests.stack.conftest import SCREENSHOTS, Running
from tests.stack.test_kills import ended, finished, night_config

pytestmark = pytest.mark.slow

MENU = "button:has(svg.lucide-ellipsis-vertical)"  # the three dots, which say nothing


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab that keeps its pictures under the test's name."""
    opened = browser.page(SCREENSHOTS / request.node.name.removeprefix("test_"))
    yield opened
    opened.close()


def open_deployment(stack: Running, page: Page, flow: str, name: str) -> None:
    """Go from the start page to a deployment, as a person does."""
    page.goto(stack.ui)
    page.click("Deployments", "a")
    page.sees(flow)
    page.shot("deployments")
    page.click(name, "a")
    page.sees("Run")


def newest_run(stack: Running, name: str) -> str | None:
    """Return the id of the newest run of a deployment; runs that are only scheduled do not count."""
    asked = {"deployments": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC", "limit": 1}
    found = stack.ask("flow_runs/filter", flow_runs={"start_time": {"is_null_": False}}, **asked)
    return str(found[0]["id"]) if found else None


def retry(page: Page) -> None:
    """Press Retry on a run's page."""
    page.click(None, MENU)
    page.click("Retry", "[role=menuitem]")
    page.sees("Will become")
    page.shot("retry")
    page.click("Retry", "[role=alertdialog] button")


def test_a_port_from_the_form_whose_board_goes_down_is_mended_and_retried(
    stack: Running, page: Page, place: Path
) -> None:
    speech = place / "walk-speech"
    speech.mkdir()
    _, calibration, _, evaluation = shipped_speech(speech, calibration=2, evaluation=48)

    open_deployment(stack, page, "port", "onnx")
    page.shot("deployment")
    page.click("Run", "button")
    page.click("Custom run", "[role=menuitem]")
    page.sees("Parameters")
    page.shot("form", height=3600)
    page.choose("precision", "fp")
    page.fill("board", "board")
    page.fill("test_set", evaluation)
    page.fill("calibration_set", calibration)
    page.shot("form-filled", height=3600)
    page.click("Submit", "button")

    run = str(stack.until(lambda: newest_run(stack, "onnx"), "the run"))
    page.goto(f"{stack.ui}/v2/runs/flow-run/{run}")
    stack.until(lambda: stack.stages(run).get("stock") in ("Running", "Completed"), "the stage stock")
    assert stack.cli("stack", "stop", "board").returncode == 0
    stack.until(lambda: ended(stack, run), "the run's end")
    page.sees("Failed")
    page.click("Details", "[role=tab]")
    page.sees("board board does not answer")
    page.shot("failed")
    stack.until(lambda: stack.stages(run).get("evaluate binary") == "Failed", "the events of the stage that failed")
    before, kept = stack.stages(run), finished(stack.store)
    assert before.pop("evaluate binary") == "Failed"
    assert set(before.values()) <= {"Completed", "Cached"}

    assert stack.cli("stack", "start", "board").returncode == 0
    retry(page)
    stack.until(lambda: stack.run(run)["run_count"] == 2 and ended(stack, run), "the second attempt's end")
    stack.until(lambda: stack.stages(run).get("report") in ("Completed", "Cached"), "the events of the last stage")
    page.sees("Completed")
    page.click("Task Runs", "[role=tab]")
    page.sees("Cached")
    page.shot("retried")
    after = stack.stages(run)
    assert {after[name] for name in before} == {"Cached"}
    assert after["evaluate binary"] == "Completed"
    now = finished(stack.store)
    assert {stage: now[stage] for stage in kept} == kept, "a finished stage ran again"
    page.click("Artifacts", "[role=tab], a, button")
    page.sees("verdict")
    page.shot("artifacts")


def test_the_night_by_schedule_is_broken_and_retried(stack: Running, page: Page, place: Path) -> None:
    config = night_config(place / "walk-night", samples=20)
    before, blocked = newest_run(stack, "default"), stack.store / "judge"
    aside = blocked.rename(place / "judged-before") if blocked.exists() else None
    stack.store.mkdir(exist_ok=True)
    blocked.write_text("in the way")
    open_deployment(stack, page, "nightly", "default")
    page.shot("nightly")
    # On a busy machine the minute may be over before it was saved: the next one is set.
    assert any(scheduled(stack, schedule(page, config)) for _ in range(3)), "no minute of three was kept"
    page.shot("scheduled")

    def night() -> str | None:
        found = newest_run(stack, "default")
        return found if found != before else None

    run = str(stack.until(night, "the scheduled night"))
    page.goto(f"{stack.ui}/v2/runs/flow-run/{run}")
    stack.until(lambda: ended(stack, run), "the night's end")
    page.sees("Failed")
    page.shot("broken")
    kept = finished(stack.store)

    blocked.unlink()
    if aside is not None:
        aside.rename(blocked)
    retry(page)
    stack.until(lambda: stack.run(run)["run_count"] == 2 and ended(stack, run), "the second attempt's end")
    page.sees("Completed")
    page.click("Subflow Runs", "[role=tab]")
    page.shot("retried")
    now = finished(stack.store)
    assert {stage: now[stage] for stage in kept} == kept, "a finished stage ran again"
    made = {stage.partition("/")[0] for stage in now.keys() - kept.keys()}
    assert "judge" in made
    assert made <= {"judge", "report"}  # another test may have had this very verdict, and its page
    assert stack.run(run)["state"]["type"] == "COMPLETED"


def schedule(page: Page, config: Path) -> datetime.datetime:
    """Set the night's schedule to the next minute, and its config, on the deployment's page; return when it is due."""
    page.click(None, MENU)
    page.click("Edit", "[role=menuitem]")
    page.sees("Parameter Overrides")
    page.fill("config", str(config))
    due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(
        seconds=60 + 25
    )  # 25 s at least, to look and to save
    page.fill("Value", f"{due.minute} {due.hour} * * *")
    page.shot("schedule")
    page.click("Save", "[role=dialog] button")
    page.wait("!document.querySelector('[role=dialog]')", "the end of the dialog")
    return due.replace(second=0, microsecond=0)


def scheduled(stack: Running, due: datetime.datetime) -> bool:
    """Wait until the server has made a run that is due then; say whether it has, or was too late for it."""
    asked = {"deployments": {"name": {"any_": ["default"]}}}
    moment = {"expected_start_time": {"after_": due.isoformat(), "before_": due.isoformat()}}
    while datetime.datetime.now(datetime.UTC) < due:
        if stack.ask("flow_runs/filter", flow_runs=moment, **asked):
            return True
        time.sleep(1)
    return False
