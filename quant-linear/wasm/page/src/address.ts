// The state of the page is in its address, behind the `#`, so that a view can be shared, kept and
// gone back to: `#view=numbers&x=0.75`. A file itself cannot be in it; its name is.

/** What is changed: null takes a parameter away. */
export type Changes = Record<string, string | string[] | null>;

/** Milliseconds after the last change until it is in the address: browsers count its changes, and
 * stop those of who makes too many. */
const LATE = 300;

const FIRST_VIEW = "checkpoint";

export class Address {
  readonly #told: (() => void)[] = [];
  /** The parameters as they are; the address has them a little later. */
  #now = new URLSearchParams(location.hash.slice(1));
  /** What the address had when it was last read or written. */
  #seen = location.hash;
  #late: ReturnType<typeof setTimeout> | undefined;
  /** The parameters of each view, as it was left. */
  readonly #left = new Map<string, URLSearchParams>();

  constructor() {
    addEventListener("hashchange", () => {
      clearTimeout(this.#late);
      this.#seen = location.hash;
      this.#now = new URLSearchParams(location.hash.slice(1));
      this.#tell();
    });
    addEventListener("pagehide", () => this.#write());
  }

  get(key: string): string | null {
    return this.#now.get(key);
  }

  all(key: string): string[] {
    return this.#now.getAll(key);
  }

  /** A whole number from `low` to `high`; `otherwise` where there is none. */
  number(key: string, low: number, high: number, otherwise: number): number {
    const text = this.get(key) ?? "";
    const value = Number(text);
    return /^\d+$/.test(text) && value >= low && value <= high ? value : otherwise;
  }

  /** Changes some of it, in place: what is typed is no step to go back to. */
  set(changes: Changes): void {
    const before = String(this.#now);
    change(this.#now, changes);
    if (String(this.#now) === before) return;
    clearTimeout(this.#late);
    this.#late = setTimeout(() => this.#write(), LATE);
  }

  /** Goes to a view, which is as it was left but for the changes. */
  go(view: string, changes: Changes = {}): void {
    this.#write();
    this.#left.set(this.get("view") ?? FIRST_VIEW, new URLSearchParams(this.#now));
    this.#now = new URLSearchParams(this.#left.get(view));
    change(this.#now, { view, ...changes });
    history.pushState(null, "", `#${this.#now}`);
    this.#seen = location.hash;
    this.#tell();
  }

  /** Calls at every step to another view, or back. */
  follow(tell: () => void): void {
    this.#told.push(tell);
  }

  #tell(): void {
    for (const tell of this.#told) tell();
  }

  #write(): void {
    clearTimeout(this.#late);
    // Another address was gone to, and is yet to be told of.
    if (location.hash !== this.#seen || location.hash === `#${this.#now}`) return;
    if (this.#seen === "" && String(this.#now) === "") return;
    history.replaceState(null, "", `#${this.#now}`);
    this.#seen = location.hash;
  }
}

function change(parameters: URLSearchParams, changes: Changes): void {
  for (const [key, value] of Object.entries(changes)) {
    parameters.delete(key);
    for (const each of value === null ? [] : [value].flat()) parameters.append(key, each);
  }
}
