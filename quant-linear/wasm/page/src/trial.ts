// A dense tensor, quantized on trial: formats, scale rules and transforms side by side, what each
// loses, and where.

import { CODES, DistributionChart, EXPONENTS, GROUPS, SPREADS } from "report/distribution";
import { type Child, type Column, button, element, section, table } from "report/dom";
import { ABSENT, count, decibels, number, relative, share, sqnr } from "report/text";
import type { Trial } from "exact-fp4";
import { COLOURS, type Choice, Choices, chosen, named, written } from "./choices";
import { Cancelled, type Progress } from "./client";
import { DenseView } from "./dense";
import { Maps } from "./maps";
import { Part } from "./part";
import { Tried } from "./tried";
import type { App } from "./view";
import { reason } from "./work";

/** What is to be shown, and for which turn. */
interface Wanted {
  mine: number;
  name: string;
  matrix: number;
  /** The tensor, and the file that it is in. */
  tensor: string;
  choices: Choice[];
}

export class TrialView {
  readonly root = element("div");
  readonly #app: App;
  readonly #dense = new DenseView();
  readonly #said = element("p", { class: "readout", role: "alert" });
  readonly #choices: Choices;
  readonly #results = element("div", { class: "outcome" });
  readonly #charts = [CODES, EXPONENTS, SPREADS, GROUPS].map((each) => [each, new DistributionChart(each)] as const);
  readonly #maps: Maps;
  readonly #part: Part;
  readonly #form: HTMLElement;
  readonly #body: HTMLElement;
  readonly #tried = new Tried();
  #name = "";
  /** What is shown: of which tensor, and by which choices. */
  #tensor = "";
  #shown = "";
  #turn = 0;

  constructor(app: App) {
    this.#app = app;
    this.#part = new Part(app);
    this.#choices = new Choices((choices) => {
      app.address.set({ try: choices.map(written) });
      void this.#run();
    });
    this.#maps = new Maps(
      app.address,
      "Where the error sits",
      "The same colours mean the same in all maps; a cell is a block of the matrix.",
      this.#part.read,
      this.#part.root,
    );
    const charts = element("div", { class: "grid" }, ...this.#charts.map(([, chart]) => chart.figure));
    this.#body = element(
      "div",
      {},
      section("What is lost", null, this.#results),
      this.#maps.root,
      section("Codes, scales and groups", null, charts),
    );
    const about = "Each row is one way to quantize this tensor; up to four, side by side.";
    this.#form = section("Formats on trial", about, this.#choices.root, this.#said);
    this.root.append(this.#form, this.#body, this.#dense.root);
    this.#body.hidden = true;
  }

  show(name: string): void {
    this.#name = name;
    void this.#run();
  }

  async #run(): Promise<void> {
    const mine = ++this.#turn;
    const { work, slots, address } = this.#app;
    const held = slots.get("a");
    const wanted: Wanted = {
      mine,
      name: this.#name,
      matrix: address.number("matrix", 0, 2 ** 31, 0),
      tensor: `${held?.id} ${this.#name}`,
      choices: [],
    };
    try {
      if (held === undefined) return;
      const { kinds } = held.opened;
      const on = held.opened.tensors.some((each) => each.name === wanted.name && each.dense);
      if (on) wanted.choices = chosen(address.all("try"), kinds);
      this.#form.hidden = !on;
      this.#choices.draw(kinds, wanted.choices);
      const key = [wanted.tensor, String(wanted.matrix), ...wanted.choices.map(written)].join("\n");
      if (key === this.#shown) return;
      this.#said.textContent = "";
      // What is in the page from here on is neither.
      this.#shown = "";
      if (wanted.tensor !== this.#tensor) this.#body.hidden = this.#dense.root.hidden = true;
      await work.run(`Quantizing ${wanted.name}`, (progress) => this.#show(wanted, progress));
      if (mine === this.#turn) this.#shown = key;
    } catch (error) {
      if (mine !== this.#turn) return;
      this.#shown = "";
      this.#body.hidden = true;
      this.#form.hidden = false;
      this.#said.replaceChildren(reason(error), " ", button("Try again", null, () => void this.#run()));
    }
  }

  /** What is lost, and the tensor as it is: that also where it cannot be quantized. */
  async #show({ mine, name, matrix, tensor, choices }: Wanted, progress: Progress): Promise<void> {
    const { files } = this.#app;
    this.#tried.of(`${tensor} ${matrix}`);
    const tried = this.#tried.all(
      choices,
      (choice) => {
        const told: Progress = (done, total) => progress(done, total, named(choice));
        return files.call("trial", { name, choice, matrix }, told);
      },
      (trials) => {
        if (mine !== this.#turn) return;
        this.#body.hidden = false;
        this.#draw(trials, choices);
      },
    );
    const [outcome] = await Promise.allSettled([tried]);
    if (mine !== this.#turn) return;
    const cancelled = outcome.status === "rejected" && outcome.reason instanceof Cancelled;
    if (tensor !== this.#tensor && !cancelled) {
      const depth = await files.call("depth", { name, b: false }, progress);
      if (mine !== this.#turn) return;
      this.#dense.show(depth);
      this.#tensor = tensor;
    }
    if (outcome.status === "rejected") throw outcome.reason;
  }

  #draw(trials: Trial[], choices: Choice[]): void {
    const titles = choices.map(named);
    this.#results.replaceChildren(this.#which(trials[0]), outcome(trials, titles));
    for (const [distribution, chart] of this.#charts) {
      chart.show(
        trials.map(({ counts, groups }, i) => ({
          label: titles[i] ?? "",
          colour: COLOURS[i] ?? "--all",
          pairs: distribution.of(counts, groups),
        })),
      );
    }
    const [first] = trials;
    if (first) this.#part.of(this.#name, { ...first, matrix: first.matrix[0] });
    this.#maps.show(trials.map(({ map, rows, cols }, i) => ({ title: titles[i] ?? "", map, rows, cols })));
  }

  /** Which matrix it is, of several, and how it is stored. */
  #which(trial: Trial | undefined): HTMLElement {
    const [which, of] = trial?.matrix ?? [0, 1];
    const line = element("p", { class: "readout dim" });
    if (trial?.transposed) line.append("Stored as (in, out), and quantized as (out, in). ");
    if (trial?.warning) line.append(`${trial.warning} `);
    if (of > 1) {
      const last = String(of - 1);
      const input = element("input", { type: "number", min: "0", max: last, value: String(which) });
      input.addEventListener("change", () => {
        this.#app.address.set({ matrix: input.value });
        void this.#run();
      });
      line.append(element("label", { class: "choice" }, element("span", {}, `Matrix, 0 to ${last}`), input));
    }
    return line;
  }
}

/** The figures, with how much each is above the first. */
function outcome(trials: Trial[], titles: string[]): HTMLElement {
  const columns: Column[] = [
    { title: "Choice" },
    ...["SQNR (dB)", "Against the first", "Relative error", "Max error", "Groups 1%", "50%", "Zero groups", "Lost groups", "Flushed", "Saturated", "NaN scales"].map(
      (title) => ({ title, numeric: true }),
    ),
  ];
  const first = trials[0]?.error?.sqnr_db ?? null;
  const lines = trials.map(({ error, counts, groups, became }, i): Child[] => {
    const own = error?.sqnr_db ?? null;
    const gain = first === null || own === null || i === 0 ? null : own - first;
    return [
      titles[i] ?? "",
      sqnr(error),
      gain === null ? ABSENT : `${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(2)}`,
      relative(error),
      number(error?.max_abs_error ?? null),
      decibels(groups.quantiles?.p1),
      decibels(groups.quantiles?.p50),
      share(counts.zero_groups, counts.groups),
      count(became.lost),
      share(became.flushed, counts.weights),
      share(counts.saturated, counts.weights),
      count(counts.nan_scales),
    ];
  });
  return table("What is lost", columns, lines);
}
