// Inside a quantized layer: its codes, its scales, where in the matrix they are, and its error
// where there is another checkpoint to tell it.

import type { Pair } from "report/data";
import {
  CODES,
  type Distribution,
  DistributionChart,
  EXPONENTS,
  GROUPS,
  SPREADS,
} from "report/distribution";
import { type Child, button, element, section } from "report/dom";
import { bytes, count, number, printable, relative, share, sqnr } from "report/text";
import type { View as Depth } from "exact-fp4";
import { facts } from "./facts";
import { Maps } from "./maps";
import { full } from "./numbers";
import { Part } from "./part";
import type { App } from "./view";
import { reason } from "./work";

/** The bytes of scales; what each is worth is in its name. */
const scaleBytes = (worth: Map<number, string>): Distribution => ({
  title: "Scale bytes",
  about: "How often each scale byte occurs, all groups counted, in the order of the bytes.",
  axis: "scale byte",
  position: (byte) => {
    const value = worth.get(byte);
    return `0x${byte.toString(16).toUpperCase().padStart(2, "0")}${value === undefined ? "" : ` = ${value}`}`;
  },
  tick: (byte) => `0x${byte.toString(16).toUpperCase().padStart(2, "0")}`,
  of: () => [],
});

export class LayerView {
  readonly root = element("div");
  readonly #app: App;
  readonly #said = element("p", { class: "readout", role: "alert" });
  readonly #facts = element("div");
  readonly #error = element("p", { class: "readout error" });
  readonly #worth = new Map<number, string>();
  readonly #charts = [CODES, EXPONENTS, SPREADS].map((each) => [each, new DistributionChart(each)] as const);
  readonly #scales = new DistributionChart(scaleBytes(this.#worth));
  readonly #groups = new DistributionChart(GROUPS);
  readonly #part: Part;
  readonly #maps: Maps;
  readonly #body: HTMLElement;
  #shown = "";
  #turn = 0;

  constructor(app: App) {
    this.#app = app;
    this.#part = new Part(app);
    this.#maps = new Maps(app.address, "Where", "A cell is a block of the matrix.", this.#part.read, this.#part.root);
    const figures = [...this.#charts.map(([, chart]) => chart), this.#scales, this.#groups];
    const inside = section("Inside the layer", null, this.#facts, this.#error);
    const grid = element("div", { class: "grid" }, ...figures.map(({ figure }) => figure));
    this.#body = element("div", {}, inside, this.#maps.root, section("Codes and scales", null, grid));
    this.root.append(this.#said);
  }

  show(name: string): void {
    const { slots } = this.#app;
    const key = `${slots.get("a")?.id} ${slots.get("b")?.id} ${name}`;
    if (key === this.#shown) return;
    this.#shown = key;
    void this.#read(name);
  }

  async #read(name: string): Promise<void> {
    const mine = ++this.#turn;
    const { work, files, slots } = this.#app;
    this.#said.textContent = "";
    try {
      const given = { name, b: slots.get("b") !== undefined };
      const depth = await work.run(`Reading ${name}`, (progress) => files.call("depth", given, progress));
      if (mine !== this.#turn) return;
      // In the page first: charts ask for the width that they have.
      this.root.replaceChildren(this.#said, this.#body);
      this.#draw(depth);
    } catch (error) {
      if (mine !== this.#turn) return;
      this.#shown = "";
      this.root.replaceChildren(this.#said);
      this.#said.replaceChildren(reason(error), " ", button("Read it again", null, () => void this.#read(name)));
    }
  }

  #draw(depth: Depth): void {
    const { name, counts, groups, scales, map, rows, cols } = depth;
    if (counts === null) return;
    this.#facts.replaceChildren(facts(described(depth, counts)));
    this.#error.textContent = printable(against(depth, this.#app.slots.get("b")?.name));
    const bars = (pairs: Pair[]) => [{ label: "this layer", colour: "--all" as const, pairs }];
    for (const [distribution, chart] of this.#charts) chart.show(bars(distribution.of(counts, groups)));
    this.#worth.clear();
    for (const { byte, value } of scales) this.#worth.set(byte, value === null ? "NaN" : full(value));
    this.#scales.show(bars(scales.map(({ byte, count: n }) => [byte, n])));
    this.#groups.figure.hidden = groups === null;
    if (groups !== null) this.#groups.show(bars(GROUPS.of(counts, groups)));
    this.#part.of(name);
    this.#maps.show([{ title: "", map, rows, cols }]);
  }
}

function described(depth: Depth, counts: NonNullable<Depth["counts"]>): [string, Child][] {
  const { name, format, layout, shape, bytes: size, global_scales: globals, note } = depth;
  const scales = globals.length > 1 ? `${globals.length} of them, ${number(globals[0] ?? null)} the first` : number(globals[0] ?? null);
  return [
    ["Name", element("code", {}, name === "" ? "(no prefix)" : name)],
    ["Format", `${format.toUpperCase()}, ${layout}${depth.transformed ? ", transformed" : ""}`],
    ["Shape", `${shape.join(" × ")}, ${bytes(size)}`],
    ["Scales", `${depth.scale_type}, one for ${depth.group_size} values`],
    ["Global scale", scales],
    ["Groups", count(counts.groups)],
    ["Zero groups", `${count(counts.zero_groups)} (${share(counts.zero_groups, counts.groups)})`],
    ["NaN scales", count(counts.nan_scales)],
    ["Zero scales", count(counts.zero_scales)],
    ["Subnormal scales", count(counts.subnormal_scales)],
    ["Negative scales", count(counts.negative_scales)],
    ["Saturated codes", `${count(counts.saturated)} (${share(counts.saturated, counts.weights)})`],
    ...(note === null ? [] : [["Note", note] as [string, Child]]),
  ];
}

/** Its error, where there is another checkpoint, or why there is none. */
function against({ error, incomparable }: Depth, other: string | undefined): string {
  if (other === undefined) return "Give its reference as B to see its error as well.";
  if (error === null) return `No error against ${other}: ${incomparable ?? "it has nothing of this name"}.`;
  return `Against ${other}: SQNR ${sqnr(error)} dB, relative error ${relative(error)}, largest error ${number(error.max_abs_error)}.`;
}
