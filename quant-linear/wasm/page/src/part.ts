// The first values of the part of a matrix that is read in a map. What is read is the tensor as it
// is stored, all of its matrices one below the other, each perhaps transposed:
//
//     matrix 2 of (3, 32, 64), row 5, column 7                     row 2 * 32 + 5, column 7
//     the same of a (3, 64, 32) that is stored as (in, out)        row 2 * 64 + 7, column 5

import { type Child, element, table } from "report/dom";
import type { Read } from "./maps";
import { full } from "./numbers";
import type { App } from "./view";
import { reason } from "./work";

/** Values that are shown, at most. */
const MOST = { rows: 4, cols: 8 };

/** Which matrix of a tensor it is, and how it lies there. */
export interface Place {
  matrix: number;
  rows: number;
  cols: number;
  transposed: boolean;
}

export class Part {
  readonly root = element("div", { class: "values" });
  readonly #app: App;
  #name = "";
  #place: Place | null = null;
  #wanted: Parameters<Read> | null = null;
  #busy = false;

  constructor(app: App) {
    this.#app = app;
  }

  /** Which tensor the parts are of, and which matrix of it; the whole, if none is given. */
  of(name: string, place: Place | null = null): void {
    this.#name = name;
    this.#place = place;
    this.#wanted = null;
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
      const [name, place] = [this.#name, this.#place];
      const [rows, cols] = [Math.min(MOST.rows, tall), Math.min(MOST.cols, wide)];
      const current = () => name === this.#name && place === this.#place;
      try {
        const stored = await this.#app.files.call("values", { name, ...inTensor(place, row, col, rows, cols) });
        const values = place?.transposed ? turned(stored, cols, rows) : stored;
        if (current()) this.root.replaceChildren(tabulated(values, row, col, rows, cols));
      } catch (error) {
        if (current()) this.root.replaceChildren(reason(error));
      }
    }
    this.#busy = false;
  }
}

/** A part of a matrix, as a part of the tensor. */
function inTensor(place: Place | null, row: number, col: number, rows: number, cols: number) {
  if (place === null) return { row, col, rows, cols };
  const { matrix, transposed } = place;
  if (!transposed) return { row: matrix * place.rows + row, col, rows, cols };
  return { row: matrix * place.cols + col, col: row, rows: cols, cols: rows };
}

/** The transposed of row-major values. */
const turned = (values: Float32Array, rows: number, cols: number): Float32Array =>
  Float32Array.from(values, (_, i) => values[(i % rows) * cols + Math.floor(i / rows)] ?? NaN);

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
