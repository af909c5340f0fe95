// The one long computation at a time: a strip at the lower edge says how far it is, and cancels it.

import { button, element } from "report/dom";
import { printable } from "report/text";
import { type Client, Cancelled, type Progress } from "./client";

/** Milliseconds before the strip shows: what is quick does not flicker. */
const PATIENCE = 150;

export class Work {
  readonly strip: HTMLElement;
  readonly #client: Client;
  readonly #bar = element("progress", { max: "1" });
  readonly #what = element("span", { class: "what" });
  /** What is read out: that something is computed, and not every step of it. */
  readonly #told = element("span", { class: "hidden", role: "status" });
  #running = 0;

  constructor(client: Client) {
    this.#client = client;
    this.#bar.setAttribute("aria-label", "Progress");
    const cancel = button("Cancel", null, () => this.cancel());
    this.strip = element("div", { class: "work", hidden: true }, this.#told, this.#what, this.#bar, cancel);
    this.#tell(false);
  }

  /** Gives up what is being computed; its caller is told `Cancelled`. */
  cancel(): void {
    if (this.#client.busy) this.#client.cancel();
  }

  /** Runs `task`, instead of what is still running. */
  async run<T>(title: string, task: (progress: Progress) => Promise<T>): Promise<T> {
    this.cancel();
    const mine = ++this.#running;
    this.#what.textContent = printable(title);
    this.#bar.removeAttribute("value");
    this.#tell(true);
    const shown = setTimeout(() => {
      this.strip.hidden = false;
      this.#told.textContent = printable(title);
    }, PATIENCE);
    try {
      return await task((done, total, name) => {
        if (mine !== this.#running) return;
        this.#bar.value = total > 0 ? done / total : 0;
        this.#what.textContent = printable(name === "" ? title : `${title}: ${name}`);
      });
    } finally {
      clearTimeout(shown);
      if (mine === this.#running) {
        this.strip.hidden = true;
        this.#told.textContent = "";
        this.#tell(false);
      }
    }
  }

  /** For those who wait for the end, tests among them. */
  #tell(busy: boolean): void {
    this.strip.dataset["busy"] = String(busy);
  }
}

/** What to show for a failure. */
export function reason(error: unknown): string {
  if (error instanceof Cancelled) return "Cancelled. What was shown before may be incomplete.";
  return printable(error instanceof Error ? error.message : String(error));
}
