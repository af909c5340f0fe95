// A product of two short vectors, step by step: what each is quantized to, the products, the exact
// sum as it grows, and its one rounding, beside what adding in f32 gives.

import { type Child, type Column, button, element, section, select, table } from "report/dom";
import type { DotSteps, Format } from "exact-fp4";
import { full, typed } from "./numbers";
import type { App, View } from "./view";
import { reason } from "./work";

/** Vectors as they are typed: at most this many numbers. */
export const MOST = 128;

const FIRST = { a: "1, 0.3, -2.5, 6, 0.7", b: "0.5, 3, 1.1, -0.75, 2" };

/** In three groups a large product, a small one, and the large one back: f32 loses the small one. */
const zeros = `${"0 ".repeat(31)}`;
const CANCELS = { a: `1e9 ${zeros}1 ${zeros}-1e9`, b: `1 ${zeros}1 ${zeros}1` };
const FORMATS: Format[] = ["mxfp4", "nvfp4"];

/** The numbers of a text, parted by commas or spaces; an error names the part that is none. */
function vector(what: string, text: string): number[] {
  const parts = text.split(/[\s,;]+/).filter((part) => part !== "");
  if (parts.length > MOST) throw new Error(`${what} has ${parts.length} numbers; give at most ${MOST}.`);
  return parts.map((part) => {
    const value = typed(part);
    if (value === null) throw new Error(`In ${what}, “${part}” is no number: type ones such as 0.75, -3, 2^-9.`);
    return value;
  });
}

export function product(app: App): View {
  const field = (name: string) => {
    const input = element("input", { type: "text", autocomplete: "off", spellcheck: "false", class: "vector" });
    input.addEventListener("input", () => changed());
    return { input, label: element("label", { class: "choice" }, element("span", {}, name), input) };
  };
  const [a, b] = [field("A"), field("B")];
  const format = select("Format", FORMATS.map((name) => [name, name.toUpperCase()]), () => changed());
  const formats = format.querySelector("select");
  const said = element("p", { class: "readout wrong", role: "alert" });
  const results = element("div", { class: "results", "aria-live": "polite" });
  const steps = element("div");
  let turn = 0;

  const chosen = (): Format => FORMATS.find((name) => name === formats?.value) ?? "mxfp4";
  const changed = () => {
    app.address.set({ a: a.input.value, b: b.input.value, format: chosen() });
    void draw();
  };
  const draw = async () => {
    const mine = ++turn;
    try {
      const [left, right] = [vector("A", a.input.value), vector("B", b.input.value)];
      if (left.length !== right.length) {
        throw new Error(`A has ${left.length} numbers and B ${right.length}; a product takes as many of both.`);
      }
      const found = await app.numbers.call("product", { a: left, b: right, format: chosen() });
      if (mine !== turn) return;
      said.textContent = "";
      results.replaceChildren(summary(found));
      steps.replaceChildren(tabulated(found, left, right));
    } catch (error) {
      if (mine === turn) said.textContent = reason(error);
    }
  };
  const root = section(
    "A product, step by step",
    "Two vectors are quantized, padded with zeros to whole groups. The sum of their products is exact and rounded once, in whatever order it is added; sums in f32 are rounded at every step.",
    element("div", { class: "controls vectors" }, a.label, b.label, format),
    said,
    results,
    steps,
  );
  const swap = button("Swap A and B", null, () => {
    [a.input.value, b.input.value] = [b.input.value, a.input.value];
    changed();
  });
  const cancels = button("Where f32 loses", null, () => {
    [a.input.value, b.input.value] = [CANCELS.a, CANCELS.b];
    changed();
  });
  root.querySelector(".controls")?.append(swap, cancels);
  return {
    root,
    show() {
      a.input.value = app.address.get("a") ?? FIRST.a;
      b.input.value = app.address.get("b") ?? FIRST.b;
      if (formats) formats.value = FORMATS.find((name) => name === app.address.get("format")) ?? "mxfp4";
      void draw();
    },
  };
}

/** A number, or what a JSON text has instead of one. */
const finite = (value: number | null): string => (value === null ? "not finite" : full(value));

function summary({ exact, rounded, alpha, result, inF32, resultInF32 }: DotSteps): HTMLElement {
  const line = (title: string, value: string, about: string): HTMLElement =>
    element(
      "div",
      { class: "card" },
      element("dt", {}, title),
      element("dd", {}, element("strong", {}, value), element("span", { class: "dim" }, about)),
    );
  const list = element("dl", { class: "cards" });
  const alike = Object.is(inF32, rounded) ? "the same here" : "not the same: rounded at every step";
  // Which of NaN and the infinities they are is not told.
  const same = inF32 === null && rounded === null ? "neither is finite" : alike;
  list.append(
    line("Exact sum", minus(exact), "of the products of codes and scales"),
    line("Rounded once", finite(rounded), "to f32"),
    line("Result", finite(result), `times ${full(alpha)}, the global scales; the bits of every backend`),
    line("Added in f32, in order", finite(inF32), `${same}; times the global scales ${finite(resultInF32)}`),
  );
  return list;
}

const minus = (decimal: string): string => decimal.replace("-", "−");

function tabulated({ steps }: DotSteps, a: number[], b: number[]): HTMLElement {
  const columns: Column[] = ["k", "A", "element", "scale", "B", "element", "scale", "product", "exact sum", "sum in f32"].map(
    (title) => ({ title, numeric: true }),
  );
  const lines = steps.slice(0, a.length).map(({ elements, scales, product: each, sum, sumInF32 }, k): Child[] => [
    String(k),
    ...[a, b].flatMap((vector, i) => [full(vector[k] ?? 0), full(elements[i] ?? 0), finite(scales[i] ?? null)]),
    minus(each ?? "NaN"),
    minus(sum ?? "NaN"),
    finite(sumInF32),
  ]);
  return table("Steps", columns, lines);
}
