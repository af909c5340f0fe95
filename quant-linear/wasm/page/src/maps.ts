// Maps side by side: one measure of all of them at a time, in the same colours.

import { element, section } from "report/dom";
import type { Address } from "./address";
import type { Map } from "exact-fp4";
import { Heat } from "./heat";
import { type Measure, ends, grid, measures } from "./measures";

export interface Drawn {
  title: string;
  map: Map;
  /** Rows and columns of the matrix. */
  rows: number;
  cols: number;
}

/** Told which part of the matrix is read: its first row and column, and how many of both. */
export type Read = (row: number, col: number, rows: number, cols: number) => void;

export class Maps {
  readonly root: HTMLElement;
  readonly #address: Address;
  readonly #read: Read;
  readonly #list = element("select");
  readonly #place = element("div", { class: "grid" });
  readonly #heats: Heat[] = [];
  #drawn: Drawn[] = [];

  constructor(address: Address, title: string, about: string, read: Read, ...below: HTMLElement[]) {
    this.#address = address;
    this.#read = read;
    this.#list.className = "measure";
    this.#list.addEventListener("change", () => {
      address.set({ map: this.#list.value });
      this.#draw();
    });
    const label = element("label", { class: "choice" }, element("span", {}, "Map of"), this.#list);
    this.root = section(title, about, element("div", { class: "controls" }, label), this.#place, ...below);
  }

  show(drawn: Drawn[]): void {
    this.#drawn = drawn;
    const [first] = drawn;
    const names = first === undefined ? [] : measures(first.map).map(({ name }) => name);
    this.#list.replaceChildren(...names.map((value) => element("option", { value }, value)));
    const wanted = this.#address.get("map") ?? "";
    this.#list.value = names.includes(wanted) ? wanted : (names[0] ?? "");
    while (this.#heats.length < drawn.length) this.#heats.push(new Heat());
    this.#place.replaceChildren(...this.#heats.slice(0, drawn.length).map(({ figure }) => figure));
    this.#draw();
  }

  #draw(): void {
    const [first] = this.#drawn;
    const measure = first && measures(first.map).find(({ name }) => name === this.#list.value);
    if (measure === undefined) return;
    const grids = this.#drawn.map(({ map }) => grid(map, measure.plane));
    const [low, high] = ends(grids);
    this.#drawn.forEach((drawn, i) => {
      const found = grids[i];
      if (found) this.#picture(this.#heats[i], drawn, measure, found, low, high);
    });
  }

  #picture(
    heat: Heat | undefined,
    { title, map, rows, cols }: Drawn,
    { name, about, text, largeIsBad }: Measure,
    found: ReturnType<typeof grid>,
    low: number,
    high: number,
  ): void {
    const { row_step, col_step } = map;
    heat?.show({
      title: title === "" ? `Map of ${name}` : title,
      about,
      grid: found,
      low,
      high,
      text,
      largeIsBad,
      where: (row, col) => `${part("row", row, row_step, rows)}, ${part("column", col, col_step, cols)}`,
      read: (row, col) => {
        const [top, left] = [row * row_step, col * col_step];
        this.#read(top, left, Math.min(row_step, rows - top), Math.min(col_step, cols - left));
      },
    });
  }
}

/** The rows or the columns of a cell, for people. */
function part(what: string, at: number, step: number, all: number): string {
  const [from, to] = [at * step, Math.min(all, (at + 1) * step) - 1];
  return from === to ? `${what} ${from}` : `${what}s ${from}–${to}`;
}
