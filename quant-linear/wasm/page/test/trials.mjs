// A dense tensor on trial: every format, rule and transform against what `fp4 quantize` says of it.

import { join } from "node:path";
import { check, decibels, equal, json, number, share, sqnr } from "./kit.mjs";

/** What `fp4 quantize` makes of the sample's weight by a choice. */
function native(fp4, folder, sample, { format, rule, transform }) {
  const size = /\d+$/.exec(transform)?.[0];
  const block = size === undefined ? [] : ["--transform", "hadamard", "--transform-block", size];
  const out = join(folder, "trial.safetensors");
  const made = json(fp4, "quantize", sample, "-o", out, "--force", "--format", format, "--scale-rule", rule, ...block);
  const [row] = json(fp4, "report", sample, out).rows.filter((each) => each.counts !== null);
  return { tensor: made.tensors.find(({ name }) => name === "weight"), row };
}

export async function trials(hands, fp4, folder, sample, shot) {
  await hands.open();
  await hands.choose(0, [sample]);
  await hands.slot(0, "minilm-slice.safetensors");
  await hands.idle();
  // From the list of tensors, by its button.
  await hands.press(".list button", "weight");
  await hands.until(`document.querySelector(".outcome table") !== null`, "trials by default");
  const options = (id) => hands.value(`[...document.getElementById(${JSON.stringify(id)}).options].map((o) => o.value)`);
  const transforms = await options("try-0-transform");
  const all = [];
  for (const format of ["nvfp4", "mxfp4"]) {
    await hands.type("#try-0-format", format, "change");
    for (const rule of await options("try-0-rule")) all.push({ format, rule, transform: "none" });
    for (const transform of transforms.filter((name) => name !== "none")) all.push({ format, rule: "search", transform });
  }
  check(all.length >= 25, `choices: ${all.length}`);
  for (let i = 0; i < all.length; i += 4) {
    const some = all.slice(i, i + 4);
    const parameters = new URLSearchParams({ view: "tensor", name: "weight" });
    for (const { format, rule, transform } of some) parameters.append("try", `${format}/${rule}/${transform}`);
    await hands.value(`location.hash = ${JSON.stringify(`#${parameters}`)}`);
    const title = ({ format, rule, transform }) => `${format.toUpperCase()}, ${rule}${transform === "none" ? "" : `, ${transform}`}`;
    const titles = JSON.stringify(some.map(title));
    await hands.until(
      `JSON.stringify([...document.querySelectorAll(".outcome tbody tr")].map((tr) => tr.cells[0].textContent)) === ${JSON.stringify(titles)}`,
      `trials ${titles}`,
    );
    const lines = await hands.table("What is lost");
    let first = null;
    for (const [k, choice] of some.entries()) {
      const { tensor, row } = native(fp4, folder, sample, choice);
      const what = title(choice);
      const [, noise, gain, , most, p1, p50, zero, lost, flushed, saturated, nan] = lines[k];
      equal(noise, sqnr(tensor.error_kind, tensor.sqnr_db), `${what}: SQNR`);
      first ??= tensor.sqnr_db;
      if (k > 0 && first !== null && tensor.sqnr_db !== null) {
        const above = tensor.sqnr_db - first;
        equal(gain, `${above < 0 ? "−" : "+"}${Math.abs(above).toFixed(2)}`, `${what}: against the first`);
      }
      equal(most, number(tensor.max_abs_error), `${what}: max error`);
      equal([p1, p50], [row.groups.quantiles?.p1, row.groups.quantiles?.p50].map(decibels), `${what}: groups`);
      equal(zero, share(row.counts.zero_groups, row.counts.groups), `${what}: zero groups`);
      equal(lost, String(tensor.lost_groups), `${what}: lost groups`);
      equal(flushed, share(tensor.flushed, row.counts.weights), `${what}: flushed`);
      equal(saturated, share(row.counts.saturated, row.counts.weights), `${what}: saturated`);
      equal(nan, String(row.counts.nan_scales), `${what}: NaN scales`);
    }
    // A map for each, on one scale.
    equal(await hands.value(`document.querySelectorAll(".heat").length`), some.length, "maps");
  }
  // Controls: another choice, one less, another measure; all of it in the address.
  await hands.open(`#view=tensor&name=weight&try=nvfp4/search/none&try=mxfp4/search/${transforms[2]}`);
  await hands.choose(0, [sample]);
  await hands.until(`document.querySelectorAll(".outcome tbody tr").length === 2`, "a shared trial");
  await hands.press("button", "Add a choice");
  await hands.until(`document.querySelectorAll(".outcome tbody tr").length === 3`, "a choice more");
  await hands.type("#try-2-format", "nvfp4", "change");
  await hands.until(`document.querySelector(".outcome tbody tr:nth-child(3) td").textContent.startsWith("NVFP4")`, "another format");
  await shot("trial");
  await hands.value(`document.querySelectorAll("fieldset button")[1].click()`);
  await hands.until(`document.querySelectorAll(".outcome tbody tr").length === 2`, "a choice less");
  const measures = await hands.value(`(() => {
    const list = [...document.querySelectorAll("select")].find((s) => [...s.options].some((o) => o.value === "largest error"));
    return [...list.options].map((o) => o.value);
  })()`);
  for (const name of measures) {
    await hands.value(`(() => {
      const list = [...document.querySelectorAll("select")].find((s) => [...s.options].some((o) => o.value === "largest error"));
      list.value = ${JSON.stringify(name)};
      list.dispatchEvent(new Event("change"));
    })()`);
    await hands.value(`document.querySelector("canvas.map").focus()`);
    await hands.page.key("ArrowDown");
    check(/^rows? .*columns? .*: /.test((await hands.texts(".heat .readout"))[0]), `${name} of a cell`);
  }
  return all.length;
}

/** A matrix whose rows are no whole groups is refused by name, and shown as it is. */
export async function refused(hands, path) {
  await hands.open("#view=tensor&name=odd.weight");
  await hands.choose(0, [path]);
  await hands.until(`document.querySelector(".choices + [role=alert]")?.textContent.includes("odd.weight")`, "a refusal");
  await hands.until(`[...document.querySelectorAll("dl.facts code")].some((e) => e.textContent === "odd.weight")`, "its values");
  equal((await hands.facts("dl.facts")).Largest, "6", "the largest of them");
  equal(await hands.value(`document.querySelectorAll(".outcome table").length`), 0, "and no trial");
}

/** The values under a map are those of the trial's matrix, wherever in the tensor they are stored. */
export async function places(hands, path) {
  const cases = [
    ["experts.weight", 0, (row, col) => row * 64 + col],
    ["experts.weight", 2, (row, col) => (2 * 32 + row) * 64 + col],
    ["h.0.attn.c_attn.weight", 0, (row, col) => col * 1536 + row],
  ];
  for (const [name, matrix, place] of cases) {
    await hands.open(`#${new URLSearchParams({ view: "tensor", name, matrix, try: "nvfp4/nearest/none" })}`);
    await hands.choose(0, [path]);
    await hands.until(`document.querySelector(".outcome table") !== null`, `a trial of ${name}`);
    await hands.idle();
    await hands.value(`document.querySelector("canvas.map").focus()`);
    for (const key of ["ArrowDown", "ArrowDown", "ArrowRight"]) await hands.page.key(key);
    const values = `[...document.querySelectorAll("table")].find((t) => t.caption.textContent === "Values")`;
    const cell = /^rows? (\d+).*, columns? (\d+)/.exec((await hands.texts(".heat .readout"))[0]);
    check(cell !== null, "a cell is read");
    await hands.until(`${values}?.rows[1].cells[0].textContent === "${cell[1]}" && ${values}.rows[0].cells[1].textContent === "${cell[2]}"`, "its values");
    const [row, col] = [Number(cell[1]), Number(cell[2])];
    check(row > 0 && col > 0, "not the first");
    const shown = (await hands.table("Values")).map(([, ...line]) => line.map(Number));
    equal(shown, shown.map((line, r) => line.map((_, c) => place(row + r, col + c))), `${name}, matrix ${matrix}, from ${row}, ${col}`);
  }
}
