// Charts as inline SVG: lines over records, dots along a ratio, the roofline.
const WIDTH = 440, HEIGHT = 250, LEFT = 58, RIGHT = 12, TOP = 12, BOTTOM = 40;
const COLOURS = 8;

function scale(values, log, [from, to]) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    low = Math.log10(low); high = Math.log10(high);
  }
  const pad = Math.max((high - low) * 0.06, Math.abs(high) * (log ? 0 : 0.02), log ? 0.05 : 1e-9);
  high += pad;
  low = !log && low >= 0 ? Math.max(0, low - pad) : low - pad;
  const place = (value) =>
    from + (to - from) * (((log ? Math.log10(value) : value) - low) / (high - low));
  return { place, ticks: () => (log ? decades(low, high) : steps(low, high)) };
}
function steps(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) ticks.push(i * step);
  return ticks;
}
function decades(low, high) {
  const parts = high - low > 3 ? [1] : high - low > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const ticks = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
    for (const part of parts) {
      const at = Math.log10(part) + power;
      if (at >= low && at <= high) ticks.push(part * 10 ** power);
    }
  }
  return ticks;
}

function frame(about, height) {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${height || HEIGHT}`, role: "img",
    "aria-label": about });
}
function yAxis(root, y, height) {
  for (const tick of y.ticks()) {
    const at = y.place(tick);
    root.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }),
      svg("text", { class: "tick", x: LEFT - 6, y: at + 4, "text-anchor": "end" }, short(tick)));
  }
  const bottom = (height || HEIGHT) - BOTTOM;
  root.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom }));
}
function xTicks(root, places, bottom) {
  // 7: half a character and a gap, on either side.
  let free = -Infinity;
  for (const [at, label] of places) {
    const half = label.length * 4;
    const x = Math.min(at, WIDTH - half);
    if (x - half < free) continue;
    free = x + half + 7;
    root.append(svg("line", { class: "axis", x1: at, x2: at, y1: bottom, y2: bottom + 4 }),
      svg("text", { class: "tick", x, y: bottom + 17, "text-anchor": "middle" }, label));
  }
}

// Says below a chart what is nearest to the pointer or finger.
function speaking(figure, root, points, say) {
  const readout = el("p", { class: "readout soft" });
  let on = null;
  const show = (event) => {
    const box = root.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const y = ((event.clientY - box.top) / box.height) * root.viewBox.baseVal.height;
    let best = null, least = Infinity;
    for (const point of points) {
      const apart = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (apart < least) [best, least] = [point, apart];
    }
    if (!best || best === on) return;
    if (on) on.shape.classList.remove("on");
    on = best;
    on.shape.classList.add("on");
    readout.replaceChildren(...say(on));
  };
  root.addEventListener("pointermove", show);
  root.addEventListener("pointerdown", show);
  figure.append(readout);
}

function legend(names) {
  return el("ul", { class: "legend" }, names.map(([name, colour]) =>
    el("li", null, el("span", { class: `swatch c${colour % COLOURS}` }), name)));
}
const emptyFigure = (title, text) =>
  el("figure", null, el("h3", null, title), el("p", { class: "soft" }, text));

// One chart: a line a series, over the device's records.
function lineChart(title, lines, metric, nameOf) {
  const drawn = lines.map((series) => ({
    series, points: series.points.filter((point) => known(metric.of(point))),
  })).filter((line) => line.points.length);
  if (!drawn.length) return emptyFigure(title, `No ${metric.name} in these records.`);
  const figure = el("figure", null, el("h3", null, title));
  const records = [...new Set(drawn.flatMap((line) => line.points.map((p) => p[0])))];
  records.sort((a, b) => a - b);
  const all = drawn.flatMap((line) => line.points.map((p) => metric.of(p)));
  const least = Math.min(...all), most = Math.max(...all);
  const log = least > 0 && most / least > 12;
  const y = scale(all, log, [HEIGHT - BOTTOM, TOP]);
  const inner = WIDTH - LEFT - RIGHT - 24;
  const x = (record) => LEFT + 12 + (records.length === 1 ? inner / 2
    : (records.indexOf(record) / (records.length - 1)) * inner);
  const unit = metric.unit(drawn[0].series);
  const root = frame(`${title}: ${metric.name} over records`);
  yAxis(root, y);
  xTicks(root, records.map((record) => [x(record), data.records[record].commit.slice(0, 7)]),
    HEIGHT - BOTTOM);
  const points = [];
  drawn.forEach(({ series, points: own }, index) => {
    const colour = index % COLOURS, dashed = Math.floor(index / COLOURS) % 2;
    const path = own.map((p, i) => `${i ? "L" : "M"}${x(p[0])} ${y.place(metric.of(p))}`);
    root.append(svg("path", { class: `${dashed ? "dashed" : "thick"} s${colour}`,
      d: path.join("") }));
    for (const point of own) {
      const value = metric.of(point), spread = metric.spread ? metric.spread(point) : 0;
      const at = { x: x(point[0]), y: y.place(value) };
      if (spread > 0 && value > spread) {
        const [high, low] = [y.place(value + spread), y.place(value - spread)];
        root.append(svg("path", { class: `error s${colour}`,
          d: `M${at.x} ${Math.max(high, 1)}V${Math.min(low, HEIGHT - BOTTOM)}` }));
      }
      const shape = svg("circle", { class: `point c${colour}`, cx: at.x, cy: at.y, r: 3.5 });
      root.append(shape);
      points.push({ ...at, shape, series, point, value, spread });
    }
  });
  const label = log ? `${unit || metric.name}, logarithmic` : unit || metric.name;
  root.append(svg("text", { class: "label", x: LEFT, y: HEIGHT - 6 }, label));
  if (drawn.length > 1) {
    figure.append(legend(drawn.map((line, index) => [nameOf(line.series), index])));
  }
  figure.append(root);
  speaking(figure, root, points, ({ series, point, value, spread }) => [
    `${nameOf(series)}: ${short(value)}${spread > 0 ? " ± " + short(spread) : ""} ${unit}, `,
    `${data.records[point[0]].date} `, commit(point[0]),
  ]);
  return figure;
}

// Rows of dots along a logarithmic ratio. rows: [[name, [{value, text, colour}]]]
function ratioChart(title, rows, caption, names) {
  const values = rows.flatMap(([, dots]) => dots.map((dot) => dot.value)).filter((v) => v > 0);
  if (!values.length) return emptyFigure(title, "No such ratios in this record.");
  const figure = el("figure", null, el("h3", null, title), names ? legend(names) : null);
  const height = TOP + rows.length * 22 + BOTTOM, bottom = height - BOTTOM;
  const left = Math.min(160, Math.max(...rows.map(([name]) => name.length)) * 7.6 + 12);
  const x = scale([...values, 1], true, [left, WIDTH - RIGHT]);
  const root = frame(title, height);
  for (const tick of x.ticks()) {
    root.append(svg("line", { class: "grid", x1: x.place(tick), x2: x.place(tick), y1: TOP,
      y2: bottom }));
  }
  root.append(svg("line", { class: "one", x1: x.place(1), x2: x.place(1), y1: TOP, y2: bottom }));
  xTicks(root, x.ticks().map((tick) => [x.place(tick), short(tick)]), bottom);
  const points = [];
  rows.forEach(([name, dots], index) => {
    const y = TOP + index * 22 + 11;
    root.append(svg("text", { class: "name", x: left - 6, y: y + 4, "text-anchor": "end" },
      name.length > 24 ? name.slice(0, 23) + "…" : name));
    const good = dots.filter((dot) => dot.value > 0);
    for (const dot of good) {
      const at = { x: x.place(dot.value), y };
      const shape = svg("circle", { class: `dot point c${dot.colour}`, cx: at.x, cy: y, r: 4 });
      root.append(shape);
      points.push({ ...at, shape, dot });
    }
    const half = x.place(middle(good.map((dot) => dot.value)));
    root.append(svg("path", { class: "whisker", d: `M${half} ${y - 8}V${y + 8}` }));
  });
  figure.append(root);
  speaking(figure, root, points, ({ dot }) => [`${dot.text}: ${short(dot.value)} ×`]);
  figure.append(el("figcaption", null, caption));
  return figure;
}

// dots: [{intensity, rate, text, colour}]; roof: {copy, fma} in GB/s and GFLOP/s.
function rooflineChart(title, dots, roof, names) {
  if (!dots.length) return emptyFigure(title, "No kernels with operations and bytes here.");
  const figure = el("figure", null, el("h3", null, title), legend(names));
  const height = 320, bottom = height - BOTTOM;
  const ridge = roof ? [roof.fma / roof.copy] : [];
  const xs = [...dots.map((dot) => dot.intensity), ...ridge.map((r) => r * 4)];
  const x = scale(xs, true, [LEFT, WIDTH - RIGHT]);
  const top = roof ? [roof.fma * 1.3] : [];
  const y = scale([...dots.map((dot) => dot.rate), ...top], true, [bottom, TOP]);
  const root = frame(`${title}: roofline`, height);
  yAxis(root, y, height);
  xTicks(root, x.ticks().map((tick) => [x.place(tick), short(tick)]), bottom);
  if (roof) {
    const low = Math.min(...xs), high = Math.max(...xs);
    const at = (intensity) => y.place(Math.min(intensity * roof.copy, roof.fma));
    const floor = Math.max(low, Math.min(...dots.map((dot) => dot.rate)) / roof.copy);
    const d = [floor, Math.max(floor, ridge[0]), high].map((value, i) =>
      `${i ? "L" : "M"}${x.place(value)} ${at(value)}`);
    root.append(svg("path", { class: "roof", d: d.join("") }));
  }
  const points = dots.map((dot) => {
    const own = { x: x.place(dot.intensity), y: y.place(dot.rate), dot };
    own.shape = svg("circle", { class: `dot point c${dot.colour}`, cx: own.x, cy: own.y, r: 4 });
    root.append(own.shape);
    return own;
  });
  root.append(svg("text", { class: "label", x: LEFT, y: height - 6 },
    "operations a byte; upwards GFLOP/s"));
  figure.append(root);
  speaking(figure, root, points, ({ dot }) => [dot.text]);
  return figure;
}
