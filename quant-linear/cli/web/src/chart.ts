// Charts: uPlot with this page's colours, in a figure that says what it shows, with the same
// numbers as a table for who cannot see it.

import uPlot from "uplot";
import { type Child, type Column, element, table } from "./dom";

/** Colours by role, from the style sheet, so that light and dark need no second list. */
export type Colour = "--all" | "--chosen" | "--low" | "--middle";

export interface Series {
  label: string;
  colour: Colour;
  kind: "line" | "bars" | "points";
  dashed?: boolean;
}

/** What a chart shows: one list of positions, and a list of values for each series. */
export interface Shown {
  x: number[];
  values: (number | null)[][];
}

export interface Plan {
  title: string;
  about: string;
  series: Series[];
  axes: { x: string; y: string };
  /** A position as text, in the table and under the pointer. */
  position: (x: number) => string;
  /** The same on the axis, where there is little room. */
  tick?: (x: number) => string;
  /** A value as text. */
  value: (y: number) => string;
  /** Does the axis of values begin at 0? */
  fromZero?: boolean;
  /** Is it logarithmic? What is not above 0, or beyond its reach, has no point then. */
  logarithmic?: boolean;
  /** Draw every position on the axis? */
  everyPosition?: boolean;
  height?: number;
  /** Told which position the pointer is at, or null. */
  hovered?: (index: number | null) => void;
  clicked?: (index: number) => void;
}

const colour = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** What a logarithmic axis can reach: the steps between its marks are known that far. */
const REACH = { low: 1e-15, high: 1e15 };

/** The ends of a logarithmic axis: one digit each, and more than one step apart. */
function decades(low: number | null, high: number | null): [number, number] {
  const within = (y: number, most: number) => Math.min(most, Math.max(REACH.low, y));
  const digit = (y: number, round: (y: number) => number) => {
    const power = Math.floor(Math.log10(y));
    const text = `${round(Number((y / 10 ** power).toPrecision(6)))}e${power}`;
    return Number(text);
  };
  const from = digit(within((low ?? 1e-3) / 1.1, REACH.high / 10), Math.floor);
  const to = digit(within((high ?? 1) * 1.1, REACH.high), Math.ceil);
  return [from, Math.max(to, 2 * from)];
}

const FONT = "12px system-ui, sans-serif";

/** Pixels of a chart, and of a line of its legend. */
const HEIGHT = 220;
const LEGEND = 28;

/** Those that are in the page, or were when they were last drawn. */
const charts = new Set<Chart>();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) chart.redraw();
});

/** A figure with a chart in it. */
export class Chart {
  readonly figure: HTMLElement;
  #plan: Plan;
  #plot: uPlot | null = null;
  #place: HTMLElement;
  #numbers: HTMLDetailsElement;
  #shown: Shown = { x: [], values: [] };
  #marked: number | null = null;

  constructor(plan: Plan, ...controls: Child[]) {
    this.#plan = plan;
    this.#place = element("div", { class: "plot", role: "img" });
    // The room of the chart and its legend, so that nothing moves when it is drawn.
    this.#place.style.minHeight = `${(plan.height ?? HEIGHT) + LEGEND}px`;
    this.#numbers = element("details", {}, element("summary", {}, "Numbers"));
    this.#numbers.addEventListener("toggle", () => this.#tabulate());
    const caption = element("figcaption", {}, element("h3", {}, plan.title));
    caption.append(element("p", { class: "about" }, plan.about));
    this.figure = element("figure", {}, caption, ...controls, this.#place, this.#numbers);
    new ResizeObserver(() => this.#resize()).observe(this.#place);
  }

  get place(): HTMLElement {
    return this.#place;
  }

  /** Shows other numbers, by another plan if one is given. */
  show(shown: Shown, summary: string, plan: Plan = this.#plan): void {
    this.#shown = shown;
    this.#plan = plan;
    this.#place.setAttribute("aria-label", `${plan.title}: ${summary}`);
    this.#resize();
    this.#tabulate();
  }

  /** Marks a position with a line; null for none. */
  mark(index: number | null): void {
    this.#marked = index;
    this.#plot?.redraw(false);
  }

  redraw(): void {
    this.#plot?.redraw(false, true);
  }

  #resize(): void {
    // Taken out of the page: it is drawn again when it comes back, and nothing holds it if not.
    if (!this.figure.isConnected) {
      this.#plot?.destroy();
      this.#plot = null;
      charts.delete(this);
      return;
    }
    charts.add(this);
    const width = Math.floor(this.#place.clientWidth);
    if (width < 50) return;
    const height = this.#plan.height ?? HEIGHT;
    // Labels may have other room now, so it is made anew.
    this.#plot?.destroy();
    this.#plot = this.#make(width, height);
  }

  #make(width: number, height: number): uPlot {
    const plan = this.#plan;
    const tick = plan.tick ?? plan.position;
    const axis = (label: string): uPlot.Axis => ({
      label,
      labelFont: FONT,
      font: FONT,
      labelSize: 22,
      labelGap: 2,
      stroke: () => colour("--dim"),
      grid: { stroke: () => colour("--grid"), width: 1 },
      ticks: { stroke: () => colour("--grid"), width: 1, size: 4 },
    });
    const x: uPlot.Axis = {
      ...axis(plan.axes.x),
      grid: { show: false },
      incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
      values: (_, splits) => splits.map((at) => (this.#isShown(at) ? tick(at) : "")),
      size: 30,
      space: 42,
    };
    // On a small screen every other one.
    const step = width / this.#shown.x.length < 26 ? 2 : 1;
    if (plan.everyPosition) x.splits = () => this.#shown.x.filter((_, i) => i % step === 0);
    const y: uPlot.Axis = {
      ...axis(plan.axes.y),
      size: 58,
      space: 32,
      // A logarithmic axis has lines without a number.
      values: (_, splits: (number | null)[]) => splits.map((y) => (y === null ? "" : plan.value(y))),
    };
    const plot = new uPlot(
      {
        width,
        height,
        padding: [8, 8, 0, 0],
        scales: {
          x: { time: false, range: () => this.#range() },
          y: {
            distr: plan.logarithmic ? 3 : 1,
            range: (_, low, high) => {
              if (plan.logarithmic) return decades(low, high);
              if (plan.fromZero) return [0, high > 0 ? high * 1.06 : 1];
              const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
              return [low - pad, high + pad];
            },
          },
        },
        axes: [x, y],
        series: [
          { label: plan.axes.x, value: (_, at) => (at === null ? "" : plan.position(at)) },
          ...plan.series.map((series, i) => this.#series(series, i)),
        ],
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
        legend: { live: true },
        hooks: {
          setCursor: [(u) => plan.hovered?.(u.cursor.idx ?? null)],
          draw: [(u) => this.#drawMark(u)],
        },
      },
      [this.#shown.x, ...this.#shown.values.map((list) => this.#drawn(list))] as uPlot.AlignedData,
      this.#place,
    );
    plot.over.addEventListener("click", () => {
      const at = plot.cursor.idx;
      if (at !== null && at !== undefined) plan.clicked?.(at);
    });
    return plot;
  }

  /** The values that have a place on the axis. */
  #drawn(values: (number | null)[]): (number | null)[] {
    if (!this.#plan.logarithmic) return values;
    return values.map((y) => (y !== null && y >= REACH.low && y <= REACH.high ? y : null));
  }

  /** Half a step of room at both ends. */
  #range(): [number, number] {
    const { x } = this.#shown;
    return [(x[0] ?? 0) - 0.6, (x.at(-1) ?? 0) + 0.6];
  }

  #isShown(at: number): boolean {
    const [low, high] = this.#range();
    return Number.isInteger(at) && at > low && at < high;
  }

  #series(series: Series, index: number): uPlot.Series {
    const stroke = () => colour(series.colour);
    const bars = this.#plan.series.filter((s) => s.kind === "bars").length;
    const made: uPlot.Series = {
      label: series.label,
      stroke,
      width: series.kind === "bars" ? 0 : 1.5,
      value: (_, y) => (y === null || y === undefined ? "–" : this.#plan.value(y)),
      points: { show: series.kind !== "bars" && this.#shown.x.length < 200, size: 5, fill: stroke },
    };
    if (series.dashed) made.dash = [5, 4];
    if (series.kind === "points") made.paths = () => null;
    if (series.kind === "bars") {
      made.fill = stroke;
      // Beside each other: half of the step for each of two.
      const size = bars > 1 ? 0.42 : 0.8;
      const align = bars > 1 ? (index === 0 ? -1 : 1) : 0;
      const paths = uPlot.paths.bars?.({ size: [size, 64], align: align as -1 | 0 | 1, gap: 0 });
      if (paths) made.paths = paths;
    }
    return made;
  }

  #drawMark(u: uPlot): void {
    const at = this.#marked === null ? undefined : this.#shown.x[this.#marked];
    if (at === undefined) return;
    const x = Math.round(u.valToPos(at, "x", true)) + 0.5;
    u.ctx.save();
    u.ctx.strokeStyle = colour("--chosen");
    u.ctx.lineWidth = 2 * devicePixelRatio;
    u.ctx.beginPath();
    u.ctx.moveTo(x, u.bbox.top);
    u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
    u.ctx.stroke();
    u.ctx.restore();
  }

  #tabulate(): void {
    const summary = this.#numbers.firstElementChild;
    if (summary === null) return;
    this.#numbers.replaceChildren(summary);
    if (!this.#numbers.open) return;
    const plan = this.#plan;
    const columns: Column[] = [{ title: plan.axes.x }];
    for (const series of plan.series) columns.push({ title: series.label, numeric: true });
    const rows = this.#shown.x.map((x, i) => [
      plan.position(x),
      ...this.#shown.values.map((list) => {
        const value = list[i];
        return value === null || value === undefined ? "–" : plan.value(value);
      }),
    ]);
    this.#numbers.append(table(plan.title, columns, rows));
  }
}
