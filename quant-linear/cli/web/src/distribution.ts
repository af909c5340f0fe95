// Distributions: what is counted by position, drawn as shares, so that few can be laid beside many.

import { Chart, type Colour, type Plan, type Series } from "./chart";
import { CODES_IN_ORDER, type Counts, type Groups, type Pair, codeText, total } from "./data";
import { power } from "./text";

const percent = (y: number) => `${Number(y.toPrecision(3))}%`;

/** What is counted, and by what. */
export interface Distribution {
  title: string;
  about: string;
  axis: string;
  position: (x: number) => string;
  /** The same on the axis, where there is little room. */
  tick?: (x: number) => string;
  everyPosition?: boolean;
  /** Lay what is above all but one in a thousand of the first list into one bar? */
  folds?: boolean;
  of: (counts: Counts, groups: Groups | null) => Pair[];
}

export const CODES: Distribution = {
  title: "Code usage",
  about: "How often each of the 16 codes occurs, in the order of their values.",
  axis: "value of the code",
  position: (x) => codeText(CODES_IN_ORDER[x] ?? 0),
  everyPosition: true,
  of: (counts) => CODES_IN_ORDER.map((code, i) => [i, counts.codes[code] ?? 0]),
};

export const EXPONENTS: Distribution = {
  title: "Scale exponents",
  about: "The power of two below each group's scale, as stored; zero groups, zero scales and NaN left out.",
  axis: "power of two",
  position: power,
  of: (counts) => counts.exponents,
};

export const SPREADS: Distribution = {
  title: "Spread of rows",
  about: "Powers of two between the largest and the smallest scale of a row. Wide rows cost products time.",
  axis: "powers of two",
  position: String,
  of: (counts) => counts.spreads,
};

export const GROUPS: Distribution = {
  title: "SQNR of groups",
  about: "Groups by their own signal to noise ratio; exact ones left out, and the highest in one bar. A group at 0 dB or below is lost.",
  axis: "dB",
  position: String,
  folds: true,
  of: (_, groups) => groups?.histogram ?? [],
};

/** A list to draw, with its name and colour. */
export interface Counted {
  label: string;
  colour: Colour;
  pairs: Pair[];
}

/** A chart of one distribution: one or two lists as bars, more of them as lines. */
export class DistributionChart {
  readonly #distribution: Distribution;
  readonly #chart: Chart;

  constructor(distribution: Distribution) {
    this.#distribution = distribution;
    this.#chart = new Chart(this.#plan([], Infinity));
  }

  get figure(): HTMLElement {
    return this.#chart.figure;
  }

  show(lists: Counted[]): void {
    const top = this.#distribution.folds ? highest(lists[0]?.pairs ?? []) : Infinity;
    const shown = aligned(lists.map(({ pairs }) => folded(pairs, top)));
    const kind = lists.length > 2 ? "line" : "bars";
    const series = lists.map(({ label, colour }): Series => ({ label, colour, kind }));
    this.#chart.show(shown, `${shown.x.length} positions`, this.#plan(series, top));
  }

  #plan(series: Series[], top: number): Plan {
    const { title, about, axis, position, tick, everyPosition } = this.#distribution;
    return {
      title,
      about,
      series,
      axes: { x: axis, y: "share" },
      position: (x) => (x === top ? "≥ " : "") + position(x),
      value: percent,
      fromZero: true,
      ...(tick ? { tick } : {}),
      ...(everyPosition ? { everyPosition } : {}),
    };
  }
}

/** The position that one value in a thousand is above. */
function highest(list: Pair[]): number {
  let left = total(list) / 1000;
  const found = list.findLast(([, n]) => (left -= n) < 0);
  return found?.[0] ?? Infinity;
}

/** All that is above `top` at `top`. */
function folded(list: Pair[], top: number): Pair[] {
  const above = list.filter(([at]) => at >= top);
  if (above.length === 0) return list;
  return [...list.filter(([at]) => at < top), [top, total(above)]];
}

/** Histograms on one axis without holes, as shares in per cent. */
function aligned(lists: Pair[][]): { x: number[]; values: number[][] } {
  const positions = lists.flat().map(([at]) => at);
  if (positions.length === 0) return { x: [], values: lists.map(() => []) };
  const low = positions.reduce((a, b) => Math.min(a, b));
  const high = positions.reduce((a, b) => Math.max(a, b));
  const x = Array.from({ length: high - low + 1 }, (_, i) => low + i);
  const values = lists.map((list) => {
    const found = new Map(list);
    const sum = Math.max(1, total(list));
    return x.map((at) => (100 * (found.get(at) ?? 0)) / sum);
  });
  return { x, values };
}
