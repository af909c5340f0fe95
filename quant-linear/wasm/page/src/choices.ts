// Choices of format, scale rule and transform: as the address has them, and as controls.

import type { Choice as Given, Format, Rule } from "exact-fp4";
import type { Colour } from "report/chart";
import { button, element, select } from "report/dom";
import type { Kinds } from "./calls";

export type Choice = Required<Given>;

/** Of the choices in order: there are as many as colours. */
export const COLOURS: Colour[] = ["--all", "--chosen", "--middle", "--low"];

const FIRST = ["mxfp4/search/none", "nvfp4/search/none"];
const FORMATS: Format[] = ["nvfp4", "mxfp4"];

export const named = ({ format, rule, transform }: Choice): string =>
  `${format.toUpperCase()}, ${rule}${transform === "none" ? "" : `, ${transform}`}`;

/** A choice as the address has it. */
export const written = ({ format, rule, transform }: Choice): string => `${format}/${rule}/${transform}`;

/** The choices of an address that there are, or those to begin with. */
export function chosen(texts: string[], kinds: Kinds): Choice[] {
  const all = (list: string[]) => list.map((text) => read(text, kinds)).filter((choice) => choice !== null);
  const found = all(texts).slice(0, COLOURS.length);
  return found.length > 0 ? found : all(FIRST);
}

function read(text: string, kinds: Kinds): Choice | null {
  const [first, second, third] = text.split("/");
  const format = FORMATS.find((name) => name === first);
  const rule = format && rulesOf(kinds, format).find((name) => name === second);
  const transform = kinds.transforms.find(({ name }) => name === third)?.name;
  return format && rule && transform ? { format, rule, transform } : null;
}

const rulesOf = (kinds: Kinds, format: Format): Rule[] =>
  kinds.rules.filter(({ formats }) => formats.includes(format)).map(({ name }) => name);

/** A row of controls for each choice. */
export class Choices {
  readonly root = element("div", { class: "choices" });
  readonly #changed: (choices: Choice[]) => void;

  constructor(changed: (choices: Choice[]) => void) {
    this.#changed = changed;
  }

  /** The rows anew, the focus kept where it is. */
  draw(kinds: Kinds, choices: Choice[]): void {
    const focused = document.activeElement?.id ?? "";
    const rows = choices.map((_, i) => this.#row(kinds, choices, i));
    const add = button("Add a choice", null, () => this.#changed([...choices, ...choices.slice(-1)]));
    add.id = "try-add";
    add.disabled = choices.length >= COLOURS.length;
    this.root.replaceChildren(...rows, add);
    if (focused.startsWith("try-")) document.getElementById(focused)?.focus();
  }

  #row(kinds: Kinds, choices: Choice[], i: number): HTMLElement {
    const choice = choices[i];
    if (choice === undefined) return element("div");
    const rules = rulesOf(kinds, choice.format);
    const take = (next: Choice) => this.#changed(choices.with(i, next));
    const control = <K extends keyof Choice>(key: K, title: string, options: Choice[K][]) => {
      const label = select(title, options.map((name) => [name, name]), (value) => {
        const found = options.find((name) => name === value);
        if (found !== undefined) take(allowed(kinds, { ...choice, [key]: found }));
      });
      const list = label.querySelector("select");
      if (list) {
        list.id = `try-${i}-${key}`;
        list.value = choice[key];
      }
      return label;
    };
    const drop = button("Remove", `Remove choice ${i + 1}`, () => this.#changed(choices.toSpliced(i, 1)));
    drop.disabled = choices.length === 1;
    const mark = element("span", { class: "swatch", "aria-hidden": "true" });
    mark.style.background = `var(${COLOURS[i]})`;
    return element(
      "fieldset",
      { class: "controls" },
      element("legend", { class: "hidden" }, `Choice ${i + 1}`),
      mark,
      control("format", "Format", FORMATS),
      control("rule", "Scale rule", rules),
      control("transform", "Transform", kinds.transforms.map(({ name }) => name)),
      drop,
    );
  }
}

/** The choice, with a rule that its format has. */
function allowed(kinds: Kinds, choice: Choice): Choice {
  const rules = rulesOf(kinds, choice.format);
  return rules.includes(choice.rule) ? choice : { ...choice, rule: rules[0] ?? choice.rule };
}
