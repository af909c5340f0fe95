// The first values of the part of a tensor that is read in a map.

import { type Child, element, table } from "report/dom";
import type { Read } from "./maps";
import { full } from "./numbers";
import type { App } from "./view";
import { reason } from "./work";

/** Values that are shown, at most. */
const MOST = { rows: 4, cols: 8 };

export class Part {
  readonly root = element("div", { class: "values" });
  readonly #app: App;
  #name = "";
  #wanted: Parameters<Read> | null = null;
  #busy = false;

  constructor(app: App) {
    this.#app = app;
  }

  /** Which tensor the parts are of. */
  of(name: string): void {
    this.#name = name;
    this.root.replaceChildren(element("p", { class: "dim" }, "Read a cell of a map, and its first values are here."));
  }

  /** Shows a part; of those asked for while one is read, the last. */
  readonly read: Read = (...wanted) => {
    this.#wanted = wanted;
    if (!this.#busy) void this.#next();
  };

  async #next(): Promise<void> {
    this.#busy = true;
    while (this.#wanted !== null) {
      const [row, col, tall, wide] = this.#wanted;
      this.#wanted = null;
      const [name, rows, cols] = [this.#name, Math.min(MOST.rows, tall), Math.min(MOST.cols, wide)];
      try {
        const values = await this.#app.files.call("values", { name, row, col, rows, cols });
        if (name === this.#name) this.root.replaceChildren(tabulated(values, row, col, rows, cols));
      } catch (error) {
        if (name === this.#name) this.root.replaceChildren(reason(error));
      }
    }
    this.#busy = false;
  }
}

function tabulated(values: Float32Array, row: number, col: number, rows: number, cols: number): HTMLElement {
  const columns = [
    { title: "row" },
    ...Array.from({ length: cols }, (_, c) => ({ title: String(col + c), numeric: true })),
  ];
  const lines = Array.from({ length: rows }, (_, r): Child[] => [
    String(row + r),
    ...Array.from(values.slice(r * cols, (r + 1) * cols), full),
  ]);
  return table("Values", columns, lines);
}
