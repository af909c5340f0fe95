// Views of files: every number that is looked at is held against what the command prints.

import { join } from "node:path";
import { LAYOUTS } from "./files.mjs";
import { check, count, decibels, equal, json, number, printable, share, sqnr } from "./kit.mjs";

const CODES_IN_ORDER = [15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
const percent = (part, of) => `${Number(((100 * part) / Math.max(1, of)).toPrecision(3))}%`;

/** What a list of codes is as the numbers beside its chart. */
const codes = (list) => {
  const all = list.reduce((a, b) => a + b, 0);
  return CODES_IN_ORDER.map((code) => percent(list[code], all));
};

/** Every layout: the checkpoint's view, and what is inside each layer. */
export async function layouts(hands, fp4, shot) {
  let layers = 0;
  for (const { layout, name, paths } of LAYOUTS) {
    const inspected = json(fp4, "inspect", paths[0]);
    const report = json(fp4, "report", paths[0]);
    const verified = json(fp4, "verify", paths[0]);
    check(inspected.layers.some((layer) => layer.layout === layout), `${name} is of ${layout}`);
    await hands.open();
    await hands.drop(".slot", paths);
    const said = await hands.slot(0, name);
    check(said.includes(`${count(inspected.tensors.length)} tensors`), `${name}: ${said}`);
    check(said.includes(`${inspected.layers.length} quantized layers`), `${name}: ${said}`);
    await hands.idle();
    await whole(hands, name, report, verified);
    if (layout === "modelopt") await shot("checkpoint");
    for (const layer of inspected.layers) {
      const row = report.rows.find((each) => each.name === layer.name);
      await inside(hands, name, layer, row);
      layers += 1;
    }
    if (layout === "modelopt") await shot("layer");
  }
  check(new Set(LAYOUTS.map(({ layout }) => layout)).size >= 4, "layouts");
  return layers;
}

/** The view of a checkpoint alone. */
async function whole(hands, name, report, verified) {
  const { counts } = report.totals;
  const cards = await hands.facts(".report .cards");
  check(cards["Quantized layers"].startsWith(count(report.totals.layers)), `${name}: ${cards["Quantized layers"]}`);
  equal(cards["Zero groups"].startsWith(share(counts.zero_groups, counts.groups)), true, `${name}: ${cards["Zero groups"]}`);
  check(cards["NaN scales"].startsWith(count(counts.nan_scales)), `${name}: NaN scales`);
  equal((await hands.numbers("Code usage")).map(([, n]) => n), codes(counts.codes), `${name}: codes`);
  const [low, high] = [counts.exponents[0][0], counts.exponents.at(-1)[0]];
  const sum = counts.exponents.reduce((n, [, c]) => n + c, 0);
  const of = new Map(counts.exponents);
  const exponents = Array.from({ length: high - low + 1 }, (_, i) => percent(of.get(low + i) ?? 0, sum));
  equal((await hands.numbers("Scale exponents")).map(([, n]) => n), exponents, `${name}: exponents`);
  const lines = await hands.table("Layers");
  equal(lines.map(([title]) => title), report.rows.map((row) => printable(row.name)), `${name}: layers`);
  for (const [i, row] of report.rows.entries()) {
    equal(lines[i].slice(1, 4), [row.format + (row.transformed ? ", transformed" : ""), row.layout, row.shape.join(" × ")], row.name);
  }
  await findings(hands, name, verified);
}

/** What is wrong, word for word. */
async function findings(hands, name, verified) {
  const shown = await hands.texts(".verified li");
  const expected = verified.findings.map(
    ({ severity, kind, module, message }) => printable(`${severity} ${kind}: ${module === null ? "" : `${module}: `}${message}`),
  );
  equal(shown, expected, `${name}: findings`);
}

/** The view of one layer. */
async function inside(hands, name, layer, row) {
  const what = `${name}, ${layer.name}`;
  await hands.value(`location.hash = "#" + new URLSearchParams({ view: "tensor", name: ${JSON.stringify(layer.name)} })`);
  await hands.until(`document.querySelector("dl.facts code")?.textContent === ${JSON.stringify(printable(layer.name))}`, `inside ${what}`);
  const facts = await hands.facts("dl.facts");
  check(facts.Format.startsWith(`${layer.format.toUpperCase()}, ${layer.layout}`), `${what}: ${facts.Format}`);
  check(facts.Shape.startsWith(row.shape.join(" × ")), `${what}: ${facts.Shape}`);
  const globals = layer.weight_global_scales;
  const first = number(globals[0]);
  equal(facts["Global scale"], globals.length > 1 ? `${globals.length} of them, ${first} the first` : first, `${what}: global scale`);
  equal(facts.Groups, count(layer.scales.total), `${what}: groups`);
  equal(facts["Zero groups"], `${count(layer.zero_groups)} (${share(layer.zero_groups, layer.scales.total)})`, `${what}: zero groups`);
  equal(facts["NaN scales"], count(layer.nan_scales), `${what}: NaN scales`);
  equal(facts["Zero scales"], count(layer.scales.zero), `${what}: zero scales`);
  equal(facts["Subnormal scales"], count(layer.scales.subnormal), `${what}: subnormal scales`);
  equal(facts["Negative scales"], count(layer.scales.negative), `${what}: negative scales`);
  equal((await hands.numbers("Code usage")).map(([, n]) => n), codes(row.counts.codes), `${what}: codes`);
}

/** A checkpoint with faults: they are said, in the view and in the layers. */
export async function sick(hands, fp4, path, shot) {
  const verified = json(fp4, "verify", path);
  check(verified.errors + verified.warnings >= 3, `faults: ${verified.findings.length}`);
  const inspected = json(fp4, "inspect", path);
  const report = json(fp4, "report", path);
  await hands.open();
  await hands.choose(0, [path]);
  await hands.slot(0, "sick.safetensors");
  await hands.idle();
  await whole(hands, "sick", report, verified);
  await shot("sick");
  for (const layer of inspected.layers) await inside(hands, "sick", layer, report.rows.find((row) => row.name === layer.name));
  const nan = inspected.layers.find((layer) => layer.nan_scales > 0);
  check(nan !== undefined, "a NaN scale");
  await inside(hands, "sick", nan, report.rows.find((row) => row.name === nan.name));
  await hands.value(`(() => {
    const list = [...document.querySelectorAll("select")].find((s) => [...s.options].some((o) => o.value === "NaN scales"));
    list.value = "NaN scales";
    list.dispatchEvent(new Event("change"));
  })()`);
  await hands.page.settled();
  await hands.address("map", "NaN scales");
  // By keyboard: the first cell has it.
  await hands.value(`document.querySelector("canvas.map").focus()`);
  await hands.page.key("ArrowRight");
  const [read] = await hands.texts(".heat .readout");
  check(/^rows? 0.*: (?!0\.00%|none)/.test(read), `the cell with the NaN: ${read}`);
  await hands.until(`[...document.querySelectorAll("table")].some((t) => t.caption?.textContent === "Values")`, "its values");
  check((await hands.table("Values"))[0].includes("NaN"), "and they are NaN");
  await hands.value(`document.querySelector(".heat details").open = true`);
  await hands.page.settled();
  check((await hands.table("Worst cells")).length > 0, "the worst cells as a list");
  await shot("nan");
}

/** A folder, dropped as a whole. */
export async function folder(hands, fp4, path) {
  const report = json(fp4, "report", path);
  await hands.open();
  await hands.drop(".slot", [path]);
  await hands.slot(0, "model.safetensors");
  await hands.idle();
  await whole(hands, "folder", report, json(fp4, "verify", path));
  await hands.open();
  await hands.drop(".slot", [join(path, "config.json"), join(path, "model.safetensors")]);
  await hands.slot(0, "model.safetensors");
  await hands.idle();
  await whole(hands, "files of the folder", report, json(fp4, "verify", path));
}

/** Two checkpoints, against the command's numbers of both. */
export async function compare(hands, fp4, a, b, shot) {
  const report = json(fp4, "report", a, b);
  const apart = json(fp4, "compare", a, b);
  await hands.open("#view=compare");
  // One on the box of B, the other beside the boxes.
  await hands.drop(".slot:nth-child(2)", [b]);
  await hands.slot(1, "nvfp4.safetensors");
  await hands.drop("h1", [a]);
  await hands.slot(0, "model.safetensors");
  await hands.until(`document.querySelector("table.rows") !== null`, "both are compared");
  await hands.idle();
  const cards = await hands.facts(".report .cards");
  check(cards.SQNR.startsWith(decibels(report.totals.error.sqnr_db)), `SQNR of all: ${cards.SQNR}`);
  const titles = (await hands.texts("table.rows thead th")).map((title) => title.replace(/[▲▼ ]+$/, ""));
  const lines = await hands.table("Layers");
  equal(lines.length, Math.min(200, report.rows.length), "rows");
  const cell = (line, title) => line[titles.indexOf(title)];
  for (const [i, row] of report.rows.slice(0, 200).entries()) {
    equal(cell(lines[i], "Layer"), printable(row.name), "name");
    equal(cell(lines[i], "SQNR"), sqnr(row.error?.error_kind, row.error?.sqnr_db), `${row.name}: SQNR`);
    equal(cell(lines[i], "Max error"), number(row.error?.max_abs_error ?? null), `${row.name}: max error`);
    equal(cell(lines[i], "Groups 1%"), decibels(row.groups?.quantiles?.p1), `${row.name}: groups`);
    const pair = apart.tensors.find(({ name }) => name === `${row.name}.weight` || name === row.name);
    if (pair) equal(sqnr(pair.error_kind, pair.sqnr_db), cell(lines[i], "SQNR"), `${row.name}: as fp4 compare has it`);
  }
  await shot("compare");
  // A layer is chosen, and is in the address; so is the rest.
  const layer = report.rows.find((row) => row.counts !== null && row.name.includes("5.mlp.down")) ?? report.rows[0];
  await hands.press("table.rows tbody button", layer.name);
  await hands.address("name", layer.name);
  const hash = await hands.value(`location.hash`);
  await hands.open(hash);
  check((await hands.texts(".wanted"))[0].includes("nvfp4.safetensors"), "a shared address names its files");
  await hands.choose(0, [a]);
  await hands.slot(0, "model.safetensors");
  await hands.choose(1, [b]);
  await hands.until(`document.querySelector("tr.chosen th")?.textContent === ${JSON.stringify(layer.name)}`, "and with them shows its layer");
}

/** A layer beside its reference: the error, and where it sits. */
export async function against(hands, fp4, quantized, dense, shot) {
  const row = json(fp4, "report", quantized, dense).rows.find(({ name }) => name.includes("5.mlp.down"));
  await hands.open(`#${new URLSearchParams({ view: "tensor", name: row.name })}`);
  await hands.choose(1, [dense]);
  await hands.slot(1, "model.safetensors");
  await hands.choose(0, [quantized]);
  await hands.until(`document.querySelector(".error")?.textContent.startsWith("Against")`, "an error");
  const [said] = await hands.texts(".error");
  const { error } = row;
  check(said.includes(`SQNR ${decibels(error.sqnr_db)} dB`), said);
  check(said.includes(`largest error ${number(error.max_abs_error)}`), said);
  const options = await hands.value(`[...document.querySelector(".measure").options].map((o) => o.value)`);
  for (const name of ["SQNR", "largest error", "flushed weights", "scale exponents", "zeros"]) check(options.includes(name), `a map of ${name}`);
  const of = new Map(row.groups.histogram);
  const shown = (await hands.numbers("SQNR of groups")).map(([at, n]) => [at, n]);
  const all = [...of.values()].reduce((a, b) => a + b, 0);
  const [from, n] = shown[0];
  equal([Number(from), n], [row.groups.histogram[0][0], percent(row.groups.histogram[0][1], all)], "groups");
  await shot("against");
}

/** Charts of a view that is left are let go, and drawn in the colours of the day when it comes back. */
export async function away(hands, path) {
  await hands.open();
  await hands.choose(0, [path]);
  await hands.until(`document.querySelector(".report .uplot") !== null && document.querySelector(".work").dataset.busy === "false"`, "charts");
  const there = await hands.value(`(window.left = document.querySelector(".report")).querySelectorAll(".uplot").length`);
  const stroke = `(() => {
    const canvas = document.querySelector(".report .uplot canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    // Of axes, which every chart has.
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--dim").trim();
    const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    let found = 0;
    for (let i = 0; i < data.length; i += 4) found += parts.every((part, k) => Math.abs(data[i + k] - part) < 12) && data[i + 3] > 200;
    return found;
  })()`;
  const before = await hands.value(stroke);
  await hands.press("nav a", "Numbers");
  await hands.until(`window.left.querySelectorAll(".uplot").length === 0`, "charts that are not in the page are let go");
  await hands.page.view(1280, 900, "dark");
  await hands.press("nav a", "Checkpoint");
  await hands.until(`document.querySelectorAll(".report .uplot").length === ${there}`, "and drawn again");
  const after = await hands.value(stroke);
  await hands.page.view(1280, 900, "light");
  check(before > 20 && after > before / 4, `in the colours of the day: ${before} pixels, and ${after} in the dark`);
}
