// Distributions: over all layers, and of the one looked at beside them. All are shares, so that one
// layer can be laid beside all.

import { Chart, type Plan, type Series } from "./chart";
import type { Choice } from "./choice";
import { CODES_IN_ORDER, type Layer, type Pair, type Report, codeText, total } from "./data";
import { element, section } from "./dom";
import { power } from "./text";

const percent = (y: number) => `${Number(y.toPrecision(3))}%`;

interface Histogram {
  title: string;
  about: string;
  axis: string;
  position: (x: number) => string;
  everyPosition?: boolean;
  /** Lay what is above all but one in a thousand into one bar? */
  folds?: boolean;
  all: Pair[];
  of: (layer: Layer) => Pair[];
}

const codes = (counts: number[]): Pair[] =>
  CODES_IN_ORDER.map((code, i) => [i, counts[code] ?? 0]);

function histograms(report: Report): Histogram[] {
  const { counts, groups } = report.totals;
  const list: Histogram[] = [
    {
      title: "Code usage",
      about: "How often each of the 16 codes occurs, in the order of their values.",
      axis: "value of the code",
      position: (x) => codeText(CODES_IN_ORDER[x] ?? 0),
      everyPosition: true,
      all: codes(counts.codes),
      of: (layer) => codes(layer.counts.codes),
    },
    {
      title: "Scale exponents",
      about: "The power of two below each group's scale, as stored; zero groups, zero scales and NaN left out.",
      axis: "power of two",
      position: power,
      all: counts.exponents,
      of: (layer) => layer.counts.exponents,
    },
    {
      title: "Spread of rows",
      about: "Powers of two between the largest and the smallest scale of a row. Wide rows cost products time.",
      axis: "powers of two",
      position: String,
      all: counts.spreads,
      of: (layer) => layer.counts.spreads,
    },
  ];
  if (groups !== null) {
    list.push({
      title: "SQNR of groups",
      about: "Groups by their own signal to noise ratio; exact ones left out, and the highest in one bar. A group at 0 dB or below is lost.",
      axis: "dB",
      position: String,
      folds: true,
      all: groups.histogram,
      of: (layer) => layer.groups?.histogram ?? [],
    });
  }
  return list;
}

export function detail(report: Report, choice: Choice): HTMLElement {
  const title = element("p", { class: "readout" });
  const grid = element("div", { class: "grid" });
  for (const histogram of histograms(report)) grid.append(figure(histogram, choice));
  choice.follow((layer) => {
    title.textContent = layer === null ? "All layers together." : `All layers, and beside them ${layer.name}`;
  });
  return section("Codes, scales and groups", null, title, grid);
}

function figure(histogram: Histogram, choice: Choice): HTMLElement {
  const top = histogram.folds ? highest(histogram.all) : Infinity;
  const plan = (series: Series[]): Plan => ({
    title: histogram.title,
    about: histogram.about,
    series,
    axes: { x: histogram.axis, y: "share" },
    position: (x) => (x === top ? "≥ " : "") + histogram.position(x),
    value: percent,
    fromZero: true,
    ...(histogram.everyPosition ? { everyPosition: true } : {}),
  });
  const all: Series = { label: "all layers", colour: "--all", kind: "bars" };
  const chosen: Series = { label: "this layer", colour: "--chosen", kind: "bars" };
  const chart = new Chart(plan([all]));
  choice.follow((layer) => {
    const lists = [histogram.all, ...(layer === null ? [] : [histogram.of(layer)])];
    const shown = aligned(lists.map((list) => folded(list, top)));
    const series = layer === null ? [all] : [all, chosen];
    chart.show(shown, `${shown.x.length} positions`, plan(series));
  });
  return chart.figure;
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
