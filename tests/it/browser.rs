//! Pages in a real browser: headless Chromium lays them out, and what it found is checked. Without
//! a browser the tests say that they are skipped, unless `EDGE_REQUIRE_BROWSER=1`; `EDGE_BROWSER`
//! names one.

mod dashboard;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::commands::demo;
use crate::follow::{done, tune};

/// Names of Chromium and its kin.
const NAMES: [&str; 5] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];

/// A browser, if there is one.
fn browser() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("EDGE_BROWSER") {
        return Some(path.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&folders)
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .chain(["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome".into()]);
    let found = paths.find(|path| path.is_file());
    if found.is_none() {
        let required = std::env::var_os("EDGE_REQUIRE_BROWSER").is_some_and(|value| value == "1");
        assert!(!required, "no Chromium: install it (Debian: chromium) or name it by EDGE_BROWSER");
        edge_tests::skipped("no Chromium");
    }
    found
}

/// What the page itself finds once it is laid out: errors, its charts with the boxes of what is
/// drawn in them, what is below a chart when a finger is on it, whether it must be scrolled
/// sideways.
const PROBE: &str = r#"<script>
addEventListener("load", () => {
  const charts = [...document.querySelectorAll("figure")].map((figure) => {
    const svg = figure.querySelector("svg");
    if (!svg) return { title: figure.querySelector("h3").textContent, width: 0 };
    const box = svg.getBoundingClientRect();
    const drawn = [...svg.querySelectorAll("path, rect, circle")].filter((shape) => {
      const own = shape.getBoundingClientRect();
      return own.width > 0 || own.height > 0;
    });
    const outside = [...svg.querySelectorAll("path, rect, circle, text")].filter((shape) => {
      const own = shape.getBoundingClientRect();
      return own.left < box.left - 2 || own.right > box.right + 2
        || own.top < box.top - 2 || own.bottom > box.bottom + 2;
    });
    const ticks = [...svg.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
    let said = null;
    const hit = svg.querySelector(".hit");
    if (hit) {
      hit.scrollIntoView();
      const own = hit.getBoundingClientRect();
      const at = { clientX: own.left + own.width / 2, clientY: own.top + own.height / 2 };
      hit.dispatchEvent(new PointerEvent("pointerdown", { ...at, bubbles: true }));
      said = figure.querySelector(".readout").textContent;
    }
    return {
      title: figure.querySelector("h3").textContent, width: box.width, drawn: drawn.length,
      outside: outside.map((shape) => shape.outerHTML.slice(0, 120)), said,
      text: Math.min(...ticks.map((tick) => tick.height)),
    };
  });
  const wide = document.documentElement.scrollWidth > innerWidth;
  parent.postMessage(JSON.stringify({ width: innerWidth, charts, wide, errors }), "*");
});
</script></body>"#;

/// Lays a page out at two widths; what [`PROBE`] found at each.
fn laid_out(browser: &Path, page: &Path) -> Vec<Value> {
    probed(browser, &std::fs::read_to_string(page).expect("a page"), PROBE)
}

/// Lays a page out at two widths with a script of ours at its end, which posts what it found to
/// the page's parent as JSON.
fn probed(browser: &Path, html: &str, probe: &str) -> Vec<Value> {
    let dir = TempDir::new().expect("a folder");
    let errors = "<head><script>const errors = []; addEventListener(\"error\", (event) => \
                  errors.push(event.message));</script>";
    let probed = html.replacen("<head>", errors, 1).replacen("</body>", probe, 1);
    std::fs::write(dir.path().join("probed.html"), probed).expect("written");
    let outer = "<!doctype html><body><script>addEventListener(\"message\", (event) => {\n\
                 const pre = document.createElement(\"pre\"); pre.className = \"found\";\n\
                 pre.textContent = btoa(unescape(encodeURIComponent(event.data)));\n\
                 document.body.append(pre); });</script>\n\
                 <iframe src=\"probed.html\" style=\"width:1280px;height:900px\"></iframe>\n\
                 <iframe src=\"probed.html\" style=\"width:390px;height:800px\"></iframe></body>";
    let path = dir.path().join("outer.html");
    std::fs::write(&path, outer).expect("written");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"])
        .args(["--virtual-time-budget=8000", "--window-size=1400,1900", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("file://{}", path.display()))
        .output()
        .expect("the browser starts");
    let (dom, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let console: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "{console:?}");
    let found = dom.split("class=\"found\">").skip(1);
    let found: Vec<Value> = found
        .map(|rest| {
            let text = rest.split('<').next().expect("text");
            serde_json::from_slice(&base64(text)).expect("JSON")
        })
        .collect();
    assert_eq!(found.len(), 2, "{dom}\n{log}");
    found
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        (bits, count) = (bits << 6 | u32::from(digit(c)), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// The charts of a page are there, not empty, inside their frames, readable and speak.
fn check(found: &Value, titles: &[&str], speaking: usize) {
    assert_eq!(found["errors"], Value::Array(Vec::new()), "{found}");
    assert_eq!(found["wide"], false, "the page must be scrolled sideways: {found}");
    let charts = found["charts"].as_array().expect("charts");
    let names: Vec<&str> = charts.iter().filter_map(|chart| chart["title"].as_str()).collect();
    assert_eq!(names, titles);
    for chart in charts {
        let number = |key: &str| chart[key].as_f64().unwrap_or(0.0);
        assert!(number("width") > 250.0 && number("drawn") >= 2.0, "{chart}");
        assert_eq!(chart["outside"], Value::Array(Vec::new()), "{chart}");
        assert!(number("text") >= 9.0, "text is too small to be read: {chart}");
    }
    let said = charts.iter().filter_map(|chart| chart["said"].as_str());
    assert_eq!(said.filter(|said| said.contains(": ")).count(), speaking, "{found}");
}

#[test]
fn the_report_of_a_run_is_drawn() {
    let Some(browser) = browser() else { return };
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let args = tune(&out, "--method edge --windows 3 --steps 60 --eval-every 15 --lr 1e-2 --quiet");
    done(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let titles = [
        "Loss",
        "Validation by exit",
        "Throughput",
        "Gradient norm",
        "Learning rate",
        "Device memory",
        "Bits of each layer",
        "Windows over time",
    ];
    for found in laid_out(&browser, &out.join("report.html")) {
        check(&found, &titles, 5);
    }
}

#[test]
fn the_page_of_a_comparison_is_drawn() {
    let Some(browser) = browser() else { return };
    let dir = TempDir::new().expect("a folder");
    let (model, data) = (demo("model"), demo("valid.txt"));
    let out = dir.path().join("compared").display().to_string();
    let mut args = vec!["compare", "--model", &model, "--data", &data, "--out", &out];
    let common = "--device cpu --batch-size 2 --seq-len 32 --lr 1e-3 --windows 2 --evals 2 --quiet \
                  --methods lora,a-long-name-of-edge=edge --seeds 0,7 --max-tokens 256";
    args.extend(common.split_whitespace());
    done(&args);
    let titles = ["Against tokens", "Against time", "Peak device memory", "Training speed"];
    for found in laid_out(&browser, &Path::new(&out).join("compare.html")) {
        check(&found, &titles, 2);
    }
}
