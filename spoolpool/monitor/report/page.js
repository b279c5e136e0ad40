"use strict";
// Draws the charts. Times in the data are milliseconds after data.begin, which is in milliseconds since the epoch.
const data = JSON.parse(document.getElementById("data").textContent);
const style = getComputedStyle(document.documentElement); // live: follows the colour scheme
const colour = (name) => style.getPropertyValue("--" + name);
const BAR = { begin: 0, length: 1, name: 2, count: 3, busy: 4, failed: 5, task: 6 };
const LEFT = 150, TOP = 4, AXIS = 20;

const span = Math.max(data.end - data.begin, 1);
const view = { from: 0, to: span, row: 0 }; // shown by both charts over time; row: the first visible row, with a fraction

function duration(ms) {
  if (ms < 1) return (ms * 1000).toFixed(0) + " µs";
  if (ms < 1000) return ms.toFixed(ms < 10 ? 1 : 0) + " ms";
  if (ms < 120e3) return (ms / 1000).toFixed(ms < 10e3 ? 2 : 1) + " s";
  if (ms < 7200e3) return (ms / 60e3).toFixed(1) + " min";
  if (ms < 172800e3) return (ms / 3600e3).toFixed(1) + " h";
  return (ms / 86400e3).toFixed(1) + " d";
}

function moment(ms, finest) {
  const at = new Date(data.begin + ms), two = (n) => String(n).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const time = `${two(at.getHours())}:${two(at.getMinutes())}`;
  if (finest >= 86400e3) return day;
  if (finest >= 60e3) return span > 86400e3 ? `${day.slice(5)} ${time}` : time;
  const seconds = `${time}:${two(at.getSeconds())}`;
  return finest >= 1000 ? seconds : `${seconds}.${String(at.getMilliseconds()).padStart(3, "0")}`;
}

function prepare(canvas, height) {
  const width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
  canvas.style.height = height + "px";
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "middle";
  return [context, width];
}

// -- the axis of time

const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 10e3, 15e3, 30e3, 60e3, 120e3, 300e3, 600e3, 900e3, 1800e3,
  3600e3, 7200e3, 10800e3, 21600e3, 43200e3, 86400e3, 172800e3, 604800e3, 2592000e3, 31536000e3];

function axis(context, width, bottom) {
  const x = (ms) => LEFT + (ms - view.from) / (view.to - view.from) * (width - LEFT);
  const step = STEPS.find((each) => each / (view.to - view.from) * (width - LEFT) > 100) || STEPS[STEPS.length - 1];
  const zone = new Date(data.begin).getTimezoneOffset() * 60e3;
  const first = Math.ceil((data.begin - zone + view.from) / step) * step - (data.begin - zone);
  context.textAlign = "center";
  for (let at = first; at <= view.to; at += step) {
    context.fillStyle = colour("line");
    context.fillRect(Math.round(x(at)), TOP, 1, bottom - TOP);
    context.fillStyle = colour("dim");
    context.fillText(moment(at, step), Math.min(x(at), width - 40), bottom + AXIS / 2);
  }
  return x;
}

// -- groups

const rows = data.rows;
const rowHeight = rows.length > 150 ? 8 : 18;
const rowsShown = Math.min(rows.length, Math.floor(560 / rowHeight));

function pack(row) { // columns of numbers, because each drawing reads many bars
  const column = (kind, value) => kind.from(row.bars, value);
  row.begin = column(Float64Array, (bar) => bar[BAR.begin]);
  row.end = column(Float64Array, (bar) => bar[BAR.begin] + bar[BAR.length]);
  row.busy = column(Float64Array, (bar) => bar[BAR.busy]);
  row.count = column(Uint32Array, (bar) => bar[BAR.count]);
  row.failed = column(Uint32Array, (bar) => bar[BAR.failed]);
}
rows.forEach(pack);

function firstAfter(row, ms) { // index of the first bar that ends after a time
  let low = 0, high = row.end.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (row.end[middle] > ms) high = middle; else low = middle + 1;
  }
  return low;
}

const SHADES = 8; // shades of a bar, by the share of its time with a running task

function drawRows() {
  const canvas = document.getElementById("rows");
  const height = TOP + rowsShown * rowHeight + AXIS;
  const [context, width] = prepare(canvas, height);
  const x = axis(context, width, height - AXIS);
  const perPixel = (view.to - view.from) / (width - LEFT), tall = rowHeight - (rowHeight > 10 ? 4 : 1);
  const shades = Array.from({ length: SHADES }, () => new Path2D()), failures = new Path2D(), idle = new Path2D();
  context.save();
  context.beginPath();
  context.rect(0, TOP, width, rowsShown * rowHeight);
  context.clip();
  const seen = rows.slice(Math.floor(view.row), Math.ceil(view.row + rowsShown));
  seen.forEach((row, number) => {
    const y = TOP + (number - (view.row % 1)) * rowHeight, left = Math.max(LEFT, x(row.from));
    idle.rect(left, y, Math.max(0, Math.min(width, x(row.to)) - left), tall);
    for (let at = firstAfter(row, view.from); at < row.begin.length && row.begin[at] <= view.to; ) {
      // bars that end within one pixel are merged: there are at most as many boxes as pixels, for any number of bars
      const begin = row.begin[at], long = row.end[at] - begin > 4 * perPixel;
      let end = row.end[at], busy = row.busy[at], count = row.count[at], failed = row.failed[at];
      for (at++; at < row.begin.length && row.end[at] - begin <= perPixel; at++) {
        end = row.end[at];
        busy += row.busy[at];
        count += row.count[at];
        failed += row.failed[at];
      }
      const from = Math.max(LEFT, x(begin)), to = Math.min(width, Math.max(from + 1, x(end) - (long ? 1 : 0)));
      const shade = Math.min(SHADES - 1, Math.floor(busy / Math.max(end - begin, 1e-9) * SHADES));
      shades[shade].rect(from, y, to - from, tall);
      const part = failed ? tall * Math.max(0.25, failed / count) : 0; // at least a quarter of the height, so that one failure is visible
      if (part) failures.rect(from, y + tall - part, to - from, part);
    }
  });
  context.fillStyle = colour("idle");
  context.fill(idle);
  context.fillStyle = colour("bar");
  shades.forEach((path, shade) => {
    context.globalAlpha = (shade + 3) / (SHADES + 2);
    context.fill(path);
  });
  context.globalAlpha = 1;
  context.fillStyle = colour("failed");
  context.fill(failures);
  if (rowHeight > 10) {
    context.fillStyle = colour("text");
    context.textAlign = "left";
    seen.forEach((row, number) => {
      context.fillText(row.label, 4, TOP + (number - (view.row % 1)) * rowHeight + tall / 2, LEFT - 12);
    });
  }
  context.restore();
}

function barAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const ms = view.from + (event.clientX - box.left - LEFT) / (box.width - LEFT) * (view.to - view.from);
  const row = rows[Math.floor((event.clientY - box.top - TOP) / rowHeight + view.row)];
  if (!row || event.clientX - box.left < LEFT) return row ? row.about : "";
  const slack = (view.to - view.from) / (box.width - LEFT);
  const bar = row.bars[firstAfter(row, ms - slack)];
  if (!bar || bar[BAR.begin] > ms + slack) return row.about;
  const wrong = bar[BAR.failed] ? `, ${bar[BAR.count] > 1 ? bar[BAR.failed] + " " : ""}failed` : "";
  const what = bar[BAR.count] > 1 ? `${bar[BAR.count]} tasks in ${duration(bar[BAR.length])}, the longest of ` : "";
  const alone = bar[BAR.count] > 1 ? "" : `, ${duration(bar[BAR.length])}`;
  return `${row.label}: ${what}${data.names[bar[BAR.name]] || "?"} (${bar[BAR.task]})${alone}${wrong}`;
}

// -- numbers of waiting and running tasks

function drawLevels() {
  const height = 180, [context, width] = prepare(document.getElementById("levels"), height);
  const x = axis(context, width, height - AXIS);
  const lines = [["waiting", "wait"], ["running", "bar"]].map(([name, tint]) => {
    const level = data.levels[name], step = level.step;
    const from = Math.max(0, Math.floor((view.from - level.begin) / step));
    const to = Math.min(level.values.length, Math.ceil((view.to - level.begin) / step));
    return { level, step, from, to, tint, top: Math.max(0, ...level.values.slice(from, to)) };
  });
  const bottom = height - AXIS, above = TOP + 14;
  lines.forEach((line, which) => { // each line has its own scale
    const y = (value) => bottom - value / (line.top || 1) * (bottom - above);
    context.strokeStyle = context.fillStyle = colour(line.tint);
    context.lineWidth = 1.5;
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT, bottom + 1);
    context.clip();
    context.beginPath();
    for (let at = line.from; at < line.to; at++) {
      const left = x(line.level.begin + at * line.step), right = x(line.level.begin + (at + 1) * line.step);
      const tall = y(line.level.values[at]);
      if (at === line.from) context.moveTo(left, tall); else context.lineTo(left, tall);
      context.lineTo(right, tall);
    }
    context.stroke();
    context.restore();
    context.textAlign = "left";
    context.fillText(`${which ? "running" : "waiting"}, at most ${+line.top.toFixed(1)}`, 4, above + 18 * which);
  });
}

// -- distributions

function drawClasses(id, classes, tint) {
  const canvas = document.getElementById(id);
  const height = 160, [context, width] = prepare(canvas, height);
  if (!classes.length) { context.fillStyle = colour("dim"); context.fillText("no tasks yet", 8, height / 2); return; }
  const wide = (width - 16) / classes.length, top = Math.max(...classes.map((each) => each[1]));
  classes.forEach(([from, count], at) => {
    const tall = count / top * (height - AXIS - 10);
    context.fillStyle = colour(tint);
    context.fillRect(8 + at * wide, height - AXIS - tall, Math.max(1, wide - 1), tall);
    const every = Math.max(1, Math.ceil(70 / wide));
    if (at % every === 0) {
      context.fillStyle = colour("dim");
      context.textAlign = "left";
      context.fillText(duration(from * 1000), 8 + at * wide, height - AXIS / 2);
    }
  });
}

// -- zoom and drag

function draw() { drawRows(); drawLevels(); }

let asked = false;
function soon() {
  if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; draw(); }); }
}

function move(from, to) {
  const least = Math.min(span, 1), length = Math.min(Math.max(to - from, least), span * 1.2);
  const middle = (from + to) / 2;
  view.from = Math.min(Math.max(middle - length / 2, -0.1 * span), 1.1 * span - length);
  view.to = view.from + length;
  soon();
}

for (const id of ["rows", "levels"]) {
  const canvas = document.getElementById(id);
  let grip = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left - LEFT) / (box.width - LEFT), 0), 1);
    const factor = Math.exp(Math.max(-1, Math.min(1, event.deltaY / 250)));
    const at = view.from + share * (view.to - view.from);
    move(at - (at - view.from) * factor, at + (view.to - at) * factor);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    grip = { x: event.clientX, y: event.clientY, ...view };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip) { document.getElementById("hint").textContent = id === "rows" ? barAt(canvas, event) : ""; return; }
    const ms = (event.clientX - grip.x) / (canvas.clientWidth - LEFT) * (grip.to - grip.from);
    if (id === "rows") {
      view.row = Math.min(Math.max(grip.row - (event.clientY - grip.y) / rowHeight, 0), rows.length - rowsShown);
    }
    move(grip.from - ms, grip.to - ms);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { grip = null; });
  canvas.addEventListener("dblclick", () => { view.row = 0; move(0, span); });
}

function all() {
  draw();
  drawClasses("durations", data.durations, "bar");
  drawClasses("waits", data.waits, "wait");
}
addEventListener("resize", all);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
all();
