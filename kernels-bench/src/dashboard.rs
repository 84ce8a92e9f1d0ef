//! The page of all records: one file, no network, drawn by the scripts in `kernels-bench/dashboard`
//! from data that lie in it as JSON.
//!
//! Colours and type are those of the pages that runs and comparisons write, whose style sheet is
//! included here too. Their charts are made of Rust when a page is written; these depend on what a
//! reader filters, so they are drawn in the browser.

use serde_json::{Value, json};

use crate::fence::Magnitude;
use crate::history::History;
use crate::machine::Machine;
use crate::series::{self, Point, Series};

const PAGE: &str = include_str!("../dashboard/page.html");

const STYLES: [&str; 2] = [
    include_str!("../../crates/edge-runtime/src/chart/style.css"),
    include_str!("../dashboard/page.css"),
];

const SCRIPTS: [&str; 3] = [
    include_str!("../dashboard/base.js"),
    include_str!("../dashboard/charts.js"),
    include_str!("../dashboard/page.js"),
];

/// Numbers of a page have as many digits as can be seen: ten thousand rows are read at once.
fn number(value: f64) -> Value {
    format!("{value:.5e}").parse::<f64>().map_or(Value::Null, |value| json!(value))
}

fn known(value: Option<f64>) -> Value {
    value.map_or(Value::Null, number)
}

fn point(point: &Point) -> Value {
    let rate = |get: fn(&series::Rates) -> Option<f64>| known(point.rates.as_ref().and_then(get));
    json!([
        point.record,
        number(point.value),
        number(point.spread),
        known(point.calibrated()),
        rate(|rates| Some(rates.gb_s)),
        rate(|rates| Some(rates.gflop_s)),
        rate(|rates| rates.roof_share),
        rate(|rates| rates.to_f32),
    ])
}

/// A series as the scripts read it; `devices` are the folders in their order.
fn one(series: &Series, devices: &[&str]) -> Value {
    let newest = series.points.last().map_or(0, |point| point.record);
    json!({
        "device": devices.iter().position(|device| *device == series.device),
        "kind": series.kind,
        "names": series.names,
        "production": series.production,
        "unit": series.unit,
        "better": series.better.name(),
        "repeat": series.repeat,
        "reach": known(series.reach(newest, false)),
        "reach_calibrated": known(series.reach(newest, true)),
        "points": series.points.iter().map(point).collect::<Vec<Value>>(),
    })
}

/// A device: what it calls itself, its roof, its machine, by its newest record that knows.
fn device(history: &History, all: &[Series], folder: &str) -> Value {
    let records = || history.of(folder).rev().map(|entry| &entry.record);
    let name = records().find_map(|record| record.rows.first().map(|row| row.device.clone()));
    let machine = records().find_map(|record| record.machine.as_ref());
    let rate = |metric: &str| {
        let mut roofs = all.iter().filter(|one| one.device == folder && one.kind == "roof");
        let series = roofs.find(|one| one.names[3] == metric)?;
        series.points.last().map(|point| point.value)
    };
    let entry = |key: &str| {
        let entries = machine.map(Machine::entries).unwrap_or_default();
        entries.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    };
    let mut name = name.unwrap_or_else(|| folder.to_string());
    // What runs on the CPU is another device on another one.
    if let (Some("software" | "host"), Some(cpu)) = (entry("kind"), entry("cpu")) {
        name = format!("{name}, {cpu}");
    }
    let roof = rate("copy_gb_s").zip(rate("fma_gflop_s"));
    json!({
        "slug": folder,
        "name": name,
        "roof": roof.map(|(copy, fma)| json!({"copy": number(copy), "fma": number(fma)})),
        "machine": machine.map(|machine| machine.entries().to_vec()).unwrap_or_default(),
    })
}

/// What the scripts draw. `repository` is its page on the web, for links to commits.
fn data(history: &History, repository: Option<&str>) -> Value {
    let all = series::all(history);
    let mut devices: Vec<&str> = Vec::new();
    for entry in &history.entries {
        if !devices.contains(&entry.device.as_str()) {
            devices.push(&entry.device);
        }
    }
    let records = history.entries.iter().map(|entry| {
        json!({
            "device": devices.iter().position(|device| *device == entry.device),
            "name": entry.name,
            "commit": entry.record.commit,
            "date": entry.record.date,
        })
    });
    json!({
        "repository": repository,
        "magnitudes": Magnitude::table()
            .map(|(below, magnitude)| json!([known(below), magnitude.words()])),
        "devices": devices.iter().map(|name| device(history, &all, name)).collect::<Vec<Value>>(),
        "records": records.collect::<Vec<Value>>(),
        "series": all.iter().map(|series| one(series, &devices)).collect::<Vec<Value>>(),
    })
}

/// The page. `repository` is the project's page on the web (`https://…`), where it has one.
pub fn page(history: &History, repository: Option<&str>) -> String {
    // Whatever a file says cannot end the element that the data lie in.
    let data = data(history, repository).to_string().replace('<', "\\u003c");
    let mut page = String::with_capacity(data.len() + 64 * 1024);
    let mut rest = PAGE;
    // One pass, so that what is put in is not searched for places again.
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(before);
        match name {
            "style" => STYLES.iter().for_each(|style| page.push_str(style)),
            "script" => SCRIPTS.iter().for_each(|script| page.push_str(script)),
            _ => page.push_str(&data),
        }
        rest = after;
    }
    page.push_str(rest);
    page
}

/// The web page of a git remote: `https://HOST/OWNER/NAME`, none where it is no such place.
pub fn web(remote: &str) -> Option<String> {
    let remote = remote.trim();
    let (host, path) = match remote.strip_prefix("git@") {
        Some(rest) => rest.split_once(':')?,
        None => {
            let rest = remote.strip_prefix("https://").or(remote.strip_prefix("ssh://git@"))?;
            // A name and password in front of the host are nobody's business.
            rest.rsplit_once('@').map_or(rest, |(_, rest)| rest).split_once('/')?
        }
    };
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-._/".contains(c));
    let path = path.trim_end_matches('/').trim_end_matches(".git");
    let good = host.contains('.') && plain(host) && plain(path) && path.contains('/');
    good.then(|| format!("https://{host}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::tests::entry;

    #[test]
    fn what_files_say_cannot_leave_the_data() {
        let mut first = entry("1", 1.0, Some(0.5), 3.0);
        first.record.rows[0].shape = "</script><script>alert(1)</script>{{style}}".into();
        let page = page(&History { entries: vec![first] }, None);
        assert!(!page.contains("<script>alert"), "markup from a file");
        assert_eq!(page.matches("</script>").count(), 2, "the page's own");
        assert!(page.contains("\\u003c/script>") && page.contains("{{style}}"));
        assert!(!page.contains("{{data}}") && !page.contains("{{script}}"));
        for fetched in ["src=", "<link", "@import", "url(", "fetch(", "import("] {
            assert!(!page.contains(fetched), "`{fetched}`: the page needs no other file");
        }
    }

    #[test]
    fn data_have_points_reaches_and_devices() {
        let entries = vec![entry("1", 1.0, Some(0.5), 3.0), entry("2", 2.0, Some(0.5), 3.1)];
        let data = data(&History { entries }, Some("https://example.org/a/b"));
        assert_eq!(data["series"].as_array().map(Vec::len), Some(3));
        let kernel = &data["series"][0];
        assert_eq!(kernel["points"][1][1], 2.0);
        assert_eq!(kernel["points"][1][3], 0.5);
        assert_eq!(kernel["reach_calibrated"], 0.3);
        assert_eq!(data["devices"][0]["name"], "a device");
        assert_eq!(data["magnitudes"][4], json!([null, "very large"]));
    }

    #[test]
    fn remotes_become_pages() {
        let page = Some("https://example.org/owner/name".to_string());
        for remote in [
            "git@example.org:owner/name.git",
            "https://example.org/owner/name",
            "https://user:secret@example.org/owner/name.git\n",
            "ssh://git@example.org/owner/name.git",
        ] {
            assert_eq!(web(remote), page, "{remote}");
        }
        for other in ["", "/home/somebody/name", "../name", "javascript:alert(1)//a.b/c"] {
            assert_eq!(web(other), None, "{other}");
        }
    }
}
