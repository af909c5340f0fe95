// What was tried of one tensor: another choice beside it costs only itself.

import type { Trial } from "exact-fp4";
import { type Choice, written } from "./choices";

export class Tried {
  #of = "";
  readonly #trials = new Map<string, Trial>();

  /** Forgets what is of another tensor. */
  of(tensor: string): void {
    if (tensor !== this.#of) this.#trials.clear();
    this.#of = tensor;
  }

  /** The trials of choices: those that are not there are made, one by one, and told of. */
  async all(
    choices: Choice[],
    make: (choice: Choice) => Promise<Trial>,
    made: (first: Trial[]) => void,
  ): Promise<void> {
    const found: Trial[] = [];
    for (const choice of choices) {
      const key = written(choice);
      const known = this.#trials.get(key);
      const trial = known ?? (await make(choice));
      this.#trials.set(key, trial);
      found.push(trial);
      if (known === undefined || found.length === choices.length) made([...found]);
    }
  }
}
