// Elements, numbers and the data. All text goes in as text nodes: what files say is never markup.
"use strict";
const started = performance.now();
const data = JSON.parse(document.getElementById("data").textContent);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function short(value) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(1);
  const [scale, unit] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"]
    : size >= 1e4 ? [1e3, "k"] : [1, ""];
  const scaled = value / scale;
  const digits = Math.abs(scaled) >= 100 ? 0 : Math.abs(scaled) >= 10 ? 1
    : Math.abs(scaled) >= 1 ? 2 : 3;
  const text = scaled.toFixed(digits);
  return (text.includes(".") ? text.replace(/\.?0+$/, "") : text) + unit;
}
const signed = (ratio) => {
  const percent = 100 * (ratio - 1);
  return (percent >= 0 ? "+" : "−") + Math.abs(percent).toFixed(1) + " %";
};
const middle = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

// A point is [record, value, spread, calibrated, gb_s, gflop_s, roof_share, to_f32].
const METRICS = [
  { name: "time or value", unit: (s) => s.unit, of: (p) => p[1], spread: (p) => p[2] },
  { name: "times of the calibration kernel", unit: () => "×", of: (p) => p[3] },
  { name: "× dense f32", unit: () => "×", of: (p) => p[7] },
  { name: "GB/s", unit: () => "GB/s", of: (p) => p[4] },
  { name: "GFLOP/s", unit: () => "GFLOP/s", of: (p) => p[5] },
  { name: "share of the roof", unit: () => "", of: (p) => p[6] },
];
const known = (value) => value !== null && value !== undefined;

for (const series of data.series) {
  series.key = series.names.join("/");
  series.text = (series.key + " " + data.devices[series.device].slug).toLowerCase();
  series.last = series.points[series.points.length - 1];
}
const recordName = (index) => data.records[index].name.replace("_", " ");

// The commit as a link where the repository is known to be on the web.
function commit(index) {
  const record = data.records[index];
  const text = el("code", null, record.commit);
  const known = data.repository && /^[0-9a-f]{7,40}(-dirty)?$/.test(record.commit);
  if (!known) return text;
  const href = `${data.repository}/commit/${record.commit.replace("-dirty", "")}`;
  return el("a", { href }, text);
}

// Shows `rows` in pieces, so that thousands of them cost nothing until somebody asks.
function inPieces(body, rows, size, draw) {
  body.replaceChildren();
  let shown = 0;
  const more = el("button", { type: "button", onclick: () => next() });
  const next = () => {
    more.remove();
    draw(rows.slice(shown, shown + size));
    shown += size;
    if (shown < rows.length) {
      more.textContent = `Show more (${rows.length - shown} left)`;
      body.append(more);
    }
  };
  next();
}
