"""Makes the pictures of reports in docs/images: of the demo, and of ResNet-20 within two bounds.

    mpq demo -o mpq_demo
    python scripts/report_pictures.py --demo mpq_demo --resnet20 resnet20_artifact

ResNet-20 (``MPQ_DATA``) is compiled where the folder is not there yet. Needs Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

CANDIDATES = ["fp32", "bf16", "w8a8", "w6a8", "w5a8", "w4a8", "w3a8"]
# Fewer than six bits a weight, and half as long again as with all sites at eight bits.
SIZE_MB, LATENCY = 0.2, 1.5


def compile_resnet20(folder: Path) -> None:
    """Compile ResNet-20 within a latency and a size, and save it."""
    from shared_nets import load_net

    from mpq_compile.closed_loop import compile_session
    from mpq_compile.session import Session
    from mpq_compile.types import Budget

    net = load_net("resnet20", evaluation=1)
    session = Session(net.model, net.example, net.calibration.split(64), candidates=CANDIDATES)
    uniform = {site.id: "w8a8" for site in session.network.sites}
    latency_us = session.allocation().usage(uniform)["latency_us"]
    budget = Budget(latency_ms=round(LATENCY * latency_us / 1e3, 3), size_mb=SIZE_MB)
    compile_session(session, budget).save(folder)


def screenshot(page: Path, picture: Path, width: int, height: int, dark: bool) -> None:
    """Show a page in a frame of that width, which a window may be too wide for."""
    chromium = shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        sys.exit("no chromium on the PATH: install Debian's package chromium")
    text = html.escape(page.read_text(encoding="utf-8"), quote=True)
    style = f"width:{width}px;height:{height}px;border:0;display:block"
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder, "frame.html")
        frame.write_text(f'<body style="margin:0"><iframe style="{style}" srcdoc="{text}">')
        taken = Path(folder, "taken.png")
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += [f"--user-data-dir={folder}/profile", "--force-device-scale-factor=1.5"]
        words += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        words += [f"--window-size={max(width, 600)},{height}", "--virtual-time-budget=3000"]
        subprocess.run(
            [chromium, *words, f"--screenshot={taken}", f"file://{frame}"],
            check=True,
            capture_output=True,
        )
        image = Image.open(taken).convert("RGB").crop((0, 0, width * 3 // 2, height * 3 // 2))
        image.quantize(128).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Write four pictures: each report light on a desk and dark on a phone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("mpq_demo"))
    parser.add_argument("--resnet20", type=Path, default=Path("resnet20_artifact"))
    places = parser.parse_args()
    from mpq_compile.report.page import write_report

    if not places.resnet20.is_dir():
        compile_resnet20(places.resnet20)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "resnet20.html")
        write_report(places.resnet20, page, title="ResNet-20 on CIFAR-10")
        for name, report in (("resnet20", page), ("demo", places.demo / "a_convolutional.html")):
            screenshot(report, IMAGES / f"{name}_light.png", 1200, 1560, dark=False)
            screenshot(report, IMAGES / f"{name}_dark_phone.png", 390, 1600, dark=True)


if __name__ == "__main__":
    main()
