// What is given to the slots, and how: two files at once, closed before they are open, folders in
// folders, text that is dropped; and a package that could not be loaded at first.

import { basename } from "node:path";
import { check, equal } from "./kit.mjs";

export async function given(hands, files) {
  await together(hands, files);
  await closed(hands, files);
  await nested(hands, files);
  await text(hands, files);
}

/** B while A is being opened: both are opened. */
async function together(hands, { model, nvfp4 }) {
  await hands.open("#view=numbers");
  await Promise.all([hands.choose(0, [nvfp4]), hands.choose(1, [model])]);
  for (const [slot, path] of [nvfp4, model].entries()) {
    const said = await hands.slot(slot, basename(path));
    check(/\d tensors/.test(said), `slot ${slot}, given together with the other: ${said}`);
  }
}

/** Closed while it is being opened: it stays closed. */
async function closed(hands, { model, nvfp4 }) {
  await hands.open();
  await Promise.all([hands.choose(0, [model]), hands.value(`new Promise((done) => {
    const close = [...document.querySelectorAll(".slot button")].find((e) => e.textContent === "Close");
    const look = () => (close.disabled ? setTimeout(look, 1) : (close.click(), done()));
    look();
  })`)]);
  await hands.idle();
  // The next one is opened after whatever is left of the first.
  await hands.choose(1, [nvfp4]);
  await hands.slot(1, basename(nvfp4));
  await hands.idle();
  equal((await hands.texts(".file"))[0], "", "closed, and no file in it");
  equal(await hands.value(`document.querySelectorAll(".list table").length`), 0, "nor its tensors in the view");
}

/** A folder with others inside that have files of the same names. */
async function nested(hands, { nested: folder }) {
  await hands.open();
  await hands.choose(0, [folder], 1);
  const said = await hands.slot(0, basename(folder));
  check(said.includes("tensors") && !said.startsWith("Cannot"), `a folder in a folder: ${said}`);
}

/** Text is no file: what is open stays, and nothing is said. */
async function text(hands, { model }) {
  await hands.open();
  await hands.choose(0, [model]);
  const said = await hands.slot(0, basename(model));
  await hands.idle();
  const data = { items: [{ mimeType: "text/plain", data: "no file" }], dragOperationsMask: 1 };
  for (const selector of [".slot", "h1"]) {
    await hands.drag(selector, data);
    equal(await hands.slot(0, basename(model)), said, `text that is dropped on ${selector}`);
    equal((await hands.texts(".file"))[1], "", "B is as empty as before");
  }
}

/** A package that is not served is said, and loaded by the next call once it is. */
export async function unloaded(hands, server, { model }) {
  server.refused.add("/scalar/fp4_bg.wasm");
  await hands.open();
  await hands.choose(0, [model]);
  const said = await hands.slot(0, basename(model));
  check(said.startsWith("Cannot be read: ") && said.includes("fp4_bg.wasm"), said);
  server.refused.clear();
  await hands.choose(0, [model]);
  check(/\d tensors/.test(await hands.slot(0, basename(model))), "and then it is loaded");
  // Browsers tell of the refusal, as they must.
  const told = hands.page.faults.splice(0);
  check(told.every((fault) => fault.includes("404")), `${told}`);
  await hands.idle();
}
