// One measure of all layers in the order of the model, and what charts by layer have in common.

import { Chart, type Plan, type Series, type Shown } from "./chart";
import type { Choice } from "./choice";
import { type Layer, largest, smallest } from "./data";
import { button, element, select } from "./dom";
import { decibels, number, printable } from "./text";

interface Measure {
  name: string;
  about: string;
  axis: string;
  series: [Series, (layer: Layer) => number | null][];
  value: (y: number) => string;
  fromZero?: boolean;
  /** Does it need a reference? */
  compares: boolean;
}

/** A line of a chart by layer. */
export const line = (label: string, colour: Series["colour"] = "--all", dashed = false): Series => ({
  label,
  colour,
  kind: "line",
  dashed,
});

const percent = (y: number) => `${Number(y.toPrecision(3))}%`;

const MEASURES: Measure[] = [
  {
    name: "SQNR",
    about: "Signal to quantization noise of each layer; of its groups, the median and what one in a hundred is below. Higher is better. An exact layer has no point.",
    axis: "dB",
    series: [
      [line("layer"), (l) => l.error?.sqnr_db ?? null],
      [line("groups, median", "--middle", true), (l) => l.groups?.quantiles?.p50 ?? null],
      [line("groups, 1%", "--low", true), (l) => l.groups?.quantiles?.p1 ?? null],
    ],
    value: (y) => decibels(y).replace(/\.?0+$/, ""),
    compares: true,
  },
  {
    name: "relative error",
    about: "The norm of each layer's error over the norm of its reference. Lower is better.",
    axis: "relative error",
    series: [[line("layer"), (l) => l.error?.relative_error ?? null]],
    value: number,
    fromZero: true,
    compares: true,
  },
  {
    name: "largest error",
    about: "The largest absolute difference of a single weight.",
    axis: "largest error",
    series: [[line("layer"), (l) => l.error?.max_abs_error ?? null]],
    value: number,
    fromZero: true,
    compares: true,
  },
  {
    name: "scale exponents",
    about: "The smallest and the largest power of two among each layer's scales; zero groups, zero scales and NaN left out.",
    axis: "exponent",
    series: [
      [line("largest"), (l) => largest(l.counts.exponents)],
      [line("smallest", "--low"), (l) => smallest(l.counts.exponents)],
    ],
    value: number,
    compares: false,
  },
  {
    name: "largest spread of a row",
    about: "How many powers of two lie between the largest and the smallest scale of a row: the most of any row.",
    axis: "powers of two",
    series: [[line("layer"), (l) => largest(l.counts.spreads)]],
    value: number,
    fromZero: true,
    compares: false,
  },
  {
    name: "zero groups",
    about: "Groups whose codes are all zero.",
    axis: "share",
    series: [[line("layer"), (l) => (100 * l.counts.zero_groups) / Math.max(1, l.counts.groups)]],
    value: percent,
    fromZero: true,
    compares: false,
  },
  {
    name: "saturated codes",
    about: "Codes of the largest magnitude, 6.",
    axis: "share",
    series: [[line("layer"), (l) => (100 * l.counts.saturated) / Math.max(1, l.counts.weights)]],
    value: percent,
    fromZero: true,
    compares: false,
  },
];

/** Says which layer is under the pointer, or chosen. */
export class Readout {
  readonly line = element("p", { class: "readout", "aria-live": "polite" });
  #layers: Layer[];
  #choice: Choice;
  #hovered: number | null = null;

  constructor(layers: Layer[], choice: Choice) {
    this.#layers = layers;
    this.#choice = choice;
  }

  /** What a chart by layer has beside its measure. */
  plan(): Pick<Plan, "position" | "tick" | "hovered" | "clicked" | "height"> & { axis: string } {
    const layers = this.#layers;
    return {
      axis: "layer, in the order of the model",
      position: (x) => printable(layers[x]?.name ?? ""),
      tick: (x) => String(x + 1),
      height: 280,
      hovered: (index) => {
        this.#hovered = index;
        this.tell();
      },
      clicked: (index) => this.#choice.choose(layers[index] ?? null),
    };
  }

  tell(): void {
    const layer = this.#hovered === null ? this.#choice.layer : this.#layers[this.#hovered];
    this.line.textContent = layer ? printable(layer.name) : "Click a layer, or move with the arrow keys, to look at it alone.";
    this.line.classList.toggle("dim", !layer);
  }

  /** Chooses by keyboard in a chart, and marks there what is chosen. */
  follow(chart: Chart): void {
    const [layers, choice] = [this.#layers, this.#choice];
    chart.place.tabIndex = 0;
    chart.place.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") choice.choose(null);
      if (step === undefined) return;
      event.preventDefault();
      const at = choice.layer === null ? (step > 0 ? -1 : layers.length) : layers.indexOf(choice.layer);
      choice.choose(layers[Math.min(layers.length - 1, Math.max(0, at + step))] ?? null);
    });
    choice.follow((layer) => {
      chart.mark(layer === null ? null : layers.indexOf(layer));
      this.tell();
    });
  }
}

/** The chart by layer, with its choice of measure and of layer. */
export function byLayer(layers: Layer[], compared: boolean, choice: Choice): HTMLElement {
  const measures = MEASURES.filter((measure) => compared || !measure.compares);
  const readout = new Readout(layers, choice);
  const { axis, ...common } = readout.plan();
  const plan = (measure: Measure): Plan => ({
    title: `${measure.name[0]?.toUpperCase()}${measure.name.slice(1)} by layer`,
    about: measure.about,
    series: measure.series.map(([series]) => series),
    axes: { x: axis, y: measure.axis },
    value: measure.value,
    ...(measure.fromZero ? { fromZero: true } : {}),
    ...common,
  });
  const shown = (measure: Measure): Shown => ({
    x: layers.map((_, i) => i),
    values: measure.series.map(([, value]) => layers.map(value)),
  });
  const first = measures[0];
  if (first === undefined) return element("div");
  const pick = select(
    "Measure",
    measures.map((measure) => [measure.name, measure.name]),
    (name) => {
      const measure = measures.find((m) => m.name === name);
      if (measure) chart.show(shown(measure), `${layers.length} layers`, plan(measure));
    },
  );
  const all = button("All layers", null, () => choice.choose(null));
  const chart = new Chart(plan(first), element("div", { class: "controls" }, pick, all, readout.line));
  chart.show(shown(first), `${layers.length} layers`);
  readout.follow(chart);
  choice.follow((layer) => {
    all.disabled = layer === null;
  });
  return chart.figure;
}
