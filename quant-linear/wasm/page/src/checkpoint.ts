// One checkpoint: what is wrong with it, its tensors, and the pictures of `fp4 report`.

import { Choice } from "report/choice";
import { isLayer } from "report/data";
import { type Child, button, element, scrolled, section, table } from "report/dom";
import { fill } from "report/show";
import { bytes, count, counted } from "report/text";
import type { Contents, Finding, Verification } from "exact-fp4";
import type { Held } from "./slots";
import type { App, View } from "./view";
import { reason } from "./work";

/** What reports call a layer whose tensors have no prefix. */
const NAMELESS = "(no prefix)";
/** More bytes than this are read when one asks for it. */
const AT_ONCE = 512 * 2 ** 20;
/** Tensors and findings drawn at a time. */
const FIRST = 300;

export function checkpoint(app: App): View {
  const root = element("div");
  let shown = 0;
  let complete = false;

  const read = async (held: Held, place: HTMLElement, wrong: Findings) => {
    place.replaceChildren(element("p", { class: "dim" }, "Reading codes and scales."));
    wrong.wait();
    try {
      await app.work.run(`Reading ${held.name}`, async (progress) => {
        const report = await app.files.call("report", { b: false }, progress);
        if (shown !== held.id) return;
        const choice = new Choice();
        const layers = report.rows.filter(isLayer);
        fill(report, place, choice, inside(app, choice));
        choice.choose(layers.find(({ name }) => name === app.address.get("layer")) ?? null);
        choice.follow((layer) => app.address.set({ layer: layer?.name ?? null }));
        wrong.show(await app.files.call("verify", { slot: "a" }, progress));
        complete = true;
      });
    } catch (error) {
      if (shown !== held.id) return;
      const why = reason(error);
      wrong.fail(why);
      const again = button("Read it again", null, () => void read(held, place, wrong));
      const text = element("p", { role: "alert", class: "wrong" }, why, " ", again);
      if (place.querySelector("figure") === null) place.replaceChildren(text);
    }
  };

  const open = (held: Held) => {
    const wrong = new Findings();
    const place = element("div", { class: "report" });
    const size = held.opened.files.reduce((sum, file) => sum + file.bytes, 0);
    root.replaceChildren(wrong.root, tensors(app, held.opened), place);
    if (size <= AT_ONCE) {
      void read(held, place, wrong);
      return;
    }
    wrong.fail(`Not looked for yet: all of ${bytes(size)} is read for it.`);
    place.replaceChildren(button(`Read all ${bytes(size)}`, null, () => void read(held, place, wrong)));
  };

  return {
    root,
    show() {
      const held = app.slots.get("a");
      if (held === undefined) {
        shown = 0;
        root.replaceChildren(welcome(app.address.get("a")));
        return;
      }
      app.address.set({ view: "checkpoint", a: held.name });
      // What was given up is done again.
      if (shown === held.id && (complete || app.files.busy)) return;
      [shown, complete] = [held.id, false];
      open(held);
    },
  };
}

/** Before there is a file. */
export function welcome(name: string | null): HTMLElement {
  const wanted = name === null ? [] : [element("p", { class: "wanted" }, "This address is a view of ", element("code", {}, name), ": give that file, and it is shown.")];
  const list = element("ul");
  for (const text of [
    "A dense model: choose a format, a scale rule and a transform for a tensor, and see what is lost and where.",
    "An FP4 model, in any layout that the library reads: its codes and scales, and what is wrong with it.",
    "Two of them: how far they are apart, layer by layer.",
    "No file: what a number becomes, how a product is summed, where a scale lies in memory.",
  ]) {
    list.append(element("li", {}, text));
  }
  const made = section("What there is to see", null, ...wanted, list);
  made.classList.add("welcome");
  return made;
}

/** A line above the pictures: from the layer that is chosen there to what is inside it. */
export function inside(app: App, choice: Choice): HTMLElement {
  // A report's names are for people: a long one has lost its middle.
  const named = () => {
    const name = choice.layer?.name === NAMELESS ? "" : choice.layer?.name;
    return app.slots.get("a")?.opened.layers.find((layer) => layer.name === name);
  };
  const go = button("Look inside the chosen layer", null, () => {
    const layer = named();
    if (layer) app.address.go("tensor", { name: layer.name, matrix: null });
  });
  choice.follow(() => (go.disabled = named() === undefined));
  return element("p", { class: "inside" }, go);
}

/** The list of all tensors; layers first, each opens its own view. */
function tensors(app: App, opened: Contents): HTMLElement {
  const to = (name: string) => button(name === "" ? NAMELESS : name, null, () => app.address.go("tensor", { name, matrix: null }));
  const all: { name: string; cells: Child[]; link: boolean }[] = [
    ...opened.layers.map(({ name, layout, format, shape, bytes: size }) => ({
      name,
      cells: [`${format.toUpperCase()} layer, ${layout}`, shape.join(" × "), bytes(size)],
      link: true,
    })),
    ...opened.tensors.map(({ name, dtype, shape, bytes: size, dense }) => ({
      name,
      cells: [dtype, shape.join(" × "), bytes(size)],
      link: dense,
    })),
  ];
  const place = element("div", { class: "list" });
  const found = element("p", { class: "readout dim", "aria-live": "polite" });
  const filter = element("input", { type: "search", placeholder: "part of a name", autocomplete: "off" });
  const draw = () => {
    const wanted = filter.value.toLowerCase();
    const matching = all.filter(({ name }) => name.toLowerCase().includes(wanted));
    const lines = matching.slice(0, FIRST).map(({ name, cells, link }): Child[] => [link ? to(name) : name, ...cells]);
    const more = matching.length > FIRST ? `, the first ${FIRST} shown` : "";
    found.textContent = `${count(matching.length)} of ${count(all.length)}${more}`;
    const columns = [{ title: "Name" }, { title: "Type" }, { title: "Shape", numeric: true }, { title: "Size", numeric: true }];
    place.replaceChildren(table("Layers and tensors", columns, lines));
  };
  filter.addEventListener("input", () => {
    app.address.set({ filter: filter.value === "" ? null : filter.value });
    draw();
  });
  filter.value = app.address.get("filter") ?? "";
  draw();
  const label = element("label", { class: "choice" }, element("span", {}, "Filter"), filter);
  return section("Layers and tensors", "A layer opens what is inside it; a dense matrix opens a trial of formats.", element("div", { class: "controls" }, label, found), place);
}

/** What `fp4 verify` finds, in a box of one size. */
class Findings {
  readonly root: HTMLElement;
  readonly #said = element("p", { class: "readout", "aria-live": "polite" });
  readonly #list = element("div", { class: "findings" });

  constructor() {
    this.root = section("What is wrong", null, this.#said, this.#list);
    this.root.classList.add("verified");
  }

  wait(): void {
    this.#said.textContent = "Every code and scale byte is being looked at.";
    this.#list.replaceChildren();
  }

  fail(why: string): void {
    this.#said.textContent = why;
  }

  show({ findings, errors, warnings, layers }: Verification): void {
    this.root.classList.toggle("problems", errors > 0);
    this.#said.textContent =
      findings.length === 0
        ? `Nothing, in ${counted(layers, "layer")}.`
        : `${counted(errors, "error")}, ${counted(warnings, "warning")}, in ${counted(layers, "layer")}.`;
    const list = element("ul", { class: "names" });
    for (const finding of findings.slice(0, FIRST)) list.append(line(finding));
    if (findings.length > FIRST) list.append(element("li", { class: "dim" }, `and ${count(findings.length - FIRST)} more`));
    this.#list.replaceChildren(findings.length === 0 ? "" : scrolled("Findings", list));
  }
}

function line({ severity, kind, module, message }: Finding): HTMLElement {
  const where = module === null ? [] : [element("code", {}, module), ": "];
  return element("li", {}, element("strong", { class: severity }, severity), ` ${kind}: `, ...where, message);
}
