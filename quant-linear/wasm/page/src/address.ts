// The state of the page is in its address, behind the `#`, so that a view can be shared, kept and
// gone back to: `#view=numbers&x=0.75`. A file itself cannot be in it; its name is.

export class Address {
  #told: (() => void)[] = [];

  constructor() {
    addEventListener("hashchange", () => this.#tell());
  }

  get(key: string): string | null {
    return this.#parameters().get(key);
  }

  all(key: string): string[] {
    return this.#parameters().getAll(key);
  }

  /** A whole number from `low` to `high`; `otherwise` where there is none. */
  number(key: string, low: number, high: number, otherwise: number): number {
    const text = this.get(key) ?? "";
    const value = Number(text);
    return /^\d+$/.test(text) && value >= low && value <= high ? value : otherwise;
  }

  /** Changes some of it, in place: what is typed is no step to go back to. */
  set(changes: Record<string, string | string[] | null>): void {
    const parameters = this.#parameters();
    for (const [key, value] of Object.entries(changes)) {
      parameters.delete(key);
      for (const each of value === null ? [] : [value].flat()) parameters.append(key, each);
    }
    history.replaceState(null, "", `#${parameters}`);
  }

  /** Goes to another view. */
  go(parameters: Record<string, string | string[] | null>): void {
    history.pushState(null, "", "#");
    this.set(parameters);
    this.#tell();
  }

  /** Calls at every step to another view, or back. */
  follow(tell: () => void): void {
    this.#told.push(tell);
  }

  #tell(): void {
    for (const tell of this.#told) tell();
  }

  #parameters(): URLSearchParams {
    return new URLSearchParams(location.hash.slice(1));
  }
}
