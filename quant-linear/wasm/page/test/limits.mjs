// What the page withstands, and what it costs: broken files, cancelling, keys, sizes, times.

import { readFileSync, readdirSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { gzipSync } from "node:zlib";
import { check, equal, json, printable } from "./kit.mjs";

/** What a trial of a tensor of 1 GiB may take, in bytes of the page's process. */
const MEMORY = 2 ** 29;

/** Broken files: a message beside the name of each, and a page that goes on. */
export async function hostile(hands, files, good) {
  await hands.open();
  for (const path of files) {
    await hands.drop(".slot", [path]);
    const said = await hands.slot(0, basename(path));
    check(said.startsWith("Cannot be read: ") && said.length > 30, `${basename(path)}: ${said}`);
    check(await hands.value(`document.querySelector(".slot").classList.contains("wrong")`), "it is marked");
    equal(await hands.value(`document.querySelectorAll("img, script:not([src])").length`), 0, "names are text");
  }
  // What is no model at all.
  await hands.choose(0, [good, files[0]]);
  await hands.until(`document.querySelector(".slot .said").textContent.startsWith("Cannot")`, "two files that are no checkpoint");
  await hands.choose(0, [good]);
  check(!(await hands.slot(0, basename(good))).startsWith("Cannot"), "a good one after them");
  await hands.idle();
  check((await hands.texts(".report .card")).length > 0, "and its pictures");
  await hands.press(".slot button", "Close");
  check((await hands.texts(".welcome h2")).length === 1, "closed");
}

/** Names that would be markup, or end the page, are text. */
export async function names(hands, path, name) {
  await hands.open();
  await hands.choose(0, [path]);
  await hands.slot(0, basename(path));
  await hands.idle();
  check(printable(name) !== name, "it has what is not seen");
  check((await hands.texts(".list td:first-child")).includes(printable(name)), "the name is in the list, whole");
  equal(await hands.value(`document.scripts.length`), 1, "and no script");
  await hands.type(".list ~ *, input[type=search]", "script");
  await hands.value(`[...document.querySelectorAll(".list button")].find((e) => e.textContent === ${JSON.stringify(printable(name))}).focus()`);
  await hands.enter();
  await hands.until(`document.querySelector(".outcome table") !== null`, "a trial of it");
  equal(await hands.value(`document.activeElement.textContent`), "One tensor", "the focus is on the view's heading");
  const seen = await hands.value(`document.body.innerText`);
  check(!/[\u2028\u2029]|(?![\n\t])[\p{Cc}\p{Cf}]/u.test(seen), "nothing hidden is in the page");
}

/** Cancelled, the page is as it was, and computes again. */
export async function cancel(hands, path) {
  await hands.open("#view=tensor&name=blocks.0.proj.weight&try=nvfp4/search/none&try=mxfp4/search/none&try=nvfp4/four-six-mse/none&try=nvfp4/search/hadamard-128");
  await hands.choose(0, [path]);
  await hands.slot(0, basename(path));
  await hands.until(`!document.querySelector(".work").hidden && document.querySelector("progress").value > 0`, "progress");
  const before = await hands.value(`document.querySelector("progress").value`);
  check(before < 1, "it is not done");
  await hands.press(".work button", "Cancel");
  await hands.until(`document.querySelector(".work").hidden`, "the strip is gone");
  check((await hands.texts("[role=alert]")).some((text) => text.startsWith("Cancelled")), "it is said");
  equal(await hands.value(`document.querySelectorAll(".outcome table").length`), 0, "and there is no result");
  // Something else, from the same file, which the new worker opened again.
  await hands.value(`location.hash = "#view=tensor&name=blocks.0.proj.weight&try=nvfp4/nearest/none"`);
  await hands.until(`document.querySelectorAll(".outcome tbody tr").length === 1`, "a quick trial after it");
  // Gone to another and back before that was done: what is in the page by then is not kept.
  const titles = `[...document.querySelectorAll(".outcome tbody tr")].map((tr) => tr.cells[0].textContent).join("; ")`;
  await hands.until(`${titles} === "NVFP4, nearest" && document.querySelector(".work").dataset.busy === "false"`, "it is done");
  await hands.value(`location.hash = "#view=tensor&name=blocks.0.proj.weight&try=mxfp4/nearest/none&try=nvfp4/search/hadamard-128"`);
  await hands.until(`${titles} === "MXFP4, nearest"`, "the first of two");
  await hands.value(`history.back()`);
  await hands.until(`${titles} === "NVFP4, nearest" && document.querySelector(".work").dataset.busy === "false"`, "back, as before");
  check(true, "back");
}

/** A file of 10 GB: its headers are read, the rest piece by piece, and only when one asks for it. */
export async function huge(hands, path) {
  await hands.open();
  await hands.choose(0, [path]);
  const said = await hands.slot(0, basename(path));
  check(said.startsWith("10.00 GiB"), said);
  equal((await hands.table("Layers and tensors"))[0][2], "16384 × 16384", "its tensor is listed");
  check((await hands.texts(".report button"))[0]?.startsWith("Read all 10.00 GiB"), "nothing else is read unasked");
  const before = await hands.memory();
  await hands.press(".list button", "blocks.0.proj.weight");
  await hands.until(`!document.querySelector(".work").hidden && document.querySelector("progress").value > 0.02`, "progress of a trial");
  // The least of some: slices that were read are let go a little later.
  const seen = [];
  for (let i = 0; i < 8; i++) {
    seen.push(await hands.memory());
    await hands.value(`new Promise((done) => setTimeout(done, 150))`);
  }
  const more = Math.min(...seen) - before;
  check(before > 0 && more < MEMORY, `a trial of 1 GiB takes ${more} bytes beside ${before}`);
  await hands.press(".work button", "Cancel");
  await hands.until(`document.querySelector(".work").hidden`, "the strip is gone");
}

/** The page without a mouse. */
export async function keyboard(hands) {
  await hands.open();
  const stops = [];
  for (let i = 0; i < 14; i++) {
    await hands.page.send("Input.dispatchKeyEvent", { type: "keyDown", key: "Tab", code: "Tab", windowsVirtualKeyCode: 9 });
    await hands.page.send("Input.dispatchKeyEvent", { type: "keyUp", key: "Tab", code: "Tab", windowsVirtualKeyCode: 9 });
    stops.push(
      await hands.value(`(() => {
        const at = document.activeElement;
        const seen = at.closest(".press") ?? at;
        return { what: seen.textContent, ring: getComputedStyle(seen).outlineStyle };
      })()`),
    );
  }
  for (const link of ["Checkpoint", "Tensor", "Compare", "Numbers", "Product", "Scale layout"]) {
    check(stops.some(({ what }) => what === link), `${link} is reached by Tab: ${stops.map(({ what }) => what)}`);
  }
  check(stops.some(({ what }) => what.startsWith("Choose files")), "and the fields for files");
  const reached = stops.filter(({ what }) => what !== "" && what.length < 60);
  check(reached.every(({ ring }) => ring !== "none"), `where the focus is shows: ${JSON.stringify(reached)}`);
  await hands.value(`[...document.querySelectorAll("nav a")].find((a) => a.textContent === "Numbers").focus()`);
  await hands.enter();
  await hands.until(`document.querySelector("[data-type]") !== null`, "Enter goes there");
  equal(await hands.value(`document.querySelector("nav [aria-current]").textContent`), "Numbers", "and says so");
  await hands.value(`history.back()`);
  await hands.until(`document.querySelector("nav [aria-current]").textContent === "Checkpoint"`, "back");
}

/** Every control has a name, every picture a text, and there is one heading of the page. */
export async function labelled(hands, where) {
  const nameless = await hands.value(`[...document.querySelectorAll("button, a, input, select, canvas[role], [role=img], progress")]
    .filter((e) => e.offsetParent !== null || e.closest(".press"))
    .filter((e) => {
      // The options of a list are no name of it.
      const [label, own] = [e.closest("label"), e.closest("label, button, a")].map((each) => each?.cloneNode(true));
      for (const list of label?.querySelectorAll("select") ?? []) list.remove();
      return !(e.getAttribute("aria-label") || label?.textContent.trim() || (e.matches("button, a") && own.textContent.trim()));
    })
    .map((e) => e.outerHTML.slice(0, 120))`);
  equal(nameless, [], `${where}: controls without a name`);
  equal(await hands.value(`document.querySelectorAll("h1").length`), 1, `${where}: headings of the page`);
}

/** Bytes of the page's files, compressed. */
export function size(folder) {
  const files = {};
  for (const name of readdirSync(folder, { recursive: true })) {
    const path = join(folder, name);
    if (statSync(path).isFile()) files[name] = gzipSync(readFileSync(path), { level: 9 }).length;
  }
  return { download: Object.values(files).reduce((sum, bytes) => sum + bytes, 0), files };
}

/** Milliseconds to the first view, and of the views of a tensor of 11 MB. */
export async function times(hands, fp4, large, quantized) {
  const found = {};
  await hands.open();
  found["first view"] = await hands.value(`performance.getEntriesByName("first-contentful-paint")[0].startTime`);
  const timed = async (what, act, done) => {
    const from = Date.now();
    await act();
    await hands.until(done, what);
    found[what] = Date.now() - from;
  };
  const idle = `document.querySelector(".work").dataset.busy === "false"`;
  await timed("open and list", () => hands.choose(0, [large]), `document.querySelector(".list table") !== null`);
  await hands.idle();
  await timed("a trial", () => hands.press(".list button", "blocks.0.proj.weight"), `document.querySelector(".outcome table") !== null`);
  await timed("and another beside it", () => {}, `document.querySelectorAll(".outcome tbody tr").length === 2 && ${idle}`);
  const trial = "#view=tensor&name=blocks.0.proj.weight";
  for (const one of ["nvfp4/search/none", "nvfp4/nearest/none", "mxfp4/search/none", "nvfp4/search/hadamard-32"]) {
    const go = () => hands.value(`location.hash = "${trial}&try=${one}"`);
    const title = one.split("/")[0].toUpperCase();
    await timed(`trial ${one}`, go, `${idle} && document.querySelector(".outcome td")?.textContent.startsWith("${title}, ${one.split("/")[1]}")`);
  }
  await hands.open();
  await timed("FP4: open, read, verify", () => hands.choose(0, [quantized]), `document.querySelector(".report .card") !== null && ${idle}`);
  const layer = json(fp4, "inspect", quantized).layers[0].name;
  await timed("FP4: inside", () => hands.value(`location.hash = "#view=tensor&name=${layer}"`), `document.querySelector("dl.facts code") !== null && ${idle}`);
  await timed("compare", async () => {
    await hands.value(`location.hash = "#view=compare"`);
    await hands.choose(1, [large]);
  }, `document.querySelector("table.rows") !== null && ${idle}`);
  return found;
}
