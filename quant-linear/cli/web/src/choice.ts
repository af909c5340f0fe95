// Which layer is looked at: one of the report's, or all of them together.

import type { Layer } from "./data";

export class Choice {
  #layer: Layer | null = null;
  #told: ((layer: Layer | null) => void)[] = [];

  get layer(): Layer | null {
    return this.#layer;
  }

  /** Looks at a layer; null for all of them. */
  choose(layer: Layer | null): void {
    if (layer === this.#layer) return;
    this.#layer = layer;
    for (const tell of this.#told) tell(layer);
  }

  /** Calls now, and after every change. */
  follow(tell: (layer: Layer | null) => void): void {
    this.#told.push(tell);
    tell(this.#layer);
  }
}
