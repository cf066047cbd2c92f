// The report's behaviour. Text from outside (file names, errors) is only ever set as text, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const LABELS = ["real", "unsure", "ai"];
const ROW = 76; // pixels; the style sheet's row height
const BINS = 20;
const AI = [232, 89, 12], REAL = [25, 113, 194], STRONGEST = 0.62, FLAT = 1; // as runtime/results/heatmap.py
const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element && key !== "style") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
const number = (value) => value.toLocaleString("en");
const percent = (share) => (share > 0 && share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`);

const rows = data.rows.map(([path, href, label, p, logit, reason, map, says, first, thumb], index) => {
  const cut = path.lastIndexOf("/") + 1;
  return { index, path, lower: path.toLowerCase(), folder: path.slice(0, cut), name: path.slice(cut), href, label, p, logit, reason, thumb, map, says, first };
});
const BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";
const picture = (row) => (!row.thumb ? BLANK : data.assets ? data.assets + row.thumb : "data:image/jpeg;base64," + row.thumb);

// State: what is filtered and how it is sorted. `view` is what the table shows.
const state = { label: null, bin: null, text: "", key: "p", down: true };
let view = [];

function binOf(p) {
  return Math.min(BINS - 1, Math.floor(p * BINS));
}

function refresh() {
  const words = state.text.toLowerCase();
  view = rows.filter(
    (row) =>
      (state.label === null || row.label === state.label) &&
      (state.bin === null || binOf(row.p) === state.bin) &&
      (!words || row.lower.includes(words)),
  );
  const sign = state.down ? -1 : 1;
  const by = {
    path: (a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0),
    label: (a, b) => a.label - b.label || a.p - b.p,
    p: (a, b) => a.p - b.p,
  }[state.key];
  view.sort((a, b) => sign * by(a, b) || a.index - b.index);
  for (const head of document.querySelectorAll("th[data-sort]")) {
    const mine = head.dataset.sort === state.key;
    head.setAttribute("aria-sort", mine ? (state.down ? "descending" : "ascending") : "none");
  }
  for (const button of document.querySelectorAll(".count[data-label]"))
    button.setAttribute("aria-pressed", String(button.dataset.label === String(state.label)));
  for (const button of $("bins").children) button.setAttribute("aria-pressed", String(button.dataset.bin === String(state.bin)));
  $("clear").hidden = state.label === null && state.bin === null && !state.text;
  $("shown").textContent = view.length === rows.length ? `${number(rows.length)} files` : `${number(view.length)} of ${number(rows.length)} files`;
  $("empty").hidden = view.length > 0;
  $("table").hidden = view.length === 0;
  $("table").setAttribute("aria-rowcount", String(view.length + 1));
  drawn = "";
  draw();
}

// The table holds the rows near the screen alone: ten thousand of them would take seconds to lay out.
let drawn = "";
function draw(everything = false) {
  const top = $("body").getBoundingClientRect().top;
  const margin = 8;
  let first = Math.max(0, Math.floor(-top / ROW) - margin);
  let last = Math.min(view.length, Math.ceil((window.innerHeight - top) / ROW) + margin);
  if (everything) [first, last] = [0, Math.min(view.length, 2000)];
  first = Math.min(first, view.length);
  last = Math.max(first, last);
  const key = `${first}-${last}`;
  if (key === drawn) return;
  drawn = key;
  const parts = [gap(first)];
  for (let at = first; at < last; at++) parts.push(line(view[at], at));
  parts.push(gap(view.length - last));
  const focused = document.activeElement?.dataset?.at;
  $("body").replaceChildren(...parts);
  if (focused !== undefined) $("body").querySelector(`button[data-at="${focused}"]`)?.focus({ preventScroll: true });
}

function gap(count) {
  const cell = make("td", { colSpan: 4 });
  cell.style.height = `${count * ROW}px`;
  return make("tr", { className: "gap", "aria-hidden": "true", hidden: count === 0 }, cell);
}

function line(row, at) {
  const label = LABELS[row.label];
  const image = make("img", { className: "thumb", alt: "", decoding: "async", src: picture(row), width: 60, height: 60 });
  const name = make("button", { type: "button", className: "name", title: row.path, "data-at": at }, row.name || row.path);
  const result = make(
    "tr",
    { className: "row", "aria-rowindex": at + 2 },
    make("td", {}, image),
    make("td", {}, name, make("span", { className: "folder", title: row.path }, ...said(row), row.folder)),
    make("td", {}, make("span", { className: `pill ${label}` }, label)),
    make("td", {}, probability(row, label)),
  );
  result.addEventListener("click", () => open(at));
  return result;
}

// What metadata declare is another signal than the model's, and anyone can write or remove it.
function said(row) {
  const origins = [...new Set(row.says.map(([, origin]) => origin))].filter((origin) => origin !== "unstated");
  return origins.map((origin) => make("span", { className: "tag", title: "What its metadata declare; anyone can write or remove that" }, `metadata: ${origin}`));
}

// Each verdict beside the bounds of the model that gave it.
function probability({ p, first }, label) {
  const fill = make("i");
  fill.style.width = `${100 * p}%`;
  const bar = make("div", { className: `bar ${label}`, "aria-hidden": "true" }, fill);
  for (const bound of new Set(data.bounds[first ? 1 : 0])) {
    const tick = make("u");
    tick.style.left = `calc(${100 * bound}% - 1px)`;
    bar.append(tick);
  }
  return make("div", { className: "prob" }, make("b", {}, p.toFixed(3)), bar);
}

// The head of the page.
function facts(list, pairs) {
  for (const [term, text] of pairs) list.append(make("dt", {}, term), make("dd", {}, text));
}

function count(label, text, amount, explained) {
  const share = label === "error" || !rows.length ? "" : ` \u00b7 ${percent(amount / rows.length)}`;
  const button = make("button", { type: "button", className: `count ${label}`, title: explained }, make("b", {}, number(amount)), make("span", {}, text + (label === "all" ? "" : share)));
  if (label === "error") button.addEventListener("click", () => $("failed").scrollIntoView({ behavior: "smooth" }));
  else {
    const value = label === "all" ? null : LABELS.indexOf(label);
    button.dataset.label = String(value);
    button.addEventListener("click", () => {
      if (label === "all") { state.bin = null; state.text = ""; $("search").value = ""; }
      state.label = state.label === value ? null : value;
      refresh();
    });
  }
  button.disabled = amount === 0;
  return button;
}

function summary() {
  const of = [0, 0, 0];
  for (const row of rows) of[row.label]++;
  $("subtitle").textContent = data.subtitle;
  $("made").textContent = data.made;
  $("partial").hidden = data.complete;
  $("pictures").hidden = !data.pictures;
  $("pictures").textContent = data.pictures;
  const texts = [["all", "judged", rows.length, "Show all"], ["ai", "called ai", of[2]], ["unsure", "unsure", of[1]], ["real", "called real", of[0]]];
  for (const [label, text, amount] of texts) $("counts").append(count(label, text, amount, label === "all" ? "Show all" : `Show only what is ${label}`));
  $("counts").append(count("error", "could not be judged", data.errors.length, "Go to the list"));
  const bins = Array.from({ length: BINS }, () => [0, 0, 0]);
  for (const row of rows) bins[binOf(row.p)][row.label]++;
  const most = Math.max(1, ...bins.map((bin) => bin[0] + bin[1] + bin[2]));
  bins.forEach((bin, index) => {
    const total = bin[0] + bin[1] + bin[2];
    const label = LABELS[bin.indexOf(Math.max(...bin))];
    const fill = make("i", { className: label });
    fill.style.height = total ? `max(3px, ${(100 * total) / most}%)` : "0";
    const words = `${number(total)} files with p_ai from ${(index / BINS).toFixed(2)} to ${((index + 1) / BINS).toFixed(2)}`;
    const button = make("button", { type: "button", title: words, "aria-label": words, "data-bin": index }, fill);
    button.addEventListener("click", () => {
      state.bin = state.bin === index ? null : index;
      refresh();
    });
    $("bins").append(button);
  });
  const [low, high] = data.bounds[0];
  for (const [label, width] of [["real", low], ["unsure", high - low], ["ai", 1 - high]]) {
    const zone = make("i", { className: label });
    zone.style.width = `${100 * width}%`;
    $("zones").append(zone);
  }
  const ticks = [0, low, high, 1].filter((value, at, all) => at === 0 || at === 3 || (value > 0.08 && value < 0.92 && (at === 1 || value - all[1] > 0.08)));
  for (const value of ticks) {
    const mark = make("span", {}, value === 0 || value === 1 ? String(value) : value.toFixed(2));
    mark.style.left = `${100 * value}%`;
    $("axis").append(mark);
  }
  $("point-title").textContent = `Operating point: ${data.point.name}`;
  for (const text of data.point.meaning) $("point").append(make("p", { className: "small" }, text));
  facts($("model"), data.model);
}

function tabled(id, head, body, note) {
  if (!body.length) return;
  $(id).hidden = false;
  $(`${id}-table`).append(make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text))));
  for (const cells of body) $(`${id}-table`).append(make("tr", {}, ...cells.map((text) => make("td", {}, text))));
  if (note) $(`${id}-note`).textContent = note;
}

function failures() {
  $("failed").hidden = data.errors.length === 0;
  $("failed-title").textContent = `${number(data.errors.length)} ${data.errors.length === 1 ? "file" : "files"} that could not be judged`;
  $("errors").append(...data.errors.map(([path, message]) => make("li", {}, make("code", { className: "path" }, path), make("span", {}, message))));
}

// The dialog: picture, map, facts.
let at = 0;
let mapped = true;
function open(index) {
  at = index;
  const row = view[at];
  const label = LABELS[row.label];
  $("d-name").textContent = row.name || row.path;
  $("d-image").src = picture(row);
  $("d-image").alt = `What the model saw of ${row.name}`;
  $("d-verdict").replaceChildren(make("span", { className: `pill ${label}` }, label), probability(row, label));
  $("d-facts").replaceChildren();
  const link = make("a", { href: row.href, target: "_blank", rel: "noreferrer" }, "open the original");
  link.style.color = "inherit";
  facts($("d-facts"), [["path", make("span", { className: "path" }, row.path)], ["why", row.reason], ...(row.first ? [["first model", `${LABELS[row.first[0]]}, p_ai ${row.first[1].toFixed(3)}`]] : []), ["logit", row.logit.toFixed(3)], ...(row.href ? [["file", link]] : [])]);
  facts($("d-facts"), row.says.map(([source, origin, detail]) => ["metadata", `${origin}: ${detail} (${source})`]));
  $("d-tools").hidden = !row.map;
  $("d-nomap").hidden = Boolean(row.map);
  $("d-place").textContent = `${number(at + 1)} of ${number(view.length)}`;
  $("d-previous").disabled = at === 0;
  $("d-next").disabled = at === view.length - 1;
  paint(row);
  if (!$("dialog").open) $("dialog").showModal();
}

function paint(row) {
  const canvas = $("d-map");
  const shown = Boolean(row.map) && mapped;
  const values = shown && $("d-values").getAttribute("aria-pressed") === "true";
  $("stage").classList.toggle("mapped", shown);
  canvas.hidden = !shown;
  $("d-cells").hidden = !values;
  $("d-show").setAttribute("aria-pressed", String(mapped));
  if (!shown) return;
  const height = Math.sqrt(row.map.length), width = height;  // of a square input
  const scale = Math.max(FLAT, ...row.map.map(Math.abs));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++)
    for (let x = 0; x < canvas.width; x++) {
      const value = between(row.map, ((x + 0.5) / canvas.width) * width - 0.5, ((y + 0.5) / canvas.height) * height - 0.5, width, height);
      const colour = value > 0 ? AI : REAL;
      pixels.data.set([...colour, 255 * STRONGEST * Math.min(1, Math.abs(value) / scale)], 4 * (y * canvas.width + x));
    }
  context.putImageData(pixels, 0, 0);
  if (!values) return;
  $("d-cells").style.gridTemplateColumns = `repeat(${width}, 1fr)`;
  $("d-cells").replaceChildren(...row.map.map((value) => make("span", {}, (value > 0 ? "+" : "") + value.toFixed(1).replace("-", "\u2212"))));
}

function between(map, x, y, width, height) {
  const left = Math.min(width - 1, Math.max(0, Math.floor(x))), up = Math.min(height - 1, Math.max(0, Math.floor(y)));
  const right = Math.min(width - 1, left + (x > left ? 1 : 0)), down = Math.min(height - 1, up + (y > up ? 1 : 0));
  const dx = Math.min(1, Math.max(0, x - left)), dy = Math.min(1, Math.max(0, y - up));
  const above = map[up * width + left] * (1 - dx) + map[up * width + right] * dx;
  const below = map[down * width + left] * (1 - dx) + map[down * width + right] * dx;
  return above * (1 - dy) + below * dy;
}

function step(by) {
  if (view[at + by]) open(at + by);
}

function wire() {
  for (const head of document.querySelectorAll("th[data-sort]"))
    head.firstElementChild.addEventListener("click", () => {
      const key = head.dataset.sort;
      state.down = state.key === key ? !state.down : key !== "path";
      state.key = key;
      refresh();
    });
  $("search").addEventListener("input", (event) => {
    state.text = event.target.value;
    refresh();
  });
  $("clear").addEventListener("click", () => {
    Object.assign(state, { label: null, bin: null, text: "" });
    $("search").value = "";
    refresh();
  });
  addEventListener("scroll", () => draw(), { passive: true });
  addEventListener("resize", () => draw());
  addEventListener("beforeprint", () => draw(true));
  addEventListener("afterprint", () => draw());
  $("d-close").addEventListener("click", () => $("dialog").close());
  $("dialog").addEventListener("click", (event) => event.target === $("dialog") && $("dialog").close());
  $("dialog").addEventListener("close", () => $("body").querySelector(`button[data-at="${at}"]`)?.focus());
  $("d-previous").addEventListener("click", () => step(-1));
  $("d-next").addEventListener("click", () => step(1));
  $("d-show").addEventListener("click", () => {
    mapped = !mapped;
    paint(view[at]);
  });
  $("d-values").addEventListener("click", () => {
    const pressed = $("d-values").getAttribute("aria-pressed") !== "true";
    $("d-values").setAttribute("aria-pressed", String(pressed));
    if (pressed) mapped = true;
    paint(view[at]);
  });
  $("dialog").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "m") $("d-show").click();
  });
  const themes = ["auto", "light", "dark"];
  $("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % 3];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    $("theme").textContent = `Theme: ${next}`;
  });
}

summary();
failures();
tabled("accuracy", data.accuracy.head, data.accuracy.rows, data.accuracy.note);
tabled("sources", data.sources.head, data.sources.rows);
wire();
refresh();
document.documentElement.dataset.ready = "true";
