// What a calibration gained: the loss of each layer before and after, on a logarithmic axis.

import { Chart } from "./chart";
import type { Choice } from "./choice";
import { type Layer, type Loss, type Report, type Run, ratio } from "./data";
import { element, section } from "./dom";
import { Readout, line } from "./layers";
import { counted, number } from "./text";

/** Drawn one over the other, what is looked for last. */
const SERIES: [ReturnType<typeof line>, (loss: Loss) => number | null][] = [
  [line("before, rounded to nearest", "--low", true), (loss) => loss.before],
  [line("after, weights alone", "--middle", true), (loss) => loss.weight],
  [line("after, weights and activations"), (loss) => loss.layer],
];

export function losses(report: Report, layers: Layer[], choice: Choice): HTMLElement | null {
  const run = report.losses;
  if (run === null) return null;
  const readout = new Readout(layers, choice);
  const { axis, ...common } = readout.plan();
  const chart = new Chart(
    {
      title: "Loss by layer",
      about: "‖x Wᵀ − y‖² / ‖x Wᵀ‖² on the sample rows of the calibration: what of a layer's output is lost. Before: rounded to nearest, with no transform. The axis is logarithmic; a loss of 0 has no point. Lower is better; a weight that loses less here may be further from its reference.",
      series: SERIES.map(([series]) => series),
      axes: { x: axis, y: "loss" },
      value: number,
      logarithmic: true,
      ...common,
    },
    element("div", { class: "controls" }, readout.line),
  );
  const values = SERIES.map(([, of]) => layers.map(({ loss }) => (loss === null ? null : of(loss))));
  chart.show({ x: layers.map((_, i) => i), values }, `${layers.length} layers`);
  readout.follow(chart);
  return section("What the calibration gained", null, element("p", { class: "means" }, means(run)), chart.figure);
}

/** The means, in a line. */
function means({ tensors, layers_without: without, mean }: Run): string {
  const times = ratio(mean);
  const of = times === null ? "" : `, ${number(times)} of before`;
  const rest = without === 0 ? "" : ` Without a loss: ${counted(without, "layer")}.`;
  return (
    `Mean loss of ${counted(tensors, "tensor")}: ${number(mean.before)} before, ${number(mean.layer)} after${of}; ` +
    `by weights alone ${number(mean.weight)}.${rest}`
  );
}
