// What the checks of the page have in common: facts that are counted, and hands for a page.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

let checks = 0;
export const counted = () => checks;
export function check(fact, what) {
  checks += 1;
  assert(fact, what);
}
export function equal(a, b, what) {
  checks += 1;
  assert.deepEqual(a, b, what);
}

/** What a page may take to show something, in milliseconds. */
const PATIENCE = 30_000;

/** The object that a command prints; 1 is an answer too. */
export function json(program, ...args) {
  try {
    return JSON.parse(execFileSync(program, [...args, "--json"], { maxBuffer: 2 ** 30, stdio: ["ignore", "pipe", "pipe"] }));
  } catch (error) {
    if (error.status !== 1) throw error;
    return JSON.parse(error.stdout);
  }
}

/** A page with hands. */
export class Hands {
  constructor(page, url) {
    this.page = page;
    this.url = url;
  }

  value(expression) {
    return this.page.value(expression);
  }

  /** Opens the page at an address, anew. */
  async open(hash = "") {
    await this.page.open("about:blank");
    await this.page.open(this.url + hash);
  }

  /** Waits until an expression holds. */
  async until(expression, what = expression) {
    const end = Date.now() + PATIENCE;
    while (!(await this.value(expression))) {
      if (Date.now() > end) {
        const seen = await this.value(`document.body.innerText.slice(0, 1500)`);
        throw new Error(`never: ${what}; faults: ${this.page.faults}; the page says\n${seen}`);
      }
    }
    await this.page.settled();
  }

  texts(selector) {
    return this.value(`[...document.querySelectorAll(${JSON.stringify(selector)})].map((e) => e.textContent)`);
  }

  /** Presses the one element with this text. */
  async press(selector, text) {
    const pressed = await this.value(`(() => {
      const all = [...document.querySelectorAll(${JSON.stringify(selector)})].filter((e) => e.textContent === ${JSON.stringify(text)});
      all[0]?.click();
      return all.length;
    })()`);
    check(pressed > 0, `${selector} has “${text}”`);
    await this.page.settled();
  }

  /** Presses Enter where the focus is. */
  async enter() {
    const key = { key: "Enter", code: "Enter", windowsVirtualKeyCode: 13 };
    await this.page.send("Input.dispatchKeyEvent", { type: "keyDown", text: "\r", ...key });
    await this.page.send("Input.dispatchKeyEvent", { type: "keyUp", ...key });
    await this.page.settled();
  }

  /** Types into a field, as one change. */
  async type(selector, text, event = "input") {
    await this.value(`(() => {
      const field = document.querySelector(${JSON.stringify(selector)});
      field.value = ${JSON.stringify(text)};
      field.dispatchEvent(new Event(${JSON.stringify(event)}));
    })()`);
    await this.page.settled();
  }

  /** Drops files on an element, as a file manager does. */
  drop(selector, paths) {
    return this.drag(selector, { items: [], files: paths, dragOperationsMask: 1 });
  }

  /** Drops anything on an element. */
  async drag(selector, data) {
    const at = await this.value(`(() => {
      const box = document.querySelector(${JSON.stringify(selector)}).getBoundingClientRect();
      return { x: box.x + box.width / 2, y: box.y + 20 };
    })()`);
    for (const type of ["dragEnter", "dragOver", "drop"]) {
      await this.page.send("Input.dispatchDragEvent", { type, ...at, data });
    }
  }

  /** Chooses files in a slot's field, as its dialog does; in its second one a folder. */
  async choose(slot, paths, field = 0) {
    const { result } = await this.page.send("Runtime.evaluate", {
      expression: `document.querySelectorAll(".slot")[${slot}].querySelectorAll("input")[${field}]`,
    });
    await this.page.send("DOM.setFileInputFiles", { files: paths, objectId: result.objectId });
  }

  /** Waits until a slot holds a file of this name, or says why not. */
  async slot(slot, name) {
    const box = `document.querySelectorAll(".slot")[${slot}]`;
    await this.until(
      `${box}.querySelector(".file").textContent === ${JSON.stringify(name)} && !${box}.querySelector(".said").textContent.endsWith("opening")`,
      `slot ${slot} has ${name}`,
    );
    return this.value(`${box}.querySelector(".said").textContent`);
  }

  /** Bytes that the page's process holds, its workers included. */
  async memory() {
    const { processInfo } = await this.page.all("SystemInfo.getProcessInfo");
    const held = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => {
      const [, kilobytes] = /VmRSS:\s*(\d+) kB/.exec(readFileSync(`/proc/${id}/status`, "utf8"));
      return 1024 * kilobytes;
    });
    return Math.max(...held);
  }

  /** Waits until nothing is computed. */
  async idle() {
    await this.until(`document.querySelector(".work").dataset.busy === "false"`, "idle");
  }

  /** Waits until the address, which is a little late, has a parameter. */
  async address(key, value) {
    const found = `new URLSearchParams(location.hash.slice(1)).get(${JSON.stringify(key)})`;
    await this.until(`${found} === ${JSON.stringify(value)}`, `${key}=${value} in the address`);
    check(true, key);
  }

  /** The cells of a table by its caption, line by line. */
  table(caption) {
    return this.value(`(() => {
      const table = [...document.querySelectorAll("table")].find((t) => t.caption?.textContent === ${JSON.stringify(caption)});
      return table ? [...table.tBodies[0].rows].map((row) => [...row.cells].map((c) => c.textContent)) : null;
    })()`);
  }

  /** The numbers beside a chart, line by line. */
  async numbers(title) {
    const figure = `[...document.querySelectorAll("figure")].find((f) => f.querySelector("h3")?.textContent === ${JSON.stringify(title)})`;
    await this.value(`${figure}.querySelector("details").open = true`);
    await this.page.settled();
    const lines = await this.value(`[...${figure}.querySelectorAll("details tbody tr")].map((tr) => [...tr.cells].map((c) => c.textContent))`);
    await this.value(`${figure}.querySelector("details").open = false`);
    return lines;
  }

  /** Ends of a definition list, by their terms. */
  facts(selector) {
    return this.value(`Object.fromEntries([...document.querySelectorAll(${JSON.stringify(`${selector} dt`)})].map((t) => [t.textContent, t.nextElementSibling.textContent]))`);
  }
}

export { printable } from "../../../cli/web/test/text.mjs";

/** Numbers as the page writes them. */
export const count = (n) => n.toLocaleString("en");
export function share(part, of) {
  if (of === 0) return "–";
  return part > 0 && (100 * part) / of < 0.01 ? "< 0.01%" : `${((100 * part) / of).toFixed(2)}%`;
}
export function number(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}
export const decibels = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
export function sqnr(kind, value) {
  return { exact: "exact", infinite: "−∞", not_finite: "undefined", finite: decibels(value) }[kind] ?? "–";
}
