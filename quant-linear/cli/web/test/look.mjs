// Opens reports in Chromium and looks at them: node look.mjs CHROMIUM SHOTS PAGE.html...
//
// Of each page: nothing goes wrong and nothing is asked of the network; the charts that its numbers
// call for are drawn; every name is there as text, whatever it holds; sorting, filtering and
// choosing a layer by keyboard work; nothing is wider than a small screen. Where there are losses,
// their chart has a logarithmic axis and a point of each colour where the numbers say, its line and
// the table have the same numbers, and the chosen layer is marked. Pictures go to SHOTS.

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { Browser } from "./browser.mjs";
import { printable } from "./text.mjs";

const [program, shots, ...pages] = process.argv.slice(2);
assert(pages.length > 0, "node look.mjs CHROMIUM SHOTS PAGE.html...");
mkdirSync(shots, { recursive: true });
let checks = 0;
const check = (fact, what) => {
  checks += 1;
  assert(fact, what);
};
const equal = (a, b, what) => {
  checks += 1;
  assert.deepEqual(a, b, what);
};

/** Shares of each chart's pixels that are painted, by where the plot is. */
const PAINTED = `[...document.querySelectorAll("canvas")].map((canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const drawing = copy.getContext("2d", { willReadFrequently: true });
  drawing.drawImage(canvas, 0, 0);
  const { data } = drawing.getImageData(0, 0, canvas.width, canvas.height);
  let painted = 0;
  for (let i = 3; i < data.length; i += 4) painted += data[i] > 0;
  return painted / (canvas.width * canvas.height);
})`;
const TEXTS = (selector) => `[...document.querySelectorAll(${JSON.stringify(selector)})].map((e) => e.textContent)`;
const PRESS = (text, inside) => `[...document.querySelectorAll(${JSON.stringify(inside)})].find((e) => e.textContent === ${JSON.stringify(text)}).click()`;

async function charts(page, report, when) {
  const layers = report.rows.filter((row) => row.counts !== null);
  const more = Number(report.totals.groups !== null) + Number(report.losses !== null);
  const expected = layers.length === 0 ? 0 : 4 + more;
  const painted = await page.value(PAINTED);
  equal(painted.length, expected, `charts ${when}`);
  for (const share of painted) check(share > 0.005, `a chart is empty ${when}: ${painted}`);
  return layers;
}

/** In the page before all else: what is written on a canvas, by what and where. */
const LISTEN = `{
  const { fillText } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
    (this.canvas.written ??= new Map()).set([text, x, y].join(), { text: String(text), x, y });
    return fillText.call(this, text, x, y);
  };
}`;

/** The canvas of the chart with this title. */
const CANVAS = (title) =>
  `[...document.querySelectorAll("figure")].find((f) => f.querySelector("h3").textContent === ${JSON.stringify(title)}).querySelector("canvas")`;

/** How many pixels of a box have this colour. */
const COLOURED = (canvas, colour, [x, y, width, height]) => `(() => {
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(${JSON.stringify(colour)}).trim();
  probe.fillRect(0, 0, 1, 1);
  const wanted = probe.getImageData(0, 0, 1, 1).data;
  const copy = new OffscreenCanvas(${canvas}.width, ${canvas}.height).getContext("2d");
  copy.drawImage(${canvas}, 0, 0);
  const { data } = copy.getImageData(${x}, ${y}, ${width}, ${height});
  let found = 0;
  for (let i = 0; i < data.length; i += 4) found += [0, 1, 2, 3].every((c) => Math.abs(data[i + c] - wanted[c]) < 3);
  return found;
})()`;

/** The line through points, and how far the farthest is from it. */
function fitted(points) {
  const mean = (of) => points.reduce((sum, p) => sum + of(p), 0) / points.length;
  const [x, y] = [mean(([x]) => x), mean(([, y]) => y)];
  const slope = mean((p) => (p[0] - x) * (p[1] - y)) / mean((p) => (p[0] - x) ** 2);
  const at = (value) => y + slope * (value - x);
  return { at, off: Math.max(...points.map(([x, y]) => Math.abs(at(x) - y))) };
}

const TITLE = "Loss by layer";
/** What the axis of losses reaches. */
const drawn = (loss) => loss >= 1e-15 && loss <= 1e15;
const LINES = [["before", "--low"], ["weight", "--middle"], ["layer", "--all"]];

/** A number as the page writes it. */
const written = (value) => {
  if (value === null) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
};

/** The chart of losses, its line and its columns, against the numbers. */
async function losses(page, report, layers) {
  const titles = await page.value(TEXTS("figure h3"));
  const columns = await page.value(TEXTS("table.rows thead button"));
  const own = ["Loss before", "After", "Ratio"];
  if (report.losses === null) {
    check(!titles.includes(TITLE), "a chart of losses that are not there");
    check(!own.some((title) => columns.includes(title)), "columns of losses that are not there");
    return;
  }
  equal(titles.indexOf(TITLE), 1, "the chart of losses is the second");
  const { mean, tensors } = report.losses;
  const [line] = await page.value(TEXTS(".means"));
  for (const part of [`${tensors} tensors`, `${written(mean.before)} before`, `${written(mean.layer)} after`,
    `${written(mean.layer / mean.before)} of before`, `alone ${written(mean.weight)}`]) {
    check(line.includes(part), `${part} in: ${line}`);
  }
  // Numbers on the axes: those on the left are losses, those below are layers.
  const canvas = CANVAS(TITLE);
  const numbers = (await page.value(`[...${canvas}.written.values()]`)).filter(({ text }) => text !== "" && Number.isFinite(Number(text)));
  const left = Math.min(...numbers.map(({ x }) => x));
  const below = Math.max(...numbers.map(({ y }) => y));
  const marks = numbers.filter(({ x, y }) => x === left && y !== below).map(({ text, y }) => [Math.log10(Number(text)), y]);
  check(marks.length >= 3, `numbers on the axis of losses: ${marks.length}`);
  const down = fitted(marks);
  check(down.off < 1.5, `the axis is logarithmic but for ${down.off} pixels`);
  const places = numbers.filter(({ x, y }) => y === below && x !== left).map(({ text, x }) => [Number(text) - 1, x]);
  const across = fitted(places);
  check(places.length >= 3 && across.off < 1.5, `layers have their places but for ${across.off} pixels`);
  // A point where each number says, unless what is drawn later covers it.
  let points = 0;
  for (const [i, { loss }] of layers.entries()) {
    const at = LINES.map(([name]) => (drawn(loss?.[name]) ? down.at(Math.log10(loss[name])) : null));
    for (const [k, [name, colour]] of LINES.entries()) {
      if (at[k] === null || at.slice(k + 1).some((y) => y !== null && Math.abs(y - at[k]) < 6)) continue;
      const box = [Math.round(across.at(i)) - 1, Math.round(at[k]) - 1, 3, 3];
      check((await page.value(COLOURED(canvas, colour, box))) >= 2, `${name} of layer ${i + 1} at ${box}`);
      points += 1;
    }
  }
  check(points > layers.length, `points looked for: ${points}`);
  // The columns.
  const from = columns.indexOf(own[0]);
  equal(columns.slice(from, from + 3), own, "columns of losses");
  const cells = await page.value(`[...document.querySelectorAll("table.rows tbody tr")].map((tr) => [...tr.children].slice(${from}, ${from + 3}).map((c) => c.textContent))`);
  const expected = report.rows.slice(0, 200).map(({ loss }) => {
    if (loss === null) return ["–", "–", "–"];
    const ratio = loss.layer === null || !loss.before ? null : loss.layer / loss.before;
    return [loss.before, loss.layer, ratio].map(written);
  });
  equal(cells, expected, "losses in the table");
  // And the numbers beside the picture.
  await page.value(`${canvas}.closest("figure").querySelector("details").open = true`);
  await page.settled();
  const beside = await page.value(`[...${canvas}.closest("figure").querySelectorAll("details tbody tr")].map((tr) => [...tr.children].map((c) => c.textContent))`);
  equal(beside, layers.map(({ name, loss }) => [printable(name), ...LINES.map(([of]) => written(loss?.[of] ?? null))]), "numbers of the chart");
  await page.value(`${canvas}.closest("figure").querySelector("details").open = false`);
}

/** Pixels of the chart of losses in the colour of what is chosen. */
const marked = (page) => page.value(COLOURED(CANVAS(TITLE), "--chosen", [0, 0, 1280, 280]));

async function look(page, path) {
  const name = basename(path, ".html");
  const shot = async (what, whole = true) => writeFileSync(join(shots, `${name}-${what}.png`), await page.picture(whole));
  await page.view(1280, 900, "light");
  const url = pathToFileURL(resolve(path)).href;
  await page.send("Page.addScriptToEvaluateOnNewDocument", { source: LISTEN });
  await page.open(url);
  const report = JSON.parse(await page.value(`document.getElementById("fp4-report").textContent`));
  const layers = await charts(page, report, "at first");
  equal(await page.value(`document.scripts.length`), 2, "scripts");
  equal(await page.value(`document.querySelectorAll("img, iframe, object, link, a[href]").length`), 0, "foreign elements");
  await shot("light");

  const names = report.rows.map((row) => printable(row.name));
  equal(await page.value(TEXTS("table.rows tbody th")), names.slice(0, 200), "names in the order of the model");
  await losses(page, report, layers);
  if (layers.length > 0) {
    if (report.losses !== null) equal(await marked(page), 0, "nothing is marked among the losses");
    // The last layer, by keyboard.
    await page.value(`document.querySelector(".plot[tabindex]").focus()`);
    await page.key("ArrowLeft");
    const last = printable(layers.at(-1).name);
    check((await page.value(TEXTS(".readout"))).some((text) => text === `All layers, and beside them ${last}`), "the layer is chosen");
    equal(await page.value(TEXTS("tr.chosen th")), names.length > 200 ? [] : [last], "and marked in the table");
    await charts(page, report, "with a layer");
    if (report.losses !== null) check((await marked(page)) > 100, "the chosen layer is marked among the losses");
    await page.key("Escape");
    equal(await page.value(TEXTS("tr.chosen th")), [], "and let go");
    // Every measure.
    const measures = await page.value(`[...document.querySelector("section.wide select").options].map((o) => o.value)`);
    check(measures.length >= 4, "measures");
    for (const measure of [...measures.slice(1), measures[0]]) {
      await page.value(`{ const s = document.querySelector("section.wide select"); s.value = ${JSON.stringify(measure)}; s.dispatchEvent(new Event("change")); }`);
      await page.settled();
      await charts(page, report, `by ${measure}`);
    }
    // Numbers beside the pictures.
    await page.value(`document.querySelectorAll("figure details").forEach((d) => { d.open = true; })`);
    await page.settled();
    const lines = await page.value(`[...document.querySelectorAll("figure details")].map((d) => d.querySelectorAll("tbody tr").length)`);
    check(lines.every((n) => n > 0), `tables of charts: ${lines}`);
    equal(lines[0], layers.length, "a line for each layer");
    await page.value(`document.querySelectorAll("figure details").forEach((d) => { d.open = false; })`);
  }
  if (names.length > 1) {
    await page.value(PRESS("Size", "table.rows thead button"));
    const sizes = report.rows.map((row) => row.bytes).sort((a, b) => b - a);
    const first = await page.value(`document.querySelector("table.rows tbody th").textContent`);
    equal(report.rows.find((row) => printable(row.name) === first).bytes, sizes[0], "the largest is first");
    const part = names[1].slice(0, 12);
    await page.value(`{ const i = document.querySelector("input[type=search]"); i.value = ${JSON.stringify(part.toUpperCase())}; i.dispatchEvent(new Event("input")); }`);
    const found = await page.value(TEXTS("table.rows tbody th"));
    equal(found.length, Math.min(200, names.filter((n) => n.toLowerCase().includes(part.toLowerCase())).length), "filtered");
    await page.value(`{ const i = document.querySelector("input[type=search]"); i.value = ""; i.dispatchEvent(new Event("input")); }`);
  }

  // Dark while it is open, and with a layer that is not the first.
  await page.view(1280, 900, "dark");
  if (layers.length > 1) {
    await page.value(PRESS(printable(layers[Math.floor(layers.length / 2)].name), "table.rows tbody button"));
    await page.settled();
  }
  await charts(page, report, "in the dark");
  await shot("dark");
  await page.view(420, 800, "light");
  check(await page.value(`document.documentElement.scrollWidth <= 420`), "wider than a small screen");
  await shot("narrow");
  equal(page.faults, [], "nothing goes wrong");
  equal(page.requests, [url], "nothing is asked for but the page");
  page.faults = [];
  page.requests = [];
  console.log(`${name}: ${report.rows.length} rows, ${layers.length} layers`);
}

const browser = new Browser(program);
try {
  for (const path of pages) {
    const page = await browser.page();
    await look(page, path);
  }
} finally {
  await browser.close();
}
console.log(`look: ${pages.length} pages, ${checks} checks`);
