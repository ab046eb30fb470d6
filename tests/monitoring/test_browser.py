"""The report in a real browser: nothing in it runs, and it fits a phone and a desktop in light and in dark."""

import html
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from mtrl_ray.dialogue.conversation import Role
from mtrl_ray.monitoring.report import write_report
from tests.monitoring.run_folder import sale, write_evaluations, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine's PATH")
SECONDS = 60
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
MEASURE = """<!doctype html><body style="margin:0"><iframe width="{width}" height="2000" srcdoc="{page}"></iframe>
<script>document.querySelector("iframe").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement, figures = {{}};
  root.querySelectorAll("details").forEach(part => part.open = true);
  figures.width = root.scrollWidth;
  figures.height = root.scrollHeight;
  figures.columns = new Set([...page.querySelectorAll(".conversation")].map(side => side.offsetLeft)).size;
  const texts = [...page.querySelectorAll("figure svg text")];
  figures.smallest = Math.min(...texts.map(text => text.getBoundingClientRect().height));
  document.body.insertAdjacentHTML("beforeend", `<output>${{JSON.stringify(figures)}}</output>`);
}}</script></body>"""


def browse(profile, *arguments):
    """Run the browser once, with a profile of its own; its whole process group ends with it."""
    command = [BROWSER, *SWITCHES, f"--user-data-dir={profile}", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=SECONDS)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def measure(tmp_path, page, width):
    """How the page lays out in a frame of this width, with everything unfolded."""
    # The frame's own scripts stay forbidden by the page's policy; the measuring script is its parent's.
    harness = tmp_path / "harness.html"
    harness.write_text(MEASURE.format(width=width, page=html.escape(page.read_text())))
    dom = browse(tmp_path / "profile", "--window-size=1400,2000", "--dump-dom", harness.as_uri())
    return {key: float(value) for key, value in re.findall(r'"(\w+)":([\d.]+)', dom.split("<output>")[-1])}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "bright-lamp"))


def test_no_script_of_a_conversation_runs(tmp_path):
    start, end = sale(0, False), sale(0, True)
    attacks = ["<script>document.title = 'owned'</script>", "<img src=x onerror=\"document.title = 'owned'\">"]
    for conversation in (start, end):
        agent = [turn for turn in conversation.turns if turn.role == Role.AGENT]
        agent[0].text, agent[0].sent = attacks
    write_evaluations(tmp_path, start=[start], end=[end])
    dom = browse(tmp_path / "profile", "--dump-dom", write_report(tmp_path).as_uri())
    assert "What only the environment knows" in dom
    assert "<title>owned" not in dom
    assert "<script" not in dom
    assert "<img" not in dom


def test_the_policy_holds_even_where_markup_gets_in(tmp_path, report):
    broken = tmp_path / "broken.html"
    attack = (
        "<h1 id='there'>x</h1><script>document.title = 'owned'</script><img src=x onerror='document.title=`owned`'>"
    )
    broken.write_text(report.read_text().replace("<main>", f"<main>{attack}"))
    dom = browse(tmp_path / "profile", "--dump-dom", broken.as_uri())
    assert 'id="there"' in dom
    assert "<title>owned" not in dom


@pytest.mark.parametrize(("width", "columns"), [(360, 1), (1200, 2)])
def test_the_page_fits_its_window(tmp_path, report, width, columns):
    figures = measure(tmp_path, report, width)
    assert figures["width"] <= width
    assert figures["height"] > 2000
    assert figures["columns"] == columns
    assert figures["smallest"] >= 10


def brightness(tmp_path, report, scheme):
    """Mean brightness in [0, 1] of the top of the page under a preferred colour scheme (0 dark, 1 light)."""
    from matplotlib import image

    shot = tmp_path / f"{scheme}.png"
    preference = f"--blink-settings=preferredColorScheme={scheme}"
    browse(tmp_path / "profile", "--window-size=1000,800", preference, f"--screenshot={shot}", report.as_uri())
    return float(image.imread(shot)[..., :3].mean())


def test_the_page_follows_the_readers_colour_scheme(tmp_path, report):
    assert brightness(tmp_path, report, 1) > 0.85
    assert brightness(tmp_path, report, 0) < 0.25
