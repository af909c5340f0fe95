// The explorer: a number, what each small type makes of it, its neighbours and the ties.

import { type Child, button, element, section, table } from "report/dom";
import { power, printable } from "report/text";
import type { NumberAbout, NumberType } from "exact-fp4";
import type { App, View } from "./view";

interface Type {
  name: NumberType;
  about: string;
  /** How its bits are parted: sign, exponent, mantissa. */
  parts: [sign: number, exponent: number, mantissa: number];
}

const TYPES: Type[] = [
  { name: "e2m1", about: "an element of MXFP4 and of NVFP4", parts: [1, 2, 1] },
  { name: "e8m0", about: "a scale of MXFP4, a power of two", parts: [0, 8, 0] },
  { name: "e4m3", about: "a scale of NVFP4", parts: [1, 4, 3] },
];

const FIRST = "0.7";

/** A number as it is typed: decimal, `inf`, `nan`, or `2^-9`; null if it is none. */
export function typed(text: string): number | null {
  const plain = text.trim().toLowerCase().replace("−", "-");
  const word = /^([+-]?)(inf|infinity|nan)$/.exec(plain);
  if (word) return (word[1] === "-" ? -1 : 1) * (word[2] === "nan" ? NaN : Infinity);
  const raised = /^([+-]?)2\^([+-]?\d{1,4})$/.exec(plain);
  if (raised) return (raised[1] === "-" ? -1 : 1) * 2 ** Number(raised[2]);
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/.test(plain) ? Number(plain) : null;
}

/** A value in full; the zeros keep their signs. */
export function full(value: number): string {
  if (Object.is(value, -0)) return "−0";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  return String(value).replace("-", "−").replace("e−", "e-");
}

export function numbers(app: App): View {
  const input = element("input", { type: "text", inputmode: "text", autocomplete: "off", spellcheck: "false" });
  const said = element("p", { class: "readout", "aria-live": "polite" });
  const label = element("label", { class: "choice" }, element("span", {}, "Number"), input);
  const cards = new Map(TYPES.map((type) => [type.name, new Card(type, (x) => take(full(x).replace("−", "-")))]));
  const codes = element("div", { class: "codes", role: "group", "aria-label": "All codes of e2m1" });
  const grid = element("div", { class: "types" }, ...[...cards.values()].map((card) => card.root));
  let turn = 0;

  const draw = async () => {
    const mine = ++turn;
    const x = typed(input.value);
    if (x === null) {
      said.textContent = `“${printable(input.value)}” is no number: type one such as 0.75, -3, 1e-3, 2^-9, inf or nan.`;
      said.classList.add("wrong");
      return;
    }
    try {
      const all = await Promise.all(TYPES.map(({ name }) => app.numbers.call("explain", { x, type: name })));
      if (mine !== turn) return;
      said.classList.remove("wrong");
      const f32 = Math.fround(x);
      said.textContent = `In f32: ${full(f32)}${f32 === x || Number.isNaN(x) ? "" : ", rounded"}`;
      for (const [i, { name }] of TYPES.entries()) {
        const found = all[i];
        if (found) cards.get(name)?.show(f32, found);
      }
      if (codes.childElementCount === 0) await fillCodes();
      const taken = all[0]?.code ?? -1;
      [...codes.children].forEach((each, code) => each.setAttribute("aria-pressed", String(code === taken)));
    } catch (error) {
      if (mine !== turn) return;
      said.textContent = error instanceof Error ? error.message : String(error);
      said.classList.add("wrong");
    }
  };
  const fillCodes = async () => {
    const all = await app.numbers.call("codes", { type: "e2m1" });
    const made = all.map(({ code, bits, value }) => {
      const press = button("", `Take ${full(value ?? NaN)}, code ${code}`, () => take(full(value ?? NaN).replace("−", "-")));
      press.append(element("strong", {}, full(value ?? NaN)), element("span", { class: "dim" }, bits));
      return press;
    });
    codes.replaceChildren(...made);
  };
  const take = (text: string) => {
    input.value = text;
    app.address.set({ x: text });
    void draw();
  };
  input.addEventListener("input", () => {
    app.address.set({ x: input.value });
    void draw();
  });
  const root = section(
    "A number in few bits",
    "Type a number, and see what it is rounded to, with its neighbours and the ties between them. Rounded by the same code as weights are, fp4-core.",
    element("div", { class: "controls" }, label, said),
    grid,
    element("h3", {}, "All codes of e2m1"),
    codes,
  );
  return {
    root,
    show() {
      const text = app.address.get("x") ?? FIRST;
      if (input.value !== text) input.value = text;
      void draw();
    },
  };
}

/** What one type makes of the number. */
class Card {
  readonly root: HTMLElement;
  readonly #type: Type;
  readonly #take: (x: number) => void;
  readonly #value = element("strong");
  readonly #bits = element("p", { class: "bits" });
  readonly #tie = element("p", { class: "dim" });
  readonly #line = element("div", { class: "line", "aria-hidden": "true" });
  readonly #near = element("div", { class: "near" });

  constructor(type: Type, take: (x: number) => void) {
    this.#type = type;
    this.#take = take;
    const title = element("h3", {}, type.name, element("span", { class: "dim" }, ` ${type.about}`));
    this.root = element("article", { class: "card type", "data-type": type.name });
    this.root.append(title, this.#value, this.#bits, this.#line, this.#near, this.#tie);
  }

  show(x: number, found: NumberAbout): void {
    this.#value.textContent = found.value === null ? "NaN" : this.#text(found.value);
    this.#bits.replaceChildren(...this.#parts(found.bits), ` = 0x${found.code.toString(16).toUpperCase()}`);
    const places: [string, number | null][] = [
      ["value below", found.below],
      ["tie below", found.tieBelow],
      ["tie above", found.tieAbove],
      ["value above", found.above],
    ];
    const lines = places.map(([what, at]): Child[] => [what, at === null ? "none" : this.#step(what, at)]);
    const columns = [{ title: "Near it" }, { title: "", numeric: true }];
    // The focus stays in its line, or where that has no number any more, in the next that has one.
    const at = [...this.#near.querySelectorAll("tbody tr")].findIndex((line) => line.contains(document.activeElement));
    this.#near.replaceChildren(table(`Near it in ${this.#type.name}`, columns, lines));
    const presses = [...this.#near.querySelectorAll("tbody tr")].map((line) => line.querySelector("button"));
    if (at >= 0) (presses[at] ?? presses.find((press) => press !== null))?.focus();
    this.#tie.textContent = verdict(x, found);
    this.#draw(x, found);
  }

  #step(what: string, at: number): HTMLElement {
    return button(this.#text(at), `Take ${full(at)}, the ${what} of ${this.#type.name}`, () => this.#take(at));
  }

  #text(value: number): string {
    const exponent = Math.log2(value);
    const raised = this.#type.name === "e8m0" && Number.isInteger(exponent) && Math.abs(exponent) > 9;
    return raised ? power(exponent) : full(value);
  }

  /** The bits, parted as sign, exponent and mantissa. */
  #parts(bits: string): HTMLElement[] {
    let from = 0;
    return ["sign", "exponent", "mantissa"].flatMap((what, i) => {
      const part = bits.slice(from, (from += this.#type.parts[i] ?? 0));
      return part === "" ? [] : [element("span", { class: `bit ${what}`, title: what }, part)];
    });
  }

  /** The values and ties around the number, on a line. */
  #draw(x: number, { value, below, above, tieBelow, tieAbove }: NumberAbout): void {
    const marks: [number | null, string][] = [
      [below, "value"],
      [value, "value taken"],
      [above, "value"],
      [tieBelow, "tie"],
      [tieAbove, "tie"],
      [x, "here"],
    ];
    const drawn = marks.filter((mark): mark is [number, string] => Number.isFinite(mark[0]));
    const all = drawn.map(([at]) => at);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    this.#line.replaceChildren();
    if (!(high > low)) return;
    for (const [at, kind] of drawn) {
      const mark = element("span", { class: kind });
      mark.style.left = `${4 + (92 * (at - low)) / (high - low)}%`;
      this.#line.append(mark);
    }
  }
}

/** What became of a number, in words. */
function verdict(x: number, { value, isTie }: NumberAbout): string {
  if (value === null || Number.isNaN(x)) return "Not a number.";
  if (isTie) return "A tie: as far from the value below as from the one above.";
  if (Object.is(x, value)) return "Exact.";
  return `Off by ${full(value - x)}.`;
}
