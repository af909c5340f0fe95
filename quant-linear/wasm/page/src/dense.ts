// A dense tensor as it is: its values by their powers of two, and what stands out.

import { type Distribution, DistributionChart } from "report/distribution";
import { element, section } from "report/dom";
import { bytes, count, number, power, share } from "report/text";
import type { View as Depth } from "exact-fp4";
import { facts } from "./facts";

const EXPONENTS: Distribution = {
  title: "Values by power of two",
  about: "The power of two at or below each magnitude; zeros and what is not finite left out.",
  axis: "power of two",
  position: power,
  of: () => [],
};

export class DenseView {
  readonly root: HTMLElement;
  readonly #facts = element("div");
  readonly #chart = new DistributionChart(EXPONENTS);

  constructor() {
    this.root = section("The tensor as it is", null, this.#facts, this.#chart.figure);
    this.root.hidden = true;
  }

  show({ name, format, shape, bytes: size, values }: Depth): void {
    this.root.hidden = values === null;
    if (values === null) return;
    const list = facts([
      ["Name", element("code", {}, name)],
      ["Type", `${format}, ${shape.join(" × ") || "one value"}, ${bytes(size)}`],
      ["Least", number(values.min)],
      ["Largest", number(values.max)],
      ["Root mean square", number(Math.sqrt(values.mean_square))],
      ["Zeros", `${count(values.zero)} (${share(values.zero, values.count)})`],
      ["Not finite", count(values.not_finite)],
    ]);
    this.#facts.replaceChildren(list);
    this.#chart.show([{ label: "this tensor", colour: "--all", pairs: values.exponents }]);
  }
}
