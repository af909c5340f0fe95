// Maps: a grid of cells as a picture, each cell a block of a tensor. The pointer or the arrow keys
// read a cell; the same numbers stand below as a list of the cells that are worst.

import { type Child, element, table } from "report/dom";

export interface Grid {
  rows: number;
  cols: number;
  /** By row; null where a cell has no such number. */
  values: (number | null)[];
}

export interface Picture {
  title: string;
  about: string;
  grid: Grid;
  /** What the ends of the colours stand for. */
  low: number;
  high: number;
  /** A value as text; null as well. */
  text: (value: number | null) => string;
  /** Which part of the tensor a cell is. */
  where: (row: number, col: number) => string;
  /** Is a large value the bad one? */
  largeIsBad: boolean;
  /** The cell that is read; told of every change. */
  read?: (row: number, col: number) => void;
}

/** Dark to light, even to the eye and for who sees few colours: viridis at six places. */
const RAMP = [
  [68, 1, 84],
  [65, 68, 135],
  [42, 120, 142],
  [34, 168, 132],
  [122, 209, 81],
  [253, 231, 37],
] as const;

/** Of a cell without a number: grey in light and in dark. */
const NONE = [128, 128, 128, 60] as const;

const WORST = 20;

export function ramp(share: number): [number, number, number] {
  const at = Math.min(1, Math.max(0, share)) * (RAMP.length - 1);
  const i = Math.min(RAMP.length - 2, Math.floor(at));
  const [a, b] = [RAMP[i] ?? RAMP[0], RAMP[i + 1] ?? RAMP[0]];
  const mix = (k: 0 | 1 | 2) => Math.round(a[k] + (at - i) * (b[k] - a[k]));
  return [mix(0), mix(1), mix(2)];
}

export class Heat {
  readonly figure: HTMLElement;
  readonly #title = element("h3");
  readonly #about = element("p", { class: "about" });
  readonly #canvas = element("canvas", { class: "map", tabindex: "0", role: "img" });
  readonly #cursor = element("span", { class: "cursor", hidden: true, "aria-hidden": "true" });
  readonly #readout = element("p", { class: "readout dim", "aria-live": "polite" });
  readonly #legend = element("canvas", { class: "ramp", width: "128", height: "1", "aria-hidden": "true" });
  readonly #ends = [element("span"), element("span")] as const;
  readonly #worst = element("details", {}, element("summary", {}, "Worst cells"));
  #picture: Picture | null = null;
  #at: [number, number] = [0, 0];
  /** The cell that the pointer is over. */
  #over = "";

  constructor() {
    const caption = element("figcaption", {}, this.#title, this.#about);
    const place = element("div", { class: "over" }, this.#canvas, this.#cursor);
    const legend = element("p", { class: "legend dim" }, this.#ends[0], this.#legend, this.#ends[1]);
    this.figure = element("figure", { class: "heat" }, caption, place, legend, this.#readout, this.#worst);
    this.#worst.addEventListener("toggle", () => this.#list());
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerdown", (event) => this.#point(event));
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    const colours = this.#legend.getContext("2d");
    for (let i = 0; colours && i < 128; i++) {
      colours.fillStyle = `rgb(${ramp(i / 127).join()})`;
      colours.fillRect(i, 0, 1, 1);
    }
  }

  show(picture: Picture): void {
    const { grid, low, high, text } = picture;
    this.#picture = picture;
    this.#title.textContent = picture.title;
    this.#about.textContent = picture.about;
    this.#ends[0].textContent = text(low);
    this.#ends[1].textContent = text(high);
    this.#canvas.width = grid.cols;
    this.#canvas.height = grid.rows;
    this.#cursor.hidden = true;
    this.#over = "";
    this.#at = [0, 0];
    this.#readout.textContent = "Point at a cell, or move with the arrow keys, to read it.";
    const found = grid.values.filter((value) => value !== null).length;
    this.#canvas.setAttribute(
      "aria-label",
      `${picture.title}: ${grid.rows} by ${grid.cols} cells, ${found} with a number, from ${text(low)} to ${text(high)}`,
    );
    this.#paint(picture);
    this.#list();
  }

  #paint({ grid, low, high }: Picture): void {
    const drawing = this.#canvas.getContext("2d");
    if (drawing === null || grid.rows * grid.cols === 0) return;
    const image = drawing.createImageData(grid.cols, grid.rows);
    grid.values.forEach((value, i) => {
      const share = high > low ? ((value ?? 0) - low) / (high - low) : 0.5;
      image.data.set(value === null ? NONE : [...ramp(share), 255], 4 * i);
    });
    drawing.putImageData(image, 0, 0);
  }

  #point(event: PointerEvent): void {
    const picture = this.#picture;
    if (picture === null) return;
    const box = this.#canvas.getBoundingClientRect();
    const { rows, cols } = picture.grid;
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const col = Math.floor(((event.clientX - box.left) / box.width) * cols);
    if (event.type === "pointermove" && this.#over === `${row} ${col}`) return;
    this.#over = `${row} ${col}`;
    this.#read(row, col);
  }

  #key(event: KeyboardEvent): void {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const first = this.#cursor.hidden;
    const [row, col] = this.#at;
    this.#read(first ? row : row + (step[0] ?? 0), first ? col : col + (step[1] ?? 0));
  }

  #read(row: number, col: number): void {
    const picture = this.#picture;
    if (picture === null) return;
    const { rows, cols, values } = picture.grid;
    const at: [number, number] = [Math.min(rows - 1, Math.max(0, row)), Math.min(cols - 1, Math.max(0, col))];
    this.#at = at;
    const { style } = this.#cursor;
    [style.top, style.height] = [`${(100 * at[0]) / rows}%`, `${100 / rows}%`];
    [style.left, style.width] = [`${(100 * at[1]) / cols}%`, `${100 / cols}%`];
    this.#cursor.hidden = false;
    this.#readout.textContent = `${picture.where(...at)}: ${picture.text(values[at[0] * cols + at[1]] ?? null)}`;
    picture.read?.(...at);
  }

  #list(): void {
    const summary = this.#worst.firstElementChild;
    const picture = this.#picture;
    if (summary === null || picture === null) return;
    this.#worst.replaceChildren(summary);
    if (!this.#worst.open) return;
    const { grid, text, where, largeIsBad } = picture;
    const sign = largeIsBad ? -1 : 1;
    const best = largeIsBad ? picture.low : picture.high;
    const sorted = grid.values
      .map((value, i) => [value, i] as const)
      .filter((each): each is [number, number] => each[0] !== null && each[0] !== best)
      .sort(([a], [b]) => sign * (a - b));
    const lines = sorted.slice(0, WORST).map(([value, i]): Child[] => [
      where(Math.floor(i / grid.cols), i % grid.cols),
      text(value),
    ]);
    this.#worst.append(table("Worst cells", [{ title: "Cell" }, { title: "Value", numeric: true }], lines));
  }
}
