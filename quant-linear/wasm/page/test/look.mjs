// Opens the page in Chromium and looks at it: node look.mjs CHROMIUM PAGE FP4 SHOTS FILES
//
// PAGE is the built page, served by a plain file server; FP4 the command, whose numbers the page's
// are held against; SHOTS where pictures go, FILES where files are made. Prints what the page
// weighs and how long its views take; the last line has the counts.

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Browser } from "../../../cli/web/test/browser.mjs";
import { against, away, compare, folder, layouts, sick } from "./checkpoints.mjs";
import { LAYOUTS, make } from "./files.mjs";
import { given, unloaded } from "./given.mjs";
import { Hands, check, counted, equal, json } from "./kit.mjs";
import { cancel, hostile, huge, keyboard, labelled, names, size, times } from "./limits.mjs";
import { serve } from "./serve.mjs";
import { numbers, product, swizzle } from "./tools.mjs";
import { places, refused, trials } from "./trials.mjs";

const [program, built, fp4, shots, place, only] = process.argv.slice(2);
assert(place, "node look.mjs CHROMIUM PAGE FP4 SHOTS FILES");
mkdirSync(shots, { recursive: true });

/** The most bytes that are downloaded, compressed by gzip; nine parts of ten are WASM. */
const MOST = 700_000;

/** In the page before all else: the shifts of its layout, but those that a key or click asked for. */
const WATCH = `window.shifts = [];
new PerformanceObserver((list) => {
  for (const shift of list.getEntries()) {
    const sources = shift.sources.map(({ node }) => node?.outerHTML?.slice(0, 100) ?? String(node?.textContent));
    if (!shift.hadRecentInput) window.shifts.push({ value: shift.value, sources });
  }
}).observe({ type: "layout-shift", buffered: true });`;

const files = make(fp4, place);
const server = await serve(built);
const browser = new Browser(program);
const pages = new Set();
try {
  const page = await browser.page();
  await page.send("Page.addScriptToEvaluateOnNewDocument", { source: WATCH });
  const hands = new Hands(page, server.url);
  let pictures = 0;

  /** Nothing went wrong, nothing moved, and nothing but the page's files was asked for. */
  const sound = async (where) => {
    equal(page.faults, [], `${where}: faults`);
    const shifts = await hands.value(`window.shifts`);
    equal(shifts, [], `${where}: the layout shifted`);
    check(page.workers === 0 || page.requests.some((url) => url.endsWith("fp4_bg.wasm")), `${where}: what workers ask for is seen`);
    check(page.requests.every((url) => url === "about:blank" || url.startsWith(server.url) || url === "data:,"), `${where}: ${page.requests}`);
    await labelled(hands, where);
    pages.add(where);
  };
  /** The view as it is, in light, in dark and as wide as a phone. */
  const shot = async (what) => {
    await sound(what);
    for (const [name, width, scheme] of [["light", 1280, "light"], ["dark", 1280, "dark"], ["phone", 390, "light"]]) {
      await page.view(width, 900, scheme);
      check(await hands.value(`document.documentElement.scrollWidth <= ${width}`), `${what}: wider than ${width}`);
      writeFileSync(join(shots, `${what}-${name}.png`), await page.picture(true));
      pictures += 1;
    }
    await page.view(1280, 900, "light");
    // What moves when a window is made narrow is no shift.
    await hands.value(`new Promise((done) => setTimeout(done, 100)).then(() => { window.shifts = []; })`);
  };
  const looked = async (what, task) => {
    if (only && !only.split(",").includes(what)) return undefined;
    const from = Date.now();
    const result = await task();
    await sound(what);
    console.log(`${what}: ${result ?? "ok"}, ${((Date.now() - from) / 1000).toFixed(1)} s`);
    return result;
  };

  await page.view(1280, 900, "light");
  const { download, files: each } = size(built);
  console.log(`download: ${download} bytes compressed; ${JSON.stringify(each)}`);
  check(download < MOST, `the page weighs ${download} bytes compressed, at most ${MOST}`);

  await looked("first", async () => {
    await hands.open();
    await shot("first");
  });
  await looked("keyboard", () => keyboard(hands));
  await looked("numbers", async () => {
    await numbers(hands);
    await shot("numbers");
  });
  await looked("product", async () => {
    await product(hands);
    await hands.open("#view=product");
    await hands.until(`document.querySelectorAll("tbody tr").length > 0`);
    await shot("product");
  });
  await looked("swizzle", async () => {
    await swizzle(hands);
    await hands.open("#view=swizzle&row=37&col=2");
    await hands.until(`document.querySelector(".readout").textContent.startsWith("row 37")`);
    await shot("swizzle");
  });
  await looked("layouts", async () => `${LAYOUTS.length} checkpoints, ${await layouts(hands, fp4, shot)} layers`);
  await looked("sick", () => sick(hands, fp4, files.sick, shot));
  await looked("folder", () => folder(hands, fp4, files.folder));
  await looked("trials", async () => `${await trials(hands, fp4, place, files.sample, shot)} choices`);
  await looked("refused", () => refused(hands, files.odd));
  await looked("places", () => places(hands, files.places));
  await looked("given", () => given(hands, files));
  await looked("unloaded", () => unloaded(hands, server, files));
  await looked("compare", () => compare(hands, fp4, files.model, files.nvfp4, shot));
  await looked("against", () => against(hands, fp4, files.nvfp4, files.model, shot));
  await looked("away", () => away(hands, files.nvfp4));
  await looked("hostile", async () => {
    await hostile(hands, files.hostile, files.nvfp4);
    await hands.open();
    await hands.drop(".slot", [files.hostile[0]]);
    await hands.slot(0, "cut.safetensors");
    await shot("hostile");
  });
  await looked("names", () => names(hands, files.model, json(fp4, "inspect", files.model).tensors.find(({ name }) => name.includes("<script")).name));
  await looked("cancel", () => cancel(hands, files.long));
  await looked("huge", () => huge(hands, files.huge));
  await looked("times", async () => {
    const found = await times(hands, fp4, files.large, files.largeNvfp4);
    return Object.entries(found).map(([what, ms]) => `${what} ${Math.round(ms)} ms`).join(", ");
  });
  equal(server.missed, [], "asked for and not there");
  if (!only) check(pages.size >= 14, `views: ${[...pages]}`);
  const weight = `${Math.round(download / 1000)} KB to download, compressed`;
  console.log(`look: ${pages.size} views, ${pictures} pictures, ${counted()} checks, ${weight}`);
} finally {
  await browser.close();
  server.stop();
}
