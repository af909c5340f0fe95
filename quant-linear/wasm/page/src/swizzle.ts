// The layout of scales in 128x4 tiles, drawn: the matrix of scales on one side, memory on the
// other, each cell linked to its place. Where a cell lies is told by fp4-core.

import { element, section } from "report/dom";
import { ramp } from "./heat";
import type { App, View } from "./view";

const MOST = { rows: 512, cols: 32 };
const FIRST = { rows: 128, cols: 4 };
/** Bytes of memory in a drawn line. */
const LINE = 16;

type Colour = [red: number, green: number, blue: number];

/** A drawing of cells, of which one is marked. */
class Board {
  readonly root: HTMLElement;
  readonly #canvas = element("canvas", { tabindex: "0", role: "img" });
  readonly #cursor = element("span", { class: "cursor", hidden: true, "aria-hidden": "true" });
  #rows = 1;
  #cols = 1;
  #at = 0;
  /** The cell that the pointer is over. */
  #over = -1;

  constructor(title: string, cell: number, read: (at: number) => void) {
    this.#canvas.className = "board";
    const place = element("div", { class: "over" }, this.#canvas, this.#cursor);
    this.root = element("figure", {}, element("figcaption", {}, element("h3", {}, title)), place);
    this.root.style.setProperty("--cell", `${cell}px`);
    const point = (event: PointerEvent) => {
      const box = this.#canvas.getBoundingClientRect();
      const row = Math.floor(((event.clientY - box.top) / box.height) * this.#rows);
      const col = Math.floor(((event.clientX - box.left) / box.width) * this.#cols);
      if (row < 0 || col < 0 || row >= this.#rows || col >= this.#cols) return;
      const at = row * this.#cols + col;
      if (at === this.#over && event.type === "pointermove") return;
      this.#over = at;
      read(at);
    };
    this.#canvas.addEventListener("pointerleave", () => (this.#over = -1));
    this.#canvas.addEventListener("pointermove", point);
    this.#canvas.addEventListener("pointerdown", point);
    this.#canvas.addEventListener("focus", () => read(this.#at));
    this.#canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: -this.#cols, ArrowDown: this.#cols, ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const to = this.#at + step;
      if (to >= 0 && to < this.#rows * this.#cols) read(to);
    });
  }

  /** Draws cells in their colours; null for what is padding. */
  draw(rows: number, cols: number, about: string, colour: (at: number) => Colour | null): void {
    [this.#rows, this.#cols] = [rows, cols];
    this.#canvas.width = cols;
    this.#canvas.height = rows;
    this.#canvas.style.setProperty("--rows", String(rows));
    this.#canvas.style.setProperty("--cols", String(cols));
    this.#canvas.setAttribute("aria-label", about);
    const drawing = this.#canvas.getContext("2d");
    const image = drawing?.createImageData(cols, rows);
    for (let at = 0; image && at < rows * cols; at++) {
      const found = colour(at);
      image.data.set(found === null ? [128, 128, 128, 60] : [...found, 255], 4 * at);
    }
    if (image) drawing?.putImageData(image, 0, 0);
    this.#over = -1;
    this.mark(null);
  }

  mark(at: number | null): void {
    this.#cursor.hidden = at === null;
    if (at === null) return;
    this.#at = at;
    const { style } = this.#cursor;
    style.top = `${(100 * Math.floor(at / this.#cols)) / this.#rows}%`;
    style.left = `${(100 * (at % this.#cols)) / this.#cols}%`;
    style.height = `${100 / this.#rows}%`;
    style.width = `${100 / this.#cols}%`;
  }
}

export function swizzle(app: App): View {
  let [rows, cols] = [FIRST.rows, FIRST.cols];
  /** The place in memory of each cell, by row; and of each place its cell, or -1. */
  let offsets = new Uint32Array();
  let cells = new Int32Array();
  let turn = 0;
  const said = element("p", { class: "readout", "aria-live": "polite" });
  const wrong = element("p", { class: "readout wrong", role: "alert" });

  const tell = (cell: number | null, offset: number) => {
    matrix.mark(cell);
    memory.mark(offset);
    const byte = `byte ${offset} (0x${offset.toString(16)})`;
    if (cell === null) {
      said.textContent = `${byte} is padding, 0`;
    } else {
      const [row, col] = [Math.floor(cell / cols), cell % cols];
      said.textContent = `row ${row}, column ${col} is at ${byte}`;
    }
  };
  const read = (cell: number | null, offset: number) => {
    tell(cell, offset);
    if (cell === null) return;
    app.address.set({ row: String(Math.floor(cell / cols)), col: String(cell % cols) });
  };
  const matrix = new Board("Scales, by row and column", 6, (cell) => read(cell, offsets[cell] ?? 0));
  const memory = new Board(`Memory, ${LINE} bytes a line`, 16, (offset) => {
    const cell = cells[offset] ?? -1;
    read(cell < 0 ? null : cell, offset);
  });

  const size = (name: "rows" | "cols", title: string) => {
    const input = element("input", { type: "number", min: "1", max: String(MOST[name]), step: "1" });
    input.addEventListener("input", () => {
      app.address.set({ [name]: input.value, row: null, col: null });
      void draw();
    });
    return { input, label: element("label", { class: "choice" }, element("span", {}, title), input) };
  };
  const [rowsField, colsField] = [size("rows", "Rows"), size("cols", "Columns")];

  const draw = async () => {
    const mine = ++turn;
    const [tall, wide] = [app.address.number("rows", 1, MOST.rows, 0), app.address.number("cols", 1, MOST.cols, 0)];
    const given = (name: "rows" | "cols", value: number) =>
      app.address.get(name) === null ? FIRST[name] : value;
    const [r, c] = [given("rows", tall), given("cols", wide)];
    if (r === 0 || c === 0) {
      wrong.textContent = `Give 1 to ${MOST.rows} rows and 1 to ${MOST.cols} columns, as whole numbers.`;
      return;
    }
    try {
      const found = await app.numbers.call("swizzle", { rows: r, cols: c });
      if (mine !== turn) return;
      wrong.textContent = "";
      [rows, cols, offsets] = [r, c, found.offsets];
      cells = new Int32Array(found.bytes).fill(-1);
      offsets.forEach((offset, cell) => (cells[offset] = cell));
      // By row, and the lighter the further right.
      const colour = (cell: number): Colour => {
        const light = (0.55 * (cell % cols)) / Math.max(1, cols - 1);
        const [r, g, b] = ramp(Math.floor(cell / cols) / Math.max(1, rows - 1));
        const mix = (part: number) => Math.round(part + light * (255 - part));
        return [mix(r), mix(g), mix(b)];
      };
      matrix.draw(rows, cols, `Scales: ${rows} rows, ${cols} columns`, colour);
      memory.draw(Math.ceil(found.bytes / LINE), LINE, `Memory: ${found.bytes} bytes`, (at) => {
        const cell = cells[at] ?? -1;
        return cell < 0 ? null : colour(cell);
      });
      boards.hidden = false;
      const row = app.address.number("row", 0, rows - 1, 0);
      const cell = row * cols + app.address.number("col", 0, cols - 1, 0);
      tell(cell, offsets[cell] ?? 0);
    } catch (error) {
      if (mine === turn) wrong.textContent = error instanceof Error ? error.message : String(error);
    }
  };
  const boards = element("div", { class: "boards", hidden: true }, matrix.root, memory.root);
  const root = section(
    "Scales in 128x4 tiles",
    "Tensor cores read scales in tiles of 128 rows and 4 columns, 512 bytes each; what is left of a tile is padding. Point at a cell on either side, or move with the arrow keys, to see its place on the other.",
    element("div", { class: "controls" }, rowsField.label, colsField.label, said),
    wrong,
    boards,
  );
  return {
    root,
    show() {
      rowsField.input.value = app.address.get("rows") ?? String(FIRST.rows);
      colsField.input.value = app.address.get("cols") ?? String(FIRST.cols);
      void draw();
    },
  };
}
