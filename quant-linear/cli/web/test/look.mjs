// Opens reports in Chromium and looks at them: node look.mjs CHROMIUM SHOTS PAGE.html...
//
// Of each page: nothing goes wrong and nothing is asked of the network; the charts that its numbers
// call for are drawn; every name is there as text, whatever it holds; sorting, filtering and
// choosing a layer by keyboard work; nothing is wider than a small screen. Pictures go to SHOTS.

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { Browser } from "./browser.mjs";

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
  const expected = layers.length === 0 ? 0 : 4 + Number(report.totals.groups !== null);
  const painted = await page.value(PAINTED);
  equal(painted.length, expected, `charts ${when}`);
  for (const share of painted) check(share > 0.005, `a chart is empty ${when}: ${painted}`);
  return layers;
}

async function look(page, path) {
  const name = basename(path, ".html");
  const shot = async (what, whole = true) => writeFileSync(join(shots, `${name}-${what}.png`), await page.picture(whole));
  await page.view(1280, 900, "light");
  const url = pathToFileURL(resolve(path)).href;
  await page.open(url);
  const report = JSON.parse(await page.value(`document.getElementById("fp4-report").textContent`));
  const layers = await charts(page, report, "at first");
  equal(await page.value(`document.scripts.length`), 2, "scripts");
  equal(await page.value(`document.querySelectorAll("img, iframe, object, link, a[href]").length`), 0, "foreign elements");
  await shot("light");

  const names = report.rows.map((row) => row.name);
  equal(await page.value(TEXTS("table.rows tbody th")), names.slice(0, 200), "names in the order of the model");
  if (layers.length > 0) {
    // The last layer, by keyboard.
    await page.value(`document.querySelector(".plot[tabindex]").focus()`);
    await page.key("ArrowLeft");
    const last = layers.at(-1).name;
    check((await page.value(TEXTS(".readout"))).some((text) => text === `All layers, and beside them ${last}`), "the layer is chosen");
    equal(await page.value(TEXTS("tr.chosen th")), names.length > 200 ? [] : [last], "and marked in the table");
    await charts(page, report, "with a layer");
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
    equal(report.rows.find((row) => row.name === first).bytes, sizes[0], "the largest is first");
    const part = names[1].slice(0, 12);
    await page.value(`{ const i = document.querySelector("input[type=search]"); i.value = ${JSON.stringify(part.toUpperCase())}; i.dispatchEvent(new Event("input")); }`);
    const found = await page.value(TEXTS("table.rows tbody th"));
    equal(found.length, Math.min(200, names.filter((n) => n.toLowerCase().includes(part.toLowerCase())).length), "filtered");
    await page.value(`{ const i = document.querySelector("input[type=search]"); i.value = ""; i.dispatchEvent(new Event("input")); }`);
  }

  // Dark while it is open, and with a layer that is not the first.
  await page.view(1280, 900, "dark");
  if (layers.length > 1) {
    await page.value(PRESS(layers[Math.floor(layers.length / 2)].name, "table.rows tbody button"));
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
