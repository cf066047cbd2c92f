"""How large an HTML report is, and how long Chromium takes to open it.

Run `python -m aivsreal.benchmarks.report_opening FILE`. It prints one JSON line and exits with 1 where a bound does not
hold. Selenium, Chromium and its driver must be installed (`pip install 'aivsreal[dev]'`, `apt-get install chromium
chromium-driver`).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from aivsreal.benchmarks.machine import machine_facts

MAX_BYTES, MAX_SECONDS = 15_000_000, 2.0
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


def chromium_and_driver() -> tuple[str, str]:
    """Paths of both programs.

    Raises:
        click.ClickException: one of them is not installed.
    """
    chromium = next((path for path in map(shutil.which, CHROMIUMS) if path), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise click.ClickException("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    return chromium, driver


def opened_s(browser: Any, report: Path) -> tuple[float, int]:
    """Seconds from asking for the report until its table is drawn, and how many rows it has."""
    begin = perf_counter()
    browser.get(report.resolve().as_uri())
    ready, rows = browser.execute_script("return [document.documentElement.dataset.ready, data.rows.length]")
    assert ready == "true"
    return perf_counter() - begin, rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("report", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def main(report: Path, rounds: int) -> None:
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
        runs = [opened_s(browser, report) for _ in range(rounds)]
        version = browser.capabilities["browserVersion"]
    finally:
        browser.quit()
    times = sorted(seconds for seconds, _ in runs)
    median, size = times[len(times) // 2], report.stat().st_size
    holds = size <= MAX_BYTES and median < MAX_SECONDS
    figures = {"rows": runs[0][1], "bytes": size, "median_s": round(median, 3), "worst_s": round(times[-1], 3)}
    bounds = {"bytes_bound": MAX_BYTES, "median_s_bound": MAX_SECONDS, "holds": holds}
    about = {"benchmark": "report_opening", **figures, **bounds, "rounds": rounds, "chromium": version}
    click.echo(json.dumps({**about, "machine": machine_facts(("aivsreal", "selenium"))}))
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
