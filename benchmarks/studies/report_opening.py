"""How large an HTML report is, and how long Chromium takes to open it.

Run `python -m aivsreal.benchmarks.studies.report_opening FILE`. It prints one JSON line and exits with 1 where a bound
does not hold. Selenium, Chromium and its driver must be installed (`pip install 'aivsreal[dev]'`, `apt-get install
chromium chromium-driver`).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import BackendError

MAX_BYTES, MAX_SECONDS = 15_000_000, 2.0
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


def chromium_and_driver() -> tuple[str, str]:
    """Paths of both programs.

    Raises:
        BackendError: one of them is not installed.
    """
    chromium = next((path for path in map(shutil.which, CHROMIUMS) if path), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise BackendError("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    return chromium, driver


def opened(browser: Any, report: Path) -> tuple[float, float, int]:
    """Seconds from asking for the report until its table is drawn, those of processors in that time, and its rows.

    On a machine that has other work the first says little. The second, over all of Chromium's processes, is about what
    the first would be on an idle one.
    """
    pid = browser.service.process.pid
    busy_s, begin = processor_s(pid), perf_counter()
    browser.get(report.resolve().as_uri())
    ready, rows = browser.execute_script("return [document.documentElement.dataset.ready, data.rows.length]")
    assert ready == "true"
    return perf_counter() - begin, processor_s(pid) - busy_s, rows


def processor_s(pid: int) -> float:
    """Processor time of a process and of all that descend from it, in seconds."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(processor_s(int(child)) for child in task.read_text().split())
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return total + (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@command("report_opening")
@click.argument("report", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def main(report: Path, rounds: int) -> int:
    """Open REPORT in headless Chromium, and hold its size and the median of the times against their bounds."""
    chromium, driver = chromium_and_driver()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get("about:blank")
        runs = [opened(browser, report) for _ in range(rounds)]
        version = browser.capabilities["browserVersion"]
    finally:
        browser.quit()
    median, processor = (statistics.median(run[index] for run in runs) for index in (0, 1))
    size, worst = report.stat().st_size, max(run[0] for run in runs)
    holds = size <= MAX_BYTES and median < MAX_SECONDS
    figures = {
        "rows": runs[0][2], "bytes": size, "median_s": round(median, 3), "worst_s": round(worst, 3),
        "median_processor_s": round(processor, 3), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    bounds = {"bytes_bound": MAX_BYTES, "median_s_bound": MAX_SECONDS, "holds": holds}
    about = {"benchmark": "report_opening", **figures, **bounds, "rounds": rounds, "chromium": version}
    click.echo(json.dumps({**about, "machine": machine_facts(("aivsreal", "selenium"))}))
    return 0 if holds else 1


if __name__ == "__main__":
    main()
