"use strict";
// Draws the charts. Times in the data are milliseconds after data.begin, which is in milliseconds since the epoch.
const data = JSON.parse(document.getElementById("data").textContent);
const style = getComputedStyle(document.documentElement); // live: follows the colour scheme
const colour = (name) => style.getPropertyValue("--" + name);
const BAR = { begin: 0, length: 1, name: 2, count: 3, busy: 4, failed: 5, task: 6 }; // the task with its label
const LEFT = innerWidth < 600 ? 84 : 150, TOP = 4, AXIS = 20;

const span = Math.max(data.end - data.begin, 1);
const view = { from: 0, to: span, row: 0 }; // shown by both charts over time; row: the first visible row, with a fraction
const kept = (data.every && history.state && history.state.spoolpool) || {}; // state of the page before it was reloaded
const hint = (id, text) => { document.getElementById(id).textContent = text; };

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
    const half = context.measureText(moment(at, step)).width / 2;
    context.fillText(moment(at, step), Math.min(x(at), width - half), bottom + AXIS / 2);
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
      const part = failed ? Math.max(Math.min(3, tall / 2), tall * failed / count) : 0; // one failure of many is visible
      if (part) failures.rect(from, y + tall - part, to - from, part);
    }
  });
  context.fillStyle = colour("idle");
  context.fill(idle);
  if (rowHeight > 10) { context.strokeStyle = colour("edge"); context.lineWidth = 1; context.stroke(idle); }
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
  if (chosen.row >= 0 && document.activeElement === canvas) {
    const row = rows[chosen.row], bar = row.bars[chosen.bar], y = TOP + (chosen.row - view.row) * rowHeight;
    const from = bar ? x(bar[BAR.begin]) : LEFT, to = bar ? x(bar[BAR.begin] + bar[BAR.length]) : width;
    context.strokeStyle = colour("text");
    context.lineWidth = 2;
    context.strokeRect(Math.max(LEFT, from) - 1, y - 1, Math.max(4, Math.min(width, to) - Math.max(LEFT, from)) + 2, tall + 2);
  }
  context.restore();
}

const chosen = { row: -1, bar: -1 }; // by the keyboard; a bar of -1 is the whole row

function choose(row, bar) { // make a bar visible, and name it
  chosen.row = Math.min(Math.max(row, 0), rows.length - 1);
  if (chosen.row < 0) return;
  const bars = rows[chosen.row].bars;
  chosen.bar = Math.min(Math.max(bar, -1), bars.length - 1);
  view.row = Math.min(Math.max(view.row, chosen.row - rowsShown + 1), chosen.row);
  const at = bars[chosen.bar];
  if (at && (at[BAR.begin] > view.to || at[BAR.begin] + at[BAR.length] < view.from)) {
    const half = (view.to - view.from) / 2;
    move(at[BAR.begin] - half, at[BAR.begin] + half);
  }
  hint("hint", at ? describe(rows[chosen.row], at) : rows[chosen.row].about);
  soon();
}

function barAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const ms = view.from + (event.clientX - box.left - LEFT) / (box.width - LEFT) * (view.to - view.from);
  const row = rows[Math.floor((event.clientY - box.top - TOP) / rowHeight + view.row)];
  if (!row || event.clientX - box.left < LEFT) return row ? row.about : "";
  const slack = (view.to - view.from) / (box.width - LEFT);
  const bar = row.bars[firstAfter(row, ms - slack)];
  return !bar || bar[BAR.begin] > ms + slack ? row.about : describe(row, bar);
}

function describe(row, bar) {
  const wrong = bar[BAR.failed] ? `, ${bar[BAR.count] > 1 ? bar[BAR.failed] + " " : ""}failed` : "";
  const what = bar[BAR.count] > 1 ? `${bar[BAR.count]} tasks in ${duration(bar[BAR.length])}, the longest of ` : "";
  const alone = bar[BAR.count] > 1 ? "" : `, ${duration(bar[BAR.length])}`;
  return `${row.label}: ${what}${data.names[bar[BAR.name]] || "?"} (${bar[BAR.task]})${alone}${wrong}`;
}

// -- numbers of waiting and running tasks, one above the other, each with its own axis

const PANELS = [["waiting", "wait"], ["running", "bar"]], PANEL = 110;

function steps(top, most) { // whole numbers up to top, at most as many as fit
  const raw = Math.max(1, top / most), power = 10 ** Math.floor(Math.log10(raw));
  const step = Math.max(1, [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw));
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, number) => number * step);
}

const brief = new Intl.NumberFormat("en", { notation: "compact" }); // 1.2M
const whole = (value) => Math.round(value).toLocaleString("en"); // of a count: the data are averages over steps of time

function vertical(context, left, width, y, top) { // an axis of counts
  context.textAlign = "right";
  for (const value of steps(top, 3)) {
    context.fillStyle = colour("line");
    context.fillRect(left, Math.round(y(value)), width - left, 1);
    context.fillStyle = colour("dim");
    context.fillText(value < 1e5 ? value.toLocaleString("en") : brief.format(value), left - 6, y(value));
  }
}

function drawLevels() {
  const height = TOP + 2 * PANEL + AXIS, [context, width] = prepare(document.getElementById("levels"), height);
  const x = axis(context, width, height - AXIS);
  PANELS.forEach(([name, tint], which) => {
    const level = data.levels[name], step = level.step, bottom = TOP + (which + 1) * PANEL - 8, above = bottom - PANEL + 26;
    const from = Math.max(0, Math.floor((view.from - level.begin) / step));
    const to = Math.min(level.values.length, Math.ceil((view.to - level.begin) / step));
    let top = 1;
    for (let at = from; at < to; at++) top = Math.max(top, level.values[at]);
    const y = (value) => bottom - value / top * (bottom - above);
    vertical(context, LEFT, width, y, top);
    context.fillStyle = colour("text");
    context.textAlign = "left";
    context.fillText(name, 4, above - 10);
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT, bottom + 1);
    context.clip();
    context.beginPath();
    for (let at = from; at < to; at++) {
      const left = x(level.begin + at * step), right = x(level.begin + (at + 1) * step);
      if (at === from) context.moveTo(left, bottom);
      context.lineTo(left, y(level.values[at]));
      context.lineTo(right, y(level.values[at]));
      if (at === to - 1) context.lineTo(right, bottom);
    }
    context.fillStyle = context.strokeStyle = colour(tint);
    context.lineWidth = 1.5;
    context.globalAlpha = 0.25;
    context.fill();
    context.globalAlpha = 1;
    context.stroke();
    context.restore();
  });
}

function levelsAt(ms) {
  const texts = PANELS.map(([name]) => {
    const level = data.levels[name], value = level.values[Math.floor((ms - level.begin) / level.step)] || 0;
    return value > 0 && value < 0.5 ? `now and then one ${name}` : `${whole(value)} ${name}`;
  });
  return `${moment(ms, data.levels.running.step)}: ${texts.join(", ")}`;
}

// -- distributions

const SIDE = 60; // for the numbers of tasks
const picked = {}; // class of each distribution that is named

function drawClasses(id, classes, tint) {
  const canvas = document.getElementById(id);
  const height = 160, [context, width] = prepare(canvas, height), bottom = height - AXIS;
  if (!classes.length) { context.fillStyle = colour("dim"); context.fillText("no tasks yet", 8, height / 2); return; }
  const wide = (width - SIDE - 8) / classes.length, top = Math.max(...classes.map((each) => each[1]));
  const y = (value) => bottom - value / top * (bottom - 14);
  vertical(context, SIDE, width, y, top);
  let free = 0; // end of the last label
  classes.forEach(([from, count], at) => {
    const x = SIDE + at * wide;
    context.fillStyle = colour(at === picked[id] ? "text" : tint);
    if (count) context.fillRect(x, Math.min(y(count), bottom - 2), Math.max(1, wide - 1), Math.max(bottom - y(count), 2));
    const text = duration(from * 1000), half = context.measureText(text).width / 2;
    const middle = Math.min(Math.max(x, half), width - half);
    if (middle - half > free + 14) {
      context.fillStyle = colour("dim");
      context.textAlign = "center";
      context.fillRect(Math.round(x), bottom, 1, 4);
      context.fillText(text, middle, height - AXIS / 2 + 2);
      free = middle + half;
    }
  });
}

function pick(id, classes, tint, at) {
  picked[id] = Math.min(Math.max(at, 0), classes.length - 1);
  const [from, count] = classes[picked[id]] || [0, 0];
  if (classes.length) {
    const number = count === 1 ? "1 task" : `${count.toLocaleString("en")} tasks`;
    hint(`${id}-hint`, `${duration(from * 1000)} to ${duration(from * 1000 * 2 ** 0.25)}: ${number}`);
  }
  drawClasses(id, classes, tint);
}

for (const [id, classes, tint] of [["durations", data.durations, "bar"], ["waits", data.waits, "wait"]]) {
  const canvas = document.getElementById(id);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    pick(id, classes, tint, Math.floor((event.clientX - box.left - SIDE) / (box.width - SIDE - 8) * classes.length));
  });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); pick(id, classes, tint, (picked[id] ?? (by > 0 ? -1 : classes.length)) + by); }
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

const timeAt = (canvas, event) => {
  const box = canvas.getBoundingClientRect();
  return view.from + (event.clientX - box.left - LEFT) / (box.width - LEFT) * (view.to - view.from);
};

function middle() { // of the chosen bar, or of the range
  const bar = chosen.row >= 0 && rows[chosen.row].bars[chosen.bar];
  return bar ? bar[BAR.begin] + bar[BAR.length] / 2 : (view.from + view.to) / 2;
}

function zoom(factor, at = middle()) { move(at - (at - view.from) * factor, at + (view.to - at) * factor); }
function shift(share) { const by = share * (view.to - view.from); move(view.from + by, view.to + by); }
function scrollRows(by) { view.row = Math.min(Math.max(view.row + by, 0), Math.max(0, rows.length - rowsShown)); soon(); }
function showAll() { view.row = 0; move(0, span); }

const ACTIONS = {
  in: () => zoom(0.5), out: () => zoom(2), earlier: () => shift(-0.25), later: () => shift(0.25), all: showAll,
  up: () => scrollRows(-rowsShown / 2), down: () => scrollRows(rowsShown / 2),
};
for (const button of document.querySelectorAll("button[data-action]")) {
  button.addEventListener("click", ACTIONS[button.dataset.action]);
  if (["up", "down"].includes(button.dataset.action)) button.hidden = rows.length <= rowsShown;
}

const KEYS = { "+": ACTIONS.in, "=": ACTIONS.in, "-": ACTIONS.out, Home: showAll, "0": showAll };
const STEPS_OF_BARS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
document.getElementById("rows").addEventListener("keydown", (event) => {
  const [row, bar] = STEPS_OF_BARS[event.key] || [];
  if (row !== undefined) {
    event.preventDefault();
    if (chosen.row < 0) choose(Math.ceil(view.row), -1);
    else if (bar) choose(chosen.row, chosen.bar + bar);
    else choose(chosen.row + row, -1);
  }
});
document.getElementById("levels").addEventListener("keydown", (event) => {
  const action = { ArrowLeft: ACTIONS.earlier, ArrowRight: ACTIONS.later }[event.key];
  if (action) { event.preventDefault(); action(); }
});
let dragged = false;

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
    dragged = true;
    if (id === "rows") hint("hint", barAt(canvas, event)); // a finger does not hover
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip) {
      if (id === "rows") hint("hint", barAt(canvas, event));
      else hint("levels-hint", levelsAt(timeAt(canvas, event)));
      return;
    }
    const ms = (event.clientX - grip.x) / (canvas.clientWidth - LEFT) * (grip.to - grip.from);
    if (id === "rows" && event.pointerType !== "touch") {
      view.row = Math.min(Math.max(grip.row - (event.clientY - grip.y) / rowHeight, 0), rows.length - rowsShown);
    }
    move(grip.from - ms, grip.to - ms);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { grip = null; dragged = false; });
  canvas.addEventListener("dblclick", showAll);
  canvas.addEventListener("keydown", (event) => {
    if (KEYS[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); KEYS[event.key](); }
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, soon);
}

function all() {
  draw();
  drawClasses("durations", data.durations, "bar");
  drawClasses("waits", data.waits, "wait");
}
addEventListener("resize", all);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);

// -- a page that is rewritten: it reloads itself, and keeps what the reader sees

const PATIENCE = 3 * data.every + 15; // seconds after which a page counts as stale

function remember() {
  const zoomed = view.from > 0 || view.to < span;
  const state = {
    scroll: [scrollX, scrollY],
    closed: Array.from(document.querySelectorAll("details:not([open])"), (each) => each.id),
    times: zoomed ? [data.begin + view.from, data.begin + view.to] : null,
    row: view.row,
    focus: document.activeElement.id,
    chosen: chosen.row < 0 ? null : [rows[chosen.row].about.split(" ")[0], chosen.bar],
    hint: document.getElementById("hint").textContent,
  };
  history.replaceState({ spoolpool: state }, "");
}

function restore() {
  for (const id of kept.closed || []) {
    const section = document.getElementById(id);
    if (section) section.open = false;
  }
  const focused = kept.focus && document.getElementById(kept.focus);
  if (focused) focused.focus({ preventScroll: true });
  const row = kept.chosen ? rows.findIndex((each) => each.about.startsWith(kept.chosen[0])) : -1;
  if (row >= 0) choose(row, kept.chosen[1]);
  if (kept.hint) hint("hint", kept.hint);
  view.row = 0;
  scrollRows(kept.row || 0);
  if (kept.times) move(kept.times[0] - data.begin, kept.times[1] - data.begin); // the choice may have moved it
  all(); // the heights of the charts, before the position
  if (kept.scroll) scrollTo(kept.scroll[0], kept.scroll[1]);
}

function isInUse() { // a reload would interrupt the reader
  return document.hidden || dragged || !getSelection().isCollapsed;
}

function reload() {
  if (isInUse()) { setTimeout(reload, 500); return; }
  remember();
  location.reload();
}

function tell() {
  const line = document.getElementById("written"), age = Math.max(0, (Date.now() - data.written) / 1000);
  const stale = age > PATIENCE;
  line.classList.toggle("stale", stale);
  const ago = duration(Math.floor(age) * 1000).replace(/\.\d+/, "");
  const text = stale
    ? `Stale: written ${ago} ago, and not since then. The command that rewrites this page has ended, or cannot write.`
    : `Written ${age < 1 ? "just now" : ago + " ago"}; rewritten every ${duration(data.every * 1000).replace(/\.0+(?= )/, "")}.`;
  if (line.dataset.text !== text) { line.dataset.text = text; line.querySelector("span").textContent = text; }
}

if (data.every) {
  history.scrollRestoration = "manual";
  restore();
  tell();
  setInterval(tell, 1000);
  setTimeout(reload, data.every * 1000);
} else {
  all();
}
