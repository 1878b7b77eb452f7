"""How fast the page answers the eye: ``python tests/benchmarks/bench_page.py``.

Prints

* what one drag of the coefficient on the Geometry tab costs in the browser: milliseconds from the slider's event until
  styles and layout of the moved picture are computed, and from one frame to the next while it is dragged, as medians;
* how soon a browser that has never seen the page paints it, from ``app.py`` just started and its model still loading:
  milliseconds from navigation to the first paint, and until the page's title and recorded answers stand there.

Needs Chromium and playwright, and a machine that does nothing else: the load is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ace_core.ui import launch
from ace_core.ui.geometry import tab as geometry_tab
from browsing import opened_browser

ROOT = Path(__file__).resolve().parents[2]
ASSET = ROOT / "assets" / "geometry.json"
PATIENCE = 120_000

DRAG = """async (frames) => {
    const tab = document.querySelector('.ace-geo');
    const slider = tab.querySelector('input[type=range]');
    const work = [], frame = [];
    let last = null;
    for (let k = 0; k < frames; k += 1) {
        await new Promise((resolve) => requestAnimationFrame(resolve));
        const start = performance.now();
        if (last !== null) frame.push(start - last);
        last = start;
        slider.value = String(-1 + 3 * (0.5 + 0.5 * Math.sin(k / 9)));
        slider.dispatchEvent(new Event('input', { bubbles: true }));
        tab.getBoundingClientRect();
        tab.querySelector('svg').getBBox();
        work.push(performance.now() - start);
    }
    return { work, frame };
}"""

WATCH = """(() => {
    window.seen = {};
    const parts = { title: '.ace-intro h1', answers: '#answers .ace-column .ace-token' };
    const look = () => {
        for (const [name, selector] of Object.entries(parts)) {
            if (!(name in window.seen) && document.querySelector(selector)) window.seen[name] = performance.now();
        }
        if (Object.keys(window.seen).length < 2) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
})()"""


def more_points(path: Path, points: int) -> Path:
    """The shipped map with its prompts repeated, each copy moved a little, until there are ``points``."""
    data = json.loads(ASSET.read_text("utf-8"))
    for kind in ("harmless", "harmful"):
        own = data[kind]
        data[kind] = [[x + 0.1 * (k // len(own)), y] for k, (x, y) in enumerate(own * points)][: points // 2]
    path.write_text(json.dumps(data), "utf-8")
    return path


def drag(browser: Browser, folder: Path, points: int, frames: int) -> dict[str, float]:
    """Milliseconds of one movement of the coefficient under ACE."""
    with gr.Blocks(analytics_enabled=False, fill_width=True) as blocks:
        geometry_tab.build(more_points(folder / "map.json", points))
    _, url, _ = launch(blocks, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    try:
        page.goto(url, timeout=PATIENCE)
        page.locator(".ace-geo input[value=addition]").check(timeout=PATIENCE)
        shown = page.locator(".ace-geo-cloud path").count()
        page.evaluate(DRAG, 20)
        spent = Spent(page)
        times = page.evaluate(DRAG, frames)
        milliseconds = spent() / frames
    finally:
        page.close()
        blocks.close()
    return {
        "points": shown,
        "drag, mean ms of the page's processor time": milliseconds,
        "drag, median ms of work": statistics.median(times["work"]),
        "drag, 95th percentile ms of work": statistics.quantiles(times["work"], n=20)[-1],
        "drag, median ms between frames": statistics.median(times["frame"]),
    }


class Spent:
    """What a page's main thread computes from now on, in milliseconds: painting included, other programs not."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._before = self._total()

    def __call__(self) -> float:
        return 1000 * (self._total() - self._before)

    def _total(self) -> float:
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in metrics if one["name"] == "TaskDuration")


@contextmanager
def serve() -> Iterator[str]:
    """``app.py``, just started; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, environment = f"http://127.0.0.1:{port}/", {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    quiet = subprocess.DEVNULL
    app = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=environment, stdout=quiet, stderr=quiet
    )
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert app.poll() is None and time.monotonic() < deadline, "app.py does not answer"
                time.sleep(0.05)
        yield url
    finally:
        app.kill()
        app.wait()


def paint(browser: Browser, repeats: int) -> dict[str, float]:
    """Milliseconds until a cold page shows something, each time on a server of its own."""
    first, title, answers, spent, loading = [], [], [], [], 0
    for _ in range(repeats):
        with serve() as url:
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            context.add_init_script(WATCH)
            page = context.new_page()
            busy = Spent(page)
            page.goto(url, timeout=PATIENCE, wait_until="commit")
            page.wait_for_function("window.seen && 'answers' in window.seen", timeout=PATIENCE)
            spent.append(busy())
            loading += page.locator("#model-card .ace-card").get_attribute("data-status") == "loading"
            page.wait_for_load_state()
            entries = page.evaluate("performance.getEntriesByType('paint').map((one) => [one.name, one.startTime])")
            first.append(dict(entries)["first-contentful-paint"])
            seen = page.evaluate("window.seen")
            title.append(seen["title"])
            answers.append(seen["answers"])
            context.close()
    return {
        "cold pages": repeats,
        "of them with the model still loading": loading,
        "first paint, median ms": statistics.median(first),
        "title there, median ms": statistics.median(title),
        "recorded answers there, median ms": statistics.median(answers),
        "until then, median ms of the page's processor time": statistics.median(spent),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=400)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    result: dict[str, float] = {"load before": os.getloadavg()[0]}
    with opened_browser(PATIENCE) as browser, tempfile.TemporaryDirectory() as folder:
        result |= drag(browser, Path(folder), arguments.points, arguments.frames)
        result |= paint(browser, arguments.repeats)
    result["load after"] = os.getloadavg()[0]
    print(json.dumps({name: round(value, 1) for name, value in result.items()}, indent=2))


if __name__ == "__main__":
    main()
