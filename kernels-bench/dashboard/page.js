// The page: what is chosen at its top, and each section drawn of that.
const at = (id) => document.getElementById(id);
const body = (id) => at(id).querySelector(".body");
const state = { words: [], device: 0, metric: METRICS[0], every: false };
const matches = (series) => state.words.every((word) => series.text.includes(word));
const chosen = (series) => matches(series) && (state.every || series.production);
const here = (series) => series.device === state.device;
const recordsOf = (device) => data.records
  .map((record, index) => ({ ...record, index })).filter((record) => record.device === device);

// The same rule as in `judge.rs`; the widths of the fences come from there.
function change(series, before, now) {
  const a = series.points.find((p) => p[0] === before);
  const b = series.points.find((p) => p[0] === now);
  if (!a || !b) return null;
  const calibrated = known(a[3]) && known(b[3]);
  const reach = calibrated ? series.reach_calibrated : series.reach;
  if (!known(reach)) return null;
  const ratio = a[1] === b[1] ? 1 : calibrated ? b[3] / a[3] : b[1] / a[1];
  const apart = Math.abs(ratio - 1);
  const distance = apart === 0 ? 0 : apart / reach;
  const [, words] = data.magnitudes.find(([below]) => below === null || distance < below);
  const worse = series.better === "lower" ? ratio > 1 : ratio < 1;
  // Who was busy, the machine or the kernel, cannot be told with one of them calibrated.
  const either = series.better === "" || known(a[3]) !== known(b[3]);
  const kind = distance <= 1 ? "" : either ? "moved" : worse ? "worse" : "better";
  const how = calibrated ? ", calibrated" : known(a[3]) || known(b[3]) ? ", by the clock" : "";
  return { series, a, b, ratio, how, reach, distance, words, kind };
}

const VERDICTS = { worse: "regression", better: "improvement", moved: "change" };
const ORDER = { worse: 0, better: 1, moved: 2, "": 3 };
const byWorst = (a, b) => ORDER[a.kind] - ORDER[b.kind] || b.distance - a.distance;

// `everywhere`: of all devices, so that each row says which.
function changesTable(body, changes, everywhere = false) {
  const counts = (kind) => changes.filter((change) => change.kind === kind).length;
  const summary = `${counts("worse")} regressions, ${counts("better")} improvements, ` +
    `${counts("moved")} other changes, ${counts("")} within their fences`;
  const rows = el("tbody");
  const head = ["change", "", "before", "now", "fence", "row"];
  const optional = (index) => (index >= 2 && index <= 4 ? "optional" : index === 5 ? "row" : null);
  const table = el("table", { class: "movers" }, el("thead", null, el("tr", null,
    head.map((name, index) => el("th", { class: optional(index) }, name)))), rows);
  const where = (series) => (everywhere && data.devices.length > 1
    ? `; ${data.devices[series.device].name}` : "");
  const line = ({ series, a, b, ratio, how, reach, words, kind }) => {
    const [op, format, shape, variant] = series.names;
    const unit = series.unit;
    return el("tr", { title: series.repeat },
      el("td", { class: kind }, signed(ratio)),
      el("td", { class: `words ${kind}` }, kind ? `${words} ${VERDICTS[kind]}` : "–"),
      el("td", { class: "optional" }, `${short(a[1])} ${unit}`),
      el("td", { class: "optional" }, `${short(b[1])} ${unit}`),
      el("td", { class: "optional" }, `± ${(100 * reach).toFixed(1)} %`),
      el("td", { class: "row" }, el("b", null, op), ` ${format} `,
        el("span", { class: "soft" }, `${shape} ${variant}${how}${where(series)}`)));
  };
  inPieces(body, changes, 25, (piece) => {
    if (!rows.childElementCount) {
      body.append(el("p", null, summary), el("div", { class: "scroll" }, table));
    }
    rows.append(...piece.map(line));
  });
}

function drawMovers() {
  const changes = [];
  for (const series of data.series) {
    if (series.points.length < 2 || !chosen(series) || series.kind === "roof") continue;
    const before = series.points[series.points.length - 2][0];
    const found = change(series, before, series.last[0]);
    if (found) changes.push(found);
  }
  changes.sort(byWorst);
  if (changes.length) changesTable(body("movers"), changes, true);
  else body("movers").replaceChildren(el("p", null, "No row that matches is in two records."));
}

// Groups in the order of their first member.
function grouped(all, keyOf) {
  const groups = new Map();
  for (const one of all) {
    const key = keyOf(one);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(one);
  }
  return [...groups];
}

// Charts are drawn when they come near the screen.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((entry) => entry.isIntersecting)) {
    watcher.unobserve(entry.target);
    entry.target.replaceWith(entry.target.draw());
  }
}, { rootMargin: "300px" });
function lazily(title, draw) {
  const place = emptyFigure(title, "…");
  place.draw = draw;
  watcher.observe(place);
  return place;
}
function drawGroups(id, groups, metric, nameOf) {
  const target = body(id);
  if (!groups.length) return target.replaceChildren(el("p", null, "Nothing matches."));
  inPieces(target, groups, 8, (piece) => {
    target.append(...piece.map(([title, lines]) =>
      lazily(title, () => lineChart(title, lines, metric, nameOf))));
  });
}
function drawSeries() {
  const kernels = data.series.filter((s) => s.kind === "kernel" && here(s) && chosen(s));
  drawGroups("series", grouped(kernels, (s) => `${s.names[0]} ${s.names[2]}`), state.metric,
    (s) => (state.every ? `${s.names[1]} ${s.names[3]}` : s.names[1]));
  const kinds = ["tuning", "quality", "size"];
  const runs = data.series.filter((s) => kinds.includes(s.kind) && here(s) && chosen(s));
  drawGroups("runs", grouped(runs, (s) => `${s.names[3]} (${s.names[2]})`), METRICS[0],
    (s) => s.names[1] || s.names[2]);
}

const FAMILIES = [["matmul_nt", "matmul_nt"], ["matmul_nn", "matmul_nn"], ["attention", "attention"],
  ["norm", "norms"], ["cross_entropy", "loss"], ["adamw", "optimizer"], ["", "others"]];
const colourOf = (op) => FAMILIES.findIndex(([part]) => op.includes(part));

const newest = () => {
  const records = recordsOf(state.device).map((record) => record.index);
  const has = (index) => data.series.some((s) => s.kind === "kernel" && here(s) &&
    s.points.some((p) => p[0] === index && known(p[7])));
  return records.reverse().find(has);
};

function drawRatios() {
  const record = newest();
  const target = body("ratios");
  if (record === undefined) return target.replaceChildren(el("p", null, "No record here."));
  const kernels = data.series.filter((s) => s.kind === "kernel" && here(s) && matches(s) &&
    s.production && s.names[1] !== "f32");
  const dots = kernels.map((series) => ({ series, p: series.points.find((p) => p[0] === record) }))
    .filter(({ p }) => p && known(p[7]));
  const rows = grouped(dots, ({ series }) => series.names[1]).map(([name, own]) =>
    [name, own.map(({ series, p }) => ({ value: p[7], text: series.key,
      colour: colourOf(series.names[0]) }))]);
  rows.sort((a, b) => middle(b[1].map((d) => d.value)) - middle(a[1].map((d) => d.value)));
  const caption = `${recordName(record)}; to the right: faster. The mark is the median.`;
  const others = (kind, test) => data.series.filter((s) => s.kind === kind && here(s) &&
    matches(s) && test(s)).map((s) => [`${s.names[1]} ${s.names[3].replace(/_.*/, "")}`,
      [{ value: s.last[1], text: s.key, colour: 0 }]]);
  const vanilla = others("tuning", (s) => s.names[3].includes("_ratio_to_"));
  const peers = others("peer", () => true);
  const used = [...new Set(rows.flatMap(([, own]) => own.map((dot) => dot.colour)))].sort();
  const names = used.map((colour) => [FAMILIES[colour][1], colour]);
  target.replaceChildren(ratioChart("Formats against dense f32", rows, caption, names),
    ratioChart("Methods against vanilla LoRA", vanilla,
      "Above 1: more tokens a second, or less memory at the peak."),
    ...(peers.length ? [ratioChart("Our f32 against peers", peers, "Above 1: ours is faster.")]
      : []));
}

function drawRoofline() {
  const charts = data.devices.map((device, index) => {
    const kernels = data.series.filter((s) => s.kind === "kernel" && s.device === index &&
      matches(s) && s.production && s.last[4] > 0 && s.last[5] > 0);
    const dots = kernels.map((s) => ({
      intensity: s.last[5] / s.last[4], rate: s.last[5], colour: colourOf(s.names[0]),
      text: `${s.key}: ${short(s.last[5])} GFLOP/s, ${short(s.last[4])} GB/s` +
        (known(s.last[6]) ? `, ${Math.round(100 * s.last[6])} % of the roof` : ""),
    }));
    const used = [...new Set(dots.map((dot) => dot.colour))].sort();
    return rooflineChart(device.name, dots, device.roof,
      used.map((colour) => [FAMILIES[colour][1], colour]));
  });
  body("roofline").replaceChildren(...charts);
}

const CELLS = [METRICS[2], METRICS[5], METRICS[1], METRICS[4]];
function drawHeat() {
  const metric = CELLS[at("cell").selectedIndex];
  const op = at("op").value;
  const cells = data.series.filter((s) => s.kind === "kernel" && here(s) && matches(s) &&
    s.production && s.names[0] === op && known(metric.of(s.last)));
  const target = body("heat");
  if (!cells.length) return target.replaceChildren(el("p", null, "Nothing matches."));
  const formats = [...new Set(cells.map((s) => s.names[1]))];
  const values = cells.map((s) => metric.of(s.last)).filter((v) => v > 0).map(Math.log);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const centre = metric === METRICS[2] ? 0 : (low + high) / 2;
  const reach = Math.max(high - centre, centre - low, 1e-9);
  const shade = (value) => {
    const part = (Math.log(value) - centre) / reach;
    const colour = part >= 0 ? "--c0" : "--c1";
    return `background: color-mix(in srgb, var(${colour}) ${Math.abs(part * 55).toFixed(0)}%, ` +
      "var(--card))";
  };
  const rows = el("tbody");
  const table = el("table", { class: "heat" }, el("thead", null,
    el("tr", null, el("th", null, "shape"), formats.map((f) => el("th", null, f)))), rows);
  inPieces(target, grouped(cells, (s) => s.names[2]), 40, (piece) => {
    if (!rows.childElementCount) target.append(table);
    rows.append(...piece.map(([shape, own]) => el("tr", null, el("td", null, shape),
      formats.map((format) => {
        const one = own.find((s) => s.names[1] === format);
        if (!one) return el("td");
        const value = metric.of(one.last);
        return el("td", { style: value > 0 ? shade(value) : null, title: one.key }, short(value));
      }))));
  });
}

function drawCompare() {
  const [from, to] = [Number(at("from").value), Number(at("to").value)];
  const changes = data.series.filter((s) => here(s) && chosen(s) && s.kind !== "roof")
    .map((series) => change(series, from, to)).filter((found) => found);
  changes.sort(byWorst);
  if (changes.length) changesTable(body("compare"), changes);
  else body("compare").replaceChildren(el("p", null, "No row that matches is in both records."));
}

function options(select, entries, selected) {
  select.replaceChildren(...entries.map(([value, text]) => el("option", { value }, text)));
  if (selected !== undefined) select.value = selected;
}
function ofDevice() {
  const records = recordsOf(state.device);
  const entries = records.map((record) => [record.index, recordName(record.index)]).reverse();
  const to = newest() ?? records[records.length - 1]?.index;
  const before = records.filter((record) => record.index < to);
  // The one before that shares most rows: a record of some rows says nothing about the others.
  const shared = (index) => data.series.filter((s) => here(s) &&
    s.points.some((p) => p[0] === index) && s.points.some((p) => p[0] === to)).length;
  const from = before.reverse().reduce((best, record) =>
    (best === null || shared(record.index) > shared(best) ? record.index : best), null) ?? to;
  options(at("from"), entries, from);
  options(at("to"), entries, to);
  const ops = grouped(data.series.filter((s) => s.kind === "kernel" && here(s)),
    (s) => s.names[0]);
  const formats = (own) => new Set(own.map((s) => s.names[1])).size;
  options(at("op"), ops.filter(([, own]) => formats(own) > 1).map(([op]) => [op, op]));
  const machine = data.devices[state.device].machine;
  at("about").replaceChildren(
    `${data.records.length} records, ${data.series.length} rows. `,
    el("details", { class: "machine" }, el("summary", null, "The machine"),
      machine.length ? machine.map(([name, value]) => el("div", null, `${name}: ${value}`))
        : "Records of several machines, or none that describes itself."));
}
function draw() {
  const count = data.series.filter(chosen).length;
  at("count").textContent = `${count} of ${data.series.length} rows match`;
  drawMovers(); drawSeries(); drawRatios(); drawRoofline(); drawHeat(); drawCompare();
}

function begin() {
  if (!data.records.length) {
    at("about").textContent = "There are no records yet: make one with " +
      "`cargo xtask bench --quick --record`.";
    return;
  }
  state.device = data.records[data.records.length - 1].device;
  options(at("device"), data.devices.map((device, index) => [index, device.name]), state.device);
  options(at("metric"), METRICS.map((metric, index) => [index, metric.name]));
  options(at("cell"), CELLS.map((metric, index) => [index, metric.name]));
  const read = (text) => text.toLowerCase().split(/\s+/).filter((word) => word);
  const asked = new URLSearchParams(location.hash.slice(1)).get("filter");
  if (asked) at("filter").value = asked;
  state.words = read(at("filter").value);
  let waiting = 0;
  at("filter").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.words = read(at("filter").value); draw(); }, 120);
  });
  at("device").addEventListener("change", (event) => {
    state.device = Number(event.target.value);
    ofDevice();
    draw();
  });
  at("metric").addEventListener("change", (event) => {
    state.metric = METRICS[event.target.value];
    drawSeries();
  });
  at("every").addEventListener("change", (event) => {
    state.every = event.target.checked;
    draw();
  });
  for (const id of ["op", "cell"]) at(id).addEventListener("change", drawHeat);
  for (const id of ["from", "to"]) at(id).addEventListener("change", drawCompare);
  for (const form of document.querySelectorAll("form")) {
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  ofDevice();
  draw();
}
begin();
document.documentElement.dataset.renderedMs = (performance.now() - started).toFixed(0);
