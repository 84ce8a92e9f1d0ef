//! The page of all records: its charts, its filter, its comparison, and how long ten thousand rows
//! take.

use std::process::Command;
use std::time::{Duration, Instant};

use kernels_bench::dashboard::page;
use kernels_bench::history::{Entry, History};
use kernels_bench::measure::{Better, Measure};
use kernels_bench::record::Record;
use kernels_bench::row::Row;
use serde_json::Value;
use tempfile::TempDir;

use super::{browser, probed};

/// Longest that ten thousand rows may take to be drawn, on a machine with many other things to do;
/// alone it is less than two seconds.
const DRAWN: Duration = Duration::from_secs(10);

const FORMATS: [&str; 10] = ["f32", "f16", "bf16", "q8", "q4", "q3", "q2", "q4s", "q4r", "q4z"];

/// A kernel's row; the numbers are different ones for every row.
fn row(index: usize, slower: f64) -> Row {
    let shape = index / FORMATS.len();
    let median_ms = (1.0 + (index * 7919 % 1000) as f64 / 50.0) * slower;
    Row {
        op: ["matmul_nt", "matmul_nn", "attention_forward"][shape % 3].into(),
        format: FORMATS[index % FORMATS.len()].into(),
        shape: format!("layer{}_64x{}", shape / 3, 64 + shape),
        variant: "tile".into(),
        production: true,
        device: "a device <b>of ours</b>".into(),
        median_ms,
        spread_ms: median_ms / 40.0,
        samples: 5,
        gb_s: 40.0 / median_ms,
        gflop_s: 90.0 / median_ms,
        roof_share: Some(0.5 / median_ms),
        ratio_to_dense_f32: Some(0.5 + (index % 40) as f64 / 20.0),
        ratio_to_dense_f16: None,
        calibrated: Some(median_ms / slower.min(1.0)),
        calibrated_spread: Some(0.01),
        pass: 0,
    }
}

fn measure(kind: &str, metric: &str, value: f64, better: Better) -> Measure {
    Measure {
        kind: kind.into(),
        op: "compare".into(),
        format: "edge".into(),
        shape: "demo".into(),
        metric: metric.into(),
        value,
        unit: String::new(),
        better,
        repeat: "a command".into(),
        seed: Some(0),
    }
}

/// Two records of `rows` kernels each; every 50th became slower in the second.
fn history(rows: usize) -> History {
    let entry = |name: &str, second: bool| {
        let slower = |index: usize| if second && index % 50 == 7 { 1.6 } else { 1.0 };
        let measures = vec![
            measure("tuning", "speed_ratio_to_lora", 2.0, Better::Higher),
            measure("quality", "val_loss", 3.0, Better::Lower),
            measure("roof", "copy_gb_s", 10.0, Better::Neither),
            measure("roof", "fma_gflop_s", 100.0, Better::Neither),
        ];
        let record = Record {
            rows: (0..rows).map(|index| row(index, slower(index))).collect(),
            measures,
            commit: name.into(),
            date: "2026-01-02T0304".into(),
            fingerprint: "0123".into(),
            machine: None,
        };
        Entry { device: "a-device".into(), name: format!("2026-01-02T0304_{name}"), record }
    };
    History { entries: vec![entry("aaaaaaa", false), entry("bbbbbbb", true)] }
}

/// What the page has drawn at first, after a filter, and after records were swapped.
const PROBE: &str = r##"<script>
const rest = (ms) => new Promise((done) => setTimeout(done, ms));
const rowsOf = (id) => document.querySelectorAll(`#${id} tbody tr`).length;
const chart = (id) => {
  const svg = document.querySelector(`#${id} svg`);
  if (!svg) return null;
  const box = svg.getBoundingClientRect();
  const points = [...svg.querySelectorAll("circle")];
  const outside = [...svg.querySelectorAll("circle, path, text")].filter((shape) => {
    const own = shape.getBoundingClientRect();
    return own.left < box.left - 2 || own.right > box.right + 2
      || own.top < box.top - 2 || own.bottom > box.bottom + 2;
  });
  return { width: box.width, points: points.length,
    outside: outside.map((shape) => shape.outerHTML.slice(0, 120)) };
};
addEventListener("load", async () => {
  const found = { width: innerWidth };
  for (const id of ["series", "runs"]) {
    // What is drawn above moves what is below: it is looked for until it is there.
    for (let turn = 0; turn < 30 && !document.querySelector(`#${id} svg`); turn++) {
      document.getElementById(id).scrollIntoView();
      await rest(50);
    }
  }
  found.charts = Object.fromEntries(["series", "runs", "ratios", "roofline"]
    .map((id) => [id, chart(id)]));
  found.heat = document.querySelectorAll("#heat td").length;
  found.movers = document.querySelector("#movers p:not(.soft)").textContent;
  found.first = document.querySelector("#movers tbody tr").textContent;
  found.compared = rowsOf("compare");
  found.count = document.getElementById("count").textContent;
  const svg = document.querySelector("#series svg"), box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove",
    { clientX: box.right - 5, clientY: box.top + 5, bubbles: true }));
  found.said = svg.parentElement.querySelector(".readout").textContent;
  const link = svg.parentElement.querySelector(".readout a");
  found.link = link && link.href;
  const filter = document.getElementById("filter");
  filter.value = "matmul_nt q4r";
  filter.dispatchEvent(new Event("input"));
  await rest(400);
  found.filtered = document.getElementById("count").textContent;
  found.left = [...document.querySelectorAll("#movers tbody .row")]
    .filter((cell) => !/matmul_nt q4r/.test(cell.textContent)).length;
  filter.value = "no such row";
  filter.dispatchEvent(new Event("input"));
  await rest(400);
  found.none = document.getElementById("count").textContent;
  filter.value = "";
  filter.dispatchEvent(new Event("input"));
  await rest(400);
  const [from, to] = ["from", "to"].map((id) => document.getElementById(id));
  [from.value, to.value] = [to.value, from.value];
  from.dispatchEvent(new Event("change"));
  found.swapped = document.querySelector("#compare .body p").textContent;
  found.wide = document.documentElement.scrollWidth > innerWidth;
  found.markup = document.querySelectorAll("b b, option b, #roofline h3 b").length;
  found.errors = errors;
  parent.postMessage(JSON.stringify(found), "*");
});
</script></body>"##;

#[test]
fn all_records_are_drawn_filtered_and_compared() {
    let Some(browser) = browser() else { return };
    let page = page(&history(300), Some("https://example.org/owner/name"));
    for found in probed(&browser, &page, PROBE) {
        assert_eq!(found["errors"], Value::Array(Vec::new()), "{found}");
        assert_eq!(found["wide"], false, "the page must be scrolled sideways: {found}");
        assert_eq!(found["markup"], 0, "a device's name became markup: {found}");
        for (name, chart) in found["charts"].as_object().expect("charts") {
            let number = |key: &str| chart[key].as_f64().unwrap_or(0.0);
            assert!(number("width") > 250.0 && number("points") >= 1.0, "{name}: {found}");
            assert_eq!(chart["outside"], Value::Array(Vec::new()), "{name}: {found}");
        }
        assert_eq!(found["charts"]["series"]["points"], 20, "ten formats, two records: {found}");
        assert!(found["heat"].as_u64().is_some_and(|cells| cells > 50), "{found}");
        // 300 rows, of which every 50th is slower, and two measures that stayed.
        let text = |key: &str| found[key].as_str().unwrap_or_default();
        assert!(text("movers").starts_with("6 regressions, 0 improvements"), "{found}");
        assert!(text("first").starts_with("+60.0 %small regression"), "{found}");
        assert_eq!(found["compared"], 25, "the first piece: {found}");
        assert!(text("swapped").starts_with("0 regressions, 6 improvements"), "{found}");
        assert_eq!(text("count"), "304 of 304 rows match");
        assert_eq!(text("filtered"), "10 of 304 rows match");
        assert_eq!(found["left"], 0, "rows that do not match are shown: {found}");
        assert_eq!(text("none"), "0 of 304 rows match");
        assert!(text("said").contains(" ± ") && text("said").contains("ms"), "{found}");
        assert_eq!(text("link"), "https://example.org/owner/name/commit/bbbbbbb");
    }
}

#[test]
fn ten_thousand_rows_are_drawn_at_once() {
    let Some(browser) = browser() else { return };
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("page.html");
    let history = history(10_000);
    let start = Instant::now();
    std::fs::write(&path, page(&history, None)).expect("written");
    let written = start.elapsed();
    let start = Instant::now();
    // Without virtual time: the page's own clock is the wall's.
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("file://{}", path.display()))
        .output()
        .expect("the browser starts");
    let all = start.elapsed();
    let dom = String::from_utf8_lossy(&output.stdout);
    let drawn = dom.split("data-rendered-ms=\"").nth(1).and_then(|rest| rest.split('"').next());
    let drawn_ms: u64 = drawn.and_then(|text| text.parse().ok()).expect("the page was drawn");
    eprintln!("10,000 rows: drawn in {drawn_ms} ms, written in {written:?}, browser {all:?}");
    assert!(dom.contains("10004 of 10004 rows match"));
    assert!(u128::from(drawn_ms) < DRAWN.as_millis(), "{drawn_ms} ms");
}
